"""The outbox of one destination: sends what is due, one object after the other.

In: delivery entries of one destination. Out: the objects at the peer, and what it said.
Each destination has its own outbox and thread, so that a dead PACS holds up nobody else.
A crash in the middle means sending again, under the same SOP Instance UID.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from dicom_gateway.config import Destination
from dicom_gateway.deliver.cstore import send
from dicom_gateway.deliver.entries import Entries
from dicom_gateway.errors import DatabaseUnavailable, GatewayError
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import Delivery

POLL_S = 1.0
"""How often it looks for deliveries whose time has come."""

Send = Callable[[Path, Destination, str], str]


class Outbox:
    """The loop of one destination; `run` returns when `stop` was called.

    Args:
        entries: Where deliveries come from.
        destination: Where they go.
        calling_ae_title: Who we say we are.
        send: Sends one file, as `cstore.send` does.
    """

    def __init__(
        self,
        entries: Entries,
        destination: Destination,
        calling_ae_title: str,
        send: Send = send,
    ) -> None:
        self._entries = entries
        self._destination = destination
        self._calling_ae_title = calling_ae_title
        self._send = send
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._log = get_logger(destination=destination.name)

    def run(self) -> None:
        """Sends until `stop`; never ends by an error of the peer or of the database."""
        while not self._stopping.is_set():
            self._news.clear()  # before the look: what comes during it isn't slept over
            try:
                delivery = self._entries.claim(self._destination.name)
                if delivery is not None:
                    self._deliver(delivery)
                    continue
            except DatabaseUnavailable as error:
                self._log.warning("index_away", reason=str(error))
            self._news.wait(POLL_S)

    def notify(self) -> None:
        """Wakes it: a job of this process has just finished."""
        self._news.set()

    def stop(self) -> None:
        """Asks it to end after the object in hand."""
        self._stopping.set()
        self._news.set()

    def _deliver(self, delivery: Delivery) -> None:
        log = self._log.bind(
            job_id=delivery.job_id,
            sop_instance_uid=delivery.result.sop_instance_uid,
            attempt=delivery.attempts,
        )
        started = time.monotonic()
        try:
            note = self._send(delivery.result.path, self._destination, self._calling_ae_title)
        except GatewayError as error:
            ended = self._entries.not_delivered(delivery, error)
            log.log(
                40 if ended else 30,
                "delivery_failed" if ended else "delivery_waits",
                code=error.code,
                reason=str(error),
            )
            return
        self._entries.delivered(delivery, note, time.monotonic() - started)
        log.info("delivered", answer=note)
