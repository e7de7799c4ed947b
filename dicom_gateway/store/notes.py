"""Keep, the rare rest: small notes beside the files, for what a file's own head can't say.

In: what the index is about to say of an object. Out: a note beside its file, where the head
doesn't say the same: the object was sent to a second AE title, was set apart, took another's
place, was sent again by somebody else, or has left an AE title. Survives a crash: all of it,
durable before the index says so. Of nearly every object there is no note.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.database import arrivals
from dicom_gateway.records import Arrival
from dicom_gateway.store.envelope import Note, NotOurs, read_head
from dicom_gateway.store.files import DurableFolder
from dicom_gateway.store.rows import Kept


class Notes:
    """Reads and writes the notes of one store.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: DurableFolder) -> None:
        self._folder = folder

    def write(
        self,
        connection: sa.Connection,
        kept: Kept,
        arrival: Arrival,
        now: Note,
        in_file: Note,
    ) -> None:
        """Writes what the rows say and the files don't; call it before their commit.

        Args:
            connection: In the transaction of the rows.
            kept: What the rows say.
            arrival: What came.
            now: How it came.
            in_file: What the head of the file says; `now` itself where it was just made.

        Raises:
            OutOfResources: the disk doesn't take it.
        """
        title = arrival.called_ae_title
        if kept.other is not None and kept.replaces:
            self._set_apart(Path(kept.other.path), title)
        relative = Path(kept.row.path)
        if in_file is not now:
            said = self._said(relative, title, in_file)
        elif kept.was_known:
            # Its head has been replaced: it was damaged, or two came at the same moment, and
            # it may be the other's head that is in the file now.
            self._write_all(connection, kept, but=title if kept.is_new_here else None)
            said = self._said(relative, title, None)
        elif kept.conflicts or kept.replaces:
            said = in_file
        else:
            return  # of nearly every object: the head says it all
        note = now if kept.is_new_here or said is None else said
        if kept.conflicts or kept.replaces or note.conflicts is not None:
            note = replace(note, conflicts=kept.conflicts)
        sender = arrival.calling_ae_title
        # What is set apart counts by itself as no news of its series: often it is none.
        news = kept.conflicts or kept.renamed or sender != note.calling_ae_title
        if kept.touched and (news or note.last_calling_ae_title):
            note = replace(note, last_calling_ae_title=sender, last_received_at_s=now.received_at_s)
        if note != said:
            self._put(relative, note)

    def forget(self, relative: Path, called_ae_title: str) -> None:
        """Notes that an object whose file stays has left one AE title.

        Raises:
            OutOfResources: the disk doesn't take it.
        """
        said = self._said(relative, called_ae_title, None)
        if said is not None:
            self._put(relative, replace(said, removed=True))

    def _set_apart(self, relative: Path, title: str) -> None:
        said = self._said(relative, title, None)
        if said is not None:
            self._put(relative, replace(said, conflicts=True))

    def _write_all(self, connection: sa.Connection, kept: Kept, *, but: str | None) -> None:
        """What the index says of all AE titles that have it, `but` of one."""
        relative = Path(kept.row.path)
        known = {note.called_ae_title for note in self._read(relative)}
        for row in connection.execute(
            sa.select(arrivals).where(arrivals.c.instance_id == kept.row.id)
        ):
            if row.called_ae_title not in known | {but}:
                note = Note(row.called_ae_title, row.calling_ae_title, row.received_at_s)
                self._put(relative, replace(note, conflicts=True if row.conflicts else None))

    def _said(self, relative: Path, title: str, in_file: Note | None) -> Note | None:
        """What the files say about one AE title; None where they say nothing."""
        for note in self._read(relative):
            if note.called_ae_title == title:
                return note
        try:
            if in_file is None:
                with (self._folder.folder / relative).open("rb") as file:
                    in_file = read_head(file).note
        except (OSError, NotOurs):
            return None
        return in_file if in_file.called_ae_title == title else None

    def _read(self, relative: Path) -> list[Note]:
        try:
            return read_notes(self._folder.folder / note_path(relative))
        except (OSError, NotOurs):
            return []

    def _put(self, relative: Path, note: Note) -> None:
        others = [
            one for one in self._read(relative) if one.called_ae_title != note.called_ae_title
        ]
        content = json.dumps([asdict(one) for one in [*others, note]], indent=1).encode("ascii")
        self._folder.write(note_path(relative), (content + b"\n",), reserved=True)


def note_path(instance: Path) -> Path:
    """Where the notes about a file are."""
    return instance.with_suffix(".json")


def read_notes(path: Path) -> list[Note]:
    """The notes about a file, one for each called AE title.

    Raises:
        NotOurs: they are none, or are damaged.
        OSError: they can't be read.
    """
    try:
        notes = [Note(**one) for one in json.loads(path.read_bytes())]
        for note in notes:
            if not (
                isinstance(note.called_ae_title, str) and isinstance(note.calling_ae_title, str)
            ):
                raise NotOurs
        return [replace(note, received_at_s=float(note.received_at_s)) for note in notes]
    except (TypeError, ValueError) as error:
        raise NotOurs from error
