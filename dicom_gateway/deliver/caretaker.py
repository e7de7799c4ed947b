"""Ends deliveries that no outbox will ever take.

In: delivery rows whose destination is not in gateway.yaml (any more): it was renamed while a
job was on its way, or a person retried an old job. Out: failed jobs with that reason, which
a person sees. Nothing is kept here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from dicom_gateway.deliver.entries import Entries
from dicom_gateway.errors import DatabaseUnavailable
from dicom_gateway.observe.logging import get_logger

EVERY_S = 30.0
"""How often it looks by itself: `tritome jobs retry` is another process and can't wake it."""


class Caretaker:
    """Looks after each finished job and twice a minute; `run` returns when `stop` was called.

    Args:
        entries: The outboxes' rows.
        known: The destinations of gateway.yaml.
    """

    def __init__(self, entries: Entries, known: Sequence[str]) -> None:
        self._entries = entries
        self._known = tuple(known)
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._log = get_logger(room="deliver")

    def run(self) -> None:
        """Looks until `stop`; never ends because the database is away."""
        while not self._stopping.is_set():
            self._news.clear()  # before the look: what comes during it isn't slept over
            try:
                self.tidy()
            except DatabaseUnavailable as error:
                self._log.warning("index_away", reason=str(error))
            self._news.wait(EVERY_S)

    def notify(self) -> None:
        """Wakes it: a job of this process has just finished."""
        self._news.set()

    def stop(self) -> None:
        """Asks it to end after the look in hand."""
        self._stopping.set()
        self._news.set()

    def tidy(self) -> int:
        """One look; returns how many deliveries it ended.

        Raises:
            DatabaseUnavailable: the index doesn't answer.
        """
        ended = self._entries.fail_unknown_destinations(self._known)
        if ended:
            self._log.error("destination_unknown", deliveries=ended)
        return ended
