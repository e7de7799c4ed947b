"""Headers of damaged files: a header, or a refusal by name, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_gateway.assemble import elements
from dicom_gateway.assemble.elements import UNREADABLE
from dicom_gateway.assemble.frames import frames_of
from dicom_gateway.assemble.headers import Header, _read, _walked, read_header
from dicom_gateway.assemble.split import split
from dicom_gateway.assemble.stack import stack_frames
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.route.tags import read_header as read_tags
from tests.support.dicom import a_ct_series, an_enhanced_series, write_series

PREAMBLE_BYTES = 132


@pytest.mark.filterwarnings("ignore")  # pydicom's own, about what it finds odd
@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_any_damaged_byte_reads_or_is_refused(tmp_path: Path, transfer_syntax: str) -> None:
    """Every byte of a header in turn is flipped."""
    series = a_ct_series(1, rows=4, columns=4, transfer_syntax_uid=transfer_syntax)
    (path,) = write_series(tmp_path, series)
    whole = path.read_bytes()
    refused = 0
    for place in range(PREAMBLE_BYTES, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF if place % 2 else 0x21
        path.write_bytes(damaged)
        try:
            assert read_header(path).path == path
        except UnusableSeries:
            refused += 1
    assert refused


@pytest.mark.filterwarnings("ignore")  # pydicom's own, about what it finds odd
@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_is_walked_past_is_what_pydicom_reads(tmp_path: Path, transfer_syntax: str) -> None:
    """The two ways to a header differ in time only, also where a byte is wrong."""
    series = a_ct_series(1, rows=4, columns=4, transfer_syntax_uid=transfer_syntax)
    (path,) = write_series(tmp_path, series)
    assert _walked(path) == _read(path)
    whole = path.read_bytes()
    walked = 0
    for place in range(PREAMBLE_BYTES, len(whole) - 2 * 4 * 4):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF if place % 2 else 0x21
        path.write_bytes(damaged)
        quick, plain = _either(_walked, path), _either(_read, path)
        if quick is not None and plain is not None:
            assert quick == plain, f"byte {place}"
            walked += 1
    assert walked > 100


def _either(way: Callable[[Path], Header | None], path: Path) -> Header | None:
    try:
        return way(path)
    except UNREADABLE:
        return None


def test_what_needs_a_character_set_is_left_to_pydicom(tmp_path: Path) -> None:
    """A name of a stack in Cyrillic, say."""
    series = a_ct_series(1, rows=4, columns=4)
    series[0].SpecificCharacterSet = "ISO_IR 144"
    series[0].StackID = "стопка"
    (path,) = write_series(tmp_path, series)
    assert _walked(path) is None
    assert dict(read_header(path).traits)["stack"] == "стопка"


def test_what_no_image_has_is_refused_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short value of a hundred kilobytes, or elements without end: neither stays in memory."""
    series = a_ct_series(1, rows=4, columns=4, transfer_syntax_uid=ImplicitVRLittleEndian)
    (path,) = write_series(tmp_path, series)
    assert read_header(path).rows == 4
    with monkeypatch.context() as few:
        few.setattr("dicom_gateway.walk._ELEMENTS_LIMIT", 20)
        with pytest.raises(UnusableSeries, match="as no image has them"):
            read_header(path)
    series[0].ViewPosition = "A" * 100_000
    (path,) = write_series(tmp_path, series)
    with pytest.raises(UnusableSeries, match="as no image has them"):
        read_header(path)


def _with_items(folder: Path, count: int, how: str) -> Path:
    """A slice with a sequence of empty items before its pixels."""
    (path,) = write_series(folder, a_ct_series(1, rows=4, columns=4))
    whole = path.read_bytes()
    pixels = whole.index(b"\xe0\x7f\x10\x00OW")
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * count
    length = 0xFFFFFFFF if how == "undefined length" else len(items)
    sequence = b"\x28\x00\x00\x30SQ\0\0" + length.to_bytes(4, "little") + items
    if how == "undefined length":
        sequence += b"\xfe\xff\xdd\xe0\0\0\0\0"
    if how == "behind an oddity":  # an element that should have come before
        sequence = b"\x28\x00\x02\x00US\x02\0\x01\0" + sequence
    path.write_bytes(whole[:pixels] + sequence + whole[pixels:])
    return path


@pytest.mark.parametrize("how", ["explicit length", "undefined length", "behind an oddity"])
def test_a_file_that_is_filled_with_items_is_refused_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Each of them would take a hundred times the memory that it takes on the disk."""
    monkeypatch.setattr("dicom_gateway.walk.ITEMS_LIMIT", 50)
    assert read_header(_with_items(tmp_path, 50, how)).rows == 4
    assert len(read_tags(_with_items(tmp_path, 50, how)))
    path = _with_items(tmp_path, 51, how)
    with pytest.raises(UnusableSeries, match="as no image has them"):
        read_header(path)
    assert not len(read_tags(path))


def test_a_long_value_is_not_remembered(tmp_path: Path) -> None:
    """What is converted once for a series is short; the rest of it has no place in memory."""

    def remembered(view_position: str) -> int:
        series = a_ct_series(1, rows=4, columns=4, transfer_syntax_uid=ImplicitVRLittleEndian)
        series[0].ViewPosition = view_position
        (path,) = write_series(tmp_path, series)
        read_header(path)
        before = elements._converted.cache_info().hits
        assert read_header(path).view_position == view_position[:16]
        return elements._converted.cache_info().hits - before

    assert remembered("LONG" * 1000) == remembered("AP") - 1


@pytest.mark.filterwarnings("ignore")  # pydicom's own, about what it finds odd
def test_any_damaged_functional_group_reads_or_is_refused(tmp_path: Path) -> None:
    """Every eleventh byte of an enhanced object's header in turn; the rest is split and placed."""
    (path,) = write_series(tmp_path, [an_enhanced_series(2, times=2, rows=4, columns=4)])
    whole = path.read_bytes()
    refused = read = 0
    for place in range(PREAMBLE_BYTES, len(whole) - 128, 11):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF if place % 2 else 0x21
        path.write_bytes(damaged)
        try:
            frames = frames_of(read_header(path))
            split(frames)
            stack_frames(frames[:2])
        except UnusableSeries:
            refused += 1
        else:
            read += 1
    assert refused
    assert read


@pytest.mark.parametrize(
    ("image_type", "is_localizer"),
    [(["ORIGINAL", "PRIMARY", "LOCALIZER"], True), (["ORIGINAL", "PRIMARY", "AXIAL"], False)],
)
def test_a_localizer_is_told_by_its_image_type(
    tmp_path: Path, image_type: list[str], is_localizer: bool
) -> None:
    """Its class is CT Image Storage like that of a cross-section."""
    (path,) = write_series(tmp_path, a_ct_series(1, image_type=image_type))
    assert read_header(path).is_localizer is is_localizer
