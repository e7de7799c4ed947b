"""Receive, reports on what we have sent: a PACS says by N-EVENT-REPORT what it keeps of it.

In: N-EVENT-REPORT requests, on any association. Out: their information, to whoever sends our
results, and the answer. Nothing is kept here: 0x0000 leaves only after it has been noted.

Source: PS3.4 J.3.3 and Table J.3-2 (storage commitment result), PS3.7 10.1.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import decode
from pynetdicom.presentation import PresentationContext

from dicom_gateway.observe.logging import get_logger

SUCCESS, PROCESSING_FAILURE, NO_SUCH_EVENT, BAD_ARGUMENT = 0x0000, 0x0110, 0x0113, 0x0115
_EVENT_TYPES = (1, 2)

_log = get_logger(room="receive")


@dataclass(frozen=True, slots=True)
class Reports:
    """Whose reports are taken, and by whom.

    Attributes:
        called_ae_title: The title by which we send: who was asked by it reports to it.
        calling_ae_titles: Of those who are asked.
        take: Notes the information of a report; False where that can't be done now, ValueError
            where it is none.
    """

    called_ae_title: str
    calling_ae_titles: frozenset[str]
    take: Callable[[Dataset], bool]

    def expects(self, called_ae_title: str, calling_ae_title: str) -> bool:
        """Whether such an association may be one that reports."""
        return (
            called_ae_title == self.called_ae_title and calling_ae_title in self.calling_ae_titles
        )

    def answer_to(self, request: Any, context: PresentationContext) -> N_EVENT_REPORT:
        """Notes a report and makes the answer."""
        answer = N_EVENT_REPORT()
        answer.MessageIDBeingRespondedTo = request.MessageID
        answer.AffectedSOPClassUID = UID(request.AffectedSOPClassUID)
        answer.AffectedSOPInstanceUID = UID(request.AffectedSOPInstanceUID)
        answer.EventTypeID = request.EventTypeID
        answer.Status = self._note(request, context)
        return answer

    def _note(self, request: Any, context: PresentationContext) -> int:
        if request.EventTypeID not in _EVENT_TYPES:
            return NO_SUCH_EVENT
        syntax = context.transfer_syntax[0]
        try:
            information = decode(
                request.EventInformation or BytesIO(),
                syntax.is_implicit_VR,
                syntax.is_little_endian,
            )
            return SUCCESS if self.take(information) else PROCESSING_FAILURE
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make pydicom do
            _log.warning("storage commitment report not understood", reason=type(error).__name__)
            return BAD_ARGUMENT
