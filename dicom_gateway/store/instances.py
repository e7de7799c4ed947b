"""Room 2, keep: an object that came through the door becomes an instance that stays.

In: an `Arrival`. Out: an `Instance`, when the file is synced, renamed and its folder synced,
and the index row is committed, in this order. Only then may the sender hear 0x0000.

Survives a crash: every instance that was returned. A file without its row (a crash between
the two) does no harm: nobody was told that it is kept, so the sender sends it again, and the
second `keep` finds the file and adds the row.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from dicom_gateway.database import instances, is_full
from dicom_gateway.errors import DatabaseUnavailable, OutOfResources
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import Arrival, Instance
from dicom_gateway.store.envelope import (
    Clock,
    Envelope,
    Note,
    NotOurs,
    read_head,
    relative_path,
    write_head,
)
from dicom_gateway.store.files import DurableFolder, digest_of
from dicom_gateway.store.group import GroupCommit
from dicom_gateway.store.identity import identify
from dicom_gateway.store.notes import Notes
from dicom_gateway.store.rows import Kept, as_instance, write_rows

_TRIES = 5
_SESSIONS_REMEMBERED = 4096


class InstanceStore:
    """Keeps instances, durably, safe for several threads and processes at once.

    Args:
        folder: The store's folder; files go to `instances/` below it.
        engine: From `open_database`.
        min_free_bytes: What must stay free on the file system.
        resume_free_bytes: Once it didn't, what must be free before anything is kept again.

    Raises:
        ConfigurationError: the folder can't be made.
    """

    def __init__(
        self,
        folder: Path,
        engine: sa.Engine,
        min_free_bytes: int,
        resume_free_bytes: int | None = None,
    ) -> None:
        self._folder = DurableFolder(folder, min_free_bytes, resume_free_bytes)
        self._notes = Notes(self._folder)
        self._commits = GroupCommit(engine)
        self._clock = Clock()
        # Association, series and called AE title: committed, so not to be written again.
        self._sessions: set[tuple[str, str, str]] = set()
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
        sha256 = digest_of(arrival.encoded_dataset)
        relative = relative_path(identity.sop_instance_uid, sha256)
        note = Note(arrival.called_ae_title, arrival.calling_ae_title, self._clock.now_s())
        head = write_head(identity, arrival, note)
        row = {
            "sop_instance_uid": identity.sop_instance_uid,
            "sha256": sha256,
            "sop_class_uid": identity.sop_class_uid,
            "transfer_syntax_uid": arrival.transfer_syntax_uid,
            "series_instance_uid": identity.series_instance_uid,
            "study_instance_uid": identity.study_instance_uid,
            "modality": identity.modality,
            "path": relative.as_posix(),
        }
        for _ in range(_TRIES):
            try:
                kept = self._reuse(relative, row, arrival, note) or self._make(
                    relative, row, arrival, note, head
                )
            except (IntegrityError, _Vanished):
                continue  # another thread or process was at the same object: look again
            self._tell(kept, arrival)
            return as_instance(kept.row, self._folder.folder, conflicts=kept.conflicts)
        msg = "the index refuses a row that is not in it; it will be tried again"
        raise DatabaseUnavailable(msg)

    def _make(
        self, relative: Path, row: dict[str, Any], arrival: Arrival, note: Note, head: bytes
    ) -> Kept:
        """A new object: file, then row."""
        encoded = arrival.encoded_dataset
        made = self._folder.write(relative, (head, encoded))
        values = row | {"size_bytes": len(head) + len(encoded)}
        try:
            return self._index(relative, values, arrival, note, note)
        except OutOfResources:
            # The file would only take the room that the index lacks.
            self._folder.take_back(relative, made)
            raise

    def _reuse(
        self, relative: Path, row: dict[str, Any], arrival: Arrival, note: Note
    ) -> Kept | None:
        """An object whose file is there already; None where it isn't, or is damaged."""
        with self._folder.reusing(relative) as there:
            envelope = self._read(relative, row["sha256"]) if there else None
            if envelope is None:
                return None
            # The one who renamed it may not have come as far as the sync.
            self._folder.sync(relative)
            values = row | {
                "size_bytes": envelope.begins_at + len(arrival.encoded_dataset),
                # It is the same bytes whatever was negotiated, and the file says what.
                "transfer_syntax_uid": envelope.transfer_syntax_uid,
            }
            return self._index(relative, values, arrival, note, envelope.note)

    def _read(self, relative: Path, sha256: str) -> Envelope | None:
        """The head of a kept file; None where its bytes are not what they were."""
        try:
            with (self._folder.folder / relative).open("rb") as file:
                envelope = read_head(file)
                if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    return envelope
        except FileNotFoundError:
            return None
        except (OSError, NotOurs):
            pass
        self._log.error("a kept file was damaged; what was sent again takes its place")
        return None

    def _index(
        self,
        relative: Path,
        values: dict[str, Any],
        arrival: Arrival,
        note: Note,
        in_file: Note,
    ) -> Kept:
        """Writes the rows; `in_file` is what the file says about how it came."""

        def work(connection: sa.Connection) -> Kept:
            kept = write_rows(
                connection, values, arrival, association_known=session in self._sessions
            )
            self._notes.write(connection, kept, arrival, note, in_file)
            # From here on nobody else can remove its rows; whoever did so before took the
            # file with them (`retention.py`).
            try:
                size_bytes = (self._folder.folder / kept.row.path).stat().st_size
            except FileNotFoundError:
                raise _Vanished from None
            if kept.was_known and in_file is note:
                # Written again: it was damaged, or came twice at the same moment.
                connection.execute(
                    instances.update()
                    .where(instances.c.id == kept.row.id)
                    .values(
                        size_bytes=size_bytes, transfer_syntax_uid=values["transfer_syntax_uid"]
                    )
                )
            return kept

        session = (arrival.association_id, values["series_instance_uid"], arrival.called_ae_title)
        try:
            kept = self._commits.run(work)
        except DatabaseUnavailable as error:
            if is_full(error):
                msg = "the index can't grow: its disk is full; free some space"
                raise OutOfResources(msg) from error
            raise
        if len(self._sessions) >= _SESSIONS_REMEMBERED:
            self._sessions.clear()
        self._sessions.add(session)
        return kept

    def _tell(self, kept: Kept, arrival: Arrival) -> None:
        if not (kept.conflicts or kept.replaces or kept.reopens):
            return
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


class _Vanished(Exception):
    """The file went while its row was written."""
