"""Associations with a destination: TLS, presentation contexts, and why one didn't come about.

In: a `Destination` and what is to be proposed. Out: an association that is established, or an
error whose sentence says what to do. Nothing is kept here.

Source: PS3.8 7.1.1 and 9.3.4 (association, rejection), PS3.15 B.12 (TLS).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import Any

import pydicom.config
import pynetdicom
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu import A_ASSOCIATE_RJ
from pynetdicom.presentation import PresentationContext

from dicom_gateway.calling import on_connected
from dicom_gateway.config_delivery import Destination, DimsePlace
from dicom_gateway.errors import ConfigurationError, DestinationUnreachable
from dicom_gateway.tls import client_context, peer_certificate

# pydicom's validation answers with warnings that quote the value: never a patient's name.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

# Sends the bytes of a file piece by piece instead of decoding and encoding them again.
pynetdicom._config.STORE_SEND_CHUNKED_DATASET = True

_CONNECT_TIMEOUT_S = 10.0
_ASSOCIATION_TIMEOUT_S = 30.0
RESPONSE_TIMEOUT_S = 300.0
"""A PACS that commits a large object before it answers may take minutes."""
_STALL_TIMEOUT_S = 300.0
"""One that takes no byte of what we send for so long hangs."""

_CALLED_UNKNOWN, _CALLING_UNKNOWN = 7, 3


class Caller:
    """Opens associations with one destination.

    Args:
        destination: One with `dimse`.
        calling_ae_title: Who we say we are.
        place: Where it is called, if not where it takes C-STORE.

    Raises:
        ConfigurationError: its TLS section names files that can't be used.
    """

    def __init__(
        self, destination: Destination, calling_ae_title: str, place: DimsePlace | None = None
    ) -> None:
        self._destination = destination
        self._calling_ae_title = calling_ae_title
        self._place = place or destination.dimse
        self._tls()  # now rather than when the first result is made

    def open(
        self,
        contexts: Sequence[PresentationContext],
        *,
        handlers: Sequence[Any] = (),
        ext_neg: Sequence[Any] = (),
    ) -> Association:
        """Opens one, whatever of the contexts the peer takes.

        It is returned also where the peer took none of them: then it isn't established, and
        its `rejected_contexts` say so.

        Raises:
            DestinationUnreachable: no address, no connection, no TLS, rejected, or broken off.
        """
        notes: list[DestinationUnreachable] = []
        ae = AE(ae_title=self._calling_ae_title)
        ae.connection_timeout = _CONNECT_TIMEOUT_S
        ae.acse_timeout = _ASSOCIATION_TIMEOUT_S
        ae.network_timeout = RESPONSE_TIMEOUT_S
        ae.dimse_timeout = RESPONSE_TIMEOUT_S
        place = self._place
        try:
            tls = self._tls()
        except ConfigurationError as error:  # a certificate that was replaced by a broken one
            raise DestinationUnreachable(f"{self._destination}: {error}") from error
        if tls is not None:
            tls.sslsocket_class = self._telling_socket(notes)
        try:
            association = ae.associate(
                place.host_ip,
                place.port,
                contexts=list(contexts),
                ae_title=place.ae_title,
                tls_args=None if tls is None else (tls, place.host_ip),
                ext_neg=list(ext_neg),
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, self._on_connected, [notes]),
                    (evt.EVT_PDU_RECV, self._on_pdu, [notes]),
                    *handlers,
                ],
            )
        except OSError as error:  # of looking its name up
            msg = (
                f"{self._destination}: {place.host_ip} can't be called ({error.strerror}); check "
                "host-ip in gateway.yaml and this machine's name service. It is tried again"
            )
            raise DestinationUnreachable(msg) from error
        if association.is_established or association.rejected_contexts:
            return association
        if notes:
            raise notes[0]
        raise DestinationUnreachable(f"{self._destination} can't be reached or broke off")

    def _tls(self) -> ssl.SSLContext | None:
        tls = self._destination.tls
        if tls is None:
            return None
        return client_context(
            tls.ca_file, tls.certificate_file, tls.key_file, check_hostname=tls.check_hostname
        )

    def _telling_socket(self, notes: list[DestinationUnreachable]) -> type[ssl.SSLSocket]:
        """Pynetdicom only says that a connection failed; this keeps the reason."""
        destination = self._destination

        class TellingSocket(ssl.SSLSocket):
            def shutdown(self, how: int) -> None:
                try:
                    super().shutdown(how)
                except OSError:
                    self.close()  # where the peer has gone, pynetdicom leaves that undone
                    raise

            def do_handshake(self, block: bool = False) -> None:
                try:
                    super().do_handshake(block)
                except ssl.SSLCertVerificationError as error:
                    why = (
                        f"its certificate isn't accepted ({error.verify_message}); see tls.ca-file"
                    )
                    notes.append(DestinationUnreachable(f"{destination}: {why}", is_lasting=True))
                    self.close()
                    raise
                except OSError as error:
                    reason = str(getattr(error, "reason", None) or error.strerror or "broken off")
                    reason = reason.replace("_", " ").lower()
                    notes.append(
                        DestinationUnreachable(
                            f"{destination}: TLS did not come about ({reason}); check that its "
                            "port speaks DICOM TLS and takes our certificate"
                        )
                    )
                    self.close()
                    raise

        return TellingSocket

    def _on_connected(self, event: evt.Event, notes: list[DestinationUnreachable]) -> None:
        on_connected(event)
        connection = event.assoc.dul.socket
        if connection is None or connection.socket is None:
            return
        # Without it a peer that stops reading holds this thread for good, also an abort of ours.
        connection.socket.settimeout(_STALL_TIMEOUT_S)
        tls = self._destination.tls
        if tls is None or not tls.certificates or not isinstance(connection.socket, ssl.SSLSocket):
            return
        shown = peer_certificate(connection.socket)
        if shown is None or not any(map(shown.is_called, tls.certificates)):
            notes.append(
                DestinationUnreachable(
                    f"{self._destination} shows another certificate than those listed under "
                    "tls.certificates; nothing was sent",
                    is_lasting=True,
                )
            )
            connection.socket.shutdown(socket.SHUT_RDWR)  # before our request goes out

    def _on_pdu(self, event: evt.Event, notes: list[DestinationUnreachable]) -> None:
        # pynetdicom forgets a rejection that comes so quickly that the connection is closed
        # again before it looks; the PDU itself is always seen here.
        if not isinstance(event.pdu, A_ASSOCIATE_RJ):
            return
        said = event.pdu.to_primitive()
        # PS3.8 9.3.4: result 1 is permanent, 2 transient. Both are tried again, since what
        # makes one permanent is a configuration that somebody is about to correct.
        is_lasting = said.result == 1
        advice = "try again"
        if is_lasting:
            advice = "check the AE titles on both sides"
        if is_lasting and said.result_source == 1 and said.diagnostic == _CALLING_UNKNOWN:
            advice = f"enter our AE title {self._calling_ae_title} and address there"
        elif is_lasting and said.result_source == 1 and said.diagnostic == _CALLED_UNKNOWN:
            advice = f"it isn't called {self._place.ae_title}; correct ae-title in gateway.yaml"
        elif not is_lasting:
            advice = "it is tried again"
        notes.append(
            DestinationUnreachable(
                f"{self._destination} rejected the association ({said.reason_str.lower()}); "
                f"{advice}",
                is_lasting=is_lasting,
            )
        )
