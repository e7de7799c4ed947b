"""Frames of a multi-frame file, each found where it lies, or nothing is decoded."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate_extended, generate_frames
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_gateway.assemble.codestreams import find_frames, read_frame
from dicom_gateway.assemble.frames import frames_of
from dicom_gateway.assemble.headers import read_header
from dicom_gateway.assemble.pixels import PixelReader, plan_pixels
from dicom_gateway.errors import BrokenPixelData
from tests.support.dicom import a_ct_series, a_pattern, an_enhanced_series, write_series

FRAMES, SIDE = 5, 34


def pixels_of(folder: Path, ds: Dataset) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """All frames of a file, read out of order."""
    (path,) = write_series(folder, [ds])
    tasks = [plan_pixels(frame) for frame in frames_of(read_header(path))]
    out = np.zeros((len(tasks), SIDE, SIDE), dtype=np.int16)
    reader = PixelReader()
    try:
        for number in reversed(range(len(tasks))):
            reader.read(tasks[number], out[number])
    finally:
        reader.close()
    return out


def an_object(syntax: str = ExplicitVRLittleEndian) -> Dataset:
    """An enhanced object with a pattern that is different in each frame."""
    return an_enhanced_series(FRAMES, rows=SIDE, columns=SIDE, transfer_syntax_uid=syntax)


def items(*fragments: bytes) -> bytes:
    """Items of the encapsulated format, and the end of the sequence."""
    whole = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<L", len(f)) + f for f in fragments)
    return whole + b"\xfe\xff\xdd\xe0\0\0\0\0"


def frames_in(data: bytes, count: int) -> list[bytes]:
    """The frames of encapsulated bytes."""
    file = BytesIO(data)
    return [read_frame(file, one) for one in find_frames(file, len(data), count)]


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        JPEGLSLossless,
        JPEG2000Lossless,
        RLELossless,
    ],
)
def test_each_frame_of_a_multi_frame_object_is_its_own(tmp_path: Path, syntax: str) -> None:
    """In any order, in every syntax."""
    expected = a_pattern((FRAMES, SIDE, SIDE))
    np.testing.assert_array_equal(pixels_of(tmp_path, an_object(syntax)), expected)


def test_an_extended_offset_table_is_understood(tmp_path: Path) -> None:
    """For objects of more than 4 GB."""
    ds = an_object(JPEGLSLossless)
    frames = list(generate_frames(ds.PixelData, number_of_frames=FRAMES))
    ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(
        frames
    )
    np.testing.assert_array_equal(pixels_of(tmp_path, ds), a_pattern((FRAMES, SIDE, SIDE)))


@pytest.mark.parametrize("with_table", [True, False])
def test_frames_of_several_fragments_are_put_together(with_table: bool) -> None:
    """By the offset table, or by the ends of the codestreams."""
    frames = [b"\xff\xd8 first \xff\xd9", b"\xff\xd8 number two\xff\xd9\0"]
    pieces = [frames[0][:6], frames[0][6:], frames[1][:4], frames[1][4:8], frames[1][8:]]
    table = struct.pack("<2L", 0, 16 + len(frames[0])) if with_table else b""
    assert frames_in(items(table, *pieces), 2) == frames


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 1),  # nothing there
        (items(b""), 1),  # a table and no fragment
        (items(b"\0\0\0"), 1),  # a table of three bytes
        (items(b"", b"ab", b"cd"), 3),  # a frame too few
        (items(struct.pack("<2L", 0, 10), b"ab", b"cd"), 1),  # a frame too many
        (items(struct.pack("<2L", 0, 9), b"ab", b"cd", b"ef"), 2),  # points into a fragment
        (items(struct.pack("<2L", 10, 0), b"ab", b"cd", b"ef"), 2),  # out of order
        (items(struct.pack("<2L", 10, 20), b"ab", b"cd", b"ef"), 2),  # forgets the first
        (items(b"", b"abcd")[:14], 1),  # cut off
        (b"\xfe\xff\x00\xe0\xf0\xff\xff\xff" + b"x" * 40, 1),  # a table of 4 GiB
        (items(b"")[:8] + b"\xfe\xff\x00\xe0\xf0\xff\xff\xff", 1),  # a fragment of 4 GiB
        (items(b"")[:8] + b"garbage!" * 4, 1),  # no item
    ],
)
def test_fragments_that_don_t_fit_are_broken(data: bytes, count: int) -> None:
    """Lengths are held against the file before anything is read by them."""
    with pytest.raises(BrokenPixelData):
        frames_in(data, count)


@pytest.mark.parametrize("length", [0, 100, 2 * FRAMES * SIDE * SIDE - 2, 10_000_000])
def test_native_frames_of_the_wrong_length_are_broken(tmp_path: Path, length: int) -> None:
    """Also when only the last frame lacks a pixel."""
    ds = an_object()
    ds.PixelData = b"\0" * length
    with pytest.raises(BrokenPixelData, match=r"promises 11560 bytes of pixels \(5 x 34 x 34"):
        pixels_of(tmp_path, ds)


def test_a_small_image_with_many_bytes_is_no_hidden_multi_frame(tmp_path: Path) -> None:
    """4 x 4 with 10,000 bytes: some readers give 312 frames for it."""
    ds = a_ct_series(1, rows=4, columns=4)[0]
    ds.PixelData = b"\0" * 10_000
    with pytest.raises(BrokenPixelData, match=r"promises 32 bytes .* there are 10000"):
        pixels_of(tmp_path, ds)


def test_a_frame_too_few_is_broken_before_the_first_is_decoded(tmp_path: Path) -> None:
    """The header promises one more than there is."""
    ds = an_object(JPEGLSLossless)
    frames: Sequence[bytes] = list(generate_frames(ds.PixelData, number_of_frames=FRAMES))
    ds.PixelData = items(b"", *frames[:-1])
    with pytest.raises(BrokenPixelData, match="5 frames are promised and 4 are there"):
        pixels_of(tmp_path, ds)
