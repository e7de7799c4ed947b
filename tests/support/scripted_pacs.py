"""A storage peer that does what a test tells it to: refuses, hangs up, loses, proves.

Comes in: a list of answers. Goes out: a listening pynetdicom peer that remembers what it
was asked. Survives a crash: nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
)
from pynetdicom.transport import AssociationSocket

from dicom_gateway.config_delivery import Destination

SILENT = ("", 0, "")
WELL_KNOWN = "1.2.840.10008.1.20.1.1"
HANG_UP = -1
"""In place of a status: aborts the association without an answer."""


@dataclass
class ScriptedPacs:
    """What the peer answers next, and what it has seen.

    Attributes:
        answers: Statuses in order; the last one is repeated.
        stored: SOP Instance UIDs for which success or a warning was answered.
        asked: SOP Instance UIDs of every C-STORE request.
        proposed: (SOP class, transfer syntaxes) of every proposed presentation context.
        datasets: The data sets as their bytes came.
        hold: C-STORE requests wait while it is cleared.
        on_pdu: Called for each PDU that it has read, before it reads on.
        associations: How many there have been.
        end_associations: Aborts those that are open.
        comment: Error Comment that goes with each answer.
        loses: How many of the next accepted objects it doesn't have afterwards.
        kept: SOP Instance UIDs that it has.
        unclear: SOP Instance UIDs for which a query fails.
        commitments: Transaction UIDs that it was asked for.
        reports_to: Where it reports on them; None for the same association, and
            `SILENT` for never.
        report_failure: In place of 0x0112, for objects that it doesn't have.
    """

    port: int = 0
    answers: list[int] = field(default_factory=lambda: [0x0000])
    stored: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    proposed: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    datasets: list[bytes] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    on_pdu: Callable[[], object] = lambda: None
    associations: int = 0
    end_associations: Callable[[], None] = lambda: None
    comment: str = ""
    loses: int = 0
    kept: set[str] = field(default_factory=set)
    unclear: set[str] = field(default_factory=set)
    commitments: list[str] = field(default_factory=list)
    reports_to: tuple[str, int, str] | None = None
    report_failure: int = 0x0112
    reporters: list[threading.Thread] = field(default_factory=list)

    def as_destination(self, name: str = "pacs", **more: Any) -> Destination:
        """As gateway.yaml would name it."""
        return Destination(name=name, host_ip="127.0.0.1", port=self.port, ae_title="PACS", **more)

    def _on_requested(self, event: evt.Event) -> None:
        self.associations += 1
        self.proposed += [
            (str(context.abstract_syntax), tuple(str(one) for one in context.transfer_syntax))
            for context in event.assoc.requestor.requested_contexts
        ]

    def _on_store(self, event: evt.Event) -> int | Dataset:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.asked.append(uid)
        self.hold.wait(60)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == HANG_UP:
            event.assoc.abort()
            return 0x0000
        if self.comment:
            said = Dataset()
            said.Status, said.ErrorComment = answer, self.comment
            return said
        if answer == 0x0000 or 0xB000 <= answer <= 0xBFFF:
            self.stored.append(uid)
            self.datasets.append(event.request.DataSet.getvalue())
            if self.loses > 0:
                self.loses -= 1
            else:
                self.kept.add(uid)
        return answer

    def _on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier
        if asked.SOPInstanceUID in self.unclear:
            yield 0xC000, None
        elif asked.SOPInstanceUID in self.kept:
            yield 0xFF00, asked

    def _on_action(self, event: evt.Event) -> tuple[int, None]:
        asked = event.action_information
        self.commitments.append(str(asked.TransactionUID))
        if self.reports_to != SILENT:
            reporter = threading.Thread(target=self._report, args=(event.assoc, asked))
            self.reporters.append(reporter)
            reporter.start()
        return 0x0000, None

    def _report(self, association: Association, asked: Dataset) -> None:
        told = Dataset()
        told.TransactionUID = asked.TransactionUID
        good = [i for i in asked.ReferencedSOPSequence if i.ReferencedSOPInstanceUID in self.kept]
        bad = [i for i in asked.ReferencedSOPSequence if i not in good]
        for one in bad:
            one.FailureReason = self.report_failure
        if good:
            told.ReferencedSOPSequence = good
        if bad:
            told.FailedSOPSequence = bad
        how = (told, 2 if bad else 1, StorageCommitmentPushModel, WELL_KNOWN)
        if self.reports_to is None:
            time.sleep(0.2)  # the answer to the request goes out first
            association.send_n_event_report(*how)
            return
        host, port, ae_title = self.reports_to
        entity = AE("PACS")
        entity.add_requested_context(StorageCommitmentPushModel)
        ours = entity.associate(
            host,
            port,
            ae_title=ae_title,
            ext_neg=[build_role(StorageCommitmentPushModel, scu_role=False, scp_role=True)],
        )
        if ours.is_established:
            ours.send_n_event_report(*how)
            ours.release()


@contextmanager
def a_pacs(
    answers: Sequence[int] = (0x0000,),
    *,
    takes: str | Sequence[str] = CTImageStorage,
    proves: bool = True,
    port: int = 0,
    called_ae_title: str | None = None,
) -> Iterator[ScriptedPacs]:
    """Listens while the block lasts; `called_ae_title` is the only one it answers to."""
    pacs = ScriptedPacs(answers=list(answers))
    pacs.hold.set()
    ae = AE(ae_title="PACS")
    if called_ae_title is not None:
        ae.ae_title = called_ae_title
        ae.require_called_aet = True
    for one in [takes] if isinstance(takes, str) else takes:
        ae.add_supported_context(one, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
    if proves:
        ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        ae.add_supported_context(StorageCommitmentPushModel)
    server = ae.start_server(
        ("127.0.0.1", port),
        block=False,
        evt_handlers=[
            (evt.EVT_PDU_RECV, lambda _event: pacs.on_pdu()),
            (evt.EVT_REQUESTED, pacs._on_requested),
            (evt.EVT_C_STORE, pacs._on_store),
            (evt.EVT_C_FIND, pacs._on_find),
            (evt.EVT_N_ACTION, pacs._on_action),
        ],
    )
    assert server is not None
    pacs.port = server.server_address[1]

    def end_associations() -> None:
        for association in server.active_associations:
            association.abort()
            association.join(30)

    pacs.end_associations = end_associations
    try:
        yield pacs
    finally:
        pacs.hold.set()
        for reporter in pacs.reporters:
            reporter.join(30)
        server.shutdown()


def delay_negotiation_until_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our side of an association looks at its connection only when that is closed again.

    What a busy machine does now and then: pynetdicom's thread connects, sends, receives the
    rejection and closes before the thread that asked for all this has its turn.
    """
    closed = threading.Event()
    make, close = AssociationSocket.__init__, AssociationSocket.close

    class LateEvent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            woken = super().wait(timeout)
            closed.wait(60)
            return woken

    def make_late(self: AssociationSocket, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if not self._ready.is_set():  # the side that asks
            self._ready = LateEvent()

    def close_and_tell(self: AssociationSocket) -> None:
        close(self)
        if isinstance(self._ready, LateEvent):
            closed.set()

    monkeypatch.setattr(AssociationSocket, "__init__", make_late)
    monkeypatch.setattr(AssociationSocket, "close", close_and_tell)
