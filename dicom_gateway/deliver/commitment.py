"""Proof of arrival by storage commitment: asking for it, and reading the report.

In: accepted deliveries. Out: an N-ACTION that names them; later, from its own association or
from one of the peer's to our door, a report of what the peer keeps. The transaction is written
down before it is asked for: a report may be quicker than we are, and may come to our next life.

Source: PS3.4 Annex J (Storage Commitment Service Class), Tables J.3-1 and J.3-2.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import build_context, evt
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from dicom_gateway.config_delivery import Destination
from dicom_gateway.deliver.association import Caller
from dicom_gateway.errors import DestinationUnavailable, DestinationUnreachable
from dicom_gateway.records import Delivery

WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
REQUEST_ACTION = 1
SUCCESS, BAD_ARGUMENT = 0x0000, 0x0115
_SYNTAXES: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
SAME_ASSOCIATION_S = 5.0
"""How long the association stays open for the report; later the peer calls us."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a peer says that it keeps.

    Attributes:
        kept: SOP Instance UIDs.
        failed: SOP Instance UID -> Failure Reason.
    """

    transaction_uid: str
    kept: frozenset[str]
    failed: dict[str, int]


def read_report(information: Dataset) -> Report:
    """The event information of an N-EVENT-REPORT.

    Raises:
        ValueError: it lacks what the standard asks for.
    """
    try:
        kept = [str(item.ReferencedSOPInstanceUID) for item in _items(information, "ReferencedSOP")]
        failed = {
            str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", 0x0110) or 0x0110)
            for item in _items(information, "FailedSOP")
        }
        return Report(str(information.TransactionUID), frozenset(kept) - set(failed), failed)
    except (AttributeError, TypeError) as error:
        msg = "a report of storage commitment without its UIDs"
        raise ValueError(msg) from error


def new_transaction_uid() -> str:
    """Nobody can guess it: who reports on it has been asked."""
    return f"2.25.{uuid.uuid4().int}"


class Committer:
    """Asks one destination for storage commitment; used by one thread.

    Args:
        destination: Whom.
        calling_ae_title: Who we say we are: the title that the peer reports to.
        take: Given each report that comes on our own association; False for one that
            can't be noted now.
    """

    def __init__(
        self, destination: Destination, calling_ae_title: str, take: Callable[[Report], bool]
    ) -> None:
        self._destination = destination
        self._caller = Caller(destination, calling_ae_title, destination.proof_place)
        self._take = take

    def ask(self, transaction_uid: str, some: Sequence[Delivery]) -> bool:
        """Asks for all of them; waits a moment for a report on the same association.

        Returns:
            Whether it came.

        Raises:
            DestinationUnreachable: it can't be asked at all.
            DestinationUnavailable: it refused to be asked.
        """
        told = threading.Event()

        def on_report(event: evt.Event) -> tuple[int, None]:
            try:
                report = read_report(event.event_information)
            except ValueError:
                return BAD_ARGUMENT, None
            if not self._take(report):
                return 0x0110, None
            if report.transaction_uid == transaction_uid:
                told.set()
            return SUCCESS, None

        association = self._caller.open(
            [build_context(StorageCommitmentPushModel, _SYNTAXES)],
            handlers=[(evt.EVT_N_EVENT_REPORT, on_report)],
        )
        if not association.accepted_contexts:
            msg = (
                f"{self._destination} offers no storage commitment to us; enable it there, name "
                "who does under confirm-at, or choose another 'confirm'"
            )
            raise DestinationUnreachable(msg, is_lasting=True)
        try:
            status, _ = association.send_n_action(
                _request(transaction_uid, some),
                REQUEST_ACTION,
                StorageCommitmentPushModel,
                WELL_KNOWN_INSTANCE,
            )
            if status.get("Status") != SUCCESS:
                said = f"0x{status.Status:04X}" if "Status" in status else "no answer"
                msg = (
                    f"{self._destination} doesn't take the request for storage commitment "
                    f"({said}); look into its log"
                )
                raise DestinationUnavailable(msg)
            until_s = time.monotonic() + SAME_ASSOCIATION_S
            while association.is_established and time.monotonic() < until_s:
                if told.wait(0.05):
                    break
        except (RuntimeError, ValueError) as error:
            msg = f"{self._destination} hung up when it was asked for storage commitment"
            raise DestinationUnavailable(msg) from error
        finally:
            if association.is_established:
                association.release()
        return told.is_set()


def _request(transaction_uid: str, some: Sequence[Delivery]) -> Dataset:
    asked = Dataset()
    asked.TransactionUID = transaction_uid
    items = []
    for one in some:
        item = Dataset()
        item.ReferencedSOPClassUID = one.result.sop_class_uid
        item.ReferencedSOPInstanceUID = one.result.sop_instance_uid
        items.append(item)
    asked.ReferencedSOPSequence = items
    return asked


def _items(information: Dataset, what: str) -> Sequence[Dataset]:
    return list(information.get(f"{what}Sequence") or [])
