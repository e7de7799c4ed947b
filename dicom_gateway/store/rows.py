"""Room 2, keep, step 3: the rows that say what came, to whom, and in place of what.

In: a kept object and the arrival that brought it. Out: its row, and whether it is in use for
the called AE title. All of it is one short transaction of the caller's: after a crash it has
happened or it has not, and the sender has no answer and sends again.

Other bytes under a SOP Instance UID that is in use are a conflict, judged for each called AE
title by itself: nobody can say which of the two is right, so the first stays in use. They
are a correction where nothing came of the first: the series was ignored, or its jobs failed.
That is what "send the series again" asks for, and then the new bytes take the place of the
old, which are set apart in their stead; what they say of study and modality holds for the
series from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dicom_gateway.database import (
    arrivals,
    instances,
    job_events,
    job_instances,
    jobs,
    now_s,
    open_associations,
    series,
)
from dicom_gateway.records import Arrival, Instance, JobState, SeriesState

# Built once: writing such a statement anew costs more than running it.
_HOLD_UID = sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:held, 0))")
_SERIES = (
    sa.select(
        series.c.state,
        series.c.renewable,
        series.c.calling_ae_title,
        series.c.released_at_s,
        (now_s() - series.c.last_arrival_at_s).label("quiet_s"),
    )
    .where(
        series.c.series_instance_uid == sa.bindparam("uid"),
        series.c.called_ae_title == sa.bindparam("title"),
    )
    .with_for_update()
)
_UNDER_THIS_UID = (
    sa.select(instances, arrivals.c.conflicts)
    .join_from(
        instances,
        arrivals,
        sa.and_(
            arrivals.c.instance_id == instances.c.id,
            arrivals.c.called_ae_title == sa.bindparam("title"),
        ),
        isouter=True,
    )
    .where(instances.c.sop_instance_uid == sa.bindparam("uid"))
)
_NEW_INSTANCE = instances.insert().values(received_at_s=now_s()).returning(*instances.c)
_WRITTEN = [column for column in instances.c if column.name not in ("id", "received_at_s")]
_NEW_INSTANCE_UNDER_A_NEW_UID = (
    instances.insert()
    .from_select(
        [*_WRITTEN, instances.c.received_at_s],
        sa.select(
            *(sa.bindparam(column.name, type_=column.type) for column in _WRITTEN), now_s()
        ).where(
            ~sa.exists().where(instances.c.sop_instance_uid == sa.bindparam("sop_instance_uid"))
        ),
    )
    .returning(*instances.c)
)
"""Gives no row where there is anything under its SOP Instance UID."""
_NEW_ARRIVAL = arrivals.insert().values(received_at_s=now_s())
_STILL_RECEIVING = (
    series.update()
    .where(
        series.c.series_instance_uid == sa.bindparam("uid"),
        series.c.called_ae_title == sa.bindparam("title"),
    )
    .values(calling_ae_title=sa.bindparam("calling"), last_arrival_at_s=now_s(), released_at_s=None)
)
_NEW_ASSOCIATION = {
    "sqlite": sqlite.insert(open_associations).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(open_associations).on_conflict_do_nothing(),
}
"""By dialect."""

_AS_GOOD_AS_NOW_S = 0.05
"""Whoever waits for silence waits for seconds."""
_NOTHING_CAME_OF_IT = frozenset((JobState.FAILED.value, JobState.CANCELLED.value))


@dataclass(frozen=True, slots=True)
class Kept:
    """What an arrival turned out to be.

    Attributes:
        row: Of `instances`.
        conflicts: Other bytes under its SOP Instance UID stay in use.
        replaces: It has just taken the place of other bytes.
        reopens: A series that was decided or ignored is judged again because of it.
        was_known: There was a row of the object, whoever it came to.
        is_new_here: It had not come to this called AE title before.
        touched: The series counts as just sent, by this sender.
        renamed: It was another sender's until then.
        other: The row of the other bytes that it conflicts with or replaces.
    """

    row: sa.Row[Any]
    conflicts: bool
    replaces: bool
    reopens: bool
    was_known: bool
    is_new_here: bool
    touched: bool
    renamed: bool
    other: sa.Row[Any] | None


def write_rows(
    connection: sa.Connection,
    values: dict[str, Any],
    arrival: Arrival,
    *,
    association_known: bool = False,
) -> Kept:
    """Writes the rows of one arrival, in the caller's transaction.

    Args:
        connection: Inside `transaction(engine)`.
        values: The object's row of `instances`, without the time.
        arrival: Who sent it to whom.
        association_known: Its association has brought something of this series before, and
            has not ended.

    Raises:
        sqlalchemy.exc.IntegrityError: another thread wrote the same row first; try again.
    """
    uid, title = values["sop_instance_uid"], arrival.called_ae_title
    if connection.dialect.name == "postgresql":
        # Two objects under one UID at the same moment: one of them is the first. SQLite has
        # one writer at a time.
        connection.execute(_HOLD_UID, {"held": uid})
    # PostgreSQL: hold the row of the series, so that a judgement that is under way comes
    # before or after.
    received = connection.execute(
        _SERIES, {"uid": values["series_instance_uid"], "title": title}
    ).one_or_none()
    state = None if received is None else SeriesState(received.state)
    # Nearly every instance is the first under its UID: then there is nothing to compare it with.
    known = connection.execute(_NEW_INSTANCE_UNDER_A_NEW_UID, values).one_or_none()
    was_known, came_before, in_use = False, None, None
    if known is None:
        found = connection.execute(_UNDER_THIS_UID, {"uid": uid, "title": title}).all()
        known = next((row for row in found if row.sha256 == values["sha256"]), None)
        came_before = None if known is None or known.conflicts is None else known
        in_use = next((row for row in found if row.conflicts is False), None)
        was_known = known is not None
        if known is None:
            known = connection.execute(_NEW_INSTANCE, values).one()
    is_other = in_use is not None and in_use.id != known.id
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
        replaces = renewable and in_use.series_instance_uid == known.series_instance_uid
        conflicts = not replaces
        if replaces:
            connection.execute(
                arrivals.update().where(_is_arrival(in_use.id, arrival)).values(conflicts=True)
            )
    if came_before is None:
        connection.execute(
            _NEW_ARRIVAL,
            {
                "instance_id": known.id,
                "called_ae_title": title,
                "calling_ae_title": arrival.calling_ae_title,
                "association_id": arrival.association_id,
                "conflicts": conflicts,
            },
        )
    elif came_before.conflicts != conflicts:
        connection.execute(
            arrivals.update().where(_is_arrival(known.id, arrival)).values(conflicts=conflicts)
        )
    if received is None or not association_known:
        connection.execute(
            _NEW_ASSOCIATION[connection.dialect.name],
            {
                "association_id": arrival.association_id,
                "series_instance_uid": known.series_instance_uid,
                "called_ae_title": title,
            },
        )
    if conflicts and came_before is None:
        _tell_jobs(connection, known, arrival)
    # What is sent again unchanged, or is set apart, is no news about a decided series. An
    # ignored one is looked at again: what wanted it not may want it now.
    reopens = state is SeriesState.IGNORED or (
        state is SeriesState.DECIDED and not conflicts and (came_before is None or replaces)
    )
    touched = (received is not None and _was_just_touched(received, arrival)) or _touch_series(
        connection, known, arrival, state, reopens=reopens, renewable=renewable
    )
    if replaces or reopens:
        follow_what_is_in_use(connection, known.series_instance_uid, title)
    return Kept(
        known,
        conflicts=conflicts,
        replaces=replaces,
        reopens=reopens,
        was_known=was_known,
        is_new_here=came_before is None,
        touched=touched,
        renamed=(
            touched
            and received is not None
            and received.calling_ae_title != arrival.calling_ae_title
        ),
        other=in_use if is_other else None,
    )


def follow_what_is_in_use(
    connection: sa.Connection, series_instance_uid: str, called_ae_title: str
) -> None:
    """Study and modality of a series are those of the first instance that is in use.

    Where none is, they stay as they are. In the caller's transaction.
    """
    first = connection.execute(
        sa.select(instances.c.study_instance_uid, instances.c.modality)
        .join(arrivals, arrivals.c.instance_id == instances.c.id)
        .where(
            instances.c.series_instance_uid == series_instance_uid,
            arrivals.c.called_ae_title == called_ae_title,
            arrivals.c.conflicts.is_(False),
        )
        .order_by(arrivals.c.received_at_s, instances.c.id)
        .limit(1)
    ).first()
    if first is not None:
        connection.execute(
            series.update()
            .where(
                series.c.series_instance_uid == series_instance_uid,
                series.c.called_ae_title == called_ae_title,
            )
            .values(study_instance_uid=first.study_instance_uid, modality=first.modality)
        )


def _tell_jobs(connection: sa.Connection, instance: sa.Row[Any], arrival: Arrival) -> None:
    """A line in the story of the jobs that were made with the other bytes."""
    note = (
        f"another object came under SOP Instance UID {instance.sop_instance_uid}; it is set "
        "apart and not used ('tritome store conflicts')"
    )
    for job_id in connection.execute(
        sa.select(jobs.c.job_id).where(
            jobs.c.job_id.in_(jobs_with(instance.series_instance_uid)),
            jobs.c.called_ae_title == arrival.called_ae_title,
            jobs.c.state != JobState.CANCELLED.value,
        )
    ).scalars():
        connection.execute(
            job_events.insert().values(job_id=job_id, at_s=now_s(), stage="conflict", note=note)
        )


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


def _nothing_came_of(connection: sa.Connection, instance: sa.Row[Any], arrival: Arrival) -> bool:
    """Whether every job of the series failed, or was cancelled by a person.

    Those that used it in any role; not those whose place another one has taken, or that no
    rule asks for any more.
    """
    newest: dict[tuple[str, str], str] = {}
    for subject, pipeline, state in connection.execute(
        sa.select(jobs.c.subject, jobs.c.pipeline, jobs.c.state)
        .where(
            jobs.c.job_id.in_(jobs_with(instance.series_instance_uid)),
            jobs.c.called_ae_title == arrival.called_ae_title,
            jobs.c.superseded_by.is_(None),
        )
        .order_by(jobs.c.created_at_s)
    ):
        newest[subject, pipeline] = state
    return bool(newest) and _NOTHING_CAME_OF_IT.issuperset(newest.values())


def jobs_with(series_instance_uid: str) -> sa.CompoundSelect[tuple[str]]:
    """Ids of the jobs that were made with a series, in any role, for whatever AE title."""
    first = jobs.alias()
    return sa.union(
        # One that was made of a series without a usable instance has none.
        sa.select(first.c.job_id).where(first.c.series_instance_uid == series_instance_uid),
        sa.select(job_instances.c.job_id)
        .join(instances, instances.c.id == job_instances.c.instance_id)
        .where(instances.c.series_instance_uid == series_instance_uid),
    )


def _was_just_touched(received: sa.Row[Any], arrival: Arrival) -> bool:
    """Whether its row says already what it would be told: so of most slices of a series."""
    return bool(
        received.state == SeriesState.RECEIVING.value
        and received.released_at_s is None
        and received.calling_ae_title == arrival.calling_ae_title
        and 0.0 <= received.quiet_s < _AS_GOOD_AS_NOW_S
    )


def _touch_series(
    connection: sa.Connection,
    instance: sa.Row[Any],
    arrival: Arrival,
    state: SeriesState | None,
    *,
    reopens: bool,
    renewable: bool,
) -> bool:
    """Notes that the series was just sent to this called AE title; False where it is no news."""
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
        return True
    if state is SeriesState.RECEIVING:
        # Nearly every instance comes this way.
        connection.execute(
            _STILL_RECEIVING,
            {
                "uid": instance.series_instance_uid,
                "title": arrival.called_ae_title,
                "calling": arrival.calling_ae_title,
            },
        )
        return True
    if reopens:
        now |= {
            "state": SeriesState.RECEIVING.value,
            "reasons": "",
            "broken_off": False,
            "renewable": renewable,
        }
        connection.execute(series.update().where(_is_series(instance, arrival)).values(**now))
    return reopens


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
