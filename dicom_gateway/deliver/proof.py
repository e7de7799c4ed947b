"""The proof of arrival: a job is delivered only when its destinations prove that they have it.

In: accepted deliveries of one destination, and reports of storage commitment. Out: deliveries
that are delivered, sent again, or failed with a reason. Survives a crash: all of it is in the
delivery rows; a report may come to another process, or to our next life.

`query`: it is asked for the object, first soon, then ever more seldom. An object that isn't
there after `confirm_within_s` counts as lost and is sent again. No clear answer is no loss.
`storage-commitment`: it is asked once; a report that says "failed" is a loss. Without a report
within `confirm_within_s` it is asked again, and a report on either request counts. One that can't
say is asked for again after twice the time; after `confirm_within_s` that is a loss, too.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from dicom_gateway.config_delivery import Destination, ScuSettings
from dicom_gateway.deliver.commitment import Committer, Report, new_transaction_uid
from dicom_gateway.deliver.entries import Entries
from dicom_gateway.deliver.query import Query, query_of
from dicom_gateway.errors import (
    DatabaseUnavailable,
    DestinationLost,
    DestinationRefused,
    DestinationUnavailable,
    DestinationUnreachable,
    EncodingFailed,
)
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import Delivery

POLL_S = 1.0
_SELDOM_S = 60.0
_PASSES = frozenset((0x0110, 0x0213, 0x0131))
"""Failure reasons that say nothing of the object: processing failure, resources, transaction."""
_CONFLICTS = {
    0x0119: "it has another object under its UID",
    0x0122: "it keeps no objects of its SOP class for good",
}


class CommitmentReports:
    """What peers report, from whichever association it comes.

    Args:
        entries: The outboxes' rows.
        destinations: `dicom.scu.destinations`.
    """

    def __init__(self, entries: Entries, destinations: tuple[Destination, ...]) -> None:
        self._entries = entries
        self._known: Mapping[str, Destination] = {one.name: one for one in destinations}
        self._log = get_logger(room="deliver")

    def take(self, report: Report) -> bool:
        """Notes what a report says; False where the index is away, so that it comes again.

        One that nobody has asked for changes nothing.
        """
        try:
            waiting = self._entries.of_commitment(report.transaction_uid)
            for one in waiting:
                self._apply(one, report)
        except DatabaseUnavailable as error:
            self._log.warning("report_not_noted", reason=str(error))
            return False
        self._log.info(
            "storage_commitment_reported",
            transaction_uid=report.transaction_uid,
            kept=len(report.kept),
            failed=len(report.failed),
            deliveries=len(waiting),
        )
        return True

    def _apply(self, one: Delivery, report: Report) -> None:
        destination = self._known.get(one.destination)
        uid = one.result.sop_instance_uid
        if destination is None:
            return
        if uid in report.kept:
            self._entries.delivered(one, "proven by storage commitment", stage="proven")
            return
        reason = report.failed.get(uid)
        passes = reason is None or reason in _PASSES
        if passes and (one.sent_age_s or 0.0) <= destination.confirm_within_s:
            why = f"{destination} could not say whether it keeps the object"
            wait_s = _as_long_again_s(destination, one, destination.confirm_within_s)
            self._entries.ask_again([one], wait_s, why)
        elif reason in _CONFLICTS:
            msg = f"{destination} accepted the object and doesn't keep it: {_CONFLICTS[reason]}"
            self._entries.not_delivered(one, DestinationRefused(msg))
        else:
            said = "its report leaves it out"
            if reason is not None:
                said = f"its storage commitment says 0x{reason:04X}"
            self._entries.lost(one, _loss(destination, one, said), destination.confirm_tries)


class Prover:
    """The loop that proves one destination's arrivals; `run` returns when `stop` was called.

    Args:
        entries: The outboxes' rows.
        destination: Where they went.
        settings: `dicom.scu` of gateway.yaml.
        reports: Takes the reports that come at once.

    Raises:
        ConfigurationError: a certificate, token or password can't be used.
    """

    def __init__(
        self,
        entries: Entries,
        destination: Destination,
        settings: ScuSettings,
        reports: CommitmentReports,
    ) -> None:
        self._entries = entries
        self._destination = destination
        self._settings = settings
        self._query: Query | None = None
        self._committer: Committer | None = None
        if destination.confirm == "query":
            self._query = query_of(destination, settings.ae_title)
        elif destination.confirm == "storage-commitment":
            self._committer = Committer(destination, settings.ae_title, reports.take)
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._troubles = 0
        self._log = get_logger(destination=destination.name)

    def run(self) -> None:
        """Proves until `stop`; never ends by an error of an object, the peer or the database."""
        while not self._stopping.is_set():
            self._news.clear()
            try:
                some = self._entries.waiting_for_proof(self._destination.name)
                if some:
                    self._prove_or_wait(some)
            except DatabaseUnavailable as error:
                self._log.warning("index_away", reason=str(error))
            if self._query is not None:
                self._query.close()
            self._news.wait(POLL_S)

    def notify(self) -> None:
        """Wakes it: something was accepted."""
        self._news.set()

    def stop(self) -> None:
        """Asks it to end after the question in hand."""
        self._stopping.set()
        self._news.set()

    def _prove_or_wait(self, some: list[Delivery]) -> None:
        try:
            self._prove(some)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - the outermost edge, as in the outbox
            # Whatever an odd peer makes a library do, the others are proven.
            self._log.error("proving_crashed", exc_info=True)
            msg = (
                f"an unexpected {type(error).__name__} in the gateway itself while it asked "
                f"{self._destination}; its log has the place. Please report it; it is asked again"
            )
            self._unclear(some, DestinationUnavailable(msg))

    def _prove(self, some: list[Delivery]) -> None:
        patience_s = self._settings.give_up_after_s
        for one in [one for one in some if (one.sent_age_s or 0.0) > patience_s]:
            self._give_up(one, f"no proof came within {patience_s / 3600:.0f} h")
            some.remove(one)
        if self._query is not None:
            self._by_query(some, self._query)
        elif self._committer is not None:
            self._by_commitment(some, self._committer)
        else:  # gateway.yaml asked for a proof when they were sent, and doesn't any more
            for one in some:
                self._entries.delivered(one, "accepted; no proof is asked for any more")

    def _by_query(self, some: list[Delivery], query: Query) -> None:
        for number, one in enumerate(some):
            if self._stopping.is_set():
                return
            try:
                is_there = query.has(one.result.path)
            except EncodingFailed as error:
                self._entries.not_delivered(one, error)
                continue
            except DestinationUnreachable as error:
                self._unclear(some[number:], error)
                return
            except DestinationUnavailable as error:  # of this one; the others may be clear
                wait_s = _as_long_again_s(self._destination, one, self._settings.retry_max_s)
                self._ask_again([one], wait_s, error)
                continue
            self._troubles = 0
            age_s = one.sent_age_s or 0.0
            if is_there:
                self._entries.delivered(one, f"proven by {query.name}", stage="proven")
                self._log.info("proven", sop_instance_uid=one.result.sop_instance_uid)
            elif age_s > self._destination.confirm_within_s:
                said = f"{query.name} doesn't find it after {age_s:.0f} s"
                loss = _loss(self._destination, one, said)
                self._entries.lost(one, loss, self._destination.confirm_tries)
                self._log.warning("lost", reason=str(loss))
            else:
                self._entries.asked([one], self._next_look_s(one.proof_tries))

    def _by_commitment(self, some: list[Delivery], committer: Committer) -> None:
        silent = [one for one in some if one.proof_tries >= self._destination.confirm_tries]
        for one in silent:
            self._give_up(
                one,
                f"it was asked {one.proof_tries} times for storage commitment and never reported; "
                f"let it know our AE title {self._settings.ae_title} with our address and port "
                "(dicom.scp), or set 'confirm: query'",
            )
        some = [one for one in some if one not in silent]
        if not some:
            return
        transaction_uid = new_transaction_uid()
        self._entries.asked(some, self._destination.confirm_within_s, transaction_uid)
        try:
            reported = committer.ask(transaction_uid, some)
        except DestinationUnavailable as error:
            if isinstance(error, DestinationUnreachable):
                self._entries.never_asked(transaction_uid)
            self._unclear(some, error)
            return
        self._troubles = 0
        self._log.info(
            "storage_commitment_asked",
            transaction_uid=transaction_uid,
            instances=len(some),
            reported=reported,
        )

    def _unclear(self, some: list[Delivery], error: DestinationUnavailable) -> None:
        lasting = isinstance(error, DestinationUnreachable) and error.is_lasting
        wait_s = self._entries.delay_s(30 if lasting else self._troubles)
        self._troubles += 1
        self._ask_again(some, wait_s, error)

    def _ask_again(
        self, some: list[Delivery], wait_s: float, error: DestinationUnavailable
    ) -> None:
        self._entries.ask_again(some, wait_s, str(error))
        self._log.warning("proof_waits", code=error.code, reason=str(error))

    def _give_up(self, one: Delivery, why: str) -> None:
        error = DestinationLost(
            f"{self._destination} accepted the object, but {why}. Then send again with "
            "'tritome jobs retry'",
            code="destination_unproven",
        )
        self._entries.not_delivered(one, error)
        self._log.error("delivery_failed", code=error.code, reason=str(error))

    def _next_look_s(self, tries: int) -> float:
        first_s = self._destination.confirm_first_s
        return min(first_s * 2.0 ** min(tries, 16), _SELDOM_S, self._destination.confirm_within_s)


def _as_long_again_s(destination: Destination, one: Delivery, most_s: float) -> float:
    """As long as it has waited already, so that the time between two questions doubles."""
    return min(max(destination.confirm_first_s, one.sent_age_s or 0.0), most_s)


def _loss(destination: Destination, one: Delivery, said: str) -> DestinationLost:
    times = one.losses + 1
    what = "once" if times == 1 else f"{times} times"
    return DestinationLost(
        f"{destination} accepted the object {what} and doesn't have it ({said}); look into its "
        "log and its quarantine, then send again with 'tritome jobs retry'"
    )
