"""Jobs that take each other's place: a late instance, or a better series of the study.

In: a job that was just made. Out: the earlier jobs of the same subject and pipeline, which
have nothing to add any more: those that have not ended are superseded, what they have not
delivered yet is dropped, and a job that was delivered stays so and says what came after it.
All in the caller's transaction, the one that makes the new job: after a crash both have
happened or neither.

A worker that holds a superseded job finds its lease gone, as with one that was cancelled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import sqlalchemy as sa

from dicom_gateway.database import deliveries, jobs, now_s, results
from dicom_gateway.jobs.rows import write_event
from dicom_gateway.jobs.sameness import Wanted
from dicom_gateway.records import DeliveryState, JobState, ReplacedResult, Series

_ENDED_WELL_OR_BY_HAND = (JobState.DELIVERED, JobState.CANCELLED)
WITHDRAWN = "withdrawn"
"""Stands for a successor where no job takes the place."""

_MOST = 100
"""A chain of jobs that took each other's place is not followed further."""


def supersede_older(connection: sa.Connection, wanted: Wanted, heir: str) -> list[str]:
    """Lets a job take the place of the earlier ones of its subject; returns their ids.

    Args:
        connection: Inside `transaction(engine)`.
        wanted: What the rule asks for now.
        heir: The job that does it: made in the same transaction, or there already.
    """
    older = connection.execute(
        sa.select(jobs.c.job_id, jobs.c.state)
        .where(
            jobs.c.subject == wanted.subject,
            jobs.c.called_ae_title == wanted.series.called_ae_title,
            jobs.c.pipeline == wanted.pipeline,
            jobs.c.superseded_by.is_(None),
            jobs.c.job_id != heir,
        )
        # PostgreSQL: a worker that finishes one of them just now comes before or after.
        .order_by(jobs.c.job_id)
        .with_for_update()
    ).all()
    for row in older:
        _supersede(connection, row.job_id, JobState(row.state), heir)
    if older:
        names = ", ".join(row.job_id[:8] for row in older)
        write_event(connection, heir, "supersedes", f"takes the place of job {names}")
    return [row.job_id for row in older]


def withdraw(
    connection: sa.Connection, subject: str, called_ae_title: str, pipelines: Collection[str]
) -> list[str]:
    """Ends the jobs of a subject that no rule asks for any more; returns their ids.

    A series that has grown may be another one than the rules had taken.

    Args:
        connection: Inside `transaction(engine)`.
        subject: As `supersede_older` has it.
        called_ae_title: Of the series.
        pipelines: Those that it goes through now; their jobs are left alone.
    """
    theirs = (
        jobs.c.subject == subject,
        jobs.c.called_ae_title == called_ae_title,
        jobs.c.pipeline.not_in(list(pipelines)),
    )
    return _withdraw(connection, theirs, "the series has changed, and no rule asks for it any more")


def withdraw_choices(
    connection: sa.Connection, series: Series, rules: Collection[str]
) -> list[str]:
    """Ends what rules have chosen within a study that choose no more; returns the ids.

    Args:
        connection: Inside `transaction(engine)`.
        series: One of the study.
        rules: All that choose among the series of a study for its called AE title.
    """
    theirs = (
        jobs.c.study_instance_uid == series.study_instance_uid,
        jobs.c.called_ae_title == series.called_ae_title,
        jobs.c.subject.startswith(f"{series.study_instance_uid}/", autoescape=True),
        jobs.c.rule.not_in(list(rules)),
    )
    return _withdraw(connection, theirs, "its rule chooses no more, and no other asks for it")


def _withdraw(
    connection: sa.Connection, which: Iterable[sa.ColumnElement[bool]], why: str
) -> list[str]:
    gone = connection.execute(
        sa.select(jobs.c.job_id, jobs.c.state)
        .where(*which, jobs.c.superseded_by.is_(None))
        .order_by(jobs.c.job_id)
        .with_for_update()
    ).all()
    for row in gone:
        _supersede(connection, row.job_id, JobState(row.state), WITHDRAWN, why)
    return [row.job_id for row in gone]


def _supersede(
    connection: sa.Connection, job_id: str, state: JobState, successor: str, why: str = ""
) -> None:
    heir = why or f"job {successor} takes its place"
    # The key is free again: should the earlier choice come back, it is a new job.
    change: dict[str, str | None] = {
        "superseded_by": successor,
        "unique_key": f"superseded {job_id}",
    }
    if state not in _ENDED_WELL_OR_BY_HAND:
        change |= {"state": JobState.SUPERSEDED.value, "lease_owner": None, "lease_until_s": None}
    connection.execute(
        jobs.update()
        .where(jobs.c.job_id == job_id)
        .values(finished_at_s=sa.func.coalesce(jobs.c.finished_at_s, now_s()), **change)
    )
    dropped = connection.execute(
        deliveries.update()
        .where(
            deliveries.c.job_id == job_id,
            # What a peer has accepted is still to be proven: it has the object, or lost it.
            deliveries.c.state == DeliveryState.WAITING.value,
        )
        .values(state=DeliveryState.FAILED.value, last_error=f"superseded: {heir}")
    ).rowcount
    note = f"it was {state.value}; {heir}"
    if dropped:
        note += f"; {dropped} deliveries of it are dropped"
    write_event(connection, job_id, "superseded", note)


def replaced_results(connection: sa.Connection, job_id: str) -> list[ReplacedResult]:
    """What the results of a job replace, oldest first.

    A superseded job that had made nothing stands for those that it took the place of.
    """
    found: list[ReplacedResult] = []
    pending, seen = [job_id], 0
    while pending and seen < _MOST:
        predecessors = connection.execute(
            sa.select(jobs.c.job_id)
            .where(jobs.c.superseded_by == pending.pop())
            .order_by(jobs.c.created_at_s)
        ).scalars()
        for predecessor in list(predecessors):
            seen += 1
            made = connection.execute(
                sa.select(
                    results.c.sop_class_uid,
                    results.c.sop_instance_uid,
                    results.c.output,
                    results.c.job_id,
                )
                .where(results.c.job_id == predecessor)
                .order_by(results.c.sop_instance_uid)
            ).all()
            found += [ReplacedResult(*row) for row in made]
            if not made:
                pending.append(predecessor)
    return found
