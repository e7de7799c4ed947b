"""Receive, step 3: associations. C-ECHO, C-STORE and storage commitment, each answered truly.

In: connections whose peer has begun to speak. Out: an `Arrival` for each object, to `keep`;
its success or refusal is the C-STORE response. Nothing is kept here: 0x0000 leaves only after
`keep` has returned, so what a crash takes, the sender has not been told of and sends again.

The received bytes are passed on as they came. Nothing of a data set is decoded here.
"""

from __future__ import annotations

import gc
import logging
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pydicom.config
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import (
    C_ECHO,
    N_ACTION,
    N_EVENT_REPORT,
    DimseServiceType,
)
from pynetdicom.presentation import PresentationContext

from dicom_gateway.config import ScpSettings
from dicom_gateway.errors import DatabaseUnavailable, OutOfResources, Refused
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.admission import TEMPORARY_CONGESTION, Desk, knows
from dicom_gateway.receive.association import LimitedAssociation
from dicom_gateway.receive.commands import StoreCommand, StoreRequest, write_store_response
from dicom_gateway.receive.commitment import Commitments, CommitmentTalk
from dicom_gateway.receive.incoming import Incoming, Spool
from dicom_gateway.receive.listener import Connection
from dicom_gateway.receive.offers import STORAGE_COMMITMENT, VERIFICATION, offers
from dicom_gateway.receive.reports import Reports
from dicom_gateway.records import Arrival, Instance
from dicom_gateway.tls import server_context

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
COMMENT_CHARACTERS = 64
"""Error Comment (0000,0902) is a long string (PS3.7 C.1, PS3.5 6.2)."""
_WITHOUT_OBJECTS = (VERIFICATION, STORAGE_COMMITMENT)
_COLLECT_EVERY_S = 30.0


class AssociationHost:
    """Serves associations, each in a thread of its own.

    Args:
        settings: `dicom.scp` of gateway.yaml.
        keep: Makes an object durable; may be called by several threads at once. What it
            raises is the answer: the status of a `Refused`, 0xA700 for a
            `DatabaseUnavailable`, 0xC000 for anything unforeseen.
        desk: Asked whether an association may come in, told when its connection is closed.
        spool: Where large data sets stay while they come; in memory where not given.
        commitments: Answers storage commitment; not offered where not given.
        reports: Takes what peers report on our own results.
        refused: Told the code of why an object was not taken.

    Raises:
        ConfigurationError: TLS is asked for and can't work.
    """

    def __init__(
        self,
        settings: ScpSettings,
        keep: Callable[[Arrival], Instance],
        desk: Desk,
        *,
        spool: Spool | None = None,
        commitments: Commitments | None = None,
        reports: Reports | None = None,
        refused: Callable[[str], None] = lambda _code: None,
    ) -> None:
        self.settings = settings
        self.spool = spool
        self._keep = keep
        self._desk = desk
        self._commitments = commitments if settings.storage_commitment else None
        self._reports = reports
        self._refused = refused
        self._titles = frozenset(title.ae_title for title in settings.ae_titles)
        self._tls: ssl.SSLContext | None = None
        if settings.tls is not None:
            self._tls = server_context(
                settings.tls.certificate_file,
                settings.tls.key_file,
                settings.tls.client_ca_file,
                client_required=settings.tls.client_certificates == "required",
            )
        self._log = get_logger(room="receive")
        self._entity = _entity(settings)
        self._open: dict[str, LimitedAssociation] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._collected_at_s = time.monotonic()

    def begin(self, connection: Connection) -> None:
        """Serves a connection from here on; its socket is closed when it ends."""
        try:
            association = LimitedAssociation(self._entity, self, connection)
            association.bind(evt.EVT_REQUESTED, self._on_requested)
            with self._lock:
                if self._stopping:
                    raise RuntimeError("stopping")
                self._open[connection.association_id] = association
            association.start()
        except (RuntimeError, OSError) as error:
            # No more threads, for instance.
            with self._lock:
                self._open.pop(connection.association_id, None)
            self._log.error("connection not served", reason=str(error), host_ip=connection.host_ip)
            connection.socket.close()
            self._desk.ended(connection.association_id, in_order=False)
        self._collect()

    def stop(self, timeout_s: float) -> None:
        """Lets the `keep`s under way finish, and ends the associations."""
        with self._lock:
            self._stopping = True
            associations = list(self._open.values())
        for association in associations:
            association.abort()
        for association in associations:
            association.join(timeout_s)

    def _collect(self) -> None:
        # Ended associations hold each other in cycles.
        if time.monotonic() - self._collected_at_s > _COLLECT_EVERY_S:
            self._collected_at_s = time.monotonic()
            gc.collect()

    # Called by an association, in its own thread -----------------------------------------

    def tls_context(self) -> ssl.SSLContext | None:
        """For the TLS port."""
        return self._tls

    def closed(self, association: LimitedAssociation) -> None:
        """Its thread ends."""
        with self._lock:
            self._open.pop(association.association_id, None)
        self._desk.ended(association.association_id, in_order=association.is_released)

    def between_messages(self, association: LimitedAssociation) -> None:
        """Gives storage commitment its turn."""
        talk: CommitmentTalk | None = association.talk
        if talk is not None:
            talk.report_if_due()

    def serve(
        self,
        association: LimitedAssociation,
        message: DimseServiceType | StoreRequest,
        context: PresentationContext,
    ) -> bool:
        """Answers one message; False where it has no place here."""
        if isinstance(message, StoreRequest):
            return self._serve_store(association, message, context)
        request: Any = message
        if isinstance(message, C_ECHO):
            return _answer_echo(association, request, context)
        if context.abstract_syntax != STORAGE_COMMITMENT:
            return False
        if isinstance(message, N_EVENT_REPORT) and request.MessageID is not None:
            return self._serve_report(association, request, context)
        talk: CommitmentTalk | None = association.talk
        if talk is None:
            return False
        if isinstance(message, N_ACTION):
            return talk.take_request(request, context)
        if isinstance(message, N_EVENT_REPORT):
            return talk.take_answer(request)
        return False

    def _on_requested(self, event: evt.Event) -> None:
        """Admits or rejects, and chooses what is offered."""
        association = event.assoc
        assert isinstance(association, LimitedAssociation)
        if association.is_aborted:
            return  # its request made no sense
        called, calling = _ae_titles(association)
        try:
            rejection = self._desk.admit(
                association.association_id,
                called_ae_title=called,
                calling_ae_title=calling,
                host_ip=association.host_ip,
                certificate=association.certificate,
            )
        except TimeoutError:
            rejection = TEMPORARY_CONGESTION
        if rejection is not None:
            association.acse.send_reject(rejection.result, rejection.source, rejection.reason)
            association.kill()  # waits until the rejection is out
            return
        association.is_admitted = True
        association.acceptor.ae_title = called
        # Admitted may also be who only says that he is a PACS that reports to us.
        may_store = called in self._titles and knows(
            self.settings, calling, association.host_ip, association.certificate
        )
        offered = offers(
            association.requestor.requested_contexts,
            private_sop_classes=self.settings.private_sop_classes,
            storage_commitment=self._commitments is not None or self._reports is not None,
        )
        if not may_store:  # it comes to report, and for nothing else
            offered = [c for c in offered if c.abstract_syntax in _WITHOUT_OBJECTS]
        if self._reports is not None:
            for one in offered:
                if one.abstract_syntax == STORAGE_COMMITMENT:
                    one.scu_role = one.scp_role = True  # either side may be the provider
        association.acceptor.supported_contexts = offered
        if self._commitments is not None and may_store:
            association.talk = CommitmentTalk(association, self._commitments, called, calling)

    def _serve_report(
        self, association: LimitedAssociation, request: Any, context: PresentationContext
    ) -> bool:
        """Takes a report on what we have sent; False where nobody here sends anything."""
        if (
            self._reports is None
            or request.AffectedSOPClassUID is None
            or request.AffectedSOPInstanceUID is None
        ):
            return False
        association.answer(self._reports.answer_to(request, context), context)
        return True

    def _serve_store(
        self, association: LimitedAssociation, request: StoreRequest, context: PresentationContext
    ) -> bool:
        """Keeps one object and answers with the status, and why where it is refused.

        Source: PS3.4 B.2.3 and Table B.2-1, PS3.7 9.1.1 and C.
        """
        try:
            if context.abstract_syntax in _WITHOUT_OBJECTS:
                return False
            status, comment = self._store(association, request.command, context, request.incoming)
        finally:
            request.incoming.close()
        answer = write_store_response(request.command, status, _short(comment))
        if association.is_established:
            association.answer_encoded(answer, context)
        return True

    def _store(
        self,
        association: LimitedAssociation,
        command: StoreCommand,
        context: PresentationContext,
        incoming: Incoming,
    ) -> tuple[int, str]:
        log = self._log.bind(association_id=association.association_id)
        if incoming.too_large:
            limit_bytes = self.settings.max_instance_bytes
            log.warning(
                "instance refused: larger than dicom.scp.max-instance-bytes",
                limit_bytes=limit_bytes,
            )
            self._refused("too_large")
            return OUT_OF_RESOURCES, f"larger than the {limit_bytes} bytes that are taken"
        if incoming.no_room:
            log.warning("instance refused: no room on the disk for it while it comes")
            self._refused(OutOfResources.code)
            return OUT_OF_RESOURCES, "the disk is full; send again later"
        called, calling = _ae_titles(association)
        try:
            instance = self._keep(
                Arrival(
                    encoded_dataset=incoming.content(),
                    sop_class_uid=command.sop_class_uid,
                    sop_instance_uid=command.sop_instance_uid,
                    transfer_syntax_uid=str(context.transfer_syntax[0]),
                    calling_ae_title=calling,
                    called_ae_title=called,
                    association_id=association.association_id,
                )
            )
        except Refused as refusal:
            log.warning("instance refused", code=refusal.code, reason=str(refusal))
            self._refused(refusal.code)
            return refusal.status, str(refusal)
        except DatabaseUnavailable as error:
            log.warning("instance refused for now", code=error.code, reason=str(error))
            self._refused(error.code)
            return OUT_OF_RESOURCES, "the index does not answer; send again later"
        except Exception:  # the outermost edge: the peer must get an answer
            log.exception("instance refused: unforeseen error")
            self._refused("unforeseen")
            return CANNOT_UNDERSTAND, "unforeseen error; the log of the gateway has it"
        log.debug("instance kept", sop_instance_uid=instance.sop_instance_uid)
        return SUCCESS, ""


def _entity(settings: ScpSettings) -> Any:
    # What these would log or warn of repeats what peers send; what matters is logged by us,
    # and what matters of a UID is checked by the store.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    entity = AE(settings.ae_titles[0].ae_title)
    entity.maximum_pdu_size = settings.max_pdu_bytes
    entity.acse_timeout = settings.handshake_timeout_s
    entity.network_timeout = settings.idle_timeout_s
    entity.dimse_timeout = settings.idle_timeout_s
    # Counted by the guest list instead, which knows the silent ones from the others.
    entity.maximum_associations = 1_000_000
    return entity


def _answer_echo(
    association: LimitedAssociation, request: Any, context: PresentationContext
) -> bool:
    """C-ECHO (PS3.7 9.1.5)."""
    if request.MessageID is None:
        return False
    answer = C_ECHO()
    answer.MessageID = request.MessageID
    answer.MessageIDBeingRespondedTo = request.MessageID
    answer.AffectedSOPClassUID = VERIFICATION
    answer.Status = SUCCESS
    association.answer(answer, context)
    return True


def _ae_titles(association: LimitedAssociation) -> tuple[str, str]:
    """Called and calling AE title of the request."""
    request = association.requestor.primitive
    assert request is not None
    return request.called_ae_title.strip(), request.calling_ae_title.strip()


def _short(comment: str) -> str:
    """As much of a sentence as an Error Comment can hold, in its repertoire."""
    plain = comment.encode("ascii", errors="replace").decode("ascii").replace("\\", "/")
    if len(plain) <= COMMENT_CHARACTERS:
        return plain
    return plain[: COMMENT_CHARACTERS - 3].rsplit(" ", 1)[0] + "..."
