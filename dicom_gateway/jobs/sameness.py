"""Which jobs are the same one, so that nothing is computed twice without a reason.

In: what is asked for, in the caller's transaction. Out: the job that does it already, if one
does. The same instances for the same called AE title, pipeline and version are one content.

A series by itself has one job for a content, whichever rules take it. What a rule chooses
within a study is about the study, and moves on to another series while the others stay: it has
a job of its own, unless another one sends the same result to all of its destinations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dicom_gateway.database import jobs
from dicom_gateway.jobs.rows import write_event
from dicom_gateway.records import JobState, Priority, Series

INCOMPLETE_ROLES = "incomplete_roles"
"""The code of a job that lacks a series; only a new decision about its study helps it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a rule asks for.

    Attributes:
        series: Its instances, or those of the first role.
        content: From `content_of`.
        subject: A series, or a rule's choice within a study.
        can_run: It isn't to fail at once.
        rules: Those that choose now; the choice of another one may be taken over.
    """

    series: Series
    content: str
    pipeline: str
    subject: str
    rule: str
    destinations: Collection[str]
    priority: Priority
    can_run: bool
    rules: Collection[str]

    @property
    def is_a_choice(self) -> bool:
        """It is a rule's choice within a study."""
        return self.subject != self.series.series_instance_uid

    @property
    def key(self) -> str:
        """What no two jobs share."""
        return _key_of(self.content, self.subject, self.series.series_instance_uid)


def content_of(
    series: Series, pipeline: str, pipeline_version: str, roles: Mapping[str, Series]
) -> str:
    """Called AE title, pipeline, version and instances, as a digest."""
    parts = [series.called_ae_title, pipeline, pipeline_version]
    if roles:
        parts += sorted(
            f"{role} {one.sop_instance_uid} {one.sha256}"
            for role, part in roles.items()
            for one in part.instances
        )
    else:
        parts += sorted(f"{one.sop_instance_uid} {one.sha256}" for one in series.instances)
    return _digest(parts)


def find_same(connection: sa.Connection, wanted: Wanted) -> tuple[str | None, list[str]]:
    """The job that does what is wanted already, if any; else those that compute the same.

    Args:
        connection: Inside `transaction(engine)`.
        wanted: What a rule asks for.
    """
    alike = _alike(connection, wanted)
    own = next((row for row in alike if row.subject == wanted.subject), None)
    if own is not None and own.failure_code == INCOMPLETE_ROLES and wanted.can_run:
        # The rule has been corrected meanwhile: the new job is to take its place.
        _change(connection, own.job_id, unique_key=f"superseded {own.job_id}")
        return None, []
    if own is not None:
        return own.job_id, []
    if wanted.is_a_choice:
        for row in alike:
            if row.failure_code == INCOMPLETE_ROLES:
                continue
            if set(wanted.destinations) <= set(row.destinations):
                _take_over(connection, row, wanted)
                _hurry(connection, row.job_id, wanted)
                return row.job_id, []
    return None, [f"{row.job_id[:8]} (rule {row.rule})" for row in alike]


def _alike(connection: sa.Connection, wanted: Wanted) -> list[sa.Row[Any]]:
    """The standing jobs of this content, the oldest first."""
    standing: sa.Select[Any] = sa.select(
        jobs.c.job_id,
        jobs.c.unique_key,
        jobs.c.subject,
        jobs.c.series_instance_uid,
        jobs.c.rule,
        jobs.c.destinations,
        jobs.c.failure_code,
    ).where(
        jobs.c.study_instance_uid == wanted.series.study_instance_uid,
        jobs.c.called_ae_title == wanted.series.called_ae_title,
        jobs.c.pipeline == wanted.pipeline,
        jobs.c.superseded_by.is_(None),
    )
    rows = connection.execute(standing.order_by(jobs.c.created_at_s, jobs.c.job_id)).all()
    alike = []
    for row in rows:
        key = _key_of(wanted.content, row.subject, row.series_instance_uid)
        if row.unique_key not in (key, wanted.content):
            continue
        if row.unique_key != key:
            # A choice from the days when the content alone was the key.
            _change(connection, row.job_id, unique_key=key)
        alike.append(row)
    return alike


def _take_over(connection: sa.Connection, row: sa.Row[Any], wanted: Wanted) -> None:
    """The job of a rule that is no more becomes that of this one: it was renamed, perhaps."""
    if row.subject == row.series_instance_uid or row.rule in wanted.rules:
        return
    _change(connection, row.job_id, subject=wanted.subject, rule=wanted.rule, unique_key=wanted.key)
    note = f"rule {row.rule} chooses no more; rule {wanted.rule} asks for the same"
    write_event(connection, row.job_id, "taken_over", note)


def _hurry(connection: sa.Connection, job_id: str, wanted: Wanted) -> None:
    """A job that waits in a slower class than the choice's goes into that one."""
    slower = list(Priority)[list(Priority).index(wanted.priority) + 1 :]
    raised = connection.execute(
        jobs.update()
        .where(
            jobs.c.job_id == job_id,
            jobs.c.state == JobState.WAITING.value,
            jobs.c.priority.in_([one.value for one in slower]),
        )
        .values(priority=wanted.priority.value)
    ).rowcount
    if raised:
        note = f"its priority is {wanted.priority.value} now, as rule {wanted.rule} asks"
        write_event(connection, job_id, "hurried", note)


def _change(connection: sa.Connection, job_id: str, **values: str) -> None:
    connection.execute(jobs.update().where(jobs.c.job_id == job_id).values(**values))


def _key_of(content: str, subject: str, series_instance_uid: str) -> str:
    return content if subject == series_instance_uid else _digest([content, subject])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
