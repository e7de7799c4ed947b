"""What workers ask the index again and again; each statement is built once.

In: nothing. Out: statements and conditions on the table of jobs. An idle gateway does nothing
else: to build such a statement anew costs more than to run it.
"""

from __future__ import annotations

import sqlalchemy as sa

from dicom_gateway.database import jobs, now_s
from dicom_gateway.jobs.strikes import SUSPECT
from dicom_gateway.records import Job, JobState, Priority


def _is(state: JobState) -> sa.ColumnElement[bool]:
    # Written out, not bound: PostgreSQL plans a prepared statement for any state, and most rows
    # are delivered, so that it would look through the whole table.
    return jobs.c.state == sa.literal_column(f"'{state.value}'")


def _once(value: sa.ColumnElement[float]) -> sa.ScalarSelect[float]:
    # Both databases would read the clock again for each row that they pass.
    return sa.select(value).scalar_subquery()


_other = jobs.alias("other")
_A_SUSPECT_RUNS = sa.exists().where(
    _other.c.state == sa.literal_column(f"'{JobState.RUNNING.value}'"),
    _other.c.strikes >= SUSPECT,
)

OLDEST_DUE = (
    sa.select(jobs.c.job_id)
    .where(
        _is(JobState.WAITING),
        jobs.c.priority == sa.bindparam("of_priority"),
        jobs.c.not_before_s <= _once(now_s()),
        sa.or_(jobs.c.strikes < SUSPECT, ~_A_SUSPECT_RUNS),
    )
    # In the order in which they fell due, as the index has them: however many wait for their
    # next try, none of them is looked at.
    .order_by(jobs.c.not_before_s, jobs.c.created_at_s)
    .limit(1)
    # PostgreSQL: two workers never wait for each other's job. SQLite has one writer at a time
    # anyway and leaves this out.
    .with_for_update(skip_locked=True)
)
"""The `job_id` of the one among `of_priority` that fell due first; its row is locked."""

LATE = (
    sa.select(jobs.c.job_id, jobs.c.lease_owner)
    .where(_is(JobState.RUNNING), jobs.c.lease_until_s < _once(now_s()))
    # PostgreSQL: whoever else looks just now takes them back; no two wait in a ring.
    .with_for_update(skip_locked=True)
)
"""Jobs whose lease ran out, and whose it was; their rows are locked."""

AHEAD = (
    sa.select(jobs.c.job_id)
    .where(
        _is(JobState.WAITING),
        jobs.c.priority.in_([sa.literal_column(f"'{one.value}'") for one in Priority]),
        jobs.c.not_before_s > _once(now_s() + sa.bindparam("longest_s", type_=sa.Double())),
    )
    .with_for_update(skip_locked=True)
)
"""Jobs that wait longer than anything may: the clock has been set back. Their rows are locked."""

HELD = sa.select(jobs.c.job_id).where(
    jobs.c.job_id == sa.bindparam("held_id"),
    jobs.c.fence == sa.bindparam("held_fence"),
    jobs.c.state == JobState.RUNNING.value,
)
"""The `job_id` itself where `held_id` is running under `held_fence`; else no row."""


def is_held(job: Job) -> sa.ColumnElement[bool]:
    """The same, as a condition for writing."""
    return sa.and_(
        jobs.c.job_id == job.job_id,
        jobs.c.fence == job.fence,
        jobs.c.state == JobState.RUNNING.value,
    )
