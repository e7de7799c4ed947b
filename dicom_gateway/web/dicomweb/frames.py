"""DICOMweb, frames: cut out of a kept file as they lie there.

In: a kept file and frame numbers. Out: the bytes of each frame. Nothing is decoded, and never
more than one frame is in memory.

Source: PS3.5 8 and A.4 (native and encapsulated pixel data), PS3.18 10.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.encaps import get_frame

from dicom_gateway.web.dicomweb.headers import (
    UNDEFINED_LENGTH,
    UNREADABLE,
    FoundPixels,
    HeaderUnreadable,
    read_header,
)

_PIXEL_BITS = {0x7FE00008: 32, 0x7FE00009: 64}


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """Where the frames of one file lie.

    Attributes:
        frame_bytes: Of one native frame; None where encapsulated.
    """

    path: Path
    transfer_syntax_uid: str
    number_of_frames: int
    offset: int
    frame_bytes: int | None
    extended_offsets: tuple[bytes, bytes] | None

    def read(self, file: BufferedReader, number: int) -> bytes:
        """Frame `number` (1-based) from the opened file.

        Raises:
            HeaderUnreadable: it isn't where it should be.
        """
        if self.frame_bytes is not None:
            file.seek(self.offset + (number - 1) * self.frame_bytes)
            return file.read(self.frame_bytes)
        file.seek(self.offset)
        try:
            return get_frame(
                file,
                number - 1,
                number_of_frames=self.number_of_frames,
                extended_offsets=self.extended_offsets,
            )
        except UNREADABLE as error:
            msg = f"frame {number} can't be cut out ({type(error).__name__})"
            raise HeaderUnreadable(msg) from error


def find_frames(path: Path) -> FrameLayout:
    """Looks where the frames lie.

    Raises:
        HeaderUnreadable: there are none, they can't be cut out byte by byte, or the header
            claims others than there are.
        OSError: the file can't be read.
    """
    ds, pixels = read_header(path)
    if pixels is None:
        msg = "it has no pixel data"
        raise HeaderUnreadable(msg)
    try:
        return _layout(path, ds, pixels)
    except UNREADABLE as error:
        msg = f"its frames can't be found ({type(error).__name__})"
        raise HeaderUnreadable(msg) from error


def _layout(path: Path, ds: Dataset, pixels: FoundPixels) -> FrameLayout:
    syntax = str(ds.file_meta.TransferSyntaxUID)
    number_of_frames = int(ds.get("NumberOfFrames") or 1)
    if number_of_frames < 1:
        msg = "it has no frame"
        raise HeaderUnreadable(msg)
    if pixels.length == UNDEFINED_LENGTH:
        extended = None
        if "ExtendedOffsetTable" in ds and "ExtendedOffsetTableLengths" in ds:
            extended = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths)
        return FrameLayout(path, syntax, number_of_frames, pixels.offset, None, extended)
    bits = _PIXEL_BITS.get(pixels.tag) or int(ds.BitsAllocated)
    frame_bits = int(ds.Rows) * int(ds.Columns) * int(ds.get("SamplesPerPixel") or 1) * bits
    if str(ds.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        frame_bits = frame_bits * 2 // 3  # chrominance is sampled half as often (PS3.3 C.7.6.3.1.2)
    if frame_bits % 8 and number_of_frames > 1:
        msg = "its frames don't begin at a byte"
        raise HeaderUnreadable(msg)
    frame_bytes = (frame_bits + 7) // 8
    in_file = path.stat().st_size - pixels.offset
    if frame_bytes < 1 or number_of_frames * frame_bytes > min(pixels.length, in_file):
        msg = "its pixel data is shorter than its header claims"
        raise HeaderUnreadable(msg)
    return FrameLayout(path, syntax, number_of_frames, pixels.offset, frame_bytes, None)
