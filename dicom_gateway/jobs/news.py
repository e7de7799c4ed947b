"""Wakes the workers of this process when a job may be due.

In: `notify`. Out: sleepers that go on. Nothing is kept: who misses it looks once a second.
"""

from __future__ import annotations

import threading


class News:
    """A bell that is never missed: who sleeps says which ring was heard last."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def notify(self) -> None:
        """Wakes everybody."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait(self, timeout_s: float, seen: int) -> int:
        """Sleeps until `notify` was called after news `seen`, at most `timeout_s`.

        Returns:
            The number of the newest news, for the next call. 0 before any.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._count != seen, timeout_s)
            return self._count
