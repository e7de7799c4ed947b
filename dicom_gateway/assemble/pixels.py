"""One instance's stored pixel values, as int16, into memory that the caller gives.

In: a `PixelTask`: a file and what its header promised. Out: values in the given array.
Runs in a decoder's child process (`decoders`), because image codecs are written in C and
their input comes from strangers. Lengths and claimed sizes are compared before anything is
decoded.

Values are stored values: no rescaling, no window, MONOCHROME1 not inverted, padding left
alone. Bits above High Bit (overlays, rubbish) are cut off and the sign extended.

Source: PS3.5 8.1.1 (pixel cells), 8.2 (encapsulated), annex G (RLE).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicom_gateway.assemble.headers import Header
from dicom_gateway.errors import BrokenPixelData, UnusableSeries

Cell = np.uint8 | np.uint16

NATIVE = frozenset({ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian})

FASTEST = {
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEGBaseline8Bit: "gdcm",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
    RLELossless: "pylibjpeg",
}
"""The fastest of pydicom's plugins for each syntax, as measured (ms per 512x512x16 frame:
pyjpegls 5.6, gdcm for JPEG lossless 5.5, pylibjpeg for RLE 0.8, JPEG 2000 all about 33);
pydicom's own order is another."""

MAX_RLE_RATIO = 64
"""A two-byte run gives at most 128 bytes (PS3.5 G.3.1); more is a claim that can't be true."""

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

    @property
    def shift(self) -> int:
        """What is subtracted from each value; by the header alone, never by the data."""
        return SHIFT if not self.signed and self.bits_stored == 16 else 0


def plan_pixels(header: Header) -> PixelTask:
    """Decides from the header how an instance is read.

    Raises:
        UnusableSeries: (unsupported_object) colour, more than 16 bits, a Modality LUT, a
            rescale that can't be read, a transfer syntax without a decoder;
            (no_pixel_data) when there is no image.
    """
    if not header.rows or not header.columns or not header.bits_allocated:
        msg = "an instance has no image (no Rows, Columns or Bits Allocated)"
        raise UnusableSeries(msg, code="no_pixel_data")
    refusal = None
    if header.samples_per_pixel != 1 or header.photometric_interpretation not in (
        "MONOCHROME1",
        "MONOCHROME2",
    ):
        refusal = "its images are in colour; send a greyscale series"
    elif header.bits_allocated not in (8, 16):
        refusal = f"its pixels have {header.bits_allocated} bits; 8 and 16 are understood"
    elif not 1 <= header.bits_stored <= header.high_bit + 1 <= header.bits_allocated:
        refusal = (
            f"Bits Allocated {header.bits_allocated}, Bits Stored {header.bits_stored} and High "
            f"Bit {header.high_bit} contradict each other; ask the maker of the sender"
        )
    elif header.has_modality_lut:
        refusal = "its values go through a Modality LUT table, which this version doesn't apply"
    elif header.rescale is None:
        refusal = "Rescale Slope or Intercept can't be read, or the slope is 0"
    elif header.transfer_syntax_uid not in NATIVE | FASTEST.keys():
        name = UID(header.transfer_syntax_uid).name
        refusal = f"there is no decoder for {name}; send it uncompressed or JPEG lossless"
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
    )


def read_pixels(task: PixelTask, out: NDArray[np.int16]) -> None:
    """Decodes one frame into `out`, int16 [J, I].

    Raises:
        BrokenPixelData: lengths or sizes that don't fit, or a codec that gives up.
        UnusableSeries: (no_pixel_data) nothing there; (unsupported_object) float pixels.
    """
    ds = pydicom.dcmread(task.path)
    if "PixelData" not in ds:
        if "FloatPixelData" in ds or "DoubleFloatPixelData" in ds:
            msg = "its pixels are floating point numbers, which this version doesn't take"
            raise UnusableSeries(msg, code="unsupported_object")
        msg = "an instance has no Pixel Data; send the series again"
        raise UnusableSeries(msg, code="no_pixel_data")
    native = task.transfer_syntax_uid in NATIVE
    cells = _native(task, ds) if native else _encapsulated(task, ds)
    out[...] = _stored_values(task, cells).reshape(task.rows, task.columns)


def _native(task: PixelTask, ds: Dataset) -> NDArray[Cell]:
    data: bytes = ds.PixelData or b""
    promised = task.rows * task.columns * task.bits_allocated // 8
    padded = promised + promised % 2  # values have even length (PS3.5 7.1.1)
    if len(data) not in (promised, padded):
        msg = (
            f"the header promises {promised} bytes of pixels ({task.rows} x {task.columns} at "
            f"{task.bits_allocated} bits) and there are {len(data)}; send the series again"
        )
        raise BrokenPixelData(msg)
    big_endian = task.transfer_syntax_uid == ExplicitVRBigEndian
    if task.bits_allocated == 16:
        return np.frombuffer(data, dtype=">u2" if big_endian else "<u2", count=promised // 2)
    if big_endian and ds["PixelData"].VR == "OW":
        # 8-bit cells inside 16-bit words: the words are swapped (PS3.5 8.1.2).
        return np.frombuffer(data, dtype="<u2").byteswap().view(np.uint8)[:promised]
    return np.frombuffer(data, dtype=np.uint8, count=promised)


def _encapsulated(task: PixelTask, ds: Dataset) -> NDArray[Cell]:
    frames = list(generate_frames(ds.PixelData, number_of_frames=1))
    if len(frames) != 1:
        msg = f"one frame is promised and {len(frames)} are there; send the series again"
        raise BrokenPixelData(msg)
    if task.transfer_syntax_uid == RLELossless:
        _check_rle(task, frames[0])
    else:
        _check_codestream(task, frames[0])
    decoder = get_decoder(UID(task.transfer_syntax_uid))
    array, _ = decoder.as_array(
        ds, index=0, raw=True, decoding_plugin=FASTEST[UID(task.transfer_syntax_uid)]
    )
    if array.shape != (task.rows, task.columns):
        msg = f"decoding gave {array.shape} where {(task.rows, task.columns)} is promised"
        raise BrokenPixelData(msg)
    return array.astype(np.uint8 if array.dtype.itemsize == 1 else np.uint16, copy=False)


def _check_rle(task: PixelTask, frame: bytes) -> None:
    segments = task.bits_allocated // 8
    promised = task.rows * task.columns * segments
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


def _check_codestream(task: PixelTask, frame: bytes) -> None:
    claimed = (
        _jpeg_2000_size(frame) if task.transfer_syntax_uid in _JPEG_2000 else _jpeg_size(frame)
    )
    if claimed is None:
        msg = "the compressed pixels don't begin as their transfer syntax says; send them again"
        raise BrokenPixelData(msg)
    # Some codecs fill up what is missing and say nothing. EOI and EOC are the same two bytes,
    # padded to even length (PS3.5 A.4).
    if not frame[-16:].rstrip(b"\0").endswith(b"\xff\xd9"):
        msg = "the compressed pixels are cut off before their end; send the series again"
        raise BrokenPixelData(msg)
    if claimed != (task.rows, task.columns):
        msg = (
            f"the compressed image is {claimed[0]} x {claimed[1]} and the header promises "
            f"{task.rows} x {task.columns}; send the series again"
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


def _stored_values(task: PixelTask, cells: NDArray[Cell]) -> NDArray[np.int16]:
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
