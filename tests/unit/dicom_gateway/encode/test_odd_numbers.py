"""A number that nothing depends on may be none, and the study has its results."""

from __future__ import annotations

import struct
from pathlib import Path

import pydicom
import pytest

from dicom_gateway.records import ObjectKind
from tests.support.dicom import a_ct_series
from tests.support.results import a_volume, pixels_of, results_of
from tests.support.series import two_boxes

PLACEHOLDER = {
    "SeriesNumber": "12345678",
    "SliceThickness": "1.234567",
    "LossyImageCompressionRatio": "7.654321",
    "InstanceNumber": "87654321",
    "AcquisitionNumber": "11223344",
    "PatientSize": "1.717171",
    "PatientWeight": "71.71717",
}
"""Of eight characters, to be found in a file."""

ODD = [b"A23456  ", b"2.5 mm  ", b"3\\4     ", b"nan     ", b"\xff" * 8]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about such values


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("keyword", PLACEHOLDER)
def test_results_are_made_all_the_same(tmp_path: Path, keyword: str, odd: bytes) -> None:
    """Of all kinds, as if it weren't there."""
    series = a_ct_series(5, rows=23, columns=29)
    for ds in series:
        ds.LossyImageCompression = "01"
        setattr(ds, keyword, PLACEHOLDER[keyword])
    volume = a_volume(tmp_path, series)
    for path in volume.headers:
        data = path.read_bytes()
        assert data.count(PLACEHOLDER[keyword].encode()) == 1
        path.write_bytes(data.replace(PLACEHOLDER[keyword].encode(), odd))
    made = results_of(two_boxes(volume), volume, tmp_path, pixels=pixels_of(volume))
    assert set(made) == set(ObjectKind)
    ds = pydicom.dcmread(made[ObjectKind.SEGMENTATION].path)
    assert "PatientWeight" not in ds
    if keyword == "SeriesNumber":
        assert ds.SeriesNumber == (1003 if odd.startswith(b"3") else 1000)
    if keyword == "SliceThickness":
        measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        assert measures.SliceThickness == 2.5  # the distance between slices


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_number_of_frames_is_one(tmp_path: Path, odd: bytes) -> None:
    """As the volume was assembled; that they lie where it does is what is held against it."""
    series = a_ct_series(5, rows=23, columns=29)
    for ds in series:
        ds.NumberOfFrames = 1
    volume = a_volume(tmp_path, series)
    element = struct.pack("<HH2sH", 0x28, 0x08, b"IS", 2)
    for path in volume.headers:
        head, behind = path.read_bytes().split(element)
        path.write_bytes(head + element[:6] + struct.pack("<H", len(odd)) + odd + behind[2:])
    kinds = set(ObjectKind) - {ObjectKind.SECONDARY_CAPTURE}
    assert set(results_of(two_boxes(volume), volume, tmp_path, kinds)) == kinds
