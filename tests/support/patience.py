"""Waiting for something that happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    """Returns as soon as `condition` is true; the time only bounds a failing test."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            msg = f"still not true after {timeout_s:g} s"
            raise AssertionError(msg)
        time.sleep(0.02)
