"""Compressed frames: where each lies in its file, and whether it can be what it claims.

In: an open file at its Pixel Data, or the bytes of one frame. Out: the bytes of one frame, or
`BrokenPixelData` before any decoder gets to see them. Lengths that a file claims are held
against its size first, so that nothing is read or made room for that isn't there.

Source: PS3.5 A.4 (encapsulation), annex G (RLE); ITU-T T.81, T.87, T.800 (codestreams).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    RLELossless,
)

from dicom_gateway.errors import BrokenPixelData

MAX_RLE_RATIO = 64
"""A two-byte run gives at most 128 bytes (PS3.5 G.3.1); more is a claim that can't be true."""

MAX_FRAGMENTS = 1_000_000
"""More is a bomb; a fragment has at least 8 bytes."""

_ITEM = b"\xfe\xff\x00\xe0"
_END = b"\xfe\xff\xdd\xe0"


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of the encapsulated pixels: where its bytes begin in the file, and how many."""

    start: int
    length: int


def find_frames(
    file: BinaryIO, size_bytes: int, count: int, extended: Sequence[int] = ()
) -> list[tuple[Fragment, ...]]:
    """The fragments of each frame.

    Args:
        file: At the Basic Offset Table's item.
        size_bytes: Of the whole file.
        count: How many frames the header promises.
        extended: Extended Offset Table, where there is one.

    Raises:
        BrokenPixelData: lengths beyond the file, another number of frames, an offset that
            points at no fragment.
    """
    table = _next_item(file, size_bytes)
    if table is None:
        raise BrokenPixelData(_NOT_THERE)
    if table.length % 4 or table.length > 4 * MAX_FRAGMENTS:
        msg = "the offset table of the compressed pixels is damaged; send the series again"
        raise BrokenPixelData(msg)
    raw = file.read(table.length)
    base = file.tell()
    fragments: list[Fragment] = []
    while (item := _next_item(file, size_bytes)) is not None:
        fragments.append(item)
        file.seek(item.length, 1)
        if len(fragments) > MAX_FRAGMENTS:
            raise BrokenPixelData(_NOT_THERE)
    if not fragments:
        raise BrokenPixelData(_NOT_THERE)
    offsets = extended or struct.unpack(f"<{len(raw) // 4}L", raw)
    if len(offsets) > count:
        msg = f"{count} frame(s) are promised and {len(offsets)} are there; send the series again"
        raise BrokenPixelData(msg)
    if count == 1:
        return [tuple(fragments)]
    if len(fragments) == count:
        return [(fragment,) for fragment in fragments]
    if len(fragments) > count and offsets:
        return _by_offsets(fragments, [base + offset for offset in offsets], count)
    frames = _by_markers(file, fragments)
    if len(frames) != count:
        msg = f"{count} frames are promised and {len(frames)} are there; send the series again"
        raise BrokenPixelData(msg)
    return frames


def read_frame(file: BinaryIO, fragments: Sequence[Fragment]) -> bytes:
    """The bytes of one frame."""
    pieces = []
    for fragment in fragments:
        file.seek(fragment.start)
        pieces.append(file.read(fragment.length))
    return b"".join(pieces)


def check_frame(frame: bytes, syntax: str, rows: int, columns: int, bits_allocated: int) -> None:
    """Whether the bytes can be the image that the header promises.

    Raises:
        BrokenPixelData: another size, another codec, cut off, or a claim that can't be true.
    """
    if syntax == RLELossless:
        _check_rle(frame, rows * columns, bits_allocated // 8)
    else:
        _check_codestream(frame, syntax, rows, columns)


_NOT_THERE = (
    "the fragments of the compressed pixels don't fit into their file; send the series again"
)


def _next_item(file: BinaryIO, size_bytes: int) -> Fragment | None:
    """The next item, the file at its bytes; None at the end."""
    head = file.read(8)
    if head[:4] == _END or not head:
        return None
    if len(head) < 8 or head[:4] != _ITEM:
        raise BrokenPixelData(_NOT_THERE)
    length = int.from_bytes(head[4:], "little")
    start = file.tell()
    if start + length > size_bytes:
        raise BrokenPixelData(_NOT_THERE)
    return Fragment(start, length)


def _by_offsets(
    fragments: Sequence[Fragment], offsets: Sequence[int], count: int
) -> list[tuple[Fragment, ...]]:
    starts = {fragment.start - 8: place for place, fragment in enumerate(fragments)}
    places = [starts.get(offset) for offset in offsets]
    known = [place for place in places if place is not None]
    if len(known) != count or known != sorted(set(known)) or known[0] != 0:
        msg = (
            f"the offset table of the compressed pixels doesn't say where its {count} frames "
            "begin; send the series again"
        )
        raise BrokenPixelData(msg)
    ends = [*known[1:], len(fragments)]
    return [tuple(fragments[start:end]) for start, end in zip(known, ends, strict=True)]


def _by_markers(file: BinaryIO, fragments: Sequence[Fragment]) -> list[tuple[Fragment, ...]]:
    """Without a table, a frame ends where its codestream does."""
    frames, current = [], []
    for fragment in fragments:
        current.append(fragment)
        file.seek(fragment.start + max(0, fragment.length - 16))
        if file.read(min(16, fragment.length)).rstrip(b"\0").endswith(b"\xff\xd9"):
            frames.append(tuple(current))
            current = []
    return [*frames, tuple(current)] if current else frames


def _check_rle(frame: bytes, pixels: int, segments: int) -> None:
    promised = pixels * segments
    if len(frame) < 64:
        msg = f"an RLE frame of {len(frame)} bytes has no header (64); send the series again"
        raise BrokenPixelData(msg)
    count, *offsets = struct.unpack("<16L", frame[:64])
    starts = list(offsets[:segments])
    if count != segments or starts != sorted(set(starts)) or starts[0] < 64:
        msg = (
            f"the RLE header names {count} segments where {segments} are right, or their "
            "offsets are out of order; send the series again"
        )
        raise BrokenPixelData(msg)
    if starts[-1] >= len(frame) or promised > MAX_RLE_RATIO * len(frame):
        msg = (
            f"an RLE frame of {len(frame)} bytes can't hold the {promised} bytes that its header "
            "promises; send the series again"
        )
        raise BrokenPixelData(msg)


def _check_codestream(frame: bytes, syntax: str, rows: int, columns: int) -> None:
    claimed = _jpeg_2000_size(frame) if syntax in _JPEG_2000 else _jpeg_size(frame)
    if claimed is None:
        msg = "the compressed pixels don't begin as their transfer syntax says; send them again"
        raise BrokenPixelData(msg)
    # Some codecs fill up what is missing and say nothing. EOI and EOC are the same two bytes,
    # padded to even length (PS3.5 A.4).
    if not frame[-16:].rstrip(b"\0").endswith(b"\xff\xd9"):
        msg = "the compressed pixels are cut off before their end; send the series again"
        raise BrokenPixelData(msg)
    if claimed != (rows, columns):
        msg = (
            f"the compressed image is {claimed[0]} x {claimed[1]} and the header promises "
            f"{rows} x {columns}; send the series again"
        )
        raise BrokenPixelData(msg)


_JPEG_2000 = frozenset({JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K})

_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
"""SOF markers: all of C0-CF but DHT, JPG and DAC (ITU-T T.81 B.1.1.3), and F7 of JPEG-LS."""


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG or JPEG-LS codestream (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _START_OF_FRAME:
            rows, columns = struct.unpack(">HH", frame[at + 5 : at + 9])
            return rows, columns
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _jpeg_2000_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG 2000 codestream, bare or in a JP2 box (ITU-T T.800 A.5.1)."""
    at = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0 or len(frame) < at + 24:
        return None
    x1, y1, x0, y0 = struct.unpack(">4L", frame[at + 8 : at + 24])
    return y1 - y0, x1 - x0
