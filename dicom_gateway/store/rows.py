"""Room 2, keep, step 3: the rows that say what came, to whom, and in place of what.

In: a kept object and the arrival that brought it. Out: its row, and whether it is in use for
the called AE title. All of it is one short transaction of the caller's: after a crash it has
happened or it has not, and the sender has no answer and sends again.

Other bytes under a SOP Instance UID that is in use are a conflict, judged for each called AE
title by itself: nobody can say which of the two is right, so the first stays in use. They
are a correction where nothing came of the first: the series was ignored, or its jobs failed.
That is what "send the series again" asks for, and then the new bytes take the place of the
old, which are set apart in their stead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dicom_gateway.database import arrivals, instances, jobs, now_s, open_associations, series
from dicom_gateway.records import Arrival, Instance, JobState, SeriesState

_NOTHING_CAME_OF_IT = frozenset((JobState.FAILED.value, JobState.CANCELLED.value))


@dataclass(frozen=True, slots=True)
class Kept:
    """What an arrival turned out to be.

    Attributes:
        row: Of `instances`.
        conflicts: Other bytes under its SOP Instance UID stay in use.
        replaces: It has just taken the place of other bytes.
        reopens: A series that was decided or ignored is judged again because of it.
    """

    row: sa.Row[Any]
    conflicts: bool
    replaces: bool
    reopens: bool


def write_rows(connection: sa.Connection, values: dict[str, Any], arrival: Arrival) -> Kept:
    """Writes the rows of one arrival, in the caller's transaction.

    Args:
        connection: Inside `transaction(engine)`.
        values: The object's row of `instances`, without the time.
        arrival: Who sent it to whom.

    Raises:
        sqlalchemy.exc.IntegrityError: another thread wrote the same row first; try again.
    """
    known = connection.execute(
        sa.select(instances).where(
            instances.c.sop_instance_uid == values["sop_instance_uid"],
            instances.c.sha256 == values["sha256"],
        )
    ).one_or_none()
    if known is None:
        known = connection.execute(
            instances.insert().values(**values, received_at_s=now_s()).returning(*instances.c)
        ).one()
    # PostgreSQL: hold the row of the series, so that a judgement that is under way comes
    # before or after. SQLite has one writer at a time and leaves this out.
    received = connection.execute(
        sa.select(series.c.state, series.c.renewable)
        .where(_is_series(known, arrival))
        .with_for_update()
    ).one_or_none()
    state = None if received is None else SeriesState(received.state)

    in_use = _in_use(connection, known.sop_instance_uid, arrival.called_ae_title)
    came_before = connection.execute(
        sa.select(arrivals.c.conflicts).where(_is_arrival(known.id, arrival))
    ).one_or_none()
    is_other = in_use is not None and in_use[0] != known.id
    # Asked only where it matters: of nearly every instance there is nothing to ask.
    renewable = received is not None and (
        state is SeriesState.IGNORED
        or received.renewable
        or (
            (is_other or (state is SeriesState.DECIDED and came_before is None))
            and _nothing_came_of(connection, known, arrival)
        )
    )
    conflicts = replaces = False
    if in_use is not None and is_other:
        # What lies in another series is no correction of this one.
        replaces = renewable and in_use[1] == known.series_instance_uid
        conflicts = not replaces
        if replaces:
            connection.execute(
                arrivals.update().where(_is_arrival(in_use[0], arrival)).values(conflicts=True)
            )
    if came_before is None:
        connection.execute(
            arrivals.insert().values(
                instance_id=known.id,
                called_ae_title=arrival.called_ae_title,
                calling_ae_title=arrival.calling_ae_title,
                association_id=arrival.association_id,
                conflicts=conflicts,
                received_at_s=now_s(),
            )
        )
    elif came_before.conflicts != conflicts:
        connection.execute(
            arrivals.update().where(_is_arrival(known.id, arrival)).values(conflicts=conflicts)
        )
    connection.execute(
        _insert_or_skip(connection, open_associations).values(
            association_id=arrival.association_id,
            series_instance_uid=known.series_instance_uid,
            called_ae_title=arrival.called_ae_title,
        )
    )
    # What is sent again unchanged, or is set apart, is no news about a decided series. An
    # ignored one is looked at again: what wanted it not may want it now.
    reopens = state is SeriesState.IGNORED or (
        state is SeriesState.DECIDED and not conflicts and (came_before is None or replaces)
    )
    _touch_series(connection, known, arrival, state, reopens=reopens, renewable=renewable)
    return Kept(known, conflicts, replaces, reopens)


def as_instance(row: sa.Row[Any], folder: Path, *, conflicts: bool = False) -> Instance:
    """The record of a row of `instances`."""
    return Instance(
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        modality=row.modality,
        path=folder / row.path,
        sha256=row.sha256,
        size_bytes=row.size_bytes,
        conflicts=conflicts,
    )


def _in_use(
    connection: sa.Connection, sop_instance_uid: str, called_ae_title: str
) -> tuple[int, str] | None:
    """Row id and series of the object that is in use under a SOP Instance UID."""
    row = connection.execute(
        sa.select(instances.c.id, instances.c.series_instance_uid)
        .join(arrivals, arrivals.c.instance_id == instances.c.id)
        .where(
            instances.c.sop_instance_uid == sop_instance_uid,
            arrivals.c.called_ae_title == called_ae_title,
            arrivals.c.conflicts.is_(False),
        )
    ).first()
    return None if row is None else (row.id, row.series_instance_uid)


def _nothing_came_of(connection: sa.Connection, instance: sa.Row[Any], arrival: Arrival) -> bool:
    """Whether the newest job of every pipeline failed, or was cancelled by a person."""
    newest: dict[str, str] = {}
    for pipeline, state in connection.execute(
        sa.select(jobs.c.pipeline, jobs.c.state)
        .where(
            jobs.c.series_instance_uid == instance.series_instance_uid,
            jobs.c.called_ae_title == arrival.called_ae_title,
        )
        .order_by(jobs.c.created_at_s)
    ):
        newest[pipeline] = state
    return bool(newest) and _NOTHING_CAME_OF_IT.issuperset(newest.values())


def _touch_series(
    connection: sa.Connection,
    instance: sa.Row[Any],
    arrival: Arrival,
    state: SeriesState | None,
    *,
    reopens: bool,
    renewable: bool,
) -> None:
    """Notes that the series was just sent to this called AE title."""
    now: dict[str, Any] = {
        "calling_ae_title": arrival.calling_ae_title,
        "last_arrival_at_s": now_s(),
        "released_at_s": None,
    }
    if state is None:
        connection.execute(
            series.insert().values(
                series_instance_uid=instance.series_instance_uid,
                called_ae_title=arrival.called_ae_title,
                study_instance_uid=instance.study_instance_uid,
                modality=instance.modality,
                state=SeriesState.RECEIVING.value,
                reasons="",
                **now,
            )
        )
        return
    if reopens:
        now |= {
            "state": SeriesState.RECEIVING.value,
            "reasons": "",
            "broken_off": False,
            "renewable": renewable,
        }
    if reopens or state is SeriesState.RECEIVING:
        connection.execute(series.update().where(_is_series(instance, arrival)).values(**now))


def _is_series(instance: sa.Row[Any], arrival: Arrival) -> sa.ColumnElement[bool]:
    return sa.and_(
        series.c.series_instance_uid == instance.series_instance_uid,
        series.c.called_ae_title == arrival.called_ae_title,
    )


def _is_arrival(instance_id: int, arrival: Arrival) -> sa.ColumnElement[bool]:
    return sa.and_(
        arrivals.c.instance_id == instance_id,
        arrivals.c.called_ae_title == arrival.called_ae_title,
    )


def _insert_or_skip(
    connection: sa.Connection, table: sa.Table
) -> sqlite.Insert | postgresql.Insert:
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()
