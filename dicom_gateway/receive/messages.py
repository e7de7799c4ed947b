"""Receive, messages: fragments become requests of bounded size, of the kinds that are welcome.

In: presentation data values. Out: C-ECHO, C-STORE, N-ACTION and N-EVENT-REPORT requests
and answers to our reports; the data set of a C-STORE as `Incoming`. Anything else ends the
association.

Source: PS3.8 Annex E (message fragments), PS3.7 6.3 (commands).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from io import BytesIO
from queue import Empty
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import (
    C_CANCEL_RQ,
    C_ECHO_RQ,
    N_ACTION_RQ,
    N_EVENT_REPORT_RQ,
    N_EVENT_REPORT_RSP,
    DIMSEMessage,
)
from pynetdicom.pdu_primitives import P_DATA

from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.commands import StoreCommand, StoreRequest, read_store_command
from dicom_gateway.receive.incoming import Incoming, Spool
from dicom_gateway.receive.waiting import LOOK_AROUND_EVERY_S
from dicom_gateway.walk import count_items

FRAGMENT_HEAD_BYTES = 6
"""Of a presentation data value: length, context, message control header (PS3.8 9.3.5.1)."""
_COMMAND_LIMIT_BYTES = 64 * 1024
"""A command set (PS3.7 E) has a few hundred bytes."""
_INFORMATION_LIMIT_BYTES = 4 * 1024 * 1024
"""Of an N-ACTION or N-EVENT-REPORT: a storage commitment of 20,000 instances."""
_ITEMS_LIMIT = 40_000
"""Of such a one: one for each reference. pydicom makes an object of a kilobyte of each, and an
empty one takes 8 bytes."""
_WAITING_MESSAGES = 2
"""We don't negotiate asynchronous operations, so a peer has one under way (PS3.7 D.3.3.3)."""
_NOTHING = (None, None)
"""What wakes whoever waits for a message, so that he looks around; pynetdicom says it so, too."""


class _Unwelcome(Exception):
    """Fragments that can't be a message, or one of a kind that no peer may send here."""


class LimitedDimse(DIMSEServiceProvider):
    """Assembles messages of bounded size, of the kinds that have a place here.

    Args:
        association: Whose messages they are.
        association_id: For the log.
        instance_limit_bytes: Of the data set of a C-STORE.
        spool: Where large ones stay while they come.
        between_messages: Called again and again while the next message is waited for.
        room_made: Called where there was no room for another message, and is now.
    """

    def __init__(
        self,
        association: Association,
        association_id: str,
        *,
        instance_limit_bytes: int,
        spool: Spool | None,
        between_messages: Callable[[], None],
        room_made: Callable[[], None],
    ) -> None:
        super().__init__(association)
        self._log = get_logger(room="receive", association_id=association_id)
        self._instance_limit_bytes = instance_limit_bytes
        self._spool = spool
        self._between_messages = between_messages
        self._room_made = room_made
        self._command = bytearray()
        self._store: StoreCommand | None = None
        self._context_id = 0
        self._incoming: Incoming | None = None
        self._lock = threading.Lock()
        self._closed = False

    def get_msg(self, block: bool = False) -> Any:
        """The next message, waited for a moment; before, the host has its turn."""
        if block:
            return super().get_msg(block)
        self._between_messages()
        had_room = self.has_room
        try:
            return self.msg_queue.get(timeout=LOOK_AROUND_EVERY_S)
        except Empty:
            return _NOTHING
        finally:
            if not had_room:
                self._room_made()

    @property
    def has_room(self) -> bool:
        """Whether another message may come before those that have come are served."""
        return self.msg_queue.qsize() < _WAITING_MESSAGES

    @property
    def has_waiting(self) -> bool:
        """Whether a message has come that isn't served yet."""
        with self.msg_queue.mutex:
            return any(message is not None for _, message in self.msg_queue.queue)

    @property
    def maximum_pdu_size(self) -> int:
        """What the peer takes; 0: any length, as for one that doesn't say (PS3.8 D.1).

        One that leaves no room for a single byte is taken for the shortest that does.
        """
        size: int | None = super().maximum_pdu_size
        return max(size, FRAGMENT_HEAD_BYTES + 1) if size else 0

    def look_around(self) -> None:
        """Wakes whoever waits for a message: something else has come."""
        self.msg_queue.put(_NOTHING)

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Adds the fragments of a PDU that pynetdicom has read."""
        self.take_all(primitive.presentation_data_value_list)

    def take_all(self, fragments: Iterable[tuple[int, bytes | memoryview]]) -> None:
        """Adds fragments, each with its context, to the message under way.

        A data set that grows too large is dropped while it comes; its message is still
        completed, so that the peer hears why. Anything that can't be a message ends the
        association.
        """
        try:
            for context_id, fragment in fragments:
                self._take(context_id, fragment)
        except Exception as error:  # noqa: BLE001 - outermost edge of pynetdicom's reader thread
            # A command set that is none ends in all kinds of errors.
            reason = str(error) if isinstance(error, _Unwelcome) else "no DIMSE message"
            self._log.warning("association aborted: bytes that no peer may send", reason=reason)
            self._forget()
            self._replace(None)
            self.dul.event_queue.put("Evt19")

    def close(self) -> None:
        """Lets go of what came and was not served."""
        with self._lock:
            self._closed = True
        self._replace(None)
        while not self.msg_queue.empty():
            left: Any = self.msg_queue.get_nowait()[1]
            if isinstance(left, StoreRequest):
                left.incoming.close()

    def _take(self, context_id: int, fragment: bytes | memoryview) -> None:
        """One presentation data value.

        Source: PS3.8 E.2: bit 0 command or data set, bit 1 the last fragment of it.
        """
        if not fragment:
            raise _Unwelcome("a fragment without a control header")
        is_command, is_last = bool(fragment[0] & 1), bool(fragment[0] & 2)
        body = memoryview(fragment)[1:]
        if is_command:
            if self._incoming is not None:
                raise _Unwelcome("a command in the middle of a data set")
            if len(self._command) + len(body) > _COMMAND_LIMIT_BYTES:
                raise _Unwelcome("too long a command")
            self._command += body
            if is_last and self._command_stands_alone(context_id):
                self._complete()
            return
        if self._incoming is None:
            raise _Unwelcome("a data set without a command")
        if context_id != self._context_id:
            raise _Unwelcome("a data set in another context than its command")
        self._incoming.write(body)
        if self._incoming.is_endless:
            raise _Unwelcome("a data set without end")
        if is_last:
            self._complete()

    def _command_stands_alone(self, context_id: int) -> bool:
        """Settles what may follow the complete command; True where nothing does."""
        encoded, self._command = bytes(self._command), bytearray()
        self._context_id = context_id
        self._store = read_store_command(encoded)
        if self._store is not None:
            self._replace(Incoming(self._spool, self._instance_limit_bytes))
            return not self._store.has_data_set
        message = self._read_command(context_id, encoded)
        if isinstance(message, N_ACTION_RQ | N_EVENT_REPORT_RQ | N_EVENT_REPORT_RSP):
            self._replace(Incoming(None, _INFORMATION_LIMIT_BYTES))
        elif isinstance(message, C_ECHO_RQ | C_CANCEL_RQ):
            self._replace(Incoming(None, 0))
        else:
            raise _Unwelcome(f"a {_name(message)}")
        self.message = message
        return bool(message.command_set.CommandDataSetType == 0x0101)

    def _read_command(self, context_id: int, encoded: bytes) -> DIMSEMessage:
        message = DIMSEMessage()
        piece = P_DATA()
        piece.presentation_data_value_list.append((context_id, b"\3" + encoded))
        message.decode_msg(piece, self.assoc)  # gives it the class of its kind
        return message

    def _complete(self) -> None:
        message, store, incoming = self.message, self._store, self._incoming
        self._forget()
        self._incoming = None
        assert incoming is not None
        if store is not None:
            self._pass_on(StoreRequest(store, incoming), incoming)
            return
        assert message is not None
        if incoming.too_large:
            raise _Unwelcome(f"too long a {_name(message)}")
        content = incoming.content()
        if count_items(BytesIO(content), len(content)) > _ITEMS_LIMIT:
            raise _Unwelcome(f"a {_name(message)} of too many items")
        message.data_set = BytesIO(content)
        incoming.close()
        request = message.message_to_primitive()
        if not isinstance(message, C_CANCEL_RQ):  # of what we do, nothing can be cancelled
            self._pass_on(request)

    def _pass_on(self, request: Any, incoming: Incoming | None = None) -> None:
        with self._lock:
            if not self._closed:
                self.msg_queue.put((self._context_id, request))
            elif incoming is not None:
                incoming.close()

    def _forget(self) -> None:
        self._command, self._store, self.message = bytearray(), None, None

    def _replace(self, incoming: Incoming | None) -> None:
        before, self._incoming = self._incoming, incoming
        if before is not None:
            before.close()


def _name(message: DIMSEMessage) -> str:
    return type(message).__name__.replace("_", "-")
