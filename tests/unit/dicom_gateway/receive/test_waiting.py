"""Who waits is woken by what he waits for, and at no time does a bell harm whoever rings it."""

from __future__ import annotations

import select
import threading
import time

from dicom_gateway.receive.waiting import Bell, TellingQueue

LONG_S = 20.0
"""Only the bell can end a wait this long in time."""


def test_a_bell_wakes_who_waits() -> None:
    """From another thread, long before the time is over."""
    bell = Bell()
    with bell.hung_up():
        threading.Timer(0.05, bell.ring).start()
        began_s = time.monotonic()
        bell.wait(LONG_S)
        assert time.monotonic() - began_s < LONG_S / 2


def test_a_bell_that_rang_before_is_heard_once() -> None:
    """What was put into a queue between the look and the wait is not missed."""
    bell = Bell()
    with bell.hung_up():
        bell.ring()
        bell.ring()
        bell.wait(LONG_S)
        poll = select.poll()
        bell.register(poll)
        assert poll.poll(0) == []


def test_a_bell_is_never_rung_in_vain_nor_in_error() -> None:
    """Before anybody can hear it, and after: its file may be another's by then."""
    bell = Bell()
    bell.ring()
    bell.wait(0.0)
    with bell.hung_up():
        pass
    bell.ring()
    bell.heard()


def test_a_queue_tells_after_it_has_what_was_put() -> None:
    """Whoever is told finds it."""
    seen: list[int] = []
    told = TellingQueue(lambda: seen.append(told.qsize()))
    told.put("one")
    told.put("two")
    assert seen == [1, 2]
    assert told.get_nowait() == "one"
