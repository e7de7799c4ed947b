"""The entries of the outboxes: which result is due where, and what became of it.

In: delivery rows that `jobs` wrote when a job finished. Out: `Delivery`, and the job's end.
Each step is one transaction. The next try is written before each attempt: a crash in the
middle of sending means that the object is sent again, which is harmless, since its SOP
Instance UID is the same.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_gateway.config_delivery import ScuSettings
from dicom_gateway.database import (
    deliveries,
    job_events,
    jobs,
    now_s,
    reading,
    results,
    transaction,
)
from dicom_gateway.errors import DestinationRefused, GatewayError, NotUnderstood, Retryable
from dicom_gateway.records import Delivery, DeliveryState, JobState, Result

Told = Callable[[Delivery, str | None], None]
"""Hears of each delivery that has ended: None where it arrived, else the code of its failure."""


class Entries:
    """The outboxes' rows in the index; safe to use from several threads.

    Args:
        engine: From `open_database`.
        folder: The store's folder; result paths are relative to it.
        settings: Backoff and patience.
        told: Called after a delivery has ended.
    """

    def __init__(
        self,
        engine: sa.Engine,
        folder: Path,
        settings: ScuSettings,
        told: Told = lambda _delivery, _failure: None,
    ) -> None:
        self._engine = engine
        self._folder = folder.resolve()
        self._settings = settings
        self._told = told
        self._under_way: set[int] = set()
        self._lock = threading.Lock()

    def claim(self, destination: str) -> Delivery | None:
        """The oldest due delivery of one destination, with its next try written down.

        No other thread gets it until `release`, however long the attempt takes.
        """
        with self._lock, transaction(self._engine) as connection:
            row = connection.execute(
                _selected()
                .where(
                    deliveries.c.destination == destination,
                    deliveries.c.state == DeliveryState.WAITING.value,
                    deliveries.c.not_before_s <= now_s(),
                    deliveries.c.id.not_in(self._under_way),
                )
                .order_by(deliveries.c.not_before_s)
                .limit(1)
                .with_for_update(skip_locked=True, of=deliveries)
            ).first()
            if row is None:
                return None
            connection.execute(
                deliveries.update()
                .where(deliveries.c.id == row.id)
                .values(
                    attempts=deliveries.c.attempts + 1,
                    not_before_s=now_s() + self.delay_s(row.attempts),
                )
            )
            self._under_way.add(row.id)
        return self._as_delivery(row, attempts=row.attempts + 1)

    def release(self, delivery: Delivery) -> None:
        """The attempt has ended, and what became of it is written."""
        with self._lock:
            self._under_way.discard(delivery.delivery_id)

    def waiting_for_proof(self, destination: str, limit: int = 200) -> list[Delivery]:
        """Accepted ones whose proof is to be asked for now, the oldest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                _selected()
                .where(
                    deliveries.c.destination == destination,
                    deliveries.c.state == DeliveryState.SENT.value,
                    deliveries.c.not_before_s <= now_s(),
                )
                .order_by(deliveries.c.not_before_s)
                .limit(limit)
            ).all()
        return [self._as_delivery(row) for row in rows]

    def delivered(
        self, delivery: Delivery, note: str, duration_s: float | None = None, stage: str = "sent"
    ) -> None:
        """Marks the delivery, and the job too where it was the last one."""
        with transaction(self._engine) as connection:
            self._lock_job(connection, delivery.job_id)
            changed = connection.execute(
                deliveries.update()
                .where(_is_open(delivery))
                .values(
                    state=DeliveryState.DELIVERED.value, delivered_at_s=now_s(), last_error=None
                )
            ).rowcount
            if not changed:
                return  # another process sent it too, or a person cancelled the job
            _write_event(connection, delivery, f"{delivery.destination}: {note}", stage, duration_s)
            _end_job_with_its_last(connection, delivery)
        self._told(delivery, None)

    def accepted(self, delivery: Delivery, note: str, first_s: float, duration_s: float) -> None:
        """The peer says that it has it; the proof is still to come.

        Args:
            delivery: As claimed.
            note: What the peer said.
            first_s: How long from now it is asked for the proof.
            duration_s: Of sending.
        """
        with transaction(self._engine) as connection:
            self._lock_job(connection, delivery.job_id)
            changed = connection.execute(
                deliveries.update()
                .where(_is_open(delivery))
                .values(
                    state=DeliveryState.SENT.value,
                    sent_at_s=now_s(),
                    proof_tries=0,
                    proof_uid=None,
                    last_error=None,
                    not_before_s=now_s() + first_s,
                )
            ).rowcount
            if changed:
                note = f"{delivery.destination}: {note}; the proof is still to come"
                _write_event(connection, delivery, note, "accepted", duration_s)

    def not_delivered(self, delivery: Delivery, error: GatewayError) -> bool:
        """Writes why; ends the delivery and fails the job where trying again is no use.

        Refused objects end at once: a person sees them, and `tritome jobs retry` sends
        them again without computing anything. What passes by itself is tried until
        `give_up_after_s`; what the peer can't understand, `cannot_understand_tries` times.

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
            values: dict[str, Any] = {"last_error": str(error)}
            ends = tired or not isinstance(error, Retryable)
            code, reason = error.code, str(error)
            if isinstance(error, NotUnderstood):
                values["refusals"] = delivery.refusals + 1
                if delivery.refusals + 1 >= self._settings.cannot_understand_tries:
                    ends, code = True, DestinationRefused.code
            if ends:
                values["state"] = DeliveryState.FAILED.value
            changed = connection.execute(
                deliveries.update().where(_is_open(delivery)).values(**values)
            ).rowcount
            if not changed:
                return True
            if not ends:
                if str(error) != delivery.last_error:  # the same news only once
                    _write_event(connection, delivery, f"{code}: {error}; tried again", "not_sent")
                return False
            if tired:
                reason += f"; given up after {age_s / 3600:.0f} h"
            _fail_job(connection, delivery, code, reason)
        self._told(delivery, code)
        return True

    def ask_again(self, some: Sequence[Delivery], wait_s: float, why: str) -> None:
        """Writes when their proof is asked for next, and what kept it from coming."""
        values = {"not_before_s": now_s() + wait_s, "last_error": why, "proof_uid": None}
        # It couldn't be asked, or couldn't say: that is none of its tries.
        tries = sa.case((deliveries.c.proof_tries > 0, deliveries.c.proof_tries - 1), else_=0)
        self._change_sent(some, {**values, "proof_tries": tries})

    def asked(self, some: Sequence[Delivery], wait_s: float, proof_uid: str | None = None) -> None:
        """The peer is asked for their proof now, once more.

        Args:
            some: Accepted ones.
            wait_s: How long until it is asked again if nothing comes.
            proof_uid: Of the storage commitment that it is asked for.
        """
        self._change_sent(
            some,
            {
                "not_before_s": now_s() + wait_s,
                "proof_tries": deliveries.c.proof_tries + 1,
                "proof_uid": proof_uid,
            },
        )

    def _change_sent(self, some: Sequence[Delivery], values: dict[str, Any]) -> None:
        with transaction(self._engine) as connection:
            connection.execute(
                deliveries.update()
                .where(
                    deliveries.c.id.in_([one.delivery_id for one in some]),
                    deliveries.c.state == DeliveryState.SENT.value,
                )
                .values(**values)
            )

    def lost(self, delivery: Delivery, why: GatewayError, most: int) -> bool:
        """The peer had accepted it and doesn't have it: it is sent again, `most` times in all.

        Returns:
            True when the delivery has ended.
        """
        ends = delivery.losses + 1 >= most
        state = DeliveryState.FAILED if ends else DeliveryState.WAITING
        with transaction(self._engine) as connection:
            self._lock_job(connection, delivery.job_id)
            changed = connection.execute(
                deliveries.update()
                .where(
                    deliveries.c.id == delivery.delivery_id,
                    deliveries.c.state == DeliveryState.SENT.value,
                )
                .values(
                    state=state.value,
                    losses=delivery.losses + 1,
                    proof_uid=None,
                    sent_at_s=None,
                    last_error=str(why),
                    not_before_s=now_s() + self.delay_s(delivery.losses),
                )
            ).rowcount
            if not changed:
                return False
            if not ends:
                _write_event(connection, delivery, f"{why.code}: {why}; sent again", "lost")
                return False
            _fail_job(connection, delivery, why.code, str(why))
        self._told(delivery, why.code)
        return True

    def of_commitment(self, proof_uid: str) -> list[Delivery]:
        """What a storage commitment was asked for, and still waits for its report."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                _selected().where(
                    deliveries.c.proof_uid == proof_uid,
                    deliveries.c.state == DeliveryState.SENT.value,
                )
            ).all()
        return [self._as_delivery(row) for row in rows]

    def hurry(self, destination: str) -> int:
        """The peer is back: what waits for it is due now; gives how many."""
        with transaction(self._engine) as connection:
            return connection.execute(
                deliveries.update()
                .where(
                    deliveries.c.destination == destination,
                    deliveries.c.state == DeliveryState.WAITING.value,
                    deliveries.c.not_before_s > now_s(),
                    deliveries.c.refusals == 0,
                    deliveries.c.losses == 0,
                    deliveries.c.id.not_in(self._under_way),
                )
                .values(not_before_s=now_s())
            ).rowcount

    def fail_unknown_destinations(self, known: Collection[str]) -> int:
        """Ends deliveries to destinations that the configuration no longer has.

        Returns:
            How many there were; their jobs are in the failed list.
        """
        theirs = _selected().where(
            deliveries.c.state.in_([DeliveryState.WAITING.value, DeliveryState.SENT.value]),
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
            lost = [self._as_delivery(row) for row in connection.execute(theirs)]
            for one in lost:
                reason = (
                    f"destination '{one.destination}' is not in gateway.yaml any more; put it "
                    "back under dicom.scu.destinations, then send with 'tritome jobs retry'"
                )
                connection.execute(
                    deliveries.update()
                    .where(deliveries.c.id == one.delivery_id)
                    .values(state=DeliveryState.FAILED.value, last_error=reason)
                )
                _fail_job(connection, one, DestinationRefused.code, reason)
        for one in lost:
            self._told(one, DestinationRefused.code)
        return len(lost)

    def delay_s(self, attempts: int) -> float:
        """Doubling from `retry_first_s` to `retry_max_s`, shortened by up to half."""
        full_s = min(
            self._settings.retry_max_s, self._settings.retry_first_s * 2.0 ** min(attempts, 30)
        )
        return full_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret

    def _as_delivery(self, row: sa.Row[Any], *, attempts: int | None = None) -> Delivery:
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
            destination=row.destination,
            state=DeliveryState(row.state),
            attempts=row.attempts if attempts is None else attempts,
            not_before_s=row.not_before_s,
            last_error=row.last_error,
            refusals=row.refusals,
            losses=row.losses,
            proof_tries=row.proof_tries,
            sent_age_s=row.sent_age_s,
        )

    @staticmethod
    def _lock_job(connection: sa.Connection, job_id: str) -> None:
        # PostgreSQL: two outboxes that end the last two deliveries at once must not each
        # see the other's as still open.
        connection.execute(
            sa.select(jobs.c.job_id).where(jobs.c.job_id == job_id).with_for_update()
        )


def _selected() -> sa.Select[Any]:
    return (
        sa.select(deliveries, (now_s() - deliveries.c.sent_at_s).label("sent_age_s"))
        .add_columns(results.c.sop_class_uid, results.c.output)
        .add_columns(results.c.path, results.c.size_bytes)
        .join(results, results.c.sop_instance_uid == deliveries.c.sop_instance_uid)
    )


def _is_open(delivery: Delivery) -> sa.ColumnElement[bool]:
    return sa.and_(
        deliveries.c.id == delivery.delivery_id,
        deliveries.c.state.in_([DeliveryState.WAITING.value, DeliveryState.SENT.value]),
    )


def _end_job_with_its_last(connection: sa.Connection, delivery: Delivery) -> None:
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
        _write_event(connection, delivery, "every destination has it", "delivered", whole_s)


def _fail_job(connection: sa.Connection, delivery: Delivery, code: str, reason: str) -> None:
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
    _write_event(connection, delivery, f"{code}: {reason}", "failed")


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
