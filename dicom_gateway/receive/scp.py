"""Room 1, receive: C-ECHO and C-STORE.

In: associations. Out: an `Arrival` for each object, to `keep`; its success or refusal is the
C-STORE response. Nothing is kept here: 0x0000 leaves only after `keep` has returned, so
what a crash takes, the sender has not been told of and sends again.

The received bytes are passed on as they came. Nothing of a data set is decoded here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pydicom.config
from pynetdicom import AE, build_context, evt
from pynetdicom._globals import ALL_TRANSFER_SYNTAXES
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import StorageServiceClass, VerificationServiceClass
from pynetdicom.sop_class import uid_to_service_class

from dicom_gateway.config import ScpSettings
from dicom_gateway.errors import ConfigurationError, DatabaseUnavailable, Refused
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.admission import GuestList
from dicom_gateway.receive.limits import REQUEST_TIMEOUT_S, LimitedAssociation, LimitedServer
from dicom_gateway.records import Arrival, Instance

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
_STANDARD_ROOT = "1.2.840.10008."
_COMPOSITE_ROOT = "1.2.840.10008.5.1.4.1.1."

_IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
_DEFLATED = frozenset(
    (
        "1.2.840.10008.1.2.1.99",  # Deflated Explicit VR Little Endian
        "1.2.840.10008.1.2.4.95",  # JPIP Referenced Deflate
        "1.2.840.10008.1.2.4.205",  # JPIP HTJ2K Referenced Deflate
    )
)
"""Left out: half a megabyte of them can become a gigabyte."""
TRANSFER_SYNTAXES = frozenset(ALL_TRANSFER_SYNTAXES) - _DEFLATED


class Receiver:
    """The door: listens, admits, and hands what is sent to `keep`.

    Args:
        settings: `dicom.scp` of gateway.yaml.
        keep: Makes an object durable; may be called by several threads at once. What it
            raises is the answer: the status of a `Refused`, 0xA700 for a
            `DatabaseUnavailable`, 0xC000 for anything unforeseen.
        association_ended: Called with the association's id, exactly once for each that was
            admitted, after its last `keep`; and with True where the peer released it, False
            after an abort or a lost connection.
    """

    def __init__(
        self,
        settings: ScpSettings,
        keep: Callable[[Arrival], Instance],
        association_ended: Callable[[str, bool], None],
    ) -> None:
        self._settings = settings
        self._keep = keep
        self._association_ended = association_ended
        self._guests = GuestList(settings)
        self._log = get_logger(room="receive")
        self._server: LimitedServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on, also where the settings say 0."""
        return self._settings.port if self._server is None else self._server.server_address[1]

    @property
    def is_alive(self) -> bool:
        """Whether the thread that accepts connections runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def undecided(self) -> int:
        """Connections that have not yet become an association."""
        return 0 if self._server is None else self._server.undecided

    def start(self) -> None:
        """Listens from here on.

        Raises:
            ConfigurationError: the address or port can't be listened on.
        """
        # What these would log or warn of repeats what peers send; what matters is logged
        # here, and what matters of a UID is checked by the store.
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
        entity = AE(self._settings.ae_titles[0].ae_title)
        entity.maximum_pdu_size = self._settings.max_pdu_bytes
        entity.acse_timeout = REQUEST_TIMEOUT_S
        entity.network_timeout = self._settings.idle_timeout_s
        entity.dimse_timeout = self._settings.idle_timeout_s
        # Counted by the guest list instead, which knows the silent ones from the others.
        entity.maximum_associations = 1_000_000
        try:
            server = LimitedServer(
                entity,
                self._settings,
                [
                    (evt.EVT_REQUESTED, self._on_requested),
                    (evt.EVT_C_ECHO, self._on_echo),
                    (evt.EVT_C_STORE, self._on_store),
                ],
                association_closed=self._on_closed,
            )
        except OSError as error:
            msg = (
                f"dicom.scp: {self._settings.host} port {self._settings.port} can't be listened "
                f"on ({error.strerror}); is another gateway running, or is the port below 1024?"
            )
            raise ConfigurationError(msg) from error
        entity._servers.append(server)  # the server's shutdown takes itself off this list
        self._server = server
        self._thread = threading.Thread(
            target=server.serve_forever, args=(0.1,), name="receive", daemon=True
        )
        self._thread.start()
        self._log.info("listening", host=self._settings.host, port=self.port)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Listens no more, lets the `keep`s under way finish, and ends the associations."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        associations = server.active_associations
        server.shutdown()
        self._thread.join(timeout_s)
        for association in associations:
            association.abort()
        for association in associations:
            association.join(timeout_s)

    # Called by pynetdicom, in the thread of the association ----------------------------

    def _on_requested(self, event: evt.Event) -> None:
        """Admits or rejects, and chooses what is offered."""
        association = _ours(event)
        called, calling = _ae_titles(association)
        host_ip = association.host_ip
        rejection = self._guests.admit(
            association.association_id,
            called_ae_title=called,
            calling_ae_title=calling,
            host_ip=host_ip,
        )
        if rejection is not None:
            self._log.warning(
                "association rejected",
                reason=rejection.words,
                called_ae_title=called,
                calling_ae_title=calling,
                host_ip=host_ip,
            )
            association.acse.send_reject(rejection.result, rejection.source, rejection.reason)
            association.kill()  # waits until the rejection is out
            return
        association.is_admitted = True
        association._server.decided(association)
        association.acceptor.ae_title = called
        association.acceptor.supported_contexts = _offers(association.requestor.requested_contexts)
        self._log.info(
            "association accepted",
            association_id=association.association_id,
            called_ae_title=called,
            calling_ae_title=calling,
            host_ip=host_ip,
        )

    def _on_echo(self, event: evt.Event) -> int:
        return SUCCESS

    def _on_store(self, event: evt.Event) -> int:
        """Keeps one object and answers with the status.

        Source: PS3.4 B.2.3 and Table B.2-1.
        """
        association = _ours(event)
        called, calling = _ae_titles(association)
        request = event.request
        assert isinstance(request, C_STORE)
        log = self._log.bind(association_id=association.association_id)
        if request.MessageID in association.too_large:
            association.too_large.discard(request.MessageID)
            log.warning(
                "instance refused: larger than dicom.scp.max-instance-bytes",
                limit_bytes=self._settings.max_instance_bytes,
            )
            return OUT_OF_RESOURCES
        try:
            instance = self._keep(
                Arrival(
                    encoded_dataset=event.encoded_dataset(include_meta=False),
                    sop_class_uid=str(request.AffectedSOPClassUID),
                    sop_instance_uid=str(request.AffectedSOPInstanceUID),
                    transfer_syntax_uid=str(event.context.transfer_syntax),
                    calling_ae_title=calling,
                    called_ae_title=called,
                    association_id=association.association_id,
                )
            )
        except Refused as refusal:
            log.warning("instance refused", code=refusal.code, reason=str(refusal))
            return refusal.status
        except DatabaseUnavailable as error:
            log.warning("instance refused for now", code=error.code, reason=str(error))
            return OUT_OF_RESOURCES
        except Exception:  # the outermost edge: the peer must get an answer
            log.exception("instance refused: unforeseen error")
            return CANNOT_UNDERSTAND
        log.debug("instance kept", sop_instance_uid=instance.sop_instance_uid)
        return SUCCESS

    def _on_closed(self, association: LimitedAssociation) -> None:
        """The association's thread ends: tell, if it had been admitted."""
        if not self._guests.leave(association.association_id):
            return
        how = "released" if association.is_released else "aborted or lost"
        self._log.info("association ended", association_id=association.association_id, how=how)
        try:
            self._association_ended(association.association_id, association.is_released)
        except Exception:  # noqa: BLE001 - outermost edge of the association's thread
            # The series then counts as still being sent, and the longer quiet time decides.
            self._log.exception("the end of an association could not be noted")


def _ours(event: evt.Event) -> LimitedAssociation:
    assert isinstance(event.assoc, LimitedAssociation)
    return event.assoc


def _ae_titles(association: LimitedAssociation) -> tuple[str, str]:
    """Called and calling AE title of the request."""
    request = association.requestor.primitive
    assert request is not None
    return request.called_ae_title.strip(), request.calling_ae_title.strip()


def _offers(requested: list[PresentationContext]) -> list[PresentationContext]:
    """What we accept of what a peer proposes: every storage class, private ones too.

    Transfer syntaxes keep the peer's order, so that a compressed object is not decompressed
    on our account; implicit VR comes last, since it loses private value representations.
    """
    wanted: dict[str, list[str]] = {}
    for context in requested:
        abstract_syntax = str(context.abstract_syntax)
        if _is_served(abstract_syntax):
            known = wanted.setdefault(abstract_syntax, [])
            known += [str(s) for s in context.transfer_syntax if s in TRANSFER_SYNTAXES]
    return [
        build_context(
            abstract_syntax,
            sorted(dict.fromkeys(syntaxes), key=lambda s: s == _IMPLICIT_LITTLE_ENDIAN),
        )
        for abstract_syntax, syntaxes in wanted.items()
        if syntaxes
    ]


def _is_served(abstract_syntax: str) -> bool:
    service = uid_to_service_class(abstract_syntax)
    if service in (StorageServiceClass, VerificationServiceClass):
        return True
    # Retired and very new classes of composite objects, which pynetdicom doesn't list, and
    # private ones, which are nearly always for storage (PS3.4 B.5).
    return abstract_syntax.startswith(_COMPOSITE_ROOT) or not abstract_syntax.startswith(
        _STANDARD_ROOT
    )
