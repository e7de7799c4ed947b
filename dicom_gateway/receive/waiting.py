"""Receive, waiting: a thread sleeps until there is something for it to do, and not longer.

An association has two threads, one that reads from the socket and one that serves. Each waits
for more than one thing at a time: the reader for bytes and for what the other wants sent, the
other for messages and for the association's end. Nothing survives a crash.
"""

from __future__ import annotations

import os
import queue
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

LOOK_AROUND_EVERY_S = 0.05
"""Who waits for an event is woken by it; this is for the few that nobody tells of."""


class Bell:
    """Wakes a thread that waits for file descriptors; safe to ring from any thread at any time."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._lock = threading.Lock()

    @contextmanager
    def hung_up(self) -> Iterator[None]:
        """While it lasts the bell can be heard."""
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            yield
        finally:
            with self._lock:
                fd, self._fd = self._fd, None
            os.close(fd)

    def ring(self) -> None:
        """Wakes the thread that waits, or lets its next waiting end at once."""
        with self._lock:
            if self._fd is not None:
                os.eventfd_write(self._fd, 1)

    def register(self, poll: select.poll) -> None:
        """Lets a poll end when it rings; only for the thread that has hung it up."""
        if self._fd is not None:
            poll.register(self._fd, select.POLLIN)

    def heard(self) -> None:
        """From here on it may ring anew."""
        if self._fd is not None:
            with suppress(BlockingIOError):
                os.eventfd_read(self._fd)

    def wait(self, timeout_s: float = LOOK_AROUND_EVERY_S) -> None:
        """Waits for nothing else."""
        poll = select.poll()
        self.register(poll)
        poll.poll(timeout_s * 1000.0)
        self.heard()


class TellingQueue(queue.Queue[Any]):
    """A queue that tells when something was put into it.

    Args:
        tell: Called after each `put`, by the thread that puts.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self._tell = tell

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """As `queue.Queue`."""
        super().put(item, block, timeout)
        self._tell()
