"""Receive, step 2: how much a peer may do. Seconds, bytes and kinds of messages, all bounded.

pynetdicom itself has no such limits: a stranger could announce a PDU of 4 GiB and have it
all held in memory, or keep a TLS handshake open for ever. Here are its association, its
socket and its message assembly with limits around them. Also, it asks its socket and queues
a thousand times a second whether there is something to do; here it waits until there is
(`waiting.py`), and what makes up nearly all traffic, data on an established association, goes
by without becoming its objects. What goes in and out otherwise is pynetdicom's: negotiation,
release, abort, and its state machine (PS3.8 9.2). Nothing survives a crash.
"""

from __future__ import annotations

import queue
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import DimseServiceType
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import A_P_ABORT, P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicom_gateway.config import ScpSettings
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.commands import StoreRequest
from dicom_gateway.receive.incoming import Spool
from dicom_gateway.receive.listener import Connection
from dicom_gateway.receive.messages import LimitedDimse
from dicom_gateway.receive.waiting import LOOK_AROUND_EVERY_S, Bell, TellingQueue
from dicom_gateway.tls import PeerCertificate, peer_certificate

REQUEST_LIMIT_BYTES = 64 * 1024
"""An A-ASSOCIATE-RQ with 128 presentation contexts takes about 20 KiB."""
PDU_LIMIT_BYTES = 1024 * 1024
"""Some peers send longer PDUs than we asked for; they get this much leeway."""
_FRAGMENTS_LIMIT = 512
"""Presentation data values in one PDU; real peers send one or two."""
_ITEMS_LIMIT = 2048
"""Items and sub-items in one A-ASSOCIATE-RQ: 128 contexts with 15 transfer syntaxes each."""
_CHUNK_BYTES = 256 * 1024
_ASSOCIATE_RQ, _P_DATA_TF = 1, 4
_PDU_HEAD_BYTES = 6
_FRAGMENT_HEAD_BYTES = 6
"""Of a presentation data value: length, context, message control header."""
_ABORT = bytes((7, 0, 0, 0, 0, 4, 0, 0, 2, 0))
"""A-ABORT by the service provider, without a reason (PS3.8 9.3.8)."""
_DATA_TRANSFER, _AWAITING_CLOSE = "Sta6", "Sta13"
"""PS3.8 Table 9-10: states of the upper layer's machine."""

_log = get_logger(room="receive")


class Host(Protocol):
    """Whose association it is: what becomes of its requests and of its end."""

    settings: ScpSettings
    spool: Spool | None

    def tls_context(self) -> ssl.SSLContext | None:
        """For the TLS port."""

    def serve(
        self,
        association: LimitedAssociation,
        message: DimseServiceType | StoreRequest,
        context: PresentationContext,
    ) -> bool:
        """Answers one message; False where it has no place here."""

    def between_messages(self, association: LimitedAssociation) -> None:
        """Called again and again while the association waits for its next message."""

    def closed(self, association: LimitedAssociation) -> None:
        """Called exactly once for each association, however it ended."""


class LimitedAssociation(Association):
    """One association; whatever ends it, its host hears of it exactly once.

    Attributes:
        association_id: Opaque and unique.
        host_ip: The peer's address, as the socket shows it.
        certificate: What the peer has shown in the TLS handshake.
        is_admitted: From then on it may send data, and more at once.
        deadline_s: Until then the peer must have said what it wants.
        messages: Where its fragments become messages.
    """

    def __init__(self, entity: AE, host: Host, connection: Connection) -> None:
        super().__init__(entity, "acceptor")
        self.host = host
        self.connection = connection
        self.association_id = connection.association_id
        self.host_ip = connection.host_ip
        self.certificate: PeerCertificate | None = None
        self.talk: Any = None
        self.is_admitted = False
        self.deadline_s = connection.accepted_at_s + host.settings.handshake_timeout_s
        self.name = f"association-{self.association_id}"
        self.dul = reader = _LimitedDul(self)
        self.acse_timeout, self.network_timeout = entity.acse_timeout, entity.network_timeout
        self.messages = LimitedDimse(
            self,
            connection.association_id,
            instance_limit_bytes=host.settings.max_instance_bytes,
            spool=host.spool,
            between_messages=partial(host.between_messages, self),
            room_made=reader.bell.ring,
        )
        self.dimse = self.messages
        # Release and abort come by another queue than messages.
        reader.to_user_queue = TellingQueue(self.messages.look_around)
        self.acceptor.maximum_length = entity.maximum_pdu_size
        self.acceptor.ae_title = entity.ae_title
        self.acceptor.implementation_class_uid = entity.implementation_class_uid
        self.acceptor.implementation_version_name = entity.implementation_version_name
        self.requestor.address_info = AddressInformation(connection.host_ip, connection.port)

    def _bind_defaults(self) -> None:
        """Binds pynetdicom's defaults without its loggers, which write what peers send."""
        for event in evt._INTERVENTION_EVENTS:
            self.bind(event, evt.get_default_handler(event))

    def run(self) -> None:
        """The association's thread, from the connection's first byte to its end."""
        try:
            opened = self._open()
            if opened is not None:
                self.set_socket(_LimitedSocket(self, opened))
                super().run()
        except Exception as error:  # noqa: BLE001 - outermost edge of the association's thread
            _tell_nonsense(self, error)
        finally:
            self.dul.kill_dul()
            if self.dul.socket is not None:
                self.dul.socket._shutdown_socket()
            self.connection.socket.close()
            self.messages.close()
            self.host.closed(self)

    def _open(self) -> socket.socket | None:
        """The connection, after the TLS handshake where it is one; None where that fails."""
        raw = self.connection.socket
        context = self.host.tls_context() if self.connection.tls else None
        try:
            local = raw.getsockname()
            self.acceptor.address_info = AddressInformation(local[0], local[1])
            left_s = self.deadline_s - time.monotonic()
            if left_s <= 0:
                return None
            raw.settimeout(left_s)
            if context is None:
                return raw
            secured = context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        except OSError:
            return None  # gone again
        try:
            secured.do_handshake()
            self.certificate = peer_certificate(secured)
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, ssl.SSLError) else type(error).__name__
            _log.warning("TLS handshake failed", host_ip=self.host_ip, reason=reason)
            secured.close()
            return None
        return secured

    def answer(self, response: Any, context: PresentationContext) -> None:
        """Sends a response or request of ours in an accepted context."""
        if context.context_id is not None and self.is_established:
            self.dimse.send_msg(response, context.context_id)

    def answer_encoded(self, command: bytes, context: PresentationContext) -> None:
        """Sends a command without a data set, encoded already, in an accepted context.

        Source: PS3.8 Annex E.2: in fragments where the peer takes only short PDUs.
        """
        assert context.context_id is not None
        longest = self.dimse.maximum_pdu_size  # 0: whatever length
        step = longest - _FRAGMENT_HEAD_BYTES if longest else len(command)
        step = max(1, step)
        for start in range(0, len(command), step):
            fragment = command[start : start + step]
            control = b"\3" if start + step >= len(command) else b"\1"
            piece = P_DATA()
            piece.presentation_data_value_list.append((context.context_id, control + fragment))
            self.dul.send_pdu(piece)

    def _serve_request(self, msg: DimseServiceType | StoreRequest, context_id: int) -> None:
        """Serves a message by the context it comes in, not by a list of known SOP classes.

        So private classes are stored as well; what may be stored was settled when the
        contexts were accepted.
        """
        context = self._accepted_cx.get(context_id)
        # `is_paused` lets `stop` and `abort` work while a request is served.
        self._is_paused = True
        if context is None or not self.host.serve(self, msg, context):
            _log.warning(
                "association aborted: a message that has no place here",
                association_id=self.association_id,
            )
            self.abort()
        self._is_paused = False


class _LimitedDul(DULServiceProvider):
    """Reads and sends PDUs; what makes pynetdicom stumble ends the association, not the thread."""

    def __init__(self, association: LimitedAssociation) -> None:
        super().__init__(association)
        self.bell = Bell()
        self.to_provider_queue = TellingQueue(self.bell.ring)

    def run_reactor(self) -> None:
        """The reader's thread."""
        association = self.assoc
        assert isinstance(association, LimitedAssociation)
        try:
            with self.bell.hung_up():
                self._idle_timer.start()
                association._dul_ready.set()
                while not self._kill_thread:
                    self._turn()
        except Exception as error:  # noqa: BLE001 - outermost edge of pynetdicom's reader thread
            _tell_nonsense(association, error)
            if isinstance(self.socket, _LimitedSocket):
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
            and isinstance(connection, _LimitedSocket)
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
        if not isinstance(connection, _LimitedSocket):
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
            connection, _LimitedSocket
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
        association = self.assoc
        assert isinstance(association, LimitedAssociation)
        association.messages.take_all(_data_values(body))


class _LimitedSocket(AssociationSocket):
    """Reads PDUs of bounded length in bounded time."""

    def __init__(self, association: LimitedAssociation, connection: socket.socket) -> None:
        super().__init__(association, client_socket=connection)
        self._pdu_type = 0
        self._read_ahead = b""
        self._buffer = bytearray()
        self._sending = threading.Lock()

    @property
    def takes_both_ways(self) -> bool:
        """Whether one thread may send while another reads: not so through TLS."""
        return not isinstance(self.socket, ssl.SSLSocket)

    @property
    def ready(self) -> bool:
        """Whether there is something to read, and room for it; says so at once."""
        return self._is_readable(None, 0.0)

    def wait(self, bell: Bell) -> bool:
        """Waits until there is something to read, and room for it, or until the bell rings.

        Returns:
            Whether there is something to read, and room for it.
        """
        return self._is_readable(bell, LOOK_AROUND_EVERY_S)

    def _is_readable(self, bell: Bell | None, timeout_s: float) -> bool:
        association = self.assoc
        assert isinstance(association, LimitedAssociation)
        connection = self.socket
        # A peer that sends faster than we can keep waits for us, not in our memory.
        has_room = association.messages.has_room
        if connection is None or not has_room:
            if bell is not None:
                bell.wait(timeout_s)
            return False
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return True
        poll = select.poll()
        try:
            poll.register(connection, select.POLLIN)
            if bell is not None:
                bell.register(poll)
            found = dict(poll.poll(timeout_s * 1000.0))
        except (OSError, ValueError):  # closed meanwhile
            self.event_queue.put("Evt17")
            return False
        if bell is not None:
            bell.heard()
        return connection.fileno() in found

    def recv_data(self) -> memoryview | None:
        """Reads a P-DATA-TF PDU and gives what follows its head; None where it is another PDU.

        Good until the next one is read. Of another PDU the head is kept for the `recv` that
        comes next.

        Raises:
            OSError: as `recv`; or the peer closed in the middle of it.

        Source: PS3.8 9.3.1, 9.3.5.
        """
        head = self.recv(_PDU_HEAD_BYTES)
        if len(head) != _PDU_HEAD_BYTES or head[0] != _P_DATA_TF:
            self._read_ahead = bytes(head)
            return None
        length = int.from_bytes(head[2:], "big")
        deadline_s = self._deadline_s(length)
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        body = memoryview(self._buffer)[:length]
        if self._fill(body, deadline_s) != length:
            raise ConnectionResetError
        self._read_pdu(body)
        return body

    def recv(self, nr_bytes: int) -> bytearray:
        """Reads `nr_bytes`, or fewer when the peer closes.

        Raises:
            OSError: the peer announced too much or took too long; pynetdicom then treats
                the connection as lost.
        """
        if self._read_ahead:
            ahead, self._read_ahead = bytearray(self._read_ahead), b""
            return ahead
        deadline_s = self._deadline_s(nr_bytes)
        received = bytearray()
        while len(received) < nr_bytes:
            # Grown as bytes come, not by what was announced.
            piece = bytearray(min(_CHUNK_BYTES, nr_bytes - len(received)))
            came = self._fill(memoryview(piece), deadline_s)
            received += memoryview(piece)[:came]
            if came < len(piece):
                break
        self._read_pdu(received)
        return received

    def _deadline_s(self, nr_bytes: int) -> float:
        """Until when so many bytes must have come.

        Raises:
            OSError: they are too many.
        """
        association = self.assoc
        assert isinstance(association, LimitedAssociation)
        settings = association.host.settings
        if association.is_admitted:
            limit_bytes = max(PDU_LIMIT_BYTES, settings.max_pdu_bytes + 1024)
            deadline_s = time.monotonic() + settings.idle_timeout_s
        else:
            limit_bytes = REQUEST_LIMIT_BYTES
            deadline_s = association.deadline_s
        if nr_bytes > limit_bytes:
            _refuse_pdu(association, "too long a PDU", nr_bytes)
        return deadline_s

    def _fill(self, place: memoryview, deadline_s: float) -> int:
        """Reads until `place` is full; gives how many bytes came, fewer where the peer closed.

        Raises:
            OSError: it took too long, or the connection is lost.
        """
        association, connection = self.assoc, self.socket
        assert isinstance(association, LimitedAssociation)
        assert connection is not None
        came = 0
        while came < len(place):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            connection.settimeout(left_s)
            count = connection.recv_into(place[came:])
            if not count:
                break
            came += count
        # For what we send: a peer that reads nothing must not hold the thread for ever.
        connection.settimeout(association.host.settings.idle_timeout_s)
        return came

    def _read_pdu(self, received: bytearray | memoryview) -> None:
        """Notes what was read: a PDU comes in two steps, its head (PS3.8 9.3.1), then the rest."""
        if self._pdu_type == 0 and len(received) == _PDU_HEAD_BYTES:
            self._pdu_type = received[0] if any(received[2:]) else 0
        else:
            association = self.assoc
            assert isinstance(association, LimitedAssociation)
            pdu_type, self._pdu_type = self._pdu_type, 0
            _check_pieces(association, pdu_type, received)

    def send(self, bytestream: bytes) -> None:
        """Sends a PDU; a peer that has gone makes no difference here, the reader hears of it."""
        connection = self.socket
        if connection is None:
            return
        with self._sending:
            try:
                connection.sendall(bytestream)
            except OSError:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _shutdown_socket(self) -> None:
        """Closes the socket also where the peer has closed it first (else it would leak)."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


def _data_values(body: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Context and fragment of each presentation data value of a P-DATA-TF PDU.

    Raises:
        struct.error, ValueError: it isn't made of them.

    Source: PS3.8 9.3.5, Table 9-23.
    """
    place = 0
    while place < len(body):
        length, context_id = struct.unpack_from(">IB", body, place)
        place += 4
        if not 1 <= length <= len(body) - place:
            msg = "a presentation data value that is longer than its PDU"
            raise ValueError(msg)
        yield context_id, body[place + 1 : place + length]
        place += length


def _tell_nonsense(association: LimitedAssociation, error: Exception) -> None:
    # Only the kind: the text may repeat what the peer has sent.
    _log.warning(
        "association aborted: its PDUs make no sense",
        association_id=association.association_id,
        host_ip=association.host_ip,
        reason=type(error).__name__,
    )


def _check_pieces(
    association: LimitedAssociation, pdu_type: int, body: bytearray | memoryview
) -> None:
    """Refuses a PDU of so many tiny pieces that each byte of it would become an object.

    Source: PS3.8 9.3.2 (A-ASSOCIATE-RQ: items), 9.3.5 (P-DATA-TF: presentation data values).
    """
    if pdu_type == _P_DATA_TF:
        place = pieces = 0
        while place + 4 <= len(body) and pieces <= _FRAGMENTS_LIMIT:
            place += 4 + int.from_bytes(body[place : place + 4], "big")
            pieces += 1
        if pieces > _FRAGMENTS_LIMIT:
            _refuse_pdu(association, "a PDU of too many pieces", pieces)
    elif pdu_type == _ASSOCIATE_RQ:
        pieces = _count_items(body, 68, len(body))
        if pieces > _ITEMS_LIMIT:
            _refuse_pdu(association, "an association request of too many items", pieces)


def _count_items(body: bytearray | memoryview, place: int, end: int) -> int:
    """Items from `place` on, and those inside presentation contexts and user information."""
    count = 0
    while place + 4 <= end and count <= _ITEMS_LIMIT:
        kind = body[place]
        after = min(place + 4 + int.from_bytes(body[place + 2 : place + 4], "big"), end)
        count += 1
        if kind == 0x20:
            count += _count_items(body, place + 8, after)
        elif kind == 0x50:
            count += _count_items(body, place + 4, after)
        place = after
    return count


def _refuse_pdu(association: LimitedAssociation, what: str, number: int) -> None:
    _log.warning(f"connection closed: {what}", host_ip=association.host_ip, announced=number)
    raise OSError(what)
