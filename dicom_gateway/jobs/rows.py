"""Rows of the jobs' tables as records, and one line of a job's story as a row.

In: rows or a story line. Out: `Job`, `JobEvent`, `Result`. Shared by the queue and the desk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dicom_gateway.database import (
    arrivals,
    deliveries,
    instances,
    job_events,
    jobs,
    now_s,
    results,
)
from dicom_gateway.records import (
    DeliveryState,
    Job,
    JobEvent,
    JobState,
    Priority,
    Result,
    Series,
)

JOB_COLUMNS: tuple[sa.Column[Any], ...] = (
    jobs.c.job_id,
    jobs.c.pipeline,
    jobs.c.called_ae_title,
    jobs.c.calling_ae_title,
    jobs.c.study_instance_uid,
    jobs.c.series_instance_uid,
    jobs.c.priority,
    jobs.c.state,
    jobs.c.attempts,
    jobs.c.fence,
    jobs.c.destinations,
    jobs.c.created_at_s,
    jobs.c.not_before_s,
    jobs.c.started_at_s,
    jobs.c.finished_at_s,
    jobs.c.failure_code,
    jobs.c.failure_reason,
    jobs.c.rule,
    jobs.c.roles,
    jobs.c.superseded_by,
)


def as_job(row: sa.Row[Any]) -> Job:
    """A row selected by `JOB_COLUMNS` as a record."""
    values = dict(row._mapping)
    values["priority"] = Priority(values["priority"])
    values["state"] = JobState(values["state"])
    values["destinations"] = tuple(values["destinations"])
    return Job(**values)


def as_event(row: sa.Row[Any]) -> JobEvent:
    """A row of `job_events` as a record."""
    return JobEvent(
        job_id=row.job_id,
        at_s=row.at_s,
        stage=row.stage,
        note=row.note,
        duration_s=row.duration_s,
    )


def as_result(row: sa.Row[Any], folder: Path) -> Result:
    """A row of `results` as a record; its path is relative to the store's `folder`."""
    return Result(
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        job_id=row.job_id,
        output=row.output,
        path=folder / row.path,
        size_bytes=row.size_bytes,
    )


def write_event(
    connection: sa.Connection,
    job_id: str,
    stage: str,
    note: str,
    duration_s: float | sa.ColumnElement[float] | None = None,
) -> None:
    """Adds one line to a job's story, in the caller's transaction."""
    connection.execute(
        job_events.insert().values(
            job_id=job_id, at_s=now_s(), stage=stage, note=note, duration_s=duration_s
        )
    )


def tell_conflicts(connection: sa.Connection, job_id: str, members: Sequence[Series]) -> None:
    """Says in a job's story what was set apart of its series: other bytes came before."""
    for one in members:
        apart = connection.execute(
            sa.select(sa.func.count())
            .select_from(arrivals)
            .join(instances, instances.c.id == arrivals.c.instance_id)
            .where(
                instances.c.series_instance_uid == one.series_instance_uid,
                arrivals.c.called_ae_title == one.called_ae_title,
                arrivals.c.conflicts.is_(True),
            )
        ).scalar_one()
        if apart:
            note = (
                f"{apart} objects of the series are set apart and not used: others came under "
                "their SOP Instance UIDs ('tritome store conflicts')"
            )
            write_event(connection, job_id, "conflict", note)


def write_results(
    connection: sa.Connection,
    job_id: str,
    made: Sequence[Result],
    to: Mapping[str, Sequence[str]],
    folder: Path,
) -> None:
    """Results that aren't there yet, and one delivery of each to each of its destinations.

    Args:
        connection: Of the caller's transaction.
        job_id: Whose they are.
        made: In the store's `folder`.
        to: SOP Instance UID of each -> names of destinations.
        folder: The store's.
    """
    for result in made:
        connection.execute(
            insert_or_skip(connection, results).values(
                sop_instance_uid=result.sop_instance_uid,
                sop_class_uid=result.sop_class_uid,
                job_id=result.job_id,
                output=result.output,
                path=str(result.path.absolute().relative_to(folder)),
                size_bytes=result.size_bytes,
            )
        )
        for destination in to[result.sop_instance_uid]:
            connection.execute(
                insert_or_skip(connection, deliveries).values(
                    job_id=job_id,
                    sop_instance_uid=result.sop_instance_uid,
                    destination=destination,
                    state=DeliveryState.WAITING.value,
                    attempts=0,
                    created_at_s=now_s(),
                    not_before_s=now_s(),
                )
            )


def revive_deliveries(connection: sa.Connection, job_id: str) -> int:
    """Makes a job's failed deliveries due again, with all their patience; returns how many."""
    return connection.execute(
        deliveries.update()
        .where(
            deliveries.c.job_id == job_id,
            deliveries.c.state == DeliveryState.FAILED.value,
        )
        .values(
            state=DeliveryState.WAITING.value,
            attempts=0,
            refusals=0,
            losses=0,
            proof_tries=0,
            sent_at_s=None,
            created_at_s=now_s(),
            not_before_s=now_s(),
        )
    ).rowcount


def insert_or_skip(connection: sa.Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that leaves an existing row with the same key as it is."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()
