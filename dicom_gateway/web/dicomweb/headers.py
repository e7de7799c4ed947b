"""DICOMweb, headers of kept files: everything before the pixels, in bounded memory.

In: the path of a kept PS3.10 file. Out: a pydicom `Dataset`, or `HeaderUnreadable`. Real files
have everything wrong with them that a file can have, and some peers send worse on purpose.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

import pydicom.config
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from dicom_gateway.walk import ITEM_BEGINNINGS

# pydicom's validation answers with warnings that quote the value: never a patient's name.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

UNREADABLE = (
    InvalidDicomError,
    BytesLengthException,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,  # among them RecursionError
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on data sets that are none, and on values that are none."""

_WHOLE_HEADER_BYTES = 64 << 20
_FEW_TAGS_BYTES = 2 << 20
_ITEMS_LIMIT = 200_000
"""An enhanced object with 5000 frames has about 50,000; each takes a kilobyte here."""
UNDEFINED_LENGTH = 0xFFFFFFFF
"""Of encapsulated pixel data."""
_PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))


class HeaderUnreadable(Exception):
    """The file is there, but its header can't be read within the limits."""


@dataclass(frozen=True, slots=True)
class FoundPixels:
    """Where pixel data begins.

    Attributes:
        tag: (7FE0,0010), or its floating-point kin.
        length: In bytes; `UNDEFINED_LENGTH` where encapsulated.
        offset: Of the value in the file.
    """

    tag: int
    length: int
    offset: int


def read_header(path: Path) -> tuple[Dataset, FoundPixels | None]:
    """Everything before the pixel data, and where that begins.

    Raises:
        HeaderUnreadable: see above.
        OSError: the file is gone or can't be read.
    """
    with path.open("rb") as file:
        try:
            limited = cast(BinaryIO, _Limited(file, _WHOLE_HEADER_BYTES))
            ds = read_partial(limited, lambda tag, _vr, _length: tag in _PIXELS)
            return ds, _pixels(file, ds)
        except (OSError, *UNREADABLE) as error:
            msg = f"its header can't be read ({type(error).__name__})"
            raise HeaderUnreadable(msg) from error


def read_elements(path: Path, tags: Sequence[int], last: int) -> Dataset:
    """Only these elements, none behind `last`.

    Raises:
        HeaderUnreadable, OSError: see `read_header`.
    """

    def is_behind(tag: BaseTag, _vr: str | None, _length: int) -> bool:
        return int(tag) > last

    with path.open("rb") as file:
        try:
            limited = cast(BinaryIO, _Limited(file, _FEW_TAGS_BYTES))
            return read_partial(limited, is_behind, specific_tags=[BaseTag(tag) for tag in tags])
        except (OSError, *UNREADABLE) as error:
            msg = f"its header can't be read ({type(error).__name__})"
            raise HeaderUnreadable(msg) from error


class _Limited:
    """A file of which only so much may be read, with only so many sequence items in it.

    What is jumped over doesn't count, nor what isn't read: the pixel data.
    """

    def __init__(self, file: BufferedReader, limit_bytes: int) -> None:
        self._file = file
        self._left_bytes = limit_bytes
        self._left_items = _ITEMS_LIMIT
        self.name = ""  # pydicom keeps it; a path is nobody's business

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(
            self._left_bytes + 1 if size < 0 else min(size, self._left_bytes + 1)
        )
        self._left_bytes -= len(data)
        self._left_items -= sum(map(data.count, ITEM_BEGINNINGS))
        if self._left_bytes < 0 or self._left_items < 0:
            msg = f"its header is too long, or has more than {_ITEMS_LIMIT} sequence items"
            raise HeaderUnreadable(msg)
        return data

    def seek(self, *place: int) -> int:
        return self._file.seek(*place)

    def tell(self) -> int:
        return self._file.tell()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _pixels(file: BufferedReader, ds: Dataset) -> FoundPixels | None:
    """The element at which reading stopped."""
    is_implicit, is_little = ds.original_encoding
    order = "<" if is_little else ">"
    start = file.tell()
    head = file.read(12)
    if len(head) < 12:
        return None
    group, element = struct.unpack_from(f"{order}HH", head)
    tag = group << 16 | element
    if tag not in _PIXELS:
        return None
    # Implicit VR: tag and length. Explicit: tag, VR, two reserved bytes, length (PS3.5 7.1).
    at = 4 if is_implicit else 8
    return FoundPixels(tag, struct.unpack_from(f"{order}I", head, at)[0], start + at + 4)
