"""The pixels of one file, frame by frame; the file is parsed once, whatever it has inside.

In: a `PixelTask`'s file and what its header promised. Out: the cells of one frame, still with
whatever stands in their unused bits. Runs in a decoder's child process, because image codecs
are written in C and their input comes from strangers. Lengths and claimed sizes are compared
before anything is decoded, and only the frame that is wanted is read.

Source: PS3.5 7.1 (data elements), 8.1.1 (pixel cells), 8.2 and A.4 (encapsulated).
"""

from __future__ import annotations

import os
import resource
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
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
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from dicom_gateway.assemble.codestreams import Fragment, check_frame, find_frames, read_frame
from dicom_gateway.errors import BrokenPixelData, UnusableSeries

Cells: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]

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

BY_DCMTK = frozenset({JPEGExtended12Bit})
"""12-bit JPEG: of all decoders only dcmtk's can do it, as a program of its own."""

DCMTK_CPU_S = 25
"""How long that program may compute for one file."""

_PIXELS = 0x7FE00010
_FLOATS = {0x7FE00008: "f4", 0x7FE00009: "f8"}
_UNDEFINED = 0xFFFFFFFF


def can_decode(transfer_syntax_uid: str) -> bool:
    """Whether there is a decoder for it on this machine."""
    if transfer_syntax_uid in BY_DCMTK:
        return shutil.which("dcmdjpeg") is not None
    return transfer_syntax_uid in NATIVE or transfer_syntax_uid in FASTEST


class PixelFile:
    """One open file.

    Args:
        path: A DICOM file (PS3.10).
        syntax: Its transfer syntax.
        frames: How many its header promises.

    Raises:
        BrokenPixelData: lengths that don't fit.
        UnusableSeries: (no_pixel_data) there is no Pixel Data at all.
    """

    def __init__(self, path: Path, syntax: str, frames: int) -> None:
        self._file: BinaryIO = path.open("rb")
        try:
            if syntax in BY_DCMTK:
                self._file, syntax = _transcoded(self._file)
            self._syntax = UID(syntax)
            self._frames = frames
            self._fragments: list[tuple[Fragment, ...]] = []
            self._find()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def floats(self, number: int, rows: int, columns: int) -> NDArray[np.float32]:
        """Frame `number` (1-based) of floating point pixels, [J * I]."""
        if self._tag not in _FLOATS or self._syntax not in NATIVE:
            raise UnusableSeries(_NO_PIXELS, code="no_pixel_data")
        order = ">" if self._big_endian else "<"
        kind = np.dtype(order + _FLOATS[self._tag])
        raw = self._native(number, rows * columns * kind.itemsize * 8, f"{rows} x {columns}")
        return np.frombuffer(raw, dtype=kind).astype(np.float32)

    def cells(
        self,
        number: int,
        *,
        rows: int,
        columns: int,
        bits_allocated: int,
        bits_stored: int,
        signed: bool,
        photometric_interpretation: str,
    ) -> Cells:
        """Frame `number` (1-based), unsigned, [J * I] or [J, I]."""
        if self._tag != _PIXELS:
            raise UnusableSeries(_NO_PIXELS, code="no_pixel_data")
        if self._syntax in NATIVE:
            what = f"{rows} x {columns} at {bits_allocated} bits"
            raw = self._native(number, rows * columns * bits_allocated, what)
            if bits_allocated == 8:
                return np.frombuffer(raw, dtype=np.uint8)
            return np.frombuffer(raw, dtype=">u2" if self._big_endian else "<u2")
        frame = read_frame(self._file, self._fragments[number - 1])
        check_frame(frame, self._syntax, rows, columns, bits_allocated)
        options: dict[str, Any] = {
            "rows": rows,
            "columns": columns,
            "number_of_frames": 1,
            "samples_per_pixel": 1,
            "photometric_interpretation": photometric_interpretation,
            "bits_allocated": bits_allocated,
            "bits_stored": bits_stored,
            "pixel_representation": int(signed),
            "pixel_keyword": "PixelData",
        }
        array, _ = get_decoder(self._syntax).as_array(
            encapsulate([frame], has_bot=False),
            index=0,
            raw=True,
            decoding_plugin=FASTEST[self._syntax],
            **options,
        )
        if array.shape != (rows, columns):
            msg = f"decoding gave {array.shape} where {(rows, columns)} is promised"
            raise BrokenPixelData(msg)
        if array.dtype.itemsize == 1:
            return array.astype(np.uint8, copy=False)
        return array.astype(np.uint16, copy=False)

    @property
    def _big_endian(self) -> bool:
        return self._syntax == ExplicitVRBigEndian

    def _find(self) -> None:
        """Reads what stands before the pixels, and where they lie."""
        ds = pydicom.dcmread(
            self._file, stop_before_pixels=True, specific_tags=["ExtendedOffsetTable"]
        )
        order = ">" if self._big_endian else "<"
        head = self._file.read(8)
        if len(head) < 8:
            self._tag = 0
            return
        group, element = struct.unpack(f"{order}HH", head[:4])
        self._tag = group << 16 | element
        if self._syntax == ImplicitVRLittleEndian:
            self._vr, length = b"OW", struct.unpack("<L", head[4:])[0]
        elif head[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN"):
            self._vr, length = head[4:6], struct.unpack(f"{order}L", self._file.read(4))[0]
        else:
            raise BrokenPixelData(_ODD_ELEMENT)
        self._start, self._length = self._file.tell(), length
        size_bytes = self._file.seek(0, os.SEEK_END)
        self._file.seek(self._start)
        if (self._syntax in NATIVE) == (length == _UNDEFINED):
            raise BrokenPixelData(_ODD_ELEMENT)
        if self._syntax in NATIVE:
            self._length = min(length, size_bytes - self._start)
        elif self._tag == _PIXELS:
            table = ds.get("ExtendedOffsetTable") or b""
            extended = struct.unpack(f"<{len(table) // 8}Q", table[: len(table) // 8 * 8])
            self._fragments = find_frames(self._file, size_bytes, self._frames, extended)

    def _native(self, number: int, bits: int, what: str) -> bytes:
        frame = bits // 8
        promised = frame * self._frames
        if self._length not in (promised, promised + promised % 2):  # PS3.5 7.1.1: even
            several = f"{self._frames} x " if self._frames > 1 else ""
            msg = (
                f"the header promises {promised} bytes of pixels ({several}{what}) and there are "
                f"{self._length}; send the series again"
            )
            raise BrokenPixelData(msg)
        start = frame * (number - 1)
        if self._big_endian and self._vr == b"OW" and self._tag == _PIXELS and "8 bits" in what:
            # 8-bit cells inside 16-bit words: the words are swapped (PS3.5 8.1.2).
            self._file.seek(self._start + start - start % 2)
            words = self._file.read(frame + start % 2 + (frame + start) % 2)
            swapped = np.frombuffer(words, dtype="<u2").byteswap().tobytes()
            return swapped[start % 2 : start % 2 + frame]
        self._file.seek(self._start + start)
        return self._file.read(frame)


_NO_PIXELS = "an instance has no Pixel Data; send the series again"

_ODD_ELEMENT = (
    "the Pixel Data element doesn't begin as its transfer syntax says; send the series again"
)


def _transcoded(file: BinaryIO) -> tuple[BinaryIO, str]:
    """Decompresses a whole file with dcmtk, from memory into memory."""
    made = os.memfd_create("decoded")  # no disk ever holds it, and it goes with us
    with file:
        done = subprocess.run(
            ["dcmdjpeg", f"/proc/self/fd/{file.fileno()}", f"/proc/self/fd/{made}"],
            pass_fds=[file.fileno(), made],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            # Our limit of memory is its too; of time it gets one of its own.
            preexec_fn=_limit_time,  # safe: a decoder's child has one thread
        )
    decoded = os.fdopen(made, "rb")
    if done.returncode != 0:
        decoded.close()
        msg = "the compressed pixels (12-bit JPEG) can't be decoded; send the series again"
        raise BrokenPixelData(msg)
    decoded.seek(0)
    return decoded, ExplicitVRLittleEndian


def _limit_time() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (DCMTK_CPU_S, DCMTK_CPU_S))
