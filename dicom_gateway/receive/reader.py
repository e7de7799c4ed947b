"""Receive, step 2, its reader: the thread that takes PDUs from a connection and sends them.

pynetdicom asks its socket and queues a thousand times a second whether there is something to
do; here the thread waits until there is (`waiting.py`). Data goes by without becoming
pynetdicom's objects, in and out; the rest is pynetdicom's: negotiation, release, abort, and
its state machine (PS3.8 9.2). What makes it stumble ends the association, not the thread.
Nothing survives a crash.
"""

from __future__ import annotations

import queue
import time
from contextlib import suppress
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import A_P_ABORT, P_DATA
from pynetdicom.timer import Timer

from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.limits import LimitedSocket, data_values
from dicom_gateway.receive.messages import LimitedDimse
from dicom_gateway.receive.waiting import Bell, TellingQueue

_ABORT = bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 0))
"""A-ABORT by the service provider, without a reason (PS3.8 9.3.8)."""
_DATA_TRANSFER, _AWAITING_CLOSE = "Sta6", "Sta13"
"""PS3.8 Table 9-10: states of the upper layer's machine."""


_log = get_logger(room="receive")


class _Timer(Timer):
    """By a clock that nobody sets: the time of day may be put on by hours, and all be idle."""

    def start(self) -> None:
        """From now on it runs."""
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        """From now on it stands."""
        self._end_time = time.monotonic()

    @property
    def remaining(self) -> float:
        """Seconds until it expires; 1 where it never does."""
        if self._timeout is None or self._start_time is None:
            return 1.0 if self._timeout is None else self._timeout
        now_s = time.monotonic() if self._end_time is None else self._end_time
        return self._timeout - (now_s - self._start_time)


class Reader(DULServiceProvider):
    """Reads and sends PDUs; what makes pynetdicom stumble ends the association, not the thread."""

    def __init__(self, association: Association, host_ip: str, association_id: str) -> None:
        super().__init__(association)
        self._host_ip = host_ip
        self._association_id = association_id
        self._idle_timer, self.artim_timer = _Timer(None), _Timer(None)  # set by whoever has us
        self.bell = Bell()
        self.to_provider_queue = TellingQueue(self.bell.ring)

    def run_reactor(self) -> None:
        """The reader's thread."""
        association = self.assoc
        # First of all: whatever goes wrong here, the association must not wait for it.
        association._dul_ready.set()
        try:
            with self.bell.hung_up():
                self._idle_timer.start()
                while not self._kill_thread:
                    self._turn()
        except Exception as error:  # noqa: BLE001 - outermost edge of pynetdicom's reader thread
            tell_nonsense(error, self._host_ip, self._association_id)
            if isinstance(self.socket, LimitedSocket):
                self.socket.send(_ABORT)
                self.socket._shutdown_socket()
            association.is_aborted, association.is_established = True, False
            # Wakes whoever waits for a request (PS3.8 7.4: A-P-ABORT indication).
            self.to_user_queue.put(A_P_ABORT())

    def _turn(self) -> None:
        """One event of the state machine, or a moment of waiting for one (PS3.8 9.2)."""
        if self.artim_timer.expired:
            self.event_queue.put("Evt18")
        if not self._process_recv_primitive() and self._is_transport_event():
            self._idle_timer.restart()
        with suppress(queue.Empty):
            self.state_machine.do_action(self.event_queue.get(block=False))

    def served(self) -> None:
        """The peer is idle from here on: until now it has waited for our answer."""
        self._idle_timer.restart()

    def kill_dul(self) -> None:
        """Ends the reader's thread."""
        super().kill_dul()
        self.bell.ring()

    def stop_dul(self) -> bool:
        """Ends the reader's thread where the connection is closed; False where it isn't."""
        if self.state_machine.current_state != "Sta1":
            return False
        self.kill_dul()
        self.join()
        return True

    def send_pdu(self, primitive: Any) -> None:
        """Sends at once what can be sent at once, data; leaves the rest to the reader's thread.

        Source: PS3.8 Table 9-7, DT-1.
        """
        connection = self.socket
        if (
            isinstance(primitive, P_DATA)
            and self.state_machine.current_state == _DATA_TRANSFER
            and self.to_provider_queue.empty()
            and isinstance(connection, LimitedSocket)
            and connection.takes_both_ways
        ):
            connection.send(P_DATA_TF(primitive).encode())
        else:
            super().send_pdu(primitive)

    def _is_transport_event(self) -> bool:
        """Waits for bytes of the peer, for a moment, and reads a PDU; False where none came."""
        if self.state_machine.current_state == _AWAITING_CLOSE:
            return super()._is_transport_event()
        if not self.event_queue.empty():
            return False  # first what has happened already
        connection = self.socket
        if not isinstance(connection, LimitedSocket):
            self.bell.wait()
            return False
        if not connection.wait(self.bell):
            return False
        self._read_pdu_data()
        return True

    def _read_pdu_data(self) -> None:
        """Reads one PDU; of data, the fragments go on at once (PS3.8 9.3.5, DT-2)."""
        connection = self.socket
        if self.state_machine.current_state != _DATA_TRANSFER or not isinstance(
            connection, LimitedSocket
        ):
            super()._read_pdu_data()
            return
        try:
            body = connection.recv_data()
        except OSError:
            self.event_queue.put("Evt17")  # the connection is lost
            return
        if body is None:
            super()._read_pdu_data()  # of another kind
            return
        messages = self.assoc.dimse
        assert isinstance(messages, LimitedDimse)
        messages.take_all(data_values(body))


def tell_nonsense(error: Exception, host_ip: str, association_id: str) -> None:
    """A line in the log about an association that ends because of what its peer has sent."""
    # Only the kind: the text may repeat it.
    _log.warning(
        "association aborted: its PDUs make no sense",
        association_id=association_id,
        host_ip=host_ip,
        reason=type(error).__name__,
    )
