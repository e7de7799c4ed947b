"""Values of tags, and which of them are a patient's.

In: a data set and a path of tags. Out: the values as text, or none. Nothing is kept, and no
value leaves this room but to a person who asks for it by `tritome route explain`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pydicom.config
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items

from dicom_gateway.walk import has_too_many_items

# pydicom's validation answers with warnings that quote the value.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_UNREADABLE = (
    InvalidDicomError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on data sets that are none, and on values that are none."""

_SHARED = 0x52009229
_PER_FRAME = 0x52009230

_NUMBERS_VRS = frozenset(("DS", "IS", "US", "SS", "US or SS", "UL", "SL", "UV", "SV", "FL", "FD"))
"""Their values are numbers (PS3.5 6.2); all other values are texts, whatever they look like."""

_PATIENTS_VRS = frozenset(("PN", "DA", "DT", "TM", "LT", "ST", "UT", "UC", "UR", "UN", "OB", "OW"))
"""Names, dates and free texts can say who somebody is (PS3.15 E.1)."""

_PATIENTS_TAGS = frozenset(
    (
        0x00080050,  # Accession Number
        0x00080080,  # Institution Name
        0x00081010,  # Station Name
        0x00081040,  # Institutional Department Name
        0x00181000,  # Device Serial Number
        0x00200010,  # Study ID
        0x00321033,  # Requesting Service
        0x00380010,  # Admission ID
        0x00380060,  # Service Episode ID
        0x00380300,  # Current Patient Location
        0x00400009,  # Scheduled Procedure Step ID
        0x00400253,  # Performed Procedure Step ID
        0x00401001,  # Requested Procedure ID
        0x00402016,  # Placer Order Number
        0x00402017,  # Filler Order Number
    )
)
"""Others that do."""


def read_header(path: Path) -> Dataset:
    """The data set without its pixels; empty where it can't be read, or is too much to read."""
    try:
        if has_too_many_items(path):
            return Dataset()
        return pydicom.dcmread(path, stop_before_pixels=True)
    except _UNREADABLE:
        return Dataset()


@dataclass(frozen=True, slots=True)
class Value:
    """One value of an attribute.

    Attributes:
        text: Without the spaces around it.
        is_number: By the attribute's VR.
    """

    text: str
    is_number: bool


def values_at(ds: Dataset, path: tuple[int, ...]) -> list[Value]:
    """The values of a tag, of all items on the way; empty ones are left out.

    A tag of an enhanced multi-frame object is also looked for in its functional groups: the
    shared ones, then those of the first frame.
    """
    found = list(_values(_descend([ds], path[:-1]), path[-1]))
    if not found and len(path) == 1:
        for groups in (_SHARED, _PER_FRAME):
            for first in list(_items(ds, groups))[:1]:
                macros = (item for element in first for item in _items(first, element.tag))
                found = list(_values(macros, path[-1]))
                if found:
                    return found
    return found


def text_at(ds: Dataset, tag: int) -> str:
    """All values of a tag with backslashes between, as DICOM writes them."""
    return "\\".join(one.text for one in values_at(ds, (tag,)))


def is_patients(path: tuple[int, ...]) -> bool:
    """Whether a value at this path may say who the patient is, or whose hands it went through."""
    return any(_is_patients(tag) for tag in path)


def _is_patients(tag: int) -> bool:
    group = tag >> 16
    if group in (0x0010, 0x0012) or group % 2 or tag in _PATIENTS_TAGS:
        return True
    try:
        return dictionary_VR(tag) in _PATIENTS_VRS
    except KeyError:
        return True


def _descend(sets: Iterable[Dataset], path: tuple[int, ...]) -> Iterable[Dataset]:
    for tag in path:
        sets = [item for ds in sets for item in _items(ds, tag)]
    return sets


def _items(ds: Dataset, tag: int) -> Iterator[Dataset]:
    try:
        value = ds[tag].value if tag in ds else None
    except _UNREADABLE:
        return
    if isinstance(value, Items):
        yield from value


def _values(sets: Iterable[Dataset], tag: int) -> Iterator[Value]:
    for ds in sets:
        try:
            if tag not in ds:
                continue
            element = ds[tag]
            value, is_number = element.value, element.VR in _NUMBERS_VRS
            if isinstance(value, Items):
                yield from (Value(f"item {number}", False) for number in range(1, len(value) + 1))
                continue
            # A person's name can be iterated over too, letter by letter.
            for one in value if isinstance(value, list | tuple | MultiValue) else [value]:
                text = one.decode("ascii", "replace") if isinstance(one, bytes) else str(one)
                text = text.strip(" \0")
                if one is not None and text:
                    yield Value(text, is_number)
        except _UNREADABLE:
            continue
