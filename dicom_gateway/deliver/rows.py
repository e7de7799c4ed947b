"""What the entries of the outboxes do to the index's rows, within a transaction of theirs.

In: a connection, a delivery. Out: the rows of deliveries, jobs and their story, changed. Whoever
calls commits; what survives a crash is what was committed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_gateway.database import deliveries, job_events, jobs, now_s, proof_requests, results
from dicom_gateway.records import Delivery, DeliveryState, JobState, Result


def selected() -> sa.Select[Any]:
    """Delivery rows with what their results and jobs say, for `as_delivery`."""
    return (
        sa.select(deliveries, (now_s() - deliveries.c.sent_at_s).label("sent_age_s"))
        .add_columns(results.c.sop_class_uid, results.c.output)
        .add_columns(results.c.path, results.c.size_bytes, jobs.c.pipeline)
        .join(results, results.c.sop_instance_uid == deliveries.c.sop_instance_uid)
        .join(jobs, jobs.c.job_id == deliveries.c.job_id)
    )


def as_delivery(row: sa.Row[Any], folder: Path, *, attempts: int | None = None) -> Delivery:
    """The record of a row of `selected`; result paths are relative to `folder`."""
    return Delivery(
        delivery_id=row.id,
        job_id=row.job_id,
        result=Result(
            sop_instance_uid=row.sop_instance_uid,
            sop_class_uid=row.sop_class_uid,
            job_id=row.job_id,
            output=row.output,
            path=folder / row.path,
            size_bytes=row.size_bytes,
        ),
        destination=row.destination,
        state=DeliveryState(row.state),
        attempts=row.attempts if attempts is None else attempts,
        not_before_s=row.not_before_s,
        last_error=row.last_error,
        refusals=row.refusals,
        losses=row.losses,
        proof_tries=row.proof_tries,
        sent_age_s=row.sent_age_s,
        pipeline=row.pipeline,
    )


def lock_job(connection: sa.Connection, job_id: str) -> None:
    """Nobody else ends one of its deliveries until the commit."""
    # PostgreSQL: two outboxes that end the last two deliveries at once must not each
    # see the other's as still open.
    connection.execute(sa.select(jobs.c.job_id).where(jobs.c.job_id == job_id).with_for_update())


def forget_requests(connection: sa.Connection, delivery: Delivery) -> None:
    """Reports on what was asked until now don't concern it any more."""
    connection.execute(
        proof_requests.delete().where(proof_requests.c.delivery_id == delivery.delivery_id)
    )


def is_open(delivery: Delivery) -> sa.ColumnElement[bool]:
    """It is this one, and it has not ended."""
    return sa.and_(
        deliveries.c.id == delivery.delivery_id,
        deliveries.c.state.in_([DeliveryState.WAITING.value, DeliveryState.SENT.value]),
    )


def end_job_with_its_last(connection: sa.Connection, delivery: Delivery) -> None:
    """The job is delivered once every delivery of it is."""
    open_ones = connection.execute(
        sa.select(sa.func.count())
        .select_from(deliveries)
        .where(
            deliveries.c.job_id == delivery.job_id,
            deliveries.c.state != DeliveryState.DELIVERED.value,
        )
    ).scalar_one()
    if open_ones:
        return
    ended = connection.execute(
        jobs.update()
        .where(jobs.c.job_id == delivery.job_id, jobs.c.state == JobState.DELIVERING.value)
        .values(state=JobState.DELIVERED.value, finished_at_s=now_s())
        .returning(jobs.c.created_at_s)
    ).first()
    if ended is not None:
        whole_s = sa.select(now_s() - ended.created_at_s).scalar_subquery()
        write_event(connection, delivery, "every destination has it", "delivered", whole_s)


def is_superseded(connection: sa.Connection, delivery: Delivery) -> bool:
    """Another job has taken the place of its job."""
    heir = sa.select(jobs.c.superseded_by).where(jobs.c.job_id == delivery.job_id)
    return connection.execute(heir).scalar() is not None


def arrived_too_late(
    connection: sa.Connection,
    delivery: Delivery,
    note: str,
    stage: str,
    duration_s: float | None,
) -> bool:
    """Writes that the peer took an object after its delivery had been ended.

    Returns:
        False where the delivery had ended well: another process sent it too.
    """
    row = connection.execute(
        sa.select(deliveries.c.state, deliveries.c.last_error).where(
            deliveries.c.id == delivery.delivery_id
        )
    ).first()
    if row is None or row.state != DeliveryState.FAILED.value:
        return False
    if is_superseded(connection, delivery):
        # Only then: a job that is retried is known to have results by what is to be sent.
        connection.execute(
            deliveries.update()
            .where(deliveries.c.id == delivery.delivery_id)
            .values(state=DeliveryState.DELIVERED.value, delivered_at_s=now_s(), last_error=None)
        )
    late = f"{delivery.destination}: {note}; it was on its way when its delivery ended"
    if row.last_error:
        late += f" ({row.last_error})"
    write_event(connection, delivery, late, stage, duration_s)
    return True


def fail_job(connection: sa.Connection, delivery: Delivery, code: str, reason: str) -> None:
    """The job failed with this one."""
    connection.execute(
        jobs.update()
        .where(jobs.c.job_id == delivery.job_id, jobs.c.state == JobState.DELIVERING.value)
        .values(
            state=JobState.FAILED.value,
            finished_at_s=now_s(),
            failure_code=code,
            failure_reason=reason,
        )
    )
    write_event(connection, delivery, f"{code}: {reason}", "failed")


def write_event(
    connection: sa.Connection,
    delivery: Delivery,
    note: str,
    stage: str,
    duration_s: float | sa.ScalarSelect[float] | None = None,
) -> None:
    """A line of the job's story."""
    connection.execute(
        job_events.insert().values(
            job_id=delivery.job_id, at_s=now_s(), stage=stage, note=note, duration_s=duration_s
        )
    )
