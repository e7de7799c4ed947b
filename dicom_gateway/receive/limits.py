"""Receive, step 2: how much a peer may do. Seconds, bytes and kinds of messages, all bounded.

pynetdicom itself has no such limits: a stranger could announce a PDU of 4 GiB and have it
all held in memory, or keep a TLS handshake open for ever. Here are its association, its
socket and its message assembly with limits around them. What goes in and out otherwise is
pynetdicom's. Nothing survives a crash.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import DimseServiceType
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_P_ABORT
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicom_gateway.config import ScpSettings
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.incoming import Spool
from dicom_gateway.receive.listener import Connection
from dicom_gateway.receive.messages import LimitedDimse
from dicom_gateway.tls import PeerCertificate, peer_certificate

REQUEST_LIMIT_BYTES = 64 * 1024
"""An A-ASSOCIATE-RQ with 128 presentation contexts takes about 20 KiB."""
PDU_LIMIT_BYTES = 1024 * 1024
"""Some peers send longer PDUs than we asked for; they get this much leeway."""
_FRAGMENTS_LIMIT = 512
"""Presentation data values in one PDU; real peers send one or two."""
_ITEMS_LIMIT = 2048
"""Items and sub-items in one A-ASSOCIATE-RQ: 128 contexts with 15 transfer syntaxes each."""
_WAITING_MESSAGES = 2
"""We don't negotiate asynchronous operations, so a peer has one under way (PS3.7 D.3.3.3)."""
_CHUNK_BYTES = 256 * 1024
_ASSOCIATE_RQ, _P_DATA_TF = 1, 4

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
        message: DimseServiceType,
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
        self.dul = _LimitedDul(self)
        self.acse_timeout, self.network_timeout = entity.acse_timeout, entity.network_timeout
        self._messages = LimitedDimse(
            self,
            connection.association_id,
            instance_limit_bytes=host.settings.max_instance_bytes,
            spool=host.spool,
            between_messages=partial(host.between_messages, self),
        )
        self.dimse = self._messages
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
            self._messages.close()
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

    def _serve_request(self, msg: DimseServiceType, context_id: int) -> None:
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

    def run_reactor(self) -> None:
        """The reader's thread."""
        try:
            super().run_reactor()
        except Exception as error:  # noqa: BLE001 - outermost edge of pynetdicom's reader thread
            association = self.assoc
            assert isinstance(association, LimitedAssociation)
            _tell_nonsense(association, error)
            association.is_aborted, association.is_established = True, False
            # Wakes whoever waits for a request (PS3.8 7.4: A-P-ABORT indication).
            self.to_user_queue.put(A_P_ABORT())
            if self.socket is not None:
                self.socket._shutdown_socket()


class _LimitedSocket(AssociationSocket):
    """Reads PDUs of bounded length in bounded time."""

    def __init__(self, association: LimitedAssociation, connection: socket.socket) -> None:
        super().__init__(association, client_socket=connection)
        self._pdu_type = 0

    @property
    def ready(self) -> bool:
        """Whether there is something to read, and room for it.

        A peer that sends faster than we can keep waits for us, not in our memory.
        """
        association = self.assoc
        assert isinstance(association, LimitedAssociation)
        if association.dimse.msg_queue.qsize() >= _WAITING_MESSAGES:
            return False
        return bool(super().ready)

    def recv(self, nr_bytes: int) -> bytearray:
        """Reads `nr_bytes`, or fewer when the peer closes.

        Raises:
            OSError: the peer announced too much or took too long; pynetdicom then treats
                the connection as lost.
        """
        association = self.assoc
        assert isinstance(association, LimitedAssociation)
        assert self.socket is not None
        settings = association.host.settings
        if association.is_admitted:
            limit_bytes = max(PDU_LIMIT_BYTES, settings.max_pdu_bytes + 1024)
            deadline_s = time.monotonic() + settings.idle_timeout_s
        else:
            limit_bytes = REQUEST_LIMIT_BYTES
            deadline_s = association.deadline_s
        if nr_bytes > limit_bytes:
            _refuse_pdu(association, "too long a PDU", nr_bytes)
        # Grown as bytes come, not by what was announced.
        received = bytearray()
        while len(received) < nr_bytes:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.socket.settimeout(left_s)
            piece = self.socket.recv(min(_CHUNK_BYTES, nr_bytes - len(received)))
            if not piece:
                break
            received += piece
        # For what we send: a peer that reads nothing must not hold the thread for ever.
        self.socket.settimeout(settings.idle_timeout_s)
        # pynetdicom reads a PDU in two steps: its type and length (PS3.8 9.3.1), the rest.
        if self._pdu_type == 0 and len(received) == 6:
            self._pdu_type = received[0] if any(received[2:]) else 0
        else:
            pdu_type, self._pdu_type = self._pdu_type, 0
            _check_pieces(association, pdu_type, received)
        return received

    def send(self, bytestream: bytes) -> None:
        """Sends a PDU; a peer that has gone makes no difference."""
        if self.socket is not None:
            super().send(bytestream)

    def _shutdown_socket(self) -> None:
        """Closes the socket also where the peer has closed it first (else it would leak)."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


def _tell_nonsense(association: LimitedAssociation, error: Exception) -> None:
    # Only the kind: the text may repeat what the peer has sent.
    _log.warning(
        "association aborted: its PDUs make no sense",
        association_id=association.association_id,
        host_ip=association.host_ip,
        reason=type(error).__name__,
    )


def _check_pieces(association: LimitedAssociation, pdu_type: int, body: bytearray) -> None:
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


def _count_items(body: bytearray, place: int, end: int) -> int:
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
