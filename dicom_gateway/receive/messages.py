"""Receive, messages: fragments become requests of bounded size, of the kinds that are welcome.

In: presentation data values. Out: C-ECHO, C-STORE, N-ACTION and N-EVENT-REPORT requests
and answers to our reports; the data set of a C-STORE as `Incoming`. Anything else ends the
association.

Source: PS3.8 Annex E (message fragments), PS3.7 6.3 (commands).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from io import BytesIO
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import (
    C_CANCEL_RQ,
    C_ECHO_RQ,
    C_STORE_RQ,
    N_ACTION_RQ,
    N_EVENT_REPORT_RQ,
    N_EVENT_REPORT_RSP,
    DIMSEMessage,
)
from pynetdicom.pdu_primitives import P_DATA

from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.incoming import Incoming, Spool

_COMMAND_LIMIT_BYTES = 64 * 1024
"""A command set (PS3.7 E) has a few hundred bytes."""
_INFORMATION_LIMIT_BYTES = 4 * 1024 * 1024
"""Of an N-ACTION or N-EVENT-REPORT: a storage commitment of 20,000 instances."""


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
    """

    def __init__(
        self,
        association: Association,
        association_id: str,
        *,
        instance_limit_bytes: int,
        spool: Spool | None,
        between_messages: Callable[[], None],
    ) -> None:
        super().__init__(association)
        self._log = get_logger(room="receive", association_id=association_id)
        self._instance_limit_bytes = instance_limit_bytes
        self._spool = spool
        self._between_messages = between_messages
        self._incoming: Incoming | None = None
        self._lock = threading.Lock()
        self._closed = False

    def get_msg(self, block: bool = False) -> Any:
        """The next message; where it isn't waited for, the host has its turn first."""
        if not block:
            self._between_messages()
        return super().get_msg(block)

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Adds fragments to the message under way.

        A data set that grows too large is dropped while it comes; its message is still
        completed, so that the peer hears why. Anything that can't be a message ends the
        association.
        """
        try:
            for context_id, fragment in primitive.presentation_data_value_list:
                self._take(context_id, fragment)
        except Exception as error:  # noqa: BLE001 - outermost edge of pynetdicom's reader thread
            # A command set that is none ends in all kinds of errors.
            reason = str(error) if isinstance(error, _Unwelcome) else "no DIMSE message"
            self._log.warning("association aborted: bytes that no peer may send", reason=reason)
            self.message = None
            self._replace(None)
            self.dul.event_queue.put("Evt19")

    def close(self) -> None:
        """Lets go of what came and was not served."""
        with self._lock:
            self._closed = True
        self._replace(None)
        while not self.msg_queue.empty():
            _, message = self.msg_queue.get_nowait()
            if getattr(message, "incoming", None) is not None:
                message.incoming.close()  # type: ignore[union-attr]

    def _take(self, context_id: int, fragment: bytes) -> None:
        """One presentation data value.

        Source: PS3.8 E.2: bit 0 command or data set, bit 1 the last fragment of it.
        """
        if not fragment:
            raise _Unwelcome("a fragment without a control header")
        is_command, is_last = bool(fragment[0] & 1), bool(fragment[0] & 2)
        if is_command:
            self._take_command(context_id, fragment)
            if is_last and self._command_stands_alone():
                self._complete()
            return
        if self._incoming is None or self.message is None:
            raise _Unwelcome("a data set without a command")
        if context_id != self.message.context_id:
            raise _Unwelcome("a data set in another context than its command")
        self._incoming.write(memoryview(fragment)[1:])
        if self._incoming.is_endless:
            raise _Unwelcome("a data set without end")
        if is_last:
            self._complete()

    def _take_command(self, context_id: int, fragment: bytes) -> None:
        if self._incoming is not None:
            raise _Unwelcome("a command in the middle of a data set")
        if self.message is None:
            self.message = DIMSEMessage()
        if self.message.encoded_command_set.tell() + len(fragment) > _COMMAND_LIMIT_BYTES:
            raise _Unwelcome("too long a command")
        piece = P_DATA()
        piece.presentation_data_value_list.append((context_id, fragment))
        self.message.decode_msg(piece, self.assoc)

    def _command_stands_alone(self) -> bool:
        """Settles what may follow the complete command; True where nothing does."""
        message = self.message
        assert message is not None
        if isinstance(message, C_STORE_RQ):
            incoming = Incoming(self._spool, self._instance_limit_bytes)
        elif isinstance(message, N_ACTION_RQ | N_EVENT_REPORT_RQ | N_EVENT_REPORT_RSP):
            incoming = Incoming(None, _INFORMATION_LIMIT_BYTES)
        elif isinstance(message, C_ECHO_RQ | C_CANCEL_RQ):
            incoming = Incoming(None, 0)
        else:
            raise _Unwelcome(f"a {type(message).__name__.replace('_', '-')}")
        self._replace(incoming)
        return bool(message.command_set.CommandDataSetType == 0x0101)

    def _complete(self) -> None:
        message, self.message = self.message, None
        incoming, self._incoming = self._incoming, None
        assert message is not None
        assert incoming is not None
        message.data_set = BytesIO()
        if not isinstance(message, C_STORE_RQ):
            if incoming.too_large:
                raise _Unwelcome(f"too long a {type(message).__name__.replace('_', '-')}")
            message.data_set = BytesIO(incoming.content())
        request: Any = message.message_to_primitive()
        request.incoming = incoming
        with self._lock:
            if self._closed or isinstance(message, C_CANCEL_RQ):
                incoming.close()
                return
            self.msg_queue.put((message.context_id or 0, request))

    def _replace(self, incoming: Incoming | None) -> None:
        before, self._incoming = self._incoming, incoming
        if before is not None:
            before.close()
