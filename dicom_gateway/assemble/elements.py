"""Values of data elements that may be empty, missing or malformed.

In: a data set, or what was walked past of one, and a keyword. Out: the value in a type of its
own, or None. Never an error: whoever needs the value refuses by name.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Protocol

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.tag import Tag

from dicom_gateway.walk import Raw

UNREADABLE = (
    InvalidDicomError,
    BytesLengthException,
    ArithmeticError,  # among them OverflowError and decimal's
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,  # among them IndexError, KeyError, an unknown encoding
    OSError,
    RuntimeError,  # among them NotImplementedError and RecursionError
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on data sets that are none, and on values that are none."""
_PIXEL_REPRESENTATION = 0x00280103
_REMEMBERED_BYTES = 1024
"""Of a value that all slices have in common; what a stranger writes must not stay for ever."""


class Elements(Protocol):
    """What has values by keyword."""

    def get(self, keyword: str, /) -> Any:
        """As pydicom gives it; None where there is none."""


class RawElements:
    """Elements that were walked past, converted by pydicom when asked for.

    The slices of a series have nearly all values in common: each is converted once.

    Args:
        elements: By tag; little endian, text in ASCII.
        is_implicit_vr: How they are encoded.
    """

    def __init__(self, elements: dict[int, Raw], *, is_implicit_vr: bool) -> None:
        self._elements = elements
        self._is_implicit_vr = is_implicit_vr
        self._signed = elements.get(_PIXEL_REPRESENTATION)

    def get(self, keyword: str, /) -> Any:
        """As `Dataset.get`."""
        raw = self._elements.get(_tag_of(keyword))
        if raw is None:
            return None
        long = len(raw.value or b"") > _REMEMBERED_BYTES
        convert = _convert if long else _converted
        return convert(_tag_of(keyword), raw, self._signed, self._is_implicit_vr)


@lru_cache(maxsize=1024)
def _tag_of(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return tag


def _convert(tag: int, raw: Raw, signed: Raw | None, is_implicit_vr: bool) -> Any:
    """One value, as pydicom makes it; of some, Pixel Representation decides (PS3.5 Annex A)."""
    ds = Dataset()
    ds.set_original_encoding(is_implicit_vr, True, "iso8859")
    if signed is not None:
        ds[_PIXEL_REPRESENTATION] = _as_read(_PIXEL_REPRESENTATION, signed, is_implicit_vr)
    ds[tag] = _as_read(tag, raw, is_implicit_vr)
    return ds[tag].value


_converted = lru_cache(maxsize=8192)(_convert)


def _as_read(tag: int, raw: Raw, is_implicit_vr: bool) -> RawDataElement:
    vr = raw.vr.decode("ascii") or None
    value = raw.value or b""
    return RawDataElement(Tag(tag), vr, len(value), value, 0, is_implicit_vr, True)


def values_of(ds: Elements, keyword: str) -> list[Any]:
    """All values of an element; none where it is missing, empty or unreadable."""
    try:
        value = ds.get(keyword)
    except UNREADABLE:
        return []
    if value is None or value == "":
        return []
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return list(value)
    return [value]


def text(ds: Elements, keyword: str) -> str:
    """The first value as text, without spaces around it; "" where there is none."""
    values = values_of(ds, keyword)
    return str(values[0]).strip() if values else ""


def integer(ds: Elements, keyword: str) -> int | None:
    """The first value as a whole number."""
    try:
        return int(values_of(ds, keyword)[0])
    except UNREADABLE:
        return None


def numbers(ds: Elements, keyword: str, count: int) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers."""
    values = values_of(ds, keyword)
    if len(values) != count:
        return None
    try:
        numbers = tuple(float(value) for value in values)
    except UNREADABLE:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def rescale_of(ds: Elements) -> tuple[float, float] | None:
    """Rescale Slope and Intercept; (1, 0) where absent, None where they are no use."""
    slope = numbers(ds, "RescaleSlope", 1) if values_of(ds, "RescaleSlope") else (1.0,)
    intercept = numbers(ds, "RescaleIntercept", 1) if values_of(ds, "RescaleIntercept") else (0.0,)
    if slope is None or intercept is None or slope[0] == 0.0:
        return None
    return slope[0], intercept[0]
