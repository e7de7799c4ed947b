"""Keep, after a disaster: the index is made again from the files.

In: the store's folder and an index that is empty, old or whole. Out: an index that knows
every kept object, how it came to which AE title and in which order, and which of two objects
under one UID is in use. No gateway may run on the folder meanwhile.

What is there already stays. What comes anew is played through the same rules as when it came
(`rows.py`), in the same order. A series counts as decided where results plainly were made from
all of it, so that nothing is computed and sent twice; any other is judged again
(`computed.py`). A file whose bytes have changed is set apart under `damaged/`, so that sending
the object again mends it.

Survives a crash: all of it; begun again, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.database import (
    arrivals,
    instances,
    job_instances,
    jobs,
    reading,
    series,
    transaction,
)
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.records import Arrival, SeriesState
from dicom_gateway.store.computed import decide_what_was_computed
from dicom_gateway.store.envelope import Note
from dicom_gateway.store.examine import DAMAGED, Examined, examine_all, instance_files
from dicom_gateway.store.files import sync_folder
from dicom_gateway.store.notes import note_path
from dicom_gateway.store.rows import follow_what_is_in_use, write_rows

_TOGETHER = 200
_ASSOCIATION = "rebuild"


@dataclass
class Rebuilt:
    """What was done.

    Attributes:
        files: How many kept files there are.
        added: Arrivals that the index did not know: one object at one AE title.
        forgotten: Rows whose file is gone.
        still_missing: Rows whose file is gone and which a job uses; they stay.
        damaged: Files that were set apart, and why.
        decided: Series of which all is in results already.
        receiving: Series that will be judged again.
    """

    files: int = 0
    added: int = 0
    forgotten: int = 0
    still_missing: int = 0
    damaged: tuple[tuple[Path, str], ...] = ()
    decided: int = 0
    receiving: int = 0


def rebuild(
    engine: sa.Engine,
    folder: Path,
    on_file: Callable[[Examined], None] = lambda _one: None,
) -> Rebuilt:
    """Brings the index into line with the files.

    Args:
        engine: From `open_database`.
        folder: The store's.
        on_file: Called after each file was examined, for a progress bar.

    Raises:
        ConfigurationError: the index has instances and the folder has none; nothing is done.
        DatabaseUnavailable: the index does not answer.
    """
    folder = folder.resolve()
    done = Rebuilt()
    relatives = instance_files(folder)
    with reading(engine) as connection:
        if not relatives and connection.execute(sa.select(instances.c.id).limit(1)).first():
            msg = (
                f"the index knows instances, and {folder} has none: is the right folder mounted? "
                "Nothing was changed"
            )
            raise ConfigurationError(msg)
    whole: list[Examined] = []
    damaged: list[Examined] = []
    for one in examine_all(folder, relatives, on_file):
        (damaged if one.trouble else whole).append(one)
    done.files = len(whole)
    done.damaged = tuple((one.relative, one.trouble) for one in damaged)
    _set_apart(folder, [one.relative for one in damaged])
    _forget_missing(engine, folder, done)
    before = _known_series(engine)
    _add(engine, whole, done)
    _settle_conflicts(engine, whole)
    done.decided = decide_what_was_computed(engine, folder, before)
    with reading(engine) as connection:
        done.receiving = connection.execute(
            sa.select(sa.func.count())
            .select_from(series)
            .where(series.c.state == SeriesState.RECEIVING.value)
        ).scalar_one()
    return done


def _set_apart(folder: Path, relatives: Iterable[Path]) -> None:
    for relative in relatives:
        (folder / DAMAGED).mkdir(mode=0o700, exist_ok=True)
        for path in (relative, note_path(relative)):
            with suppress(FileNotFoundError):
                (folder / path).replace(folder / DAMAGED / path.name)
        sync_folder(folder / DAMAGED)
        sync_folder((folder / relative).parent)


def _forget_missing(engine: sa.Engine, folder: Path, done: Rebuilt) -> None:
    with transaction(engine) as connection:
        gone = [
            row_id
            for row_id, path in connection.execute(sa.select(instances.c.id, instances.c.path))
            if not (folder / path).is_file()
        ]
        for row_id in gone:
            if connection.execute(
                sa.select(job_instances.c.job_id).where(job_instances.c.instance_id == row_id)
            ).first():
                done.still_missing += 1
                continue
            connection.execute(arrivals.delete().where(arrivals.c.instance_id == row_id))
            connection.execute(instances.delete().where(instances.c.id == row_id))
            done.forgotten += 1
        if done.forgotten:
            _forget_empty_series(connection)


def _forget_empty_series(connection: sa.Connection) -> None:
    """A series without any instance would wait for ever; nobody could judge it."""
    left = (
        sa.exists()
        .where(instances.c.series_instance_uid == series.c.series_instance_uid)
        .where(arrivals.c.instance_id == instances.c.id)
        .where(arrivals.c.called_ae_title == series.c.called_ae_title)
    )
    used = (
        sa.exists()
        .where(jobs.c.series_instance_uid == series.c.series_instance_uid)
        .where(jobs.c.called_ae_title == series.c.called_ae_title)
    )
    connection.execute(series.delete().where(~left, ~used))


def _known_series(engine: sa.Engine) -> set[tuple[str, str]]:
    with reading(engine) as connection:
        return {
            (row.series_instance_uid, row.called_ae_title)
            for row in connection.execute(
                sa.select(series.c.series_instance_uid, series.c.called_ae_title)
            )
        }


def _add(engine: sa.Engine, whole: list[Examined], done: Rebuilt) -> None:
    """Plays every arrival that the index doesn't know, in the order in which they came."""
    with reading(engine) as connection:
        known = {
            (path, title)
            for path, title in connection.execute(
                sa.select(instances.c.path, arrivals.c.called_ae_title).join(
                    arrivals, arrivals.c.instance_id == instances.c.id
                )
            )
        }
    new = sorted(
        (
            (note, one)
            for one in whole
            for note in one.notes
            if (one.relative.as_posix(), note.called_ae_title) not in known
        ),
        key=lambda pair: pair[0].received_at_s,
    )
    for first in range(0, len(new), _TOGETHER):
        with transaction(engine) as connection:
            for note, one in new[first : first + _TOGETHER]:
                _play(connection, one, note)
    done.added = len(new)
    with transaction(engine) as connection:
        _name_last_senders(connection, new)


def _play(connection: sa.Connection, one: Examined, note: Note) -> None:
    assert one.identity is not None
    assert one.envelope is not None
    identity = one.identity
    ours = sa.and_(
        series.c.series_instance_uid == identity.series_instance_uid,
        series.c.called_ae_title == note.called_ae_title,
    )
    before = None
    if note.conflicts:
        # It may have come when the series was decided, and was no news then. Here every series
        # is still open; where it was news, the note says so (`_name_last_senders`).
        before = connection.execute(
            sa.select(series.c.calling_ae_title, series.c.last_arrival_at_s).where(ours)
        ).first()
    values = {
        "sop_instance_uid": identity.sop_instance_uid,
        "sha256": one.sha256,
        "sop_class_uid": identity.sop_class_uid,
        "transfer_syntax_uid": one.envelope.transfer_syntax_uid,
        "series_instance_uid": identity.series_instance_uid,
        "study_instance_uid": identity.study_instance_uid,
        "modality": identity.modality,
        "path": one.relative.as_posix(),
        "size_bytes": one.size_bytes,
    }
    kept = write_rows(
        connection,
        values,
        Arrival(
            encoded_dataset=b"",
            sop_class_uid=identity.sop_class_uid,
            sop_instance_uid=identity.sop_instance_uid,
            transfer_syntax_uid=one.envelope.transfer_syntax_uid,
            calling_ae_title=note.calling_ae_title,
            called_ae_title=note.called_ae_title,
            association_id=_ASSOCIATION,
        ),
    )
    if not kept.was_known:
        connection.execute(
            instances.update()
            .where(instances.c.id == kept.row.id)
            .values(received_at_s=note.received_at_s)
        )
    connection.execute(
        arrivals.update()
        .where(
            arrivals.c.instance_id == kept.row.id,
            arrivals.c.called_ae_title == note.called_ae_title,
        )
        .values(received_at_s=note.received_at_s)
    )
    if before is not None:
        connection.execute(series.update().where(ours).values(**before._mapping))
    elif kept.touched:
        connection.execute(series.update().where(ours).values(last_arrival_at_s=note.received_at_s))


def _name_last_senders(connection: sa.Connection, new: list[tuple[Note, Examined]]) -> None:
    """A series is its last sender's, also where that has only sent again what was there."""
    again = [
        (note.last_received_at_s, note.last_calling_ae_title, note.called_ae_title, one)
        for note, one in new
        if note.last_received_at_s is not None and note.last_calling_ae_title is not None
    ]
    for at_s, calling, called, one in sorted(again, key=lambda event: event[0]):
        assert one.identity is not None
        connection.execute(
            series.update()
            .where(
                series.c.series_instance_uid == one.identity.series_instance_uid,
                series.c.called_ae_title == called,
                series.c.last_arrival_at_s < at_s,
            )
            .values(calling_ae_title=calling, last_arrival_at_s=at_s)
        )


def _settle_conflicts(engine: sa.Engine, whole: list[Examined]) -> None:
    """Where a note says which of several objects under one UID is in use, it is.

    What that says of study and modality holds for its series.
    """
    said: dict[tuple[str, str], list[tuple[Note, str]]] = {}
    changed: set[tuple[str, str]] = set()
    series_of: dict[str, str] = {}
    for one in whole:
        assert one.identity is not None
        for note in one.notes:
            key = one.identity.sop_instance_uid, note.called_ae_title
            said.setdefault(key, []).append((note, one.relative.as_posix()))
        series_of[one.relative.as_posix()] = one.identity.series_instance_uid
    with transaction(engine) as connection:
        for (_, title), some in said.items():
            if len(some) < 2 or all(note.conflicts is None for note, _ in some):
                continue  # one object, or the order of arrival has said it
            some.sort(key=lambda pair: pair[0].received_at_s)
            chosen = [path for note, path in some if note.conflicts is False]
            silent = [path for note, path in some if note.conflicts is None]
            in_use = (chosen[-1:] or silent[:1] or [some[0][1]])[0]
            for _, path in some:
                connection.execute(
                    arrivals.update()
                    .where(
                        arrivals.c.instance_id.in_(
                            sa.select(instances.c.id).where(instances.c.path == path)
                        ),
                        arrivals.c.called_ae_title == title,
                    )
                    .values(conflicts=path != in_use)
                )
                changed.add((series_of[path], title))
        for uid, title in sorted(changed):
            follow_what_is_in_use(connection, uid, title)
