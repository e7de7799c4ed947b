"""The character set of a result, in which nobody's name changes on its way.

In: the elements that a result takes over, and the character set that their source states. Out:
both as they are to be written. Nothing is read, nothing is kept.

A library writes a text that its character set doesn't have with question marks, and many
sources state one that their texts are not in. So what is taken over is written and read again
here, and where that changes a word it goes into UTF-8, which has all of them.

Source: PS3.3 C.12.1.1.2 (Specific Character Set), PS3.5 6.1.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO

from pydicom.charset import python_encoding
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR

UTF_8 = "ISO_IR 192"

CharacterSet = str | list[str] | None
"""Specific Character Set; None for the default repertoire."""


def settled(
    elements: Sequence[DataElement], stated: CharacterSet
) -> tuple[tuple[DataElement, ...], CharacterSet]:
    """Elements and the character set to write them in: the stated one, or else UTF-8.

    Bytes that make no sense in the stated set stay what they were read as, with U+FFFD for
    each: a name with a gap is found, a name made up for it would be somebody else's.
    """
    if _is_defined(stated) and _survive(elements, stated):
        return tuple(elements), stated
    return in_unicode(elements), UTF_8


def in_unicode(elements: Sequence[DataElement]) -> tuple[DataElement, ...]:
    """The same elements without the bytes that they were read from, for another set."""
    return tuple(
        DataElement(one.tag, one.VR, _words(one)) if one.VR in CUSTOMIZABLE_CHARSET_VR else one
        for one in elements
    )


def _is_defined(stated: CharacterSet) -> bool:
    terms = [stated] if isinstance(stated, str) else stated or []
    return all(term in python_encoding for term in terms)


def _survive(elements: Sequence[DataElement], character_set: CharacterSet) -> bool:
    ds = Dataset()
    if character_set is not None:
        ds.SpecificCharacterSet = character_set
    for one in elements:
        ds.add(one)
    written = DicomBytesIO()
    written.is_implicit_VR, written.is_little_endian = False, True
    try:
        write_dataset(written, ds)
        again = read_dataset(BytesIO(written.getvalue()), False, True)
        return all(
            _words(again[one.tag]) == _words(one)
            for one in elements
            if one.VR in CUSTOMIZABLE_CHARSET_VR
        )
    except (ValueError, TypeError, LookupError, AttributeError, OSError, struct.error):
        return False  # what can't be written in it isn't


def _words(element: DataElement) -> list[str]:
    """Its values as texts, without the spaces that pad them (PS3.5 6.2)."""
    if element.is_empty:
        return []
    values = element.value if element.VM > 1 else [element.value]
    return [str(value).rstrip("\0 ") for value in values]
