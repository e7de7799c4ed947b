"""The outbox of one destination: sends what is due.

In: delivery entries of one destination. Out: the objects at the peer, and what it said.
Each destination has its own outbox and threads, so that a dead PACS holds up nobody else.
A crash in the middle means sending again, under the same SOP Instance UID.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from dicom_gateway.config_delivery import Destination
from dicom_gateway.deliver.cstore import CStore
from dicom_gateway.deliver.entries import Entries
from dicom_gateway.deliver.stow import Stow
from dicom_gateway.errors import (
    DatabaseUnavailable,
    DestinationUnavailable,
    DestinationUnreachable,
    GatewayError,
)
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import Delivery

POLL_S = 1.0
"""How often it looks for deliveries whose time has come."""


class Sender(Protocol):
    """How files get to one destination; used by one thread."""

    def send(self, path: Path) -> str:
        """Sends one file; gives what the peer said, or raises what `CStore.send` does."""
        ...

    def close(self) -> None:
        """There is nothing to send for a while; `send` may come again all the same."""
        ...


def sender_to(destination: Destination, calling_ae_title: str) -> Sender:
    """C-STORE or STOW-RS, as the settings say.

    Raises:
        ConfigurationError: a certificate, token or password can't be used.
    """
    if destination.dicomweb is not None:
        return Stow(destination)
    return CStore(destination, calling_ae_title)


class Outbox:
    """The loop of one destination; `run` returns when `stop` was called.

    Several threads may run it: each has an association of its own.

    Args:
        entries: Where deliveries come from.
        destination: Where they go.
        calling_ae_title: Who we say we are.
        proof_wanted: Called after the peer accepted an object that it has to prove.
        sending: Called before each attempt.
        sent: Told each object that was accepted, and how many seconds that took.

    Raises:
        ConfigurationError: a certificate, token or password can't be used.
    """

    def __init__(
        self,
        entries: Entries,
        destination: Destination,
        calling_ae_title: str,
        proof_wanted: Callable[[], None] = lambda: None,
        sending: Callable[[Delivery], None] = lambda _delivery: None,
        *,
        sent: Callable[[Delivery, float], None] = lambda _delivery, _duration_s: None,
    ) -> None:
        self._entries = entries
        self._destination = destination
        self._calling_ae_title = calling_ae_title
        self._proof_wanted = proof_wanted
        self._sending = sending
        self._sent = sent
        sender_to(destination, calling_ae_title).close()  # says now what is wrong with it
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self._resume_at_s = 0.0
        self._log = get_logger(destination=destination.name)

    def run(self) -> None:
        """Sends until `stop`; never ends by an error of an object, the peer or the database."""
        sender = sender_to(self._destination, self._calling_ae_title)
        try:
            while not self._stopping.is_set():
                self._news.clear()  # before the look: what comes during it isn't slept over
                wait_s = POLL_S
                try:
                    away_s = self._resume_at_s - time.monotonic()
                    if away_s > 0:
                        # Nothing can be sent there now: one try for all, not one for each.
                        sender.close()
                        self._stopping.wait(min(away_s, POLL_S))
                        continue
                    delivery = self._entries.claim(self._destination.name)
                    if delivery is not None:
                        self._deliver(delivery, sender)
                        continue
                except DatabaseUnavailable as error:
                    self._log.warning("index_away", reason=str(error))
                if not self._news.wait(wait_s):
                    sender.close()
        finally:
            sender.close()

    def notify(self) -> None:
        """Wakes it: a job of this process has just finished."""
        self._news.set()

    def stop(self) -> None:
        """Asks it to end after the object in hand."""
        self._stopping.set()
        self._news.set()

    def _deliver(self, delivery: Delivery, sender: Sender) -> None:
        try:
            self._attempt(delivery, sender)
        finally:
            self._entries.release(delivery)

    def _attempt(self, delivery: Delivery, sender: Sender) -> None:
        log = self._log.bind(
            job_id=delivery.job_id,
            sop_instance_uid=delivery.result.sop_instance_uid,
            attempt=delivery.attempts,
        )
        self._sending(delivery)
        started = time.monotonic()
        try:
            note = self._send(delivery, sender)
        except GatewayError as error:
            if isinstance(error, DestinationUnreachable):
                self._is_away(started, lasting=error.is_lasting)
            else:
                self._is_there()
            ended = self._entries.not_delivered(delivery, error)
            log.log(
                40 if ended else 30,
                "delivery_failed" if ended else "delivery_waits",
                code=error.code,
                reason=str(error),
            )
            return
        duration_s = time.monotonic() - started
        self._is_there()
        self._sent(delivery, duration_s)
        if self._destination.confirm == "none":
            self._entries.delivered(delivery, note, duration_s)
            log.info("delivered", answer=note)
            return
        self._entries.accepted(delivery, note, self._destination.confirm_first_s, duration_s)
        log.info("accepted", answer=note, proof=self._destination.confirm)
        self._proof_wanted()

    def _send(self, delivery: Delivery, sender: Sender) -> str:
        try:
            return sender.send(delivery.result.path)
        except GatewayError:
            raise
        except Exception as error:
            # The outermost edge of one object: whatever an odd peer makes a library do, the
            # others go on. The message may quote a data set: frames only.
            self._log.error("sending_crashed", job_id=delivery.job_id, exc_info=True)
            sender.close()
            msg = (
                f"an unexpected {type(error).__name__} in the gateway itself while it sent to "
                f"{self._destination}; its log has the place. Please report it; it is tried again"
            )
            raise DestinationUnavailable(msg) from error

    def _is_away(self, started: float, *, lasting: bool) -> None:
        with self._lock:
            if started < self._resume_at_s:
                return  # another thread has met the same outage, and has said so
            # What only a person can change is asked for at the longest interval at once.
            step = 30 if lasting else self._failed_in_a_row
            self._failed_in_a_row += 1
            self._resume_at_s = time.monotonic() + self._entries.delay_s(step)

    def _is_there(self) -> None:
        with self._lock:
            was_away, self._failed_in_a_row = self._failed_in_a_row > 0, 0
        if was_away:
            due = self._entries.hurry(self._destination.name)
            self._log.info("destination_back", due_now=due)
            self._news.set()
