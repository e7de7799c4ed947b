"""A storage peer that answers what a test tells it to: refusals, warnings, hanging up.

Comes in: a list of answers. Goes out: a listening pynetdicom peer that remembers what it
was asked. Survives a crash: nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE, evt
from pynetdicom.transport import AssociationSocket

from dicom_gateway.config import Destination

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
    """

    port: int = 0
    answers: list[int] = field(default_factory=lambda: [0x0000])
    stored: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    proposed: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    datasets: list[bytes] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    def as_destination(self, name: str = "pacs") -> Destination:
        """As gateway.yaml would name it."""
        return Destination(name=name, host_ip="127.0.0.1", port=self.port, ae_title="PACS")

    def _on_requested(self, event: evt.Event) -> None:
        self.proposed += [
            (str(context.abstract_syntax), tuple(str(one) for one in context.transfer_syntax))
            for context in event.assoc.requestor.requested_contexts
        ]

    def _on_store(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.asked.append(uid)
        self.hold.wait(60)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == HANG_UP:
            event.assoc.abort()
            return 0x0000
        if answer == 0x0000 or 0xB000 <= answer <= 0xBFFF:
            self.stored.append(uid)
            self.datasets.append(event.request.DataSet.getvalue())
        return answer


@contextmanager
def a_pacs(
    answers: Sequence[int] = (0x0000,),
    *,
    takes: str = CTImageStorage,
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
    ae.add_supported_context(takes, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
    server = ae.start_server(
        ("127.0.0.1", port),
        block=False,
        evt_handlers=[
            (evt.EVT_REQUESTED, pacs._on_requested),
            (evt.EVT_C_STORE, pacs._on_store),
        ],
    )
    assert server is not None
    pacs.port = server.server_address[1]
    try:
        yield pacs
    finally:
        pacs.hold.set()
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
