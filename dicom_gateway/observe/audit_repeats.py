"""Counts what strangers cause again and again, so that they don't decide how long the trail gets.

In: an address and a reason, each time. Out: whether it is to be told now; later, how often it came
again. Survives a crash: nothing; the counts of the last minute are lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60.0
"""The first is told at once, and those that follow within this time as one number."""
PLACES = 32
"""So many addresses are told apart within that time; all others count as one."""


@dataclass(slots=True)
class Repeated:
    """What came again.

    Attributes:
        address: Of whom; empty for several that are not told apart.
        times: How often, after the first.
    """

    address: str
    reason: str
    begun_s: float
    times: int = 0


class Repeats:
    """What was told within the last minute; safe to use from several threads.

    Args:
        clock: Seconds that never go backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[tuple[str, str], Repeated] = {}
        self._lock = threading.Lock()

    def is_first(self, address: str, reason: str) -> bool:
        """Whether it is to be told now; otherwise it is counted."""
        with self._lock:
            if (address, reason) not in self._open and len(self._open) >= PLACES:
                address = ""
            known = self._open.get((address, reason))
            if known is None:
                self._open[address, reason] = Repeated(address, reason, self._clock())
                return True
            known.times += 1
            return False

    def over(self, *, all_of_them: bool = False) -> list[Repeated]:
        """Those whose time is over, given once each, where anything came again."""
        with self._lock:
            ends_s = self._clock() - WINDOW_S
            done = [key for key, one in self._open.items() if all_of_them or one.begun_s <= ends_s]
            return [one for key in done if (one := self._open.pop(key)).times]
