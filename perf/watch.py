"""Looking again and again, in a thread, while something else runs."""

from __future__ import annotations

from threading import Event, Thread
from typing import Self


class Watch:
    """Calls `look` while it is entered; what it found is the subclass's."""

    def __init__(self, every_s: float) -> None:
        """Begins nothing yet.

        Args:
            every_s: Between two looks.
        """
        self._every_s = every_s
        self._over = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def look(self) -> None:
        """One look."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            self.look()
