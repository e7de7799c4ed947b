"""Keep, step 1: who is this? Reads the identifying attributes out of a received data set.

In: the encoded bytes of an `Arrival`. Out: an `Identity` of checked UIDs. Nothing is kept.

The bytes are walked, never decoded (`walk.py`). That is quick enough for the receiving thread,
and no value of a patient is ever turned into text.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass

from dicom_gateway.errors import BadIdentifier, IdentifierMismatch, NotADataSet
from dicom_gateway.records import Arrival
from dicom_gateway.walk import walk

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

# A UID component has no leading zero (PS3.5 9.1), but some devices write one, and turning
# their studies away would help nobody; what matters here is that nothing but digits and
# dots gets through.
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_UID_LIMIT = 64
_TOO_LONG = b"?"
"""Stands for a value that is too long to be one, and wasn't copied."""


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
    encoded: bytes | bytearray | mmap.mmap, transfer_syntax_uid: str, begins_at: int = 0
) -> Identity:
    """Reads and checks the identifiers of an encoded data set, whoever sent it.

    Args:
        encoded: The data set; bytes before `begins_at` are not looked at.
        transfer_syntax_uid: How it is encoded.
        begins_at: Where it begins.

    Raises:
        NotADataSet, BadIdentifier: see `identify`.
    """
    walked = walk(
        encoded, _WANTED.keys(), transfer_syntax_uid=transfer_syntax_uid, begins_at=begins_at
    )
    if walked.missing_bytes:
        msg = f"the data set is cut off: {walked.missing_bytes} bytes of its pixel data are missing"
        raise NotADataSet(msg)
    # Oddly encoded further on, as real devices do it: what was needed is known, and whether
    # the rest can be used is for assembling to say.
    if walked.odd and _SERIES_INSTANCE_UID not in walked.elements:
        msg = f"the bytes are no data set in the negotiated transfer syntax: {walked.odd}"
        raise NotADataSet(msg)
    # One that is far too long isn't copied, and isn't missing: it is no UID.
    values = {
        tag: _TOO_LONG if tag in walked.too_long else raw.value or b""
        for tag, raw in walked.elements.items()
    }
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
