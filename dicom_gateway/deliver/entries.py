"""The entries of the outboxes: which result is due where, and what became of it.

In: delivery rows that `jobs` wrote when a job finished. Out: `Delivery`, and the job's end.
Each step is one transaction. The next try is written before each attempt: a crash in the
middle of sending means that the object is sent again, which is harmless, since its SOP
Instance UID is the same.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.config import ScuSettings
from dicom_gateway.database import (
    deliveries,
    job_events,
    jobs,
    now_s,
    reading,
    results,
    transaction,
)
from dicom_gateway.errors import DestinationRefused, GatewayError, Retryable
from dicom_gateway.records import Delivery, DeliveryState, JobState, Result


class Entries:
    """The outboxes' rows in the index.

    Args:
        engine: From `open_database`.
        folder: The store's folder; result paths are relative to it.
        settings: Backoff and patience.
    """

    def __init__(self, engine: sa.Engine, folder: Path, settings: ScuSettings) -> None:
        self._engine = engine
        self._folder = folder.resolve()
        self._settings = settings

    def claim(self, destination: str) -> Delivery | None:
        """The oldest due delivery of one destination, with its next try written down."""
        with transaction(self._engine) as connection:
            row = connection.execute(
                sa.select(deliveries, results.c.sop_class_uid, results.c.output)
                .add_columns(results.c.path, results.c.size_bytes)
                .join(results, results.c.sop_instance_uid == deliveries.c.sop_instance_uid)
                .where(
                    deliveries.c.destination == destination,
                    deliveries.c.state == DeliveryState.WAITING.value,
                    deliveries.c.not_before_s <= now_s(),
                )
                .order_by(deliveries.c.not_before_s)
                .limit(1)
                .with_for_update(skip_locked=True, of=deliveries)
            ).first()
            if row is None:
                return None
            delay_s = self._delay_s(row.attempts)
            connection.execute(
                deliveries.update()
                .where(deliveries.c.id == row.id)
                .values(attempts=deliveries.c.attempts + 1, not_before_s=now_s() + delay_s)
            )
        return Delivery(
            delivery_id=row.id,
            job_id=row.job_id,
            result=Result(
                sop_instance_uid=row.sop_instance_uid,
                sop_class_uid=row.sop_class_uid,
                job_id=row.job_id,
                output=row.output,
                path=self._folder / row.path,
                size_bytes=row.size_bytes,
            ),
            destination=destination,
            state=DeliveryState.WAITING,
            attempts=row.attempts + 1,
            not_before_s=row.not_before_s,
            last_error=row.last_error,
        )

    def delivered(self, delivery: Delivery, note: str, duration_s: float) -> None:
        """Marks the delivery, and the job too where it was the last one."""
        with transaction(self._engine) as connection:
            self._lock_job(connection, delivery.job_id)
            changed = connection.execute(
                deliveries.update()
                .where(_still_waits(delivery))
                .values(
                    state=DeliveryState.DELIVERED.value, delivered_at_s=now_s(), last_error=None
                )
            ).rowcount
            if not changed:
                return  # another process sent it too, or a person cancelled the job
            _write_event(
                connection, delivery, f"{delivery.destination}: {note}", "sent", duration_s
            )
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
                .where(
                    jobs.c.job_id == delivery.job_id,
                    jobs.c.state == JobState.DELIVERING.value,
                )
                .values(state=JobState.DELIVERED.value, finished_at_s=now_s())
                .returning(jobs.c.created_at_s)
            ).first()
            if ended is not None:
                whole_s = sa.select(now_s() - ended.created_at_s).scalar_subquery()
                _write_event(connection, delivery, "every destination has it", "delivered", whole_s)

    def not_delivered(self, delivery: Delivery, error: GatewayError) -> bool:
        """Writes why; ends the delivery and fails the job where trying again is no use.

        Refused objects end at once: a person sees them, and `tritome jobs retry` sends
        them again without computing anything. What passes by itself is tried until
        `give_up_after_s`.

        Returns:
            True when the delivery has ended.
        """
        with transaction(self._engine) as connection:
            self._lock_job(connection, delivery.job_id)
            age_s = connection.execute(
                sa.select(now_s() - deliveries.c.created_at_s).where(
                    deliveries.c.id == delivery.delivery_id
                )
            ).scalar_one()
            tired = age_s > self._settings.give_up_after_s
            ends = tired or not isinstance(error, Retryable)
            values = {"state": DeliveryState.FAILED.value} if ends else {}
            changed = connection.execute(
                deliveries.update()
                .where(_still_waits(delivery))
                .values(last_error=str(error), **values)
            ).rowcount
            if not changed:
                return True
            if not ends:
                if str(error) != delivery.last_error:  # the same news only once
                    _write_event(
                        connection, delivery, f"{error.code}: {error}; tried again", "not_sent"
                    )
                return False
            reason = f"{error}" + (f"; given up after {age_s / 3600:.0f} h" if tired else "")
            _fail_job(connection, delivery.job_id, error.code, reason)
            _write_event(connection, delivery, f"{error.code}: {reason}", "failed")
        return True

    def fail_unknown_destinations(self, known: Collection[str]) -> int:
        """Ends deliveries to destinations that the configuration no longer has.

        Returns:
            How many there were; their jobs are in the failed list.
        """
        theirs = sa.select(deliveries).where(
            deliveries.c.state == DeliveryState.WAITING.value,
            deliveries.c.destination.not_in(list(known)),
        )
        with reading(self._engine) as connection:  # nearly always nothing: no lock for that
            if connection.execute(theirs.limit(1)).first() is None:
                return 0
        with transaction(self._engine) as connection:
            # PostgreSQL: the jobs first, as everybody else does, or two could block each other.
            held = sa.select(jobs.c.job_id).where(
                jobs.c.job_id.in_(theirs.with_only_columns(deliveries.c.job_id))
            )
            connection.execute(held.order_by(jobs.c.job_id).with_for_update())
            lost = connection.execute(theirs).all()
            for row in lost:
                reason = (
                    f"destination '{row.destination}' is not in gateway.yaml any more; put it "
                    "back under dicom.scu.destinations, then send with 'tritome jobs retry'"
                )
                connection.execute(
                    deliveries.update()
                    .where(deliveries.c.id == row.id)
                    .values(state=DeliveryState.FAILED.value, last_error=reason)
                )
                _fail_job(connection, row.job_id, DestinationRefused.code, reason)
                connection.execute(
                    job_events.insert().values(
                        job_id=row.job_id, at_s=now_s(), stage="failed", note=reason
                    )
                )
        return len(lost)

    def _delay_s(self, attempts: int) -> float:
        full_s = min(
            self._settings.retry_max_s, self._settings.retry_first_s * 2.0 ** min(attempts, 30)
        )
        return full_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret

    @staticmethod
    def _lock_job(connection: sa.Connection, job_id: str) -> None:
        # PostgreSQL: two outboxes that end the last two deliveries at once must not each
        # see the other's as still open.
        connection.execute(
            sa.select(jobs.c.job_id).where(jobs.c.job_id == job_id).with_for_update()
        )


def _still_waits(delivery: Delivery) -> sa.ColumnElement[bool]:
    return sa.and_(
        deliveries.c.id == delivery.delivery_id,
        deliveries.c.state == DeliveryState.WAITING.value,
    )


def _fail_job(connection: sa.Connection, job_id: str, code: str, reason: str) -> None:
    connection.execute(
        jobs.update()
        .where(jobs.c.job_id == job_id, jobs.c.state == JobState.DELIVERING.value)
        .values(
            state=JobState.FAILED.value,
            finished_at_s=now_s(),
            failure_code=code,
            failure_reason=reason,
        )
    )


def _write_event(
    connection: sa.Connection,
    delivery: Delivery,
    note: str,
    stage: str,
    duration_s: float | sa.ScalarSelect[float] | None = None,
) -> None:
    connection.execute(
        job_events.insert().values(
            job_id=delivery.job_id, at_s=now_s(), stage=stage, note=note, duration_s=duration_s
        )
    )
