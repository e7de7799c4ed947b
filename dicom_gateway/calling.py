"""Ground: what every association needs that we begin, in whichever room.

In: an association whose connection has just been opened. Out: the same. Small PDUs go out at
once; otherwise each waits for the peer's delayed acknowledgement. And pynetdicom's own loop is
paused for certain: while a request of ours waits for its answer, pynetdicom pauses the loop that
takes messages off the queue, so that it can't take the answer. It may see the loop as paused that
has just gone on: then the answer is lost, and who asked waits until its time is over. On a busy
machine beside a quick peer that does happen.
"""

from __future__ import annotations

import socket
import threading
from typing import Any


def on_connected(event: Any) -> None:
    """Handler of pynetdicom's EVT_CONN_OPEN, which comes before the loop runs."""
    event.assoc._reactor_checkpoint = Checkpoint(event.assoc)
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Checkpoint(threading.Event):
    """Where the loop waits while it is paused; says itself that it goes on, under one lock.

    Who clears it then knows: either the loop has gone on, and says so, or it will wait here.
    """

    def __init__(self, association: Any) -> None:
        super().__init__()
        self._association = association
        self._changed = threading.Condition()
        self._is_open = True

    def is_set(self) -> bool:
        """Whether the loop may go on."""
        return self._is_open

    def set(self) -> None:
        """It may."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def clear(self) -> None:
        """It must wait here when it comes by."""
        with self._changed:
            self._is_open = False

    def wait(self, timeout: float | None = None) -> bool:
        """Until it may go on; from then on it doesn't count as paused."""
        with self._changed:
            goes_on = self._changed.wait_for(self.is_set, timeout)
            if goes_on:
                self._association._is_paused = False
            return goes_on
