"""Receive, storage commitment: a peer asks whether we keep what it has sent, before it deletes.

In: N-ACTION requests that name instances. Out: N-EVENT-REPORT, truthful as of the moment it is
sent: on the same association where the peer leaves that open, otherwise on a new one to where
the settings say that the peer listens. Survives a crash: every request that was answered with
0x0000; its row is deleted when the peer has taken the report.

Source: PS3.4 Annex J (Storage Commitment Service Class), PS3.7 10.1.1 and 10.1.4.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
from pynetdicom.dsutils import decode, encode
from pynetdicom.presentation import PresentationContext

from dicom_gateway.database import now_s, reading, storage_commitments, transaction
from dicom_gateway.errors import DatabaseUnavailable
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.offers import STORAGE_COMMITMENT

WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
"""Storage Commitment Push Model SOP Instance (PS3.4 J.3.5)."""
REQUEST_ACTION = 1
ALL_KEPT, SOME_MISSING = 1, 2
NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0112, 0x0119
SUCCESS, PROCESSING_FAILURE, BAD_ARGUMENT, NO_SUCH_ACTION = 0x0000, 0x0110, 0x0115, 0x0123

SAME_ASSOCIATION_AFTER_S = 1.0
"""A peer that wants the report elsewhere has released the association by then."""
REFERENCES_LIMIT = 20_000
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")

Holdings = Callable[[Sequence[str]], Mapping[str, Iterable[str]]]
"""SOP Instance UIDs -> the SOP classes of the objects that are safely kept under each."""

_log = get_logger(room="receive")


@dataclass(frozen=True, slots=True)
class Request:
    """One pending storage commitment.

    Attributes:
        references: (SOP class UID, SOP instance UID) of each instance.
        attempts: How often it could not be reported.
        age_s: Since it was asked for.
    """

    request_id: int
    transaction_uid: str
    calling_ae_title: str
    called_ae_title: str
    references: tuple[tuple[str, str], ...]
    attempts: int = 0
    age_s: float = 0.0


class Commitments:
    """The pending requests, and the answers to them.

    Args:
        engine: From `open_database`.
        holdings: What is safely kept.
    """

    def __init__(self, engine: sa.Engine, holdings: Holdings) -> None:
        self._engine = engine
        self._holdings = holdings

    def note(
        self,
        association_id: str,
        transaction_uid: str,
        titles: tuple[str, str],
        references: Sequence[tuple[str, str]],
    ) -> Request:
        """Makes a request durable; its association has the first chance to report it.

        Args:
            association_id: By which it came.
            transaction_uid: Chosen by the peer.
            titles: Called and calling AE title.
            references: (SOP class UID, SOP instance UID) of each instance.

        Raises:
            DatabaseUnavailable: the index does not answer.
        """
        called, calling = titles
        table = storage_commitments
        with transaction(self._engine) as connection:
            # Asked for again: the last word counts.
            connection.execute(
                table.delete().where(
                    table.c.transaction_uid == transaction_uid, table.c.calling_ae_title == calling
                )
            )
            row_id = connection.execute(
                table.insert()
                .values(
                    transaction_uid=transaction_uid,
                    called_ae_title=called,
                    calling_ae_title=calling,
                    association_id=association_id,
                    instances=json.dumps(references),
                    attempts=0,
                    requested_at_s=now_s(),
                    not_before_s=None,
                )
                .returning(table.c.id)
            ).scalar_one()
        return Request(row_id, transaction_uid, calling, called, tuple(references))

    def report(self, request: Request) -> tuple[int, Dataset]:
        """Event type and event information, as things are now.

        Raises:
            DatabaseUnavailable: the index does not answer; nothing can be said.

        Source: PS3.4 Table J.3-2.
        """
        kept = self._holdings([uid for _, uid in request.references])
        good, bad = [], []
        for sop_class, uid in request.references:
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
            if sop_class in kept.get(uid, ()):
                good.append(item)
                continue
            item.FailureReason = CLASS_CONFLICT if uid in kept else NO_SUCH_INSTANCE
            bad.append(item)
        told = Dataset()
        told.TransactionUID = request.transaction_uid
        if good:
            told.ReferencedSOPSequence = good
        if bad:
            told.FailedSOPSequence = bad
        return (SOME_MISSING if bad else ALL_KEPT), told

    def reported(self, request: Request) -> None:
        """The peer has taken the report."""
        with transaction(self._engine) as connection:
            connection.execute(
                storage_commitments.delete().where(storage_commitments.c.id == request.request_id)
            )

    give_up = reported

    def postpone(self, request: Request, wait_s: float) -> None:
        """It could not be reported now."""
        with transaction(self._engine) as connection:
            connection.execute(
                storage_commitments.update()
                .where(storage_commitments.c.id == request.request_id)
                .values(not_before_s=now_s() + wait_s, attempts=storage_commitments.c.attempts + 1)
            )

    def association_ended(self, association_id: str | None) -> bool:
        """What it has not reported is due now; None means all of them, after a start.

        Returns:
            Whether there is something to report.
        """
        table = storage_commitments
        left: sa.ColumnElement[bool] = table.c.not_before_s.is_(None)
        if association_id is not None:
            left = sa.and_(left, table.c.association_id == association_id)
        with reading(self._engine) as connection:
            if connection.execute(sa.select(sa.exists().where(left))).scalar_one() in (0, False):
                return False
        with transaction(self._engine) as connection:
            connection.execute(table.update().where(left).values(not_before_s=now_s()))
        return True

    def due(self) -> list[Request]:
        """Those to be reported on a new association now, the oldest first."""
        table = storage_commitments
        with reading(self._engine) as connection:
            rows = connection.execute(
                sa.select(table, (now_s() - table.c.requested_at_s).label("age_s"))
                .where(table.c.not_before_s <= now_s())
                .order_by(table.c.id)
            ).all()
        return [
            Request(
                request_id=row.id,
                transaction_uid=row.transaction_uid,
                calling_ae_title=row.calling_ae_title,
                called_ae_title=row.called_ae_title,
                references=tuple((a, b) for a, b in json.loads(row.instances)),
                attempts=row.attempts,
                age_s=row.age_s,
            )
            for row in rows
        ]


class CommitmentPeer(Protocol):
    """An association, as far as it matters here."""

    association_id: str

    def answer(self, response: Any, context: PresentationContext) -> None:
        """Sends a response or request of ours in an accepted context."""


class CommitmentTalk:
    """Storage commitment on one association, all of it in the association's own thread."""

    def __init__(
        self, association: CommitmentPeer, commitments: Commitments, called: str, calling: str
    ) -> None:
        self._association = association
        self._commitments = commitments
        self._titles = (called, calling)
        self._waiting: list[tuple[float, Request, PresentationContext]] = []  # due when
        self._asked: dict[int, Request] = {}  # message id -> what it reports
        self._message_id = 0

    def take_request(self, request: N_ACTION, context: PresentationContext) -> bool:
        """Answers an N-ACTION; False where it is none that can be answered."""
        if request.MessageID is None:
            return False
        answer = N_ACTION()
        answer.MessageIDBeingRespondedTo = request.MessageID
        answer.AffectedSOPClassUID = STORAGE_COMMITMENT
        answer.AffectedSOPInstanceUID = UID(WELL_KNOWN_INSTANCE)
        answer.ActionTypeID = REQUEST_ACTION
        answer.Status = self._note(request, context)
        self._association.answer(answer, context)
        return True

    def report_if_due(self) -> None:
        """Reports what was asked for a moment ago, if the peer is still there."""
        if not self._waiting or time.monotonic() < self._waiting[0][0]:
            return
        _, request, context = self._waiting.pop(0)
        try:
            event_type, information = self._commitments.report(request)
        except DatabaseUnavailable:
            return  # the reporter will try on
        self._message_id = self._message_id % 65535 + 1
        self._asked[self._message_id] = request
        syntax = context.transfer_syntax[0]
        report = N_EVENT_REPORT()
        report.MessageID = self._message_id
        report.AffectedSOPClassUID = STORAGE_COMMITMENT
        report.AffectedSOPInstanceUID = UID(WELL_KNOWN_INSTANCE)
        report.EventTypeID = event_type
        encoded = encode(information, syntax.is_implicit_VR, syntax.is_little_endian)
        report.EventInformation = BytesIO(encoded or b"")
        self._association.answer(report, context)

    def take_answer(self, answer: N_EVENT_REPORT) -> bool:
        """The peer's answer to a report of ours; False where it answers nothing."""
        request = self._asked.pop(answer.MessageIDBeingRespondedTo or 0, None)
        if request is None:
            return False
        if answer.Status == SUCCESS:
            said("storage commitment reported", request, same_association=True)
            try:
                self._commitments.reported(request)
            except DatabaseUnavailable:
                said("storage commitment will be reported twice", request)
        return True

    def _note(self, request: N_ACTION, context: PresentationContext) -> int:
        if request.ActionTypeID != REQUEST_ACTION:
            return NO_SUCH_ACTION
        try:
            transaction_uid, references = _read(request, context)
        except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make pydicom do
            _log.warning("storage commitment not understood", reason=type(error).__name__)
            return BAD_ARGUMENT
        try:
            noted = self._commitments.note(
                self._association.association_id, transaction_uid, self._titles, references
            )
        except DatabaseUnavailable:
            return PROCESSING_FAILURE
        said("storage commitment asked for", noted)
        self._waiting.append((time.monotonic() + SAME_ASSOCIATION_AFTER_S, noted, context))
        return SUCCESS


def _read(request: N_ACTION, context: PresentationContext) -> tuple[str, list[tuple[str, str]]]:
    """Transaction UID and references of a request.

    Raises:
        ValueError, and whatever pydicom raises on odd bytes.

    Source: PS3.4 Table J.3-1.
    """
    syntax = context.transfer_syntax[0]
    information = decode(
        request.ActionInformation or BytesIO(), syntax.is_implicit_VR, syntax.is_little_endian
    )
    references = [
        (_uid(item.ReferencedSOPClassUID), _uid(item.ReferencedSOPInstanceUID))
        for item in information.ReferencedSOPSequence
    ]
    if not 0 < len(references) <= REFERENCES_LIMIT:
        msg = "no references, or too many"
        raise ValueError(msg)
    return _uid(information.TransactionUID), references


def _uid(value: Any) -> str:
    text = str(value)
    if len(text) > 64 or not _UID.fullmatch(text):
        msg = "no UID"
        raise ValueError(msg)
    return text


def said(what: str, request: Request, **more: Any) -> None:
    """One line in the log about a request."""
    _log.info(
        what,
        transaction_uid=request.transaction_uid,
        calling_ae_title=request.calling_ae_title,
        instances=len(request.references),
        **more,
    )
