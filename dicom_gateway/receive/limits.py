"""Receive, how much a peer may do: sockets, seconds and bytes, all bounded.

pynetdicom itself has no such limits: a stranger could announce a PDU of 4 GiB and have it
all held in memory, or keep silent connections open until nobody else gets in. Here are its
server, its socket and its message assembly with limits around them. What goes in and out
otherwise is pynetdicom's.
"""

from __future__ import annotations

import gc
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE, DimseServiceType
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from dicom_gateway.config import ScpSettings
from dicom_gateway.observe.logging import get_logger

REQUEST_TIMEOUT_S = 5.0
"""From the connection to a complete A-ASSOCIATE-RQ (PS3.8 9.1.5: ARTIM)."""
REQUEST_LIMIT_BYTES = 64 * 1024
"""An A-ASSOCIATE-RQ with 128 presentation contexts takes about 20 KiB."""
PDU_LIMIT_BYTES = 1024 * 1024
"""Some peers send longer PDUs than we asked for; they get this much leeway."""
_COMMAND_LIMIT_BYTES = 64 * 1024
"""A command set (PS3.7 E) has a few hundred bytes."""
_WAITING_MESSAGES = 8
"""We don't negotiate asynchronous operations, so a peer has one under way (PS3.7 D.3.3.3)."""
_COLLECT_EVERY_S = 30.0
_CHUNK_BYTES = 256 * 1024

_log = get_logger(room="receive")


class LimitedServer(ThreadedAssociationServer):
    """Accepts connections, but never more undecided ones than it can bear.

    Args:
        entity: pynetdicom's, for its timeouts.
        settings: `dicom.scp` of gateway.yaml.
        handlers: Bound to each association.
        association_closed: Called exactly once for each association, however it ended.

    Raises:
        OSError: the address can't be listened on.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        entity: AE,
        settings: ScpSettings,
        handlers: list[tuple[evt.EventType, Callable[[evt.Event], Any]]],
        association_closed: Callable[[LimitedAssociation], None],
    ) -> None:
        self.settings = settings
        self.handlers = handlers
        self.association_closed = association_closed
        self._pending: Counter[str] = Counter()
        self._pending_lock = threading.Lock()
        # All peers of a site may come from one address (a NAT, a container network).
        self._pending_per_address = max(16, settings.max_associations)
        self._pending_limit = 2 * self._pending_per_address
        self._collected_at_s = time.monotonic()
        super().__init__(
            entity,
            (settings.host, settings.port),
            entity.ae_title,
            [],  # what is offered depends on what a peer asks for
            request_handler=_Handler,
        )

    def _bind_defaults(self) -> None:
        """Binds pynetdicom's defaults without its loggers, which write what peers send."""
        _bind_without_loggers(self)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts one connection; from here on no read of it can block for ever."""
        assert self.socket is not None
        connection, address = self.socket.accept()
        connection.settimeout(REQUEST_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """False closes the connection: too many others have not said yet what they want."""
        host = client_address[0]
        with self._pending_lock:
            admitted = (
                self._pending.total() < self._pending_limit
                and self._pending[host] < self._pending_per_address
            )
            if admitted:
                self._pending[host] += 1
        if not admitted:
            _log.warning("connection closed: too many undecided ones", host_ip=host)
        return admitted

    @property
    def undecided(self) -> int:
        """Connections of which it is not known yet what they want."""
        with self._pending_lock:
            return self._pending.total()

    def decided(self, association: LimitedAssociation) -> None:
        """The association is no longer undecided: admitted, rejected or gone."""
        with self._pending_lock:
            if not association.is_pending:
                return
            association.is_pending = False
            host = association.host_ip
            self._pending[host] -= 1
            if not self._pending[host]:
                del self._pending[host]

    def service_actions(self) -> None:
        """Frees ended associations, which hold each other in cycles, now and then."""
        if time.monotonic() - self._collected_at_s > _COLLECT_EVERY_S:
            self._collected_at_s = time.monotonic()
            gc.collect()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs what kept a connection from becoming an association."""
        _log.exception("connection failed", host_ip=client_address[0])
        with self._pending_lock:
            self._pending[client_address[0]] -= 1


class LimitedAssociation(Association):
    """One association; whatever ends it, the server hears of it exactly once.

    Attributes:
        association_id: Opaque and unique.
        host_ip: The peer's address, as the socket shows it.
        is_pending: True until it is admitted or rejected.
        is_admitted: From then on it may send data, and more at once.
        too_large: Message IDs of C-STORE requests whose data set was dropped.
    """

    def __init__(self, server: LimitedServer, host_ip: str) -> None:
        super().__init__(server.ae, "acceptor")
        self.host_ip = host_ip
        self._server: LimitedServer = server
        self.association_id = uuid.uuid4().hex
        self.is_pending = True
        self.is_admitted = False
        self.opened_at_s = time.monotonic()
        self.too_large: set[int] = set()
        self.dimse = _LimitedDimse(self, server.settings.max_instance_bytes)

    def _bind_defaults(self) -> None:
        _bind_without_loggers(self)

    def _serve_request(self, msg: DimseServiceType, context_id: int) -> None:
        """Serves C-STORE by the context it comes in, not by a list of known SOP classes.

        So private classes are stored as well; what may be stored was settled when the
        contexts were accepted.
        """
        context = self._accepted_cx.get(context_id)
        if context is None or not isinstance(msg, C_STORE) or not msg.is_valid_request:
            super()._serve_request(msg, context_id)
            return
        self._is_paused = True
        StorageServiceClass(self).SCP(msg, context)
        self._is_paused = False

    def run(self) -> None:
        """The association's thread, from the connection to its end."""
        try:
            super().run()
        finally:
            self.dul.kill_dul()
            if self.dul.socket is not None:
                self.dul.socket._shutdown_socket()
            self._server.decided(self)
            self._server.association_closed(self)


class _Handler(RequestHandler):
    """Makes our kind of association of a connection; otherwise pynetdicom's handler."""

    server: LimitedServer

    def _create_association(self) -> LimitedAssociation:
        server = self.server
        association = LimitedAssociation(server, self.client_address[0])
        # AssociationServer.active_associations looks for this name.
        association.name = f"AcceptorThread@{association.association_id}"
        association.set_socket(_LimitedSocket(association, self.request))
        association.acceptor.maximum_length = server.ae.maximum_pdu_size
        association.acceptor.ae_title = server.ae_title
        association.acceptor.address_info = self.local
        association.acceptor.implementation_class_uid = server.ae.implementation_class_uid
        association.acceptor.implementation_version_name = server.ae.implementation_version_name
        association.requestor.address_info = self.remote
        for event, bound in server.handlers:
            association.bind(event, bound)
        return association


class _LimitedSocket(AssociationSocket):
    """Reads PDUs of bounded length in bounded time."""

    def __init__(self, association: LimitedAssociation, connection: socket.socket) -> None:
        super().__init__(association, client_socket=connection)

    def recv(self, nr_bytes: int) -> bytearray:
        """Reads `nr_bytes`, or fewer when the peer closes.

        Raises:
            OSError: the peer announced too much or took too long; pynetdicom then treats
                the connection as lost.
        """
        association = self.assoc
        assert isinstance(association, LimitedAssociation)
        assert self.socket is not None
        settings = association._server.settings
        if association.is_admitted:
            limit_bytes = max(PDU_LIMIT_BYTES, settings.max_pdu_bytes + 1024)
            deadline_s = time.monotonic() + settings.idle_timeout_s
        else:
            limit_bytes = REQUEST_LIMIT_BYTES
            deadline_s = association.opened_at_s + REQUEST_TIMEOUT_S
        if nr_bytes > limit_bytes:
            _log.warning(
                "connection closed: the peer announced too long a PDU",
                host_ip=association.host_ip,
                announced_bytes=nr_bytes,
                limit_bytes=limit_bytes,
            )
            msg = "PDU too long"
            raise OSError(msg)
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
        return received

    def _shutdown_socket(self) -> None:
        """Closes the socket also where the peer has closed it first (else it would leak)."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


class _LimitedDimse(DIMSEServiceProvider):
    """Assembles messages of bounded size."""

    def __init__(self, association: LimitedAssociation, limit_bytes: int) -> None:
        super().__init__(association)
        self._limit_bytes = limit_bytes
        self._dropping = False

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Adds fragments to the message under way.

        A data set that grows too large is dropped while it comes; its message is still
        completed, so that the peer hears why. Anything that can't be a message ends the
        association.
        """
        association = self.assoc
        assert isinstance(association, LimitedAssociation)
        if not self._may_continue(primitive):
            _log.warning(
                "association aborted: messages that no peer may send",
                association_id=association.association_id,
            )
            self.dul.event_queue.put("Evt19")
            return
        self._drop_what_is_too_large(primitive, association)
        try:
            super().receive_primitive(primitive)
        except Exception:  # noqa: BLE001 - outermost edge of pynetdicom's reader thread
            # A command set that is none ends in all kinds of errors.
            _log.warning(
                "association aborted: its bytes are no DIMSE message",
                association_id=association.association_id,
            )
            self.message = None
            self.dul.event_queue.put("Evt19")
        if self.message is None:
            self._dropping = False

    def _may_continue(self, primitive: P_DATA) -> bool:
        fragments = [data for _, data in primitive.presentation_data_value_list]
        if not all(fragments):
            return False  # not even a control header (PS3.8 E.2)
        command_bytes = sum(len(data) for data in fragments if data[0] & 1)
        if self.message is not None:
            command_bytes += self.message.encoded_command_set.tell()
        return command_bytes <= _COMMAND_LIMIT_BYTES and self.msg_queue.qsize() < _WAITING_MESSAGES

    def _drop_what_is_too_large(self, primitive: P_DATA, association: LimitedAssociation) -> None:
        if self.message is None or not isinstance(self.message.data_set, BytesIO):
            return
        fragments = primitive.presentation_data_value_list
        coming = sum(len(data) - 1 for _, data in fragments if not data[0] & 1)
        if not self._dropping:
            if self.message.data_set.tell() + coming <= self._limit_bytes:
                return
            self._dropping = True
            message_id = getattr(self.message.command_set, "MessageID", None)
            if message_id is not None:
                association.too_large.add(message_id)
            self.message.data_set.seek(0)
            self.message.data_set.truncate()
        # Only the control header stays (PS3.8 E.2), which says whether it was the last.
        kept: list[Any] = [[cx, data if data[0] & 1 else data[:1]] for cx, data in fragments]
        primitive.presentation_data_value_list = kept


def _bind_without_loggers(owner: LimitedServer | LimitedAssociation) -> None:
    for event in evt._INTERVENTION_EVENTS:
        owner.bind(event, evt.get_default_handler(event))
