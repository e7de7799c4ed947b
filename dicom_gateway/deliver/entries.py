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
from dicom_gateway.database import deliveries, jobs, now_s, proof_requests, reading, transaction
from dicom_gateway.deliver.rows import (
    arrived_too_late,
    as_delivery,
    end_job_with_its_last,
    fail_job,
    forget_requests,
    is_open,
    is_superseded,
    lock_job,
    selected,
    write_event,
)
from dicom_gateway.errors import DestinationRefused, GatewayError, NotUnderstood, Retryable
from dicom_gateway.records import Delivery, DeliveryState

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
        with self._lock:
            with transaction(self._engine) as connection:
                row = connection.execute(
                    selected()
                    .where(
                        deliveries.c.destination == destination,
                        deliveries.c.state == DeliveryState.WAITING.value,
                        self._is_due(),
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
            self._under_way.add(row.id)  # after the commit: where that fails, nobody releases it
        return as_delivery(row, self._folder, attempts=row.attempts + 1)

    def _is_due(self) -> sa.ColumnElement[bool]:
        # Where one seems to wait longer than any may, the clock has been set back.
        return sa.or_(
            deliveries.c.not_before_s <= now_s(),
            deliveries.c.not_before_s > now_s() + self._settings.retry_max_s,
        )

    def release(self, delivery: Delivery) -> None:
        """The attempt has ended, and what became of it is written."""
        with self._lock:
            self._under_way.discard(delivery.delivery_id)

    def waiting_for_proof(self, destination: str, limit: int = 200) -> list[Delivery]:
        """Accepted ones whose proof is to be asked for now, the oldest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                selected()
                .where(
                    deliveries.c.destination == destination,
                    deliveries.c.state == DeliveryState.SENT.value,
                    deliveries.c.not_before_s <= now_s(),
                )
                .order_by(deliveries.c.not_before_s)
                .limit(limit)
            ).all()
        return [as_delivery(row, self._folder) for row in rows]

    def delivered(
        self, delivery: Delivery, note: str, duration_s: float | None = None, stage: str = "sent"
    ) -> None:
        """Marks the delivery, and the job too where it was the last one."""
        with transaction(self._engine) as connection:
            lock_job(connection, delivery.job_id)
            changed = connection.execute(
                deliveries.update()
                .where(is_open(delivery))
                .values(
                    state=DeliveryState.DELIVERED.value, delivered_at_s=now_s(), last_error=None
                )
            ).rowcount
            forget_requests(connection, delivery)
            if changed:
                said = f"{delivery.destination}: {note}"
                write_event(connection, delivery, said, stage, duration_s)
                end_job_with_its_last(connection, delivery)
            elif not arrived_too_late(connection, delivery, note, stage, duration_s):
                return
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
            lock_job(connection, delivery.job_id)
            changed = connection.execute(
                deliveries.update()
                .where(is_open(delivery))
                .values(
                    state=DeliveryState.SENT.value,
                    sent_at_s=now_s(),
                    proof_tries=0,
                    last_error=None,
                    not_before_s=now_s() + first_s,
                )
            ).rowcount
            if changed:
                forget_requests(connection, delivery)
                note = f"{delivery.destination}: {note}; the proof is still to come"
                write_event(connection, delivery, note, "accepted", duration_s)
                return
            note += ", and no proof is asked for"
            if not arrived_too_late(connection, delivery, note, "accepted", duration_s):
                return
        self._told(delivery, None)

    def not_delivered(self, delivery: Delivery, error: GatewayError) -> bool:
        """Writes why; ends the delivery and fails the job where trying again is no use.

        Refused objects end at once: a person sees them, and `tritome jobs retry` sends
        them again without computing anything. What passes by itself is tried until
        `give_up_after_s`; what the peer can't understand, `cannot_understand_tries` times.

        Returns:
            True when the delivery has ended.
        """
        with transaction(self._engine) as connection:
            lock_job(connection, delivery.job_id)
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
                deliveries.update().where(is_open(delivery)).values(**values)
            ).rowcount
            if not changed:
                return True
            if not ends:
                if str(error) != delivery.last_error:  # the same news only once
                    write_event(connection, delivery, f"{code}: {error}; tried again", "not_sent")
                return False
            if tired:
                reason += f"; given up after {age_s / 3600:.0f} h"
            forget_requests(connection, delivery)
            fail_job(connection, delivery, code, reason)
        self._told(delivery, code)
        return True

    def ask_again(self, some: Sequence[Delivery], wait_s: float, why: str) -> None:
        """Writes when their proof is asked for next, and what kept it from coming."""
        # It couldn't be asked, or couldn't say: that is none of its tries.
        tries = sa.case((deliveries.c.proof_tries > 0, deliveries.c.proof_tries - 1), else_=0)
        with transaction(self._engine) as connection:
            connection.execute(
                _sent(some).values(not_before_s=now_s() + wait_s, last_error=why, proof_tries=tries)
            )

    def asked(
        self, some: Sequence[Delivery], wait_s: float, transaction_uid: str | None = None
    ) -> None:
        """The peer is asked for their proof now, once more.

        What it was asked before stays: a report on that is as good, however late it comes.

        Args:
            some: Accepted ones.
            wait_s: How long until it is asked again if nothing comes.
            transaction_uid: Of the storage commitment that it is asked for.
        """
        with transaction(self._engine) as connection:
            asked = connection.execute(
                _sent(some)
                .values(not_before_s=now_s() + wait_s, proof_tries=deliveries.c.proof_tries + 1)
                .returning(deliveries.c.id)
            ).scalars()
            rows = [{"transaction_uid": transaction_uid, "delivery_id": one} for one in asked]
            if transaction_uid is not None and rows:
                connection.execute(proof_requests.insert(), rows)

    def never_asked(self, transaction_uid: str) -> None:
        """The request didn't get to the peer: no report will come on it."""
        with transaction(self._engine) as connection:
            connection.execute(
                proof_requests.delete().where(proof_requests.c.transaction_uid == transaction_uid)
            )

    def lost(self, delivery: Delivery, why: GatewayError, most: int) -> bool:
        """The peer had accepted it and doesn't have it: it is sent again, `most` times in all.

        But not where another job has taken the place of its job meanwhile.

        Returns:
            True when the delivery has ended.
        """
        with transaction(self._engine) as connection:
            lock_job(connection, delivery.job_id)
            ends = delivery.losses + 1 >= most or is_superseded(connection, delivery)
            state = DeliveryState.FAILED if ends else DeliveryState.WAITING
            changed = connection.execute(
                deliveries.update()
                .where(
                    deliveries.c.id == delivery.delivery_id,
                    deliveries.c.state == DeliveryState.SENT.value,
                )
                .values(
                    state=state.value,
                    losses=delivery.losses + 1,
                    sent_at_s=None,
                    last_error=str(why),
                    not_before_s=now_s() + self.delay_s(delivery.losses),
                )
            ).rowcount
            if not changed:
                return False
            forget_requests(connection, delivery)
            if not ends:
                write_event(connection, delivery, f"{why.code}: {why}; sent again", "lost")
                return False
            fail_job(connection, delivery, why.code, str(why))
        self._told(delivery, why.code)
        return True

    def of_commitment(self, transaction_uid: str) -> list[Delivery]:
        """What a storage commitment was asked for, and still waits for a proof."""
        with reading(self._engine) as connection:
            rows = connection.execute(
                selected()
                .join(proof_requests, proof_requests.c.delivery_id == deliveries.c.id)
                .where(
                    proof_requests.c.transaction_uid == transaction_uid,
                    deliveries.c.state == DeliveryState.SENT.value,
                )
            ).all()
        return [as_delivery(row, self._folder) for row in rows]

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
        theirs = selected().where(
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
            lost = [as_delivery(row, self._folder) for row in connection.execute(theirs)]
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
                fail_job(connection, one, DestinationRefused.code, reason)
        for one in lost:
            self._told(one, DestinationRefused.code)
        return len(lost)

    def delay_s(self, attempts: int) -> float:
        """Doubling from `retry_first_s` to `retry_max_s`, shortened by up to half."""
        full_s = min(
            self._settings.retry_max_s, self._settings.retry_first_s * 2.0 ** min(attempts, 30)
        )
        return full_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret


def _sent(some: Sequence[Delivery]) -> sa.Update:
    return deliveries.update().where(
        deliveries.c.id.in_([one.delivery_id for one in some]),
        deliveries.c.state == DeliveryState.SENT.value,
    )
