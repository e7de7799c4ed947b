"""Values of data elements that may be empty, missing or malformed.

In: a data set and a keyword. Out: the value in a type of its own, or None. Never an error:
whoever needs the value refuses by name.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

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


def values_of(ds: Dataset, keyword: str) -> list[Any]:
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


def text(ds: Dataset, keyword: str) -> str:
    """The first value as text, without spaces around it; "" where there is none."""
    values = values_of(ds, keyword)
    return str(values[0]).strip() if values else ""


def integer(ds: Dataset, keyword: str) -> int | None:
    """The first value as a whole number."""
    try:
        return int(values_of(ds, keyword)[0])
    except UNREADABLE:
        return None


def numbers(ds: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers."""
    values = values_of(ds, keyword)
    if len(values) != count:
        return None
    try:
        numbers = tuple(float(value) for value in values)
    except UNREADABLE:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def rescale_of(ds: Dataset) -> tuple[float, float] | None:
    """Rescale Slope and Intercept; (1, 0) where absent, None where they are no use."""
    slope = numbers(ds, "RescaleSlope", 1) if values_of(ds, "RescaleSlope") else (1.0,)
    intercept = numbers(ds, "RescaleIntercept", 1) if values_of(ds, "RescaleIntercept") else (0.0,)
    if slope is None or intercept is None or slope[0] == 0.0:
        return None
    return slope[0], intercept[0]
