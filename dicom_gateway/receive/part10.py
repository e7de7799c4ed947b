"""Receive, the beginning of a DICOM file: what is it, and where does its data set begin?

In: the first bytes of a PS3.10 file. Out: `FileMeta`, or that more bytes are needed. Nothing
is kept, and nothing behind the file meta information is looked at.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dicom_gateway.errors import NotADataSet

META_LIMIT_BYTES = 64 * 1024
"""Real ones have some hundred; private information in them is never that long."""
_PREFIX_ENDS = 132
_LONG_LENGTH_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
_SOP_CLASS_UID, _SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID = 0x0002, 0x0003, 0x0010


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What the file meta information says.

    Attributes:
        size_bytes: Of preamble, prefix and file meta information: there the data set begins.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    size_bytes: int


def read_file_meta(head: bytes | bytearray, *, is_all: bool) -> FileMeta | None:
    """Reads the file meta information.

    Args:
        head: The beginning of the file.
        is_all: There are no more bytes.

    Returns:
        None where more bytes are needed.

    Raises:
        NotADataSet: (no_part10_header) it is no DICOM file; (bad_file_meta) its file meta
            information can't be read or lacks a UID.

    Source: PS3.10 7.1.
    """
    if len(head) < _PREFIX_ENDS and not is_all:
        return None
    if head[_PREFIX_ENDS - 4 : _PREFIX_ENDS] != b"DICM":
        msg = (
            "no DICOM file: after 128 bytes of preamble it has no 'DICM' (PS3.10); send whole "
            "files, not bare data sets"
        )
        raise NotADataSet(msg, code="no_part10_header")
    found: dict[int, str] = {}
    place = _PREFIX_ENDS
    while True:
        if place + 8 > len(head):
            at_the_end = is_all and place == len(head)
            break
        group, element = struct.unpack_from("<HH", head, place)
        if group != 0x0002:
            at_the_end = True
            break
        value, length = _value(head, place)
        if value + length > META_LIMIT_BYTES:
            msg = f"its file meta information is longer than {META_LIMIT_BYTES} bytes"
            raise NotADataSet(msg, code="bad_file_meta")
        if value + length > len(head):
            at_the_end = False
            break
        if element in (_SOP_CLASS_UID, _SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID):
            text = bytes(head[value : value + length]).rstrip(b"\0 ")
            found[element] = text.decode("ascii", errors="replace")
        place = value + length
    if not at_the_end:
        if not is_all:
            return None
        msg = "it is cut off in its file meta information"
        raise NotADataSet(msg, code="bad_file_meta")
    return FileMeta(
        _wanted(found, _SOP_CLASS_UID, "Media Storage SOP Class UID"),
        _wanted(found, _SOP_INSTANCE_UID, "Media Storage SOP Instance UID"),
        _wanted(found, _TRANSFER_SYNTAX_UID, "Transfer Syntax UID"),
        place,
    )


def _value(head: bytes | bytearray, place: int) -> tuple[int, int]:
    """Where the value of the element begins, and its length (explicit VR little endian)."""
    vr = bytes(head[place + 4 : place + 6])
    if not (vr.isalpha() and vr.isupper()):
        msg = "its file meta information is not in explicit VR little endian"
        raise NotADataSet(msg, code="bad_file_meta")
    if vr not in _LONG_LENGTH_VRS:
        return place + 8, struct.unpack_from("<H", head, place + 6)[0]
    if place + 12 > len(head):
        return place + 12, 0  # is found to be longer than what is there
    return place + 12, struct.unpack_from("<I", head, place + 8)[0]


def _wanted(found: dict[int, str], element: int, name: str) -> str:
    if not found.get(element):
        msg = f"its file meta information has no {name} (0002,{element:04X})"
        raise NotADataSet(msg, code="bad_file_meta")
    return found[element]
