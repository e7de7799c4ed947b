"""Frames' stored pixel values, as int16 or float32, into memory that the caller gives.

In: a `PixelTask`: a frame of a file, and what its header promised. Out: values in the given
array. `plan_pixels` decides from the header alone, in the gateway; `PixelReader` reads, in a
decoder's child process (`decoders`).

Values are stored values: no rescaling, no window, MONOCHROME1 not inverted, padding left
alone. Bits above High Bit (overlays, rubbish) are cut off and the sign extended.

Source: PS3.5 8.1.1 (pixel cells), PS3.3 C.7.6.3 (Image Pixel), C.7.6.24 (Floating Point).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID

from dicom_gateway.assemble.frames import Frame
from dicom_gateway.assemble.headers import Header
from dicom_gateway.assemble.pixel_file import NATIVE, Cells, PixelFile, can_decode
from dicom_gateway.errors import UnusableSeries

SHIFT = 32768
"""Taken off unsigned 16-bit values, so that they fit into int16."""


@dataclass(frozen=True, slots=True)
class PixelTask:
    """What one child gets: plain values, so that it goes through a pipe as JSON."""

    path: str
    transfer_syntax_uid: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric_interpretation: str
    frame_number: int = 1
    number_of_frames: int = 1
    floating: bool = False

    @property
    def shift(self) -> int:
        """What is subtracted from each value; by the header alone, never by the data."""
        return SHIFT if not self.floating and not self.signed and self.bits_stored == 16 else 0

    @property
    def dtype(self) -> np.dtype[np.int16] | np.dtype[np.float32]:
        """Of the values."""
        return np.dtype(np.float32) if self.floating else np.dtype(np.int16)

    @property
    def size_bytes(self) -> int:
        """Of the values."""
        return self.rows * self.columns * self.dtype.itemsize


def plan_pixels(source: Header | Frame) -> PixelTask:
    """Decides from the header how a frame is read.

    Raises:
        UnusableSeries: (unsupported_object) colour, integers of more than 16 bits, a
            Modality LUT, a rescale that can't be read, a transfer syntax without a decoder;
            (no_pixel_data) when there is no image.
    """
    if isinstance(source, Frame):
        header, rescale, number = source.header, source.rescale, source.number
    else:
        header, rescale, number = source, source.rescale, 1
    if not header.rows or not header.columns or not (header.bits_allocated or header.float_bits):
        msg = "an instance has no image (no Rows, Columns or Bits Allocated)"
        raise UnusableSeries(msg, code="no_pixel_data")
    refusal = None
    if header.samples_per_pixel != 1 or header.photometric_interpretation not in (
        "MONOCHROME1",
        "MONOCHROME2",
    ):
        refusal = "its images are in colour; send a greyscale series"
    elif header.float_bits:
        if header.transfer_syntax_uid not in NATIVE:
            refusal = "its floating point pixels are compressed; send them uncompressed"
    elif header.bits_allocated not in (8, 16):
        refusal = f"its pixels have {header.bits_allocated} bits; 8 and 16 are understood"
    elif not 1 <= header.bits_stored <= header.high_bit + 1 <= header.bits_allocated:
        refusal = (
            f"Bits Allocated {header.bits_allocated}, Bits Stored {header.bits_stored} and High "
            f"Bit {header.high_bit} contradict each other; ask the maker of the sender"
        )
    if refusal is None and header.has_modality_lut:
        refusal = "its values go through a Modality LUT table, which this version doesn't apply"
    elif refusal is None and rescale is None:
        refusal = "Rescale Slope or Intercept can't be read, or the slope is 0"
    elif refusal is None and not can_decode(header.transfer_syntax_uid):
        name = UID(header.transfer_syntax_uid).name
        refusal = f"there is no decoder for {name} here; send it uncompressed or JPEG lossless"
    if refusal is not None:
        msg = f"the series can't be used: {refusal}"
        raise UnusableSeries(msg, code="unsupported_object")
    return PixelTask(
        path=str(header.path),
        transfer_syntax_uid=header.transfer_syntax_uid,
        rows=header.rows,
        columns=header.columns,
        bits_allocated=header.bits_allocated,
        bits_stored=header.bits_stored,
        high_bit=header.high_bit,
        signed=header.signed,
        photometric_interpretation=header.photometric_interpretation,
        frame_number=number,
        number_of_frames=header.number_of_frames,
        floating=header.float_bits > 0,
    )


class PixelReader:
    """Reads frames, and keeps the last file open: the next frame is mostly in the same."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._open: PixelFile | None = None

    def read(self, task: PixelTask, out: NDArray[np.int16] | NDArray[np.float32]) -> None:
        """Decodes one frame into `out`, [J, I] of `task.dtype`.

        Raises:
            BrokenPixelData: lengths or sizes that don't fit, or a codec that gives up.
            UnusableSeries: (no_pixel_data) nothing there.
        """
        file = self._file(task)
        if task.floating:
            floats = file.floats(task.frame_number, task.rows, task.columns)
            out[...] = floats.reshape(task.rows, task.columns)
            return
        cells = file.cells(
            task.frame_number,
            rows=task.rows,
            columns=task.columns,
            bits_allocated=task.bits_allocated,
            bits_stored=task.bits_stored,
            signed=task.signed,
            photometric_interpretation=task.photometric_interpretation,
        )
        out[...] = _stored_values(task, cells).reshape(task.rows, task.columns)

    def close(self) -> None:
        """Lets go of the file."""
        if self._open is not None:
            self._open.close()
        self._open, self._key = None, ()

    def _file(self, task: PixelTask) -> PixelFile:
        path = Path(task.path)
        found = path.stat()
        key = (task.path, found.st_ino, found.st_mtime_ns, found.st_size, task.number_of_frames)
        if self._open is None or key != self._key:
            self.close()
            self._open = PixelFile(path, task.transfer_syntax_uid, task.number_of_frames)
            self._key = key
        return self._open


def read_pixels(task: PixelTask, out: NDArray[np.int16] | NDArray[np.float32]) -> None:
    """Decodes one frame; as `PixelReader.read`, without keeping its file open."""
    reader = PixelReader()
    try:
        reader.read(task, out)
    finally:
        reader.close()


def _stored_values(task: PixelTask, cells: Cells) -> NDArray[np.int16]:
    """Cuts off the bits above High Bit, extends the sign, shifts what doesn't fit."""
    bits = 8 * cells.dtype.itemsize
    # A codec may give 8-bit cells for pixels of Bits Allocated 16.
    high_bit = min(task.high_bit, bits - 1) if cells.dtype.itemsize == 1 else task.high_bit
    bits_stored = min(task.bits_stored, bits)
    if high_bit == bits_stored - 1 == bits - 1 and bits == 16:
        values = cells.astype(np.uint16, copy=False)  # native byte order
    else:
        top = np.left_shift(cells.astype(np.uint16), 15 - high_bit)
        if task.signed:
            return np.right_shift(top.view(np.int16), 16 - bits_stored)
        values = np.right_shift(top, 16 - bits_stored)
    if task.shift:
        # x - 32768 as int16 is x with the top bit flipped.
        return np.bitwise_xor(values, np.uint16(SHIFT)).view(np.int16)
    return values.view(np.int16)
