"""Room 2, keep: an object that came through the door becomes an instance that stays.

In: an `Arrival`. Out: an `Instance`, when the file is synced, renamed and its folder synced,
and the index row is committed, in this order. Only then may the sender hear 0x0000.

Survives a crash: every instance that was returned. A file without its row (a crash between
the two) does no harm: nobody was told that it is kept, so the sender sends it again, and the
second `keep` finds the file and adds the row.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from dicom_gateway.database import transaction
from dicom_gateway.errors import DatabaseUnavailable
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import Arrival, Instance
from dicom_gateway.store.files import DurableFolder
from dicom_gateway.store.identity import Identity, identify
from dicom_gateway.store.rows import Kept, as_instance, write_rows

# Derived from a UUID, which needs no registration (PS3.5 B.2): uuid5 of "tritome".
IMPLEMENTATION_CLASS_UID = "2.25.55315946140892021761536926937212057420"
IMPLEMENTATION_VERSION_NAME = "TRITOME"

_TRIES = 3


class InstanceStore:
    """Keeps instances, durably, safe for several association threads at once.

    Args:
        folder: The store's folder; files go to `instances/` below it.
        engine: From `open_database`.
        min_free_bytes: What must stay free on the file system.

    Raises:
        ConfigurationError: the folder can't be made.
    """

    def __init__(self, folder: Path, engine: sa.Engine, min_free_bytes: int) -> None:
        self._folder = DurableFolder(folder, min_free_bytes)
        self._engine = engine
        self._log = get_logger(room="store")

    def clean(self) -> int:
        """Removes what a killed process left half-written. Call it before receiving.

        Returns:
            How many leftovers there were.
        """
        return self._folder.clean()

    def keep(self, arrival: Arrival) -> Instance:
        """Keeps one object; when this returns, it survives a power cut.

        The same object again is the same instance. Another object under the same SOP
        Instance UID, for the same called AE title, is kept apart and marked as conflicting;
        it takes the first one's place where nothing came of that (see `rows.py`).

        Raises:
            NotADataSet, BadIdentifier, IdentifierMismatch: see `identify`.
            OutOfResources: the disk is full; nothing partial is left.
            DatabaseUnavailable: the index does not answer.
        """
        identity = identify(arrival)
        sha256 = hashlib.sha256(arrival.encoded_dataset).hexdigest()
        relative = _relative_path(identity.sop_instance_uid, sha256)
        meta = _file_meta(identity, arrival)
        self._folder.write(relative, (meta, arrival.encoded_dataset))
        size_bytes = len(meta) + len(arrival.encoded_dataset)
        row = {
            "sop_instance_uid": identity.sop_instance_uid,
            "sha256": sha256,
            "sop_class_uid": identity.sop_class_uid,
            "transfer_syntax_uid": arrival.transfer_syntax_uid,
            "series_instance_uid": identity.series_instance_uid,
            "study_instance_uid": identity.study_instance_uid,
            "modality": identity.modality,
            "path": relative.as_posix(),
            "size_bytes": size_bytes,
        }
        kept = self._index(row, arrival)
        self._tell(kept, arrival)
        return as_instance(kept.row, self._folder.folder, conflicts=kept.conflicts)

    def _index(self, row: dict[str, Any], arrival: Arrival) -> Kept:
        for _ in range(_TRIES):
            try:
                with transaction(self._engine) as connection:
                    return write_rows(connection, row, arrival)
            except IntegrityError:
                continue  # another thread or process wrote the same row first: look again
        msg = "the index refuses a row that is not in it; it will be tried again"
        raise DatabaseUnavailable(msg)

    def _tell(self, kept: Kept, arrival: Arrival) -> None:
        log = self._log.bind(
            sop_instance_uid=kept.row.sop_instance_uid,
            series_instance_uid=kept.row.series_instance_uid,
            called_ae_title=arrival.called_ae_title,
        )
        if kept.conflicts:
            log.warning(
                "another object with this SOP Instance UID is kept already; this one is set "
                "apart and not used"
            )
        if kept.replaces:
            log.warning(
                "this object takes the place of the one that was kept under its SOP Instance "
                "UID, of which nothing came; the older one is set apart"
            )
        if kept.reopens:
            log.info("the series was sent again and is judged again")


def _relative_path(sop_instance_uid: str, sha256: str) -> Path:
    # Nothing that a peer sends becomes part of a path, only a digest of it.
    digest = hashlib.sha256(f"{sop_instance_uid}\n{sha256}".encode()).hexdigest()
    return Path("instances", digest[:2], digest[2:4], f"{digest}.dcm")


def _file_meta(identity: Identity, arrival: Arrival) -> bytes:
    """Preamble, prefix and file meta information; the same for the same object.

    Written by hand: it must never depend on what a library thinks of a peer's values.

    Source: PS3.10 7.1.
    """
    elements = b"".join(
        (
            _element(0x0001, b"OB", b"\x00\x01"),
            _element(0x0002, b"UI", identity.sop_class_uid.encode()),
            _element(0x0003, b"UI", identity.sop_instance_uid.encode()),
            _element(0x0010, b"UI", arrival.transfer_syntax_uid.encode()),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode()),
            _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode()),
        )
    )
    group_length = _element(0x0000, b"UL", struct.pack("<I", len(elements)))
    return b"\0" * 128 + b"DICM" + group_length + elements


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    """One element of group 0002, explicit VR little endian."""
    if len(value) % 2:
        value += b" " if vr == b"SH" else b"\0"
    length = struct.pack("<HI", 0, len(value)) if vr == b"OB" else struct.pack("<H", len(value))
    return struct.pack("<HH", 0x0002, element) + vr + length + value
