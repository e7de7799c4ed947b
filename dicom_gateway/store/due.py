"""Keep, the question before anything goes: what has had its time?

In: the index and the policy. Out: `Due`, the oldest first. Nothing is changed here.

A job goes with its first series. A series that jobs of others use, in another role, is judged
by those jobs too, and is due only where those others are: then all of them go in one step, so
that what became of the job is not forgotten before its last series has gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dicom_gateway.config import RetentionSettings
from dicom_gateway.database import (
    arrivals,
    deliveries,
    instances,
    job_instances,
    jobs,
    now_s,
    series,
)
from dicom_gateway.records import DeliveryState, JobState, SeriesState
from dicom_gateway.store.rows import jobs_with

DAY_S = 86400.0
"""Seconds."""
OPEN = (JobState.WAITING.value, JobState.RUNNING.value, JobState.DELIVERING.value)
"""A job in one of these has not ended."""
_TO_BE_SENT = (DeliveryState.WAITING.value, DeliveryState.SENT.value)
"""A delivery in one of these has not ended: the proof of what was sent may still fail."""
_IN_VAIN = frozenset((JobState.FAILED.value, JobState.CANCELLED.value))


@dataclass(frozen=True, slots=True)
class Due:
    """A series, or one instance that is set apart, whose time is over.

    Attributes:
        why: delivered, ignored, failed or conflict: the part of the policy.
        instance_id: Row of the one instance; None for the whole series.
        instances: How many instances go.
        size_bytes: Of their files.
        age_s: Since the last that happened to the study, or since the instance came.
    """

    why: str
    series_instance_uid: str
    study_instance_uid: str
    called_ae_title: str
    instance_id: int | None
    instances: int
    size_bytes: int
    age_s: float

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What it is about."""
        return self.series_instance_uid, self.called_ae_title, self.instance_id


def find_due(
    connection: sa.Connection, settings: RetentionSettings, only: Due | None = None
) -> list[Due]:
    """What the policy removes now.

    Args:
        connection: To look with.
        settings: The policy.
        only: Look at this one again, with the series that it shares jobs with, and at
            nothing else.
    """
    found: list[Due] = []
    if only is None or only.instance_id is None:
        found += _series(connection, settings, only)
    if settings.conflicts_after_days and (only is None or only.instance_id is not None):
        found += _conflicts(connection, settings.conflicts_after_days, only)
    return sorted(found, key=lambda due: -due.age_s)


def _series(connection: sa.Connection, settings: RetentionSettings, only: Due | None) -> list[Due]:
    limits = {
        "delivered": settings.delivered_after_days,
        "ignored": settings.ignored_after_days,
        "failed": settings.failed_after_days,
    }
    set_days = [days for days in limits.values() if days]
    if not set_days:
        return []
    last = _last_event()
    query = (
        sa.select(
            series.c.series_instance_uid,
            series.c.study_instance_uid,
            series.c.called_ae_title,
            series.c.state,
            (now_s() - last.c.at_s).label("age_s"),
        )
        .join(last, last.c.study == series.c.study_instance_uid)
        .where(
            series.c.state != SeriesState.RECEIVING.value,
            now_s() - last.c.at_s > min(set_days) * DAY_S,
            series.c.study_instance_uid.not_in(_busy_studies()),
            series.c.series_instance_uid.not_in(_busy_series()),
        )
    )
    if only is not None:
        query = query.where(
            series.c.series_instance_uid.in_(sharing_jobs(connection, only)),
            series.c.called_ae_title == only.called_ae_title,
        )
    found: dict[tuple[str, str], Due] = {}
    for row in connection.execute(query).all():
        kinds = _kinds(connection, row)
        days = [limits[kind] for kind in kinds]
        wanted = [one for one in days if one]
        if len(wanted) < len(days) or row.age_s <= max(wanted) * DAY_S:
            continue
        count, size_bytes = connection.execute(
            sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(instances.c.size_bytes), 0))
            .join_from(instances, arrivals, arrivals.c.instance_id == instances.c.id)
            .where(
                instances.c.series_instance_uid == row.series_instance_uid,
                arrivals.c.called_ae_title == row.called_ae_title,
            )
        ).one()
        found[row.series_instance_uid, row.called_ae_title] = Due(
            why=kinds[-1],
            series_instance_uid=row.series_instance_uid,
            study_instance_uid=row.study_instance_uid,
            called_ae_title=row.called_ae_title,
            instance_id=None,
            instances=count,
            size_bytes=int(size_bytes),
            age_s=row.age_s,
        )
    return _without_used(connection, found)


def _without_used(connection: sa.Connection, found: dict[tuple[str, str], Due]) -> list[Due]:
    """Leaves out what jobs of a series use that stays, and so on, until nothing more does."""
    users = {(uid, title): _first_series_of_users(connection, uid, title) for uid, title in found}
    while staying := [
        (uid, title)
        for uid, title in found
        if any((user, title) not in found for user in users[uid, title])
    ]:
        for key in staying:
            del found[key]
    return list(found.values())


def _kinds(connection: sa.Connection, row: sa.Row[Any]) -> list[str]:
    """What became of a series; where it was several things, each of them must be due."""
    newest: dict[tuple[str, str], str] = {}
    for pipeline, rule, state in connection.execute(
        sa.select(jobs.c.pipeline, jobs.c.rule, jobs.c.state)
        .where(
            jobs.c.job_id.in_(jobs_with(row.series_instance_uid)),
            jobs.c.called_ae_title == row.called_ae_title,
            jobs.c.state != JobState.SUPERSEDED.value,
        )
        .order_by(jobs.c.created_at_s)
    ):
        newest[pipeline, rule] = state
    kinds = ["ignored"] if row.state == SeriesState.IGNORED.value else []
    if newest or not kinds:
        kinds.append("failed" if _IN_VAIN & set(newest.values()) else "delivered")
    return kinds


def sharing_jobs(connection: sa.Connection, due: Due) -> set[str]:
    """A series and all that share a job with it, or with one of those."""
    group: set[str] = set()
    new = {due.series_instance_uid}
    while new:
        group |= new
        linked = [
            found
            for uid in new
            for found in (
                _first_series_of_users(connection, uid, due.called_ae_title),
                _used_by_its_jobs(connection, uid, due.called_ae_title),
            )
        ]
        new = set().union(*linked) - group
    return group


def _first_series_of_users(connection: sa.Connection, uid: str, title: str) -> set[str]:
    """The series that the jobs made with this one go with."""
    return set(
        connection.execute(
            sa.select(jobs.c.series_instance_uid)
            .where(jobs.c.called_ae_title == title, jobs.c.job_id.in_(jobs_with(uid)))
            .distinct()
        ).scalars()
    )


def _used_by_its_jobs(connection: sa.Connection, uid: str, title: str) -> set[str]:
    """The series that jobs use which go with this one."""
    return set(
        connection.execute(
            sa.select(instances.c.series_instance_uid)
            .join(job_instances, job_instances.c.instance_id == instances.c.id)
            .join(jobs, jobs.c.job_id == job_instances.c.job_id)
            .where(jobs.c.called_ae_title == title, jobs.c.series_instance_uid == uid)
            .distinct()
        ).scalars()
    )


def _conflicts(connection: sa.Connection, days: float, only: Due | None) -> list[Due]:
    query = (
        sa.select(
            instances.c.id,
            instances.c.series_instance_uid,
            instances.c.study_instance_uid,
            instances.c.size_bytes,
            arrivals.c.called_ae_title,
            (now_s() - arrivals.c.received_at_s).label("age_s"),
        )
        .join(arrivals, arrivals.c.instance_id == instances.c.id)
        .where(
            arrivals.c.conflicts.is_(True),
            now_s() - arrivals.c.received_at_s > days * DAY_S,
            instances.c.study_instance_uid.not_in(_busy_studies()),
            ~sa.exists().where(job_instances.c.instance_id == instances.c.id),
        )
    )
    if only is not None:
        query = query.where(
            instances.c.id == only.instance_id,
            arrivals.c.called_ae_title == only.called_ae_title,
        )
    return [
        Due(
            why="conflict",
            series_instance_uid=row.series_instance_uid,
            study_instance_uid=row.study_instance_uid,
            called_ae_title=row.called_ae_title,
            instance_id=row.id,
            instances=1,
            size_bytes=row.size_bytes,
            age_s=row.age_s,
        )
        for row in connection.execute(query)
    ]


def _busy_studies() -> sa.CompoundSelect[tuple[str]]:
    """Studies of which something is still coming, under way or to be sent."""
    return sa.union(
        sa.select(series.c.study_instance_uid).where(series.c.state == SeriesState.RECEIVING.value),
        sa.select(jobs.c.study_instance_uid).where(_has_not_ended()),
    )


def _busy_series() -> sa.Select[tuple[str]]:
    """Series whose jobs have not ended: one that was corrected may be of another study now."""
    return sa.select(jobs.c.series_instance_uid).where(_has_not_ended())


def _has_not_ended() -> sa.ColumnElement[bool]:
    """Of a job: also one that failed by one destination, while another is still to be sent to."""
    to_be_sent = sa.select(deliveries.c.job_id).where(deliveries.c.state.in_(_TO_BE_SENT))
    return sa.or_(jobs.c.state.in_(OPEN), jobs.c.job_id.in_(to_be_sent))


def _last_event() -> sa.Subquery:
    """Study -> when something last happened to it."""
    events = sa.union_all(
        sa.select(
            series.c.study_instance_uid.label("study"), series.c.last_arrival_at_s.label("at")
        ),
        sa.select(jobs.c.study_instance_uid, jobs.c.finished_at_s),
        sa.select(jobs.c.study_instance_uid, deliveries.c.delivered_at_s).join(
            deliveries, deliveries.c.job_id == jobs.c.job_id
        ),
    ).subquery()
    return (
        sa.select(events.c.study, sa.func.max(events.c.at).label("at_s"))
        .group_by(events.c.study)
        .subquery()
    )
