"""The gate's reading of functional groups: as a library reads them, and nothing is overlooked."""

from __future__ import annotations

import struct
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.uid import ImplicitVRLittleEndian

from dicom_gateway.encode.gate.groups import read_groups
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import ObjectKind, Result, Volume
from tests.support.results import a_volume, pass_gate, random_lungs, results_of

SEG = ObjectKind.SEGMENTATION
PER_FRAME = 0x52009230


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Volume, Result]:
    """A volume and a right SEG on it."""
    folder = tmp_path_factory.mktemp("groups")
    volume = a_volume(folder)
    return volume, results_of(random_lungs(volume, 3), volume, folder, (SEG,))[SEG]


def test_they_are_read_as_pydicom_reads_them(made: tuple[Volume, Result]) -> None:
    """Every frame, every value."""
    groups = read_groups(pydicom.dcmread(made[1].path))
    ds = pydicom.dcmread(made[1].path)
    (shared,) = ds.SharedFunctionalGroupsSequence
    assert len(groups) == ds.NumberOfFrames > 2
    for ours, theirs in zip(groups, ds.PerFrameFunctionalGroupsSequence, strict=True):
        assert list(ours.position) == theirs.PlanePositionSequence[0].ImagePositionPatient
        assert list(ours.spacing) == shared.PixelMeasuresSequence[0].PixelSpacing
        orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        assert list(ours.orientation) == orientation
        identified = theirs.SegmentIdentificationSequence[0]
        assert ours.segment == identified.ReferencedSegmentNumber
        assert list(ours.index) == theirs.FrameContentSequence[0].DimensionIndexValues
        (source,) = theirs.DerivationImageSequence[0].SourceImageSequence
        named = source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID, None
        assert ours.sources == (named,)


def _changed(ds: Dataset, change: object) -> None:
    raw = ds.get_item(PER_FRAME)
    assert isinstance(raw, RawDataElement)
    assert isinstance(raw.value, bytes)
    value = change(raw.value)  # type: ignore[operator]
    assert value != raw.value
    ds[PER_FRAME] = raw._replace(value=value, length=len(value))


def _position_again(value: bytes) -> bytes:
    """The first item gets its last element a second time."""
    (length,) = struct.unpack_from("<L", value, 4)
    item = value[8 : 8 + length]
    again = item[item.index(struct.pack("<HH2s", 0x0062, 0x000A, b"SQ")) :]
    grown = item + again
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(grown)) + grown + value[8 + length :]


BROKEN = {
    "cut short": lambda value: value[:-2],
    "something behind": lambda value: value + b"\0\0",
    "another item's tag": lambda value: b"\xfe\xff\x0d\xe0" + value[4:],
    "unknown length": lambda value: value[:4] + b"\xff\xff\xff\xff" + value[8:],
    "an element twice": _position_again,
    "a number as text": lambda value: value.replace(b"\x62\x00\x0b\x00US", b"\x62\x00\x0b\x00SS"),
    "another keyword": lambda value: value.replace(b"\x20\x00\x32\x00DS", b"\x20\x00\x30\x00DS"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_written_as_it_should_be_is_an_error(
    made: tuple[Volume, Result], name: str
) -> None:
    """A viewer might read it in another way."""
    ds = pydicom.dcmread(made[1].path)
    _changed(ds, BROKEN[name])
    with pytest.raises((ValueError, LookupError, struct.error)):
        read_groups(ds)


def test_another_transfer_syntax_is_held(made: tuple[Volume, Result], tmp_path: Path) -> None:
    """It isn't what we write."""
    volume, result = made
    ds = pydicom.dcmread(result.path)
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    path = tmp_path / "implicit.dcm"
    ds.save_as(path, implicit_vr=True, little_endian=True)
    other = Result(result.sop_instance_uid, result.sop_class_uid, result.job_id, "MASK", path, 0)
    with pytest.raises(EncodingFailed, match="can't be read again"):
        pass_gate(other, random_lungs(volume, 3), volume)
