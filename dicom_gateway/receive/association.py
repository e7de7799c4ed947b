"""Receive, step 2, the association: one peer's, from the first byte to the end, in a thread.

In: a connection. Out: each message to the `Host`, in its accepted context, and whatever ends
the association, exactly once. A TLS handshake has as little time as a request for an
association; pynetdicom would wait for ever. Nothing survives a crash.
"""

from __future__ import annotations

import socket
import ssl
import time
from functools import partial
from typing import Any, Protocol, cast

from pynetdicom import AE, evt
from pynetdicom.acse import ACSE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import DimseServiceType
from pynetdicom.pdu_primitives import A_RELEASE, P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation

from dicom_gateway.config import ScpSettings
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.commands import StoreRequest
from dicom_gateway.receive.incoming import Spool
from dicom_gateway.receive.limits import LimitedSocket
from dicom_gateway.receive.listener import Connection
from dicom_gateway.receive.messages import FRAGMENT_HEAD_BYTES, LimitedDimse
from dicom_gateway.receive.reader import Reader, tell_nonsense
from dicom_gateway.receive.waiting import TellingQueue
from dicom_gateway.tls import PeerCertificate, peer_certificate

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


class _Acse(ACSE):
    """Hears of a release when all that came before it has been served, not earlier.

    A peer may ask for it without waiting for its last answer; pynetdicom would let go of what it
    had sent before.
    """

    def is_release_requested(self) -> bool:
        """Whether the peer wants to end it; takes that from the queue."""
        # Its type hangs on the order in which mypy reads pynetdicom's modules.
        asked = cast("object", self.dul.peek_next_pdu())
        if not isinstance(asked, A_RELEASE) or asked.result is not None:
            return False
        messages = self.assoc.dimse
        assert isinstance(messages, LimitedDimse)
        # In this order: what was sent before the release is in the queue when that is.
        if messages.has_waiting:
            return False
        self.dul.receive_pdu(wait=False)
        return True


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
        self.dul = self._reader = Reader(self, self.host_ip, self.association_id)
        self.acse_timeout, self.network_timeout = entity.acse_timeout, entity.network_timeout
        self.messages = LimitedDimse(
            self,
            connection.association_id,
            instance_limit_bytes=host.settings.max_instance_bytes,
            spool=host.spool,
            between_messages=partial(host.between_messages, self),
            room_made=self._reader.bell.ring,
        )
        self.dimse = self.messages
        self.acse = _Acse(self)
        # Release and abort come by another queue than messages.
        self._reader.to_user_queue = TellingQueue(self.messages.look_around)
        self.acceptor.maximum_length = entity.maximum_pdu_size
        self.acceptor.ae_title = entity.ae_title
        self.acceptor.implementation_class_uid = entity.implementation_class_uid
        self.acceptor.implementation_version_name = entity.implementation_version_name
        self.requestor.address_info = AddressInformation(connection.host_ip, connection.port)

    @property
    def settings(self) -> ScpSettings:
        """Of the port that it came by."""
        return self.host.settings

    @property
    def has_room(self) -> bool:
        """Whether another message may come before those that have come are served."""
        return self.messages.has_room

    def _bind_defaults(self) -> None:
        """Binds pynetdicom's defaults without its loggers, which write what peers send."""
        for event in evt._INTERVENTION_EVENTS:
            self.bind(event, evt.get_default_handler(event))

    def run(self) -> None:
        """The association's thread, from the connection's first byte to its end."""
        try:
            opened = self._open()
            if opened is not None:
                self.set_socket(LimitedSocket(self, self, opened))
                super().run()
        except Exception as error:  # noqa: BLE001 - outermost edge of the association's thread
            tell_nonsense(error, self.host_ip, self.association_id)
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
        longest = self.messages.maximum_pdu_size  # 0: whatever length
        step = longest - FRAGMENT_HEAD_BYTES if longest else len(command)
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
        self._reader.served()
        self._is_paused = False
