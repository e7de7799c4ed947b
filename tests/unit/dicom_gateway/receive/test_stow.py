"""Objects in a multipart body: kept as by C-STORE, and refused with the same statuses."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, generate_uid

from dicom_gateway.errors import (
    BadRequest,
    DatabaseUnavailable,
    RequestTooLarge,
    UnsupportedMedia,
)
from dicom_gateway.receive.stow import BodyIntake, BodyLimits
from dicom_gateway.records import Arrival, Instance, Reception
from tests.support.dicom import CANARY, a_ct_series, as_file_bytes, encoded
from tests.support.dicomweb import multipart
from tests.support.gateway import Keeping, a_store

LIMITS = BodyLimits(request_bytes=1 << 24, part_bytes=1 << 20, part_memory_bytes=4096)


class Intake:
    """An intake on a real store, and what it told of the end of bodies."""

    def __init__(self, keeping: Keeping, keep: Callable[[Arrival], Instance] | None = None) -> None:
        self.keeping = keeping
        self.ended: list[bool] = []
        self.intake = BodyIntake(
            keeping.folder / "incoming",
            keep or keeping.store.keep,
            lambda _, in_order: self.ended.append(in_order),
        )

    def take(
        self,
        parts: list[bytes],
        *,
        limits: BodyLimits = LIMITS,
        study: str | None = None,
        piece_bytes: int = 1000,
    ) -> Reception:
        """Feeds a whole body, piece by piece."""
        data, headers = multipart(parts)
        body = self.intake.open(
            headers["Content-Type"],
            called_ae_title="LUNG",
            calling_ae_title="WEB",
            limits=limits,
            study_instance_uid=study,
        )
        try:
            for start in range(0, len(data), piece_bytes):
                body.feed(data[start : start + piece_bytes])
            return body.finish()
        finally:
            body.abort()


def files_of(series: list[Dataset]) -> list[bytes]:
    """As PS3.10 files."""
    return [as_file_bytes(ds) for ds in series]


def test_objects_are_kept_byte_for_byte(tmp_path: Path) -> None:
    """Small ones in memory, large ones by way of the disk; nothing else is left there."""
    series = a_ct_series(frames=2, rows=16, columns=16)
    series += a_ct_series(frames=1, rows=256, columns=256)
    with a_store(tmp_path) as keeping:
        intake = Intake(keeping)
        reception = intake.take(files_of(series))
        kept = {one.sop_instance_uid: one.path.read_bytes() for one in reception.kept}
        there = keeping.files()
        title = keeping.index.load_series(str(series[0].SeriesInstanceUID), "LUNG")

    assert reception.refused == ()
    assert [str(ds.SOPInstanceUID) for ds in series] == list(kept)
    assert all(kept[ds.SOPInstanceUID].endswith(encoded(ds)) for ds in series)
    assert len(there) == len(series)
    assert intake.ended == [True]
    assert title.calling_ae_title == "WEB"


def test_each_refusal_has_the_status_of_c_store_and_the_others_are_kept(tmp_path: Path) -> None:
    """One bad part costs no other one anything."""
    study = generate_uid()
    series = a_ct_series(frames=7, rows=8, columns=8, study_instance_uid=study)
    good, mismatch, deflated, directory, bare, large, stranger = series
    mismatch.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    stranger.StudyInstanceUID = generate_uid()
    parts = [_raw(ds) for ds in series]
    parts[4] = encoded(bare)
    parts[5] += bytes(LIMITS.part_bytes)
    with a_store(tmp_path) as keeping:
        intake = Intake(keeping)
        reception = intake.take([*parts, parts[0]], study=str(study))

    assert {one.sop_instance_uid for one in reception.kept} == {str(good.SOPInstanceUID)}
    assert [(one.code, one.status) for one in reception.refused] == [
        ("identifier_mismatch", 0xA900),
        ("transfer_syntax_not_taken", 0xC122),
        ("sop_class_not_taken", 0x0122),
        ("no_part10_header", 0xC000),
        ("too_large", 0xA700),
        ("identifier_mismatch", 0xA900),
    ]
    assert reception.refused[3].sop_instance_uid is None
    assert reception.refused[4].sop_instance_uid == str(large.SOPInstanceUID)
    assert CANARY not in str(reception.refused)


def _raw(ds: Dataset) -> bytes:
    """The file as somebody wrote it whose file meta information isn't true."""
    from pydicom.filebase import DicomBytesIO  # noqa: PLC0415
    from pydicom.filewriter import write_file_meta_info  # noqa: PLC0415

    out = DicomBytesIO()
    out.write(bytes(128) + b"DICM")
    write_file_meta_info(out, ds.file_meta, enforce_standard=False)
    syntax, ds.file_meta.TransferSyntaxUID = ds.file_meta.TransferSyntaxUID, "1.2.840.10008.1.2.1"
    data = encoded(ds)
    ds.file_meta.TransferSyntaxUID = syntax
    return out.getvalue() + data


def test_trouble_of_ours_is_answered_and_logged_without_the_patient(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The index away: out of resources; anything else: cannot understand."""
    errors = [DatabaseUnavailable("away"), ValueError(CANARY)]

    def keep(_: Arrival) -> Instance:
        raise errors.pop(0)

    with a_store(tmp_path) as keeping:
        reception = Intake(keeping, keep).take(files_of(a_ct_series(frames=2)))

    assert [one.status for one in reception.refused] == [0xA700, 0xC000]
    written = capsys.readouterr()
    assert "ValueError" in written.out + written.err
    assert CANARY not in written.out + written.err + str(reception)


def test_a_part_that_the_disk_does_not_take_costs_no_other_one_anything(tmp_path: Path) -> None:
    """Out of resources, also where the rest of it fails once more when its file is closed."""
    large = a_ct_series(frames=1, rows=2048, columns=1536)
    small = a_ct_series(frames=2, rows=8, columns=8)
    limits = BodyLimits(request_bytes=1 << 24, part_bytes=1 << 24, part_memory_bytes=4096)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with a_store(tmp_path) as keeping:
        intake = Intake(keeping)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, before[1]))
        try:
            reception = intake.take(files_of([small[0], *large, small[1]]), limits=limits)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert [one.status for one in reception.refused] == [0xA700]
    assert [one.sop_instance_uid for one in reception.kept] == [
        str(ds.SOPInstanceUID) for ds in small
    ]
    assert intake.ended == [True]


def test_a_body_that_breaks_off_keeps_what_came_whole(tmp_path: Path) -> None:
    """And its series know that more was meant to come."""
    series = a_ct_series(frames=2)
    data, headers = multipart(files_of(series))
    with a_store(tmp_path) as keeping:
        intake = Intake(keeping)
        body = intake.intake.open(
            headers["Content-Type"], called_ae_title="LUNG", calling_ae_title="W", limits=LIMITS
        )
        body.feed(data[:-200])
        with pytest.raises(BadRequest, match="before its closing boundary; 1 object") as cut:
            body.finish()
        files = keeping.files()

    assert cut.value.code == "cut_off"
    assert len(files) == 1
    assert intake.ended == [False]


def test_a_body_has_limits(tmp_path: Path) -> None:
    """Of bytes; and it must have a part at all."""
    small = BodyLimits(request_bytes=3000, part_bytes=2000, part_memory_bytes=4096)
    with a_store(tmp_path) as keeping:
        intake = Intake(keeping)
        with pytest.raises(RequestTooLarge):
            intake.take(files_of(a_ct_series(frames=2)), limits=small)
        with pytest.raises(BadRequest, match="no part"):
            intake.take([])
        assert keeping.files() == []
    assert intake.ended == []


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/dicom",
        "multipart/form-data; boundary=x",
        'multipart/related; type="application/dicom+json"; boundary=x',
    ],
)
def test_other_media_types_are_refused(tmp_path: Path, content_type: str) -> None:
    """With a sentence of what to send instead."""
    with a_store(tmp_path) as keeping, pytest.raises(UnsupportedMedia, match="application/dicom"):
        Intake(keeping).intake.open(
            content_type, called_ae_title="LUNG", calling_ae_title="W", limits=LIMITS
        )
