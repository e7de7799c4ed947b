"""Keep, what the bytes of a data set don't say: who sent it to whom, when, and what became of it.

In: an arrival. Out: the head of its file (preamble and file meta information) that says so
too, and for the rare rest a note beside the file. Survives a crash: all of it, since it is
in the file, with the file's own sync; so the index can be made again from the files alone
(`rebuild.py`).

Why in the file and not in a journal: it costs no further sync, and a file that is copied or
restored alone still says where it came from. Why a note beside it for the rest: a kept file
is never written again, but the same object may be sent to a second AE title, or be set apart
later. Notes are few, small, and replaced as a whole.

Source: PS3.10 7.1: Sending and Receiving AE Title (0002,0017) and (0002,0018) for people and
other programs, Private Information (0002,0102) for exactly what we need.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dicom_gateway.records import Arrival
from dicom_gateway.store.identity import Identity

# Derived from UUIDs, which need no registration (PS3.5 B.2): uuid5 of "tritome".
IMPLEMENTATION_CLASS_UID = "2.25.55315946140892021761536926937212057420"
IMPLEMENTATION_VERSION_NAME = "TRITOME"
PRIVATE_INFORMATION_UID = f"{IMPLEMENTATION_CLASS_UID}.1"

_PREAMBLE_BYTES = 132
_HEAD_LIMIT_BYTES = 64 * 1024
_LONG_LENGTH_VRS = frozenset((b"OB", b"OW", b"UN", b"SQ", b"UT"))


class NotOurs(Exception):
    """A file that this store has not written, or that has lost its head."""


@dataclass(frozen=True, slots=True)
class Note:
    """How one object came to one called AE title.

    Attributes:
        received_at_s: Seconds since the epoch by this host's clock, never the same twice.
        conflicts: Whether it is set apart; None where the order of arrival says so.
        last_calling_ae_title: Who sent it last and so had the series, where the sender and time
            above don't say so; of an object that is set apart they say nothing about its series.
        last_received_at_s: When that was.
        removed: It has left this AE title by the retention policy.
    """

    called_ae_title: str
    calling_ae_title: str
    received_at_s: float
    conflicts: bool | None = None
    last_calling_ae_title: str | None = None
    last_received_at_s: float | None = None
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the head of a kept file says.

    Attributes:
        begins_at: Where the data set begins, in bytes from the start of the file.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    note: Note
    begins_at: int


class Clock:
    """This host's time, rising with every look: the order of arrival can be read from it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_us = 0

    def now_s(self) -> float:
        """Seconds since the epoch, whole microseconds."""
        with self._lock:
            self._last_us = max(self._last_us + 1, time.time_ns() // 1000)
            return self._last_us / 1e6


def relative_path(sop_instance_uid: str, sha256: str) -> Path:
    """Where an object is kept: nothing that a peer sends is in it, only a digest of it."""
    digest = hashlib.sha256(f"{sop_instance_uid}\n{sha256}".encode()).hexdigest()
    # 256 folders: each is made once, with two syncs, and holds some ten thousand files.
    return Path("instances", digest[:2], f"{digest}.dcm")


def write_head(identity: Identity, arrival: Arrival, note: Note) -> bytes:
    """Preamble, prefix and file meta information of an object that came.

    Written by hand: it must never depend on what a library thinks of a peer's values.

    Source: PS3.10 7.1.
    """
    said = json.dumps(
        {
            "called": note.called_ae_title,
            "calling": note.calling_ae_title,
            "received_at_s": note.received_at_s,
        }
    ).encode("ascii")
    elements = b"".join(
        (
            _element(0x0001, b"OB", b"\x00\x01"),
            _element(0x0002, b"UI", identity.sop_class_uid.encode()),
            _element(0x0003, b"UI", identity.sop_instance_uid.encode()),
            _element(0x0010, b"UI", arrival.transfer_syntax_uid.encode()),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode()),
            _element(0x0017, b"AE", _ae_title(note.calling_ae_title)),
            _element(0x0018, b"AE", _ae_title(note.called_ae_title)),
            _element(0x0100, b"UI", PRIVATE_INFORMATION_UID.encode()),
            _element(0x0102, b"OB", said),
        )
    )
    group_length = _element(0x0000, b"UL", struct.pack("<I", len(elements)))
    return b"\0" * 128 + b"DICM" + group_length + elements


def read_head(file: BinaryIO) -> Envelope:
    """What the head of a kept file says; the file is left where its data set begins.

    Raises:
        NotOurs: it has no head of ours.
        OSError: it can't be read.
    """
    start = file.read(_PREAMBLE_BYTES + 12)
    if start[128:140] != b"DICM\x02\x00\x00\x00UL\x04\x00" or len(start) < 144:
        raise NotOurs
    length = struct.unpack_from("<I", start, 140)[0]
    if length > _HEAD_LIMIT_BYTES:
        raise NotOurs
    head = file.read(length)
    try:
        values = _elements(head)
        said = json.loads(values[0x0102].rstrip(b"\0 "))
        if len(head) != length or _text(values[0x0100]) != PRIVATE_INFORMATION_UID:
            raise NotOurs
        return Envelope(
            sop_class_uid=_text(values[0x0002]),
            sop_instance_uid=_text(values[0x0003]),
            transfer_syntax_uid=_text(values[0x0010]),
            note=Note(
                called_ae_title=str(said["called"]),
                calling_ae_title=str(said["calling"]),
                received_at_s=float(said["received_at_s"]),
            ),
            begins_at=len(start) + length,
        )
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise NotOurs from error


def _elements(head: bytes) -> dict[int, bytes]:
    """Element number -> value of the elements of group 0002, explicit VR little endian."""
    found: dict[int, bytes] = {}
    place = 0
    while place < len(head):
        group, element = struct.unpack_from("<HH", head, place)
        vr = head[place + 4 : place + 6]
        if group != 0x0002:
            raise NotOurs
        if vr in _LONG_LENGTH_VRS:
            length, place = struct.unpack_from("<I", head, place + 8)[0], place + 12
        else:
            length, place = struct.unpack_from("<H", head, place + 6)[0], place + 8
        found[element] = head[place : place + length]
        place += length
    return found


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    """One element of group 0002, explicit VR little endian."""
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    length = struct.pack("<HI", 0, len(value)) if vr == b"OB" else struct.pack("<H", len(value))
    return struct.pack("<HH", 0x0002, element) + vr + length + value


def _ae_title(title: str) -> bytes:
    # What isn't an AE title (PS3.5 6.2) stands exactly in the private information.
    return title.encode("ascii", errors="replace").replace(b"\\", b"?")[:16]


def _text(value: bytes) -> str:
    return value.rstrip(b"\0 ").decode("ascii")
