"""Keep, step 1: who is this? Reads the identifying attributes out of a received data set.

In: the encoded bytes of an `Arrival`. Out: an `Identity` of checked UIDs. Nothing is kept.

The bytes are walked, never decoded: only six elements are looked at, nothing is recursed
into, nothing is allocated by a length that a peer claims. That is quick enough for the
receiving thread, and no value of a patient is ever turned into text.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass

from dicom_gateway.errors import BadIdentifier, IdentifierMismatch, NotADataSet
from dicom_gateway.records import Arrival

_IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
_EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"

_SOP_CLASS_UID = 0x00080016
_SOP_INSTANCE_UID = 0x00080018
_MODALITY = 0x00080060
_STUDY_INSTANCE_UID = 0x0020000D
_SERIES_INSTANCE_UID = 0x0020000E
_WANTED = {
    _SOP_CLASS_UID: "SOP Class UID (0008,0016)",
    _SOP_INSTANCE_UID: "SOP Instance UID (0008,0018)",
    _MODALITY: "Modality (0008,0060)",
    _STUDY_INSTANCE_UID: "Study Instance UID (0020,000D)",
    _SERIES_INSTANCE_UID: "Series Instance UID (0020,000E)",
}

_LONG_LENGTH_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
"""These have two reserved bytes and a 32-bit length (PS3.5 Table 7.1-1)."""
_PIXEL_DATA = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_UNDEFINED = 0xFFFFFFFF
_ITEM = 0xFFFEE000
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD

# A UID component has no leading zero (PS3.5 9.1), but some devices write one, and turning
# their studies away would help nobody; what matters here is that nothing but digits and
# dots gets through.
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_UID_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """The checked identifiers of one composite object; modality is "" where it has none."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str


def identify(arrival: Arrival) -> Identity:
    """Reads and checks the identifiers of a received object.

    Raises:
        NotADataSet: the bytes are no data set in the negotiated transfer syntax, or end
            in the middle of the pixel data.
        BadIdentifier: a UID is missing or is none.
        IdentifierMismatch: the data set is another object than the request announced.

    Source: PS3.5 7.1 (elements), 7.5 (sequences), 9.1 (UIDs); PS3.4 B.2.3 (statuses).
    """
    identity = identify_bytes(arrival.encoded_dataset, arrival.transfer_syntax_uid)
    if identity.sop_class_uid != arrival.sop_class_uid:
        msg = "SOP Class UID (0008,0016) is another one than the C-STORE request announced"
        raise IdentifierMismatch(msg)
    if identity.sop_instance_uid != arrival.sop_instance_uid:
        msg = "SOP Instance UID (0008,0018) is another one than the C-STORE request announced"
        raise IdentifierMismatch(msg)
    if arrival.study_instance_uid not in (None, identity.study_instance_uid):
        msg = "Study Instance UID (0020,000D) is another one than the request announced"
        raise IdentifierMismatch(msg)
    return identity


def identify_bytes(
    encoded: bytes | mmap.mmap, transfer_syntax_uid: str, begins_at: int = 0
) -> Identity:
    """Reads and checks the identifiers of an encoded data set, whoever sent it.

    Args:
        encoded: The data set; bytes before `begins_at` are not looked at.
        transfer_syntax_uid: How it is encoded.
        begins_at: Where it begins.

    Raises:
        NotADataSet, BadIdentifier: see `identify`.
    """
    walk = _Walk(
        encoded,
        begins_at,
        explicit=transfer_syntax_uid != _IMPLICIT_LITTLE_ENDIAN,
        byte_order=">" if transfer_syntax_uid == _EXPLICIT_BIG_ENDIAN else "<",
    )
    values = walk.find()
    return Identity(
        sop_class_uid=_uid(values, _SOP_CLASS_UID),
        sop_instance_uid=_uid(values, _SOP_INSTANCE_UID),
        study_instance_uid=_uid(values, _STUDY_INSTANCE_UID),
        series_instance_uid=_uid(values, _SERIES_INSTANCE_UID),
        modality=_modality(values.get(_MODALITY, b"")),
    )


def is_uid(text: str) -> bool:
    """True for digits and dots as a UID has them, at most 64 characters."""
    return len(text) <= _UID_LIMIT and _UID.fullmatch(text) is not None


def _uid(values: dict[int, bytes], tag: int) -> str:
    raw = values.get(tag)
    if not raw:
        msg = f"{_WANTED[tag]} is missing"
        raise BadIdentifier(msg)
    # Padded to even length with one NUL (PS3.5 9.1); some devices pad with a space.
    text = raw.rstrip(b"\0 ").decode("ascii", errors="replace")
    if not is_uid(text):
        # The value is not repeated: it may be anything, a name too.
        msg = f"{_WANTED[tag]} is no UID: only digits and dots, at most 64 characters"
        raise BadIdentifier(msg)
    return text


def _modality(raw: bytes) -> str:
    # Code string (PS3.5 6.2): capitals, digits, underscore, space; whatever else is dropped.
    text = raw.decode("ascii", errors="ignore").upper()
    return re.sub(r"[^A-Z0-9_ ]", "", text).strip()[:16]


class _Odd(Exception):
    """The bytes at hand don't look like an element."""


class _Walk:
    """One pass over the top level of an encoded data set."""

    def __init__(
        self, encoded: bytes | mmap.mmap, begins_at: int, *, explicit: bool, byte_order: str
    ) -> None:
        self._bytes = encoded
        self._begins_at = begins_at
        self._explicit = explicit
        self._tag = struct.Struct(f"{byte_order}HH")
        self._short = struct.Struct(f"{byte_order}H")
        self._long = struct.Struct(f"{byte_order}I")

    def find(self) -> dict[int, bytes]:
        """The raw values of the wanted elements, by tag."""
        found: dict[int, bytes] = {}
        try:
            self._walk(found)
        except (struct.error, _Odd) as odd:
            # Oddly encoded further on, as real devices do it: what was needed is known, and
            # whether the rest can be used is for assembling to say.
            if _SERIES_INSTANCE_UID not in found:
                why = str(odd) if isinstance(odd, _Odd) else "they end in the middle of an element"
                msg = f"the bytes are no data set in the negotiated transfer syntax: {why}"
                raise NotADataSet(msg) from None
        return found

    def _walk(self, found: dict[int, bytes]) -> None:
        place, end, last = self._begins_at, len(self._bytes), -1
        while place < end:
            tag, vr, length, value = self._element(place)
            if tag <= last:
                msg = "elements are not in ascending order"  # PS3.5 7.1
                raise _Odd(msg)
            last = tag
            if length == _UNDEFINED:
                if tag in _PIXEL_DATA:
                    return  # encapsulated; whether it decodes is not asked here
                place = self._after_sequence(value, explicit=self._explicit and vr != b"UN")
                continue
            missing = value + length - end
            if missing > 0 and tag in _PIXEL_DATA:
                msg = f"the data set is cut off: {missing} bytes of its pixel data are missing"
                raise NotADataSet(msg)
            if missing > 0:
                msg = f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) is longer than what is left"
                raise _Odd(msg)
            if tag in _WANTED:
                found[tag] = bytes(self._bytes[value : value + length])
            place = value + length

    def _element(self, place: int, *, explicit: bool | None = None) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty where implicit), length, and where the value begins."""
        group, element = self._tag.unpack_from(self._bytes, place)
        tag = group << 16 | element
        if not (self._explicit if explicit is None else explicit) or group == 0xFFFE:
            return tag, b"", self._long.unpack_from(self._bytes, place + 4)[0], place + 8
        vr = bytes(self._bytes[place + 4 : place + 6])
        if not (vr.isalpha() and vr.isupper()):
            msg = "an element has no value representation"
            raise _Odd(msg)
        if vr in _LONG_LENGTH_VRS:
            return tag, vr, self._long.unpack_from(self._bytes, place + 8)[0], place + 12
        return tag, vr, self._short.unpack_from(self._bytes, place + 6)[0], place + 8

    def _after_sequence(self, place: int, *, explicit: bool) -> int:
        """Where the element after a sequence of undefined length begins.

        Nested sequences are counted, not recursed into: a peer chooses their depth.
        """
        # True for explicit VR inside; a UN of undefined length holds implicit VR (PS3.5 6.2.2).
        open_levels = [explicit]
        while open_levels:
            tag, vr, length, value = self._element(place, explicit=open_levels[-1])
            if tag in (_SEQUENCE_END, _ITEM_END):
                if tag == _SEQUENCE_END:
                    open_levels.pop()
                place = value
            elif length != _UNDEFINED:
                if value + length > len(self._bytes):
                    msg = "a sequence is longer than what is left"
                    raise _Odd(msg)
                place = value + length
            else:
                if tag != _ITEM:
                    open_levels.append(open_levels[-1] and vr != b"UN")
                place = value
        return place
