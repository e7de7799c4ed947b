"""The loop beside an association of ours never takes the answer that somebody waits for."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from dicom_gateway.calling import Checkpoint


def test_who_goes_on_counts_as_going_before_anybody_can_pause_it() -> None:
    """Between the two, pynetdicom's own loop may be paused in word only."""
    association: Any = SimpleNamespace(_is_paused=True)
    checkpoint = Checkpoint(association)
    assert checkpoint.wait()
    assert not association._is_paused


def test_who_is_paused_stays_so_until_it_may_go_on() -> None:
    """It counts as paused as long as it waits."""
    association: Any = SimpleNamespace(_is_paused=True)
    checkpoint = Checkpoint(association)
    checkpoint.clear()
    assert not checkpoint.wait(0.01)
    loop = threading.Thread(target=checkpoint.wait)
    loop.start()
    assert association._is_paused
    checkpoint.set()
    loop.join(10)
    assert not association._is_paused
