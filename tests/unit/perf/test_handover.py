"""The handover beside decoding; the gateway itself is in the system tests."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

from dicom_gateway.assemble.decoders import DecoderPool
from perf.handover import NAMES, PACES, Handovers, decoding_s, write_compressed
from tests.support.dicom import a_ct_series, write_series


def test_the_share_of_decoding_is_shown_for_each_transfer_syntax_and_pace() -> None:
    """At most a tenth of the time that decoding takes may be left after the last instance."""
    as_fast_as_it_goes, paced = PACES
    rounds = {
        (ExplicitVRLittleEndian, as_fast_as_it_goes): [(1.0, 0.05), (2.0, 0.1), (4.0, 2.0)],
        (JPEG2000Lossless, paced): [(10.0, 2.0), (20.0, 4.0), (40.0, 8.0)],
    }
    found = Handovers("chest", rounds).found()
    assert [(one.found, one.wanted, one.holds, one.n) for one in found.shown] == [
        (pytest.approx(0.05), 0.1, True, 3),
        (pytest.approx(0.2), 0.1, False, 3),
    ]
    assert [one.name for one in found.measurements] == [
        "handover, chest: uncompressed, decoding alone",
        "handover, chest: uncompressed, tritome's last arrival to request",
        "handover, chest: JPEG 2000, 20 a second, decoding alone",
        "handover, chest: JPEG 2000, 20 a second, tritome's last arrival to request",
    ]
    assert [one.median_s for one in found.measurements] == [2.0, 0.1, 20.0, 4.0]


def test_every_transfer_syntax_is_written_anew_and_can_be_decoded(tmp_path: Path) -> None:
    """The series is new in each, and all of its frames reach shared memory."""
    write_series(tmp_path / "study", a_ct_series(frames=2))
    series = set()
    with DecoderPool() as decoders:
        for number, syntax in enumerate(NAMES):
            paths = write_compressed(tmp_path / "study", tmp_path / str(number), syntax)
            headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
            assert {one.file_meta.TransferSyntaxUID for one in headers} == {syntax}
            series |= {one.SeriesInstanceUID for one in headers}
            assert decoding_s(paths, decoders) > 0
    assert len(series) == len(NAMES)
