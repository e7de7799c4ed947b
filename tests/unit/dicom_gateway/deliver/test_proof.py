"""A job is delivered when its destinations prove that they have its results, not before."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom.uid import CTImageStorage

from dicom_gateway.config_delivery import Destination, DicomwebDestination, ProofPeer, ScuSettings
from dicom_gateway.database import deliveries, now_s, transaction
from dicom_gateway.deliver import CommitmentReports, Entries, Outbox, Prover
from dicom_gateway.deliver.commitment import Committer, Report
from dicom_gateway.deliver.query import CFind
from dicom_gateway.jobs import JobQueue
from dicom_gateway.records import DeliveryState, Job, JobState
from tests.support.jobs import a_finished_job
from tests.support.patience import until
from tests.support.processes import free_port
from tests.support.scripted_pacs import SILENT, a_pacs
from tests.support.scripted_web_pacs import a_web_pacs

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

QUICK = {"confirm_first_s": 0.05, "confirm_within_s": 0.2}
IMPATIENT = ScuSettings(retry_first_s=0.05, retry_max_s=0.2)


@contextmanager
def delivering(entries: Entries, *destinations: Destination) -> Iterator[CommitmentReports]:
    """Outboxes and provers of these run while the block lasts."""
    reports = CommitmentReports(entries, destinations)
    with ExitStack() as ends:
        for one in destinations:
            prover = Prover(entries, one, IMPATIENT, reports)
            outbox = Outbox(entries, one, "TRITOME", prover.notify)
            for loop in (prover, outbox):
                thread = threading.Thread(target=loop.run)
                thread.start()
                ends.callback(thread.join)
                ends.callback(loop.stop)
        yield reports


@pytest.fixture
def entries(engine: sa.Engine, tmp_path: Path) -> Entries:
    """Outbox rows with little patience."""
    return Entries(engine, tmp_path, IMPATIENT)


@pytest.fixture
def job(queue: JobQueue, engine: sa.Engine, tmp_path: Path) -> Job:
    """One whose result waits for `pacs`."""
    made, _ = a_finished_job(queue, engine, tmp_path, "pacs")
    return made


def ended(queue: JobQueue, job: Job, state: JobState) -> Job:
    """The job, once it is in this state."""

    def is_so() -> bool:
        shown = queue.show(job.job_id)
        return shown is not None and shown.state is state

    until(is_so)
    shown = queue.show(job.job_id)
    assert shown is not None
    return shown


def stages(queue: JobQueue, job: Job) -> list[str]:
    """What happened to its delivery, in order."""
    told = ("accepted", "lost", "proven", "sent", "failed", "delivered")
    return [line.stage for line in queue.events(job.job_id) if line.stage in told]


@pytest.mark.parametrize("confirm", ["query", "storage-commitment"])
def test_an_arrival_is_proven_before_the_job_counts_as_delivered(
    queue: JobQueue, entries: Entries, job: Job, confirm: Any
):
    """The story tells both: what the peer said, and that it has it."""
    with (
        a_pacs() as pacs,
        delivering(entries, pacs.as_destination(confirm=confirm, confirm_first_s=0.05)),
    ):
        ended(queue, job, JobState.DELIVERED)

    assert stages(queue, job) == ["accepted", "proven", "delivered"]


@pytest.mark.parametrize("confirm", ["query", "storage-commitment"])
def test_a_peer_that_breaks_a_library_is_asked_again(
    queue: JobQueue, entries: Entries, job: Job, confirm: Any, monkeypatch: pytest.MonkeyPatch
):
    """Whatever that is: the thread goes on, and the gateway with it."""
    asker, name = (CFind, "has") if confirm == "query" else (Committer, "ask")
    works = getattr(asker, name)
    broken = [RecursionError("too deep"), KeyError("0x00081199")]

    def ask(self: Any, *question: Any) -> Any:
        if broken:
            raise broken.pop()
        return works(self, *question)

    monkeypatch.setattr(asker, name, ask)
    with (
        a_pacs() as pacs,
        delivering(entries, pacs.as_destination(confirm=confirm, confirm_first_s=0.05)),
    ):
        ended(queue, job, JobState.DELIVERED)

    assert broken == []
    assert stages(queue, job) == ["accepted", "proven", "delivered"]


@pytest.mark.parametrize("confirm", ["query", "storage-commitment"])
def test_what_was_accepted_and_lost_is_sent_again(
    queue: JobQueue, entries: Entries, job: Job, confirm: Any
):
    """Under the same UID; the second time it stays."""
    with a_pacs() as pacs:
        pacs.loses = 1
        with delivering(entries, pacs.as_destination(confirm=confirm, **QUICK)):
            ended(queue, job, JobState.DELIVERED)

    assert len(pacs.asked) == 2
    assert len(set(pacs.asked)) == 1
    assert stages(queue, job) == ["accepted", "lost", "accepted", "proven", "delivered"]


@pytest.mark.parametrize("confirm", ["query", "storage-commitment"])
def test_a_peer_that_loses_everything_ends_in_front_of_a_person(
    queue: JobQueue, entries: Entries, job: Job, confirm: Any
):
    """After so many times, with a reason that names what to look at."""
    with a_pacs() as pacs:
        pacs.loses = 1000
        with delivering(entries, pacs.as_destination(confirm=confirm, confirm_tries=2, **QUICK)):
            failed = ended(queue, job, JobState.FAILED)

    assert failed.failure_code == "destination_lost"
    assert "accepted the object 2 times and doesn't have it" in (failed.failure_reason or "")
    assert len(pacs.asked) == 2


def test_a_query_that_nobody_answers_is_no_loss(
    queue: JobQueue, entries: Entries, job: Job, engine: sa.Engine
):
    """Waits for an answer, however long after the object was accepted that comes."""
    with a_pacs() as pacs:
        place = pacs.as_destination(confirm="query", **QUICK)
        away = place.model_copy(update={"confirm_at": _closed_port()})
        with delivering(entries, away):
            until(lambda: "can't be reached" in (_row(engine).last_error or ""))
        assert _row(engine).state == DeliveryState.SENT.value
        # Retention leaves the study of a job that delivers alone: no proof, no purge.
        ended(queue, job, JobState.DELIVERING)
        with delivering(entries, place):
            ended(queue, job, JobState.DELIVERED)

    assert len(pacs.asked) == 1


def test_a_report_may_come_to_another_life_of_the_gateway(
    queue: JobQueue, entries: Entries, job: Job, engine: sa.Engine, tmp_path: Path
):
    """What it was asked is in the index, not in the process."""
    with a_pacs() as pacs:
        pacs.reports_to = SILENT
        place = pacs.as_destination(confirm="storage-commitment", confirm_first_s=0.05)
        with delivering(entries, place):
            until(lambda: pacs.commitments)
    uid = _row(engine).sop_instance_uid
    next_life = CommitmentReports(Entries(engine, tmp_path, IMPATIENT), (place,))

    assert next_life.take(Report("2.25.1", frozenset([uid]), {}))  # nobody asked for this one
    assert _row(engine).state == DeliveryState.SENT.value
    assert next_life.take(Report(pacs.commitments[-1], frozenset([uid]), {}))

    ended(queue, job, JobState.DELIVERED)


def test_a_peer_that_never_reports_is_named_with_what_it_must_know(
    queue: JobQueue, entries: Entries, job: Job
):
    """Our AE title, address and port are what it needs to call us."""
    with a_pacs() as pacs:
        pacs.reports_to = SILENT
        place = pacs.as_destination(confirm="storage-commitment", confirm_tries=1, **QUICK)
        with delivering(entries, place):
            failed = ended(queue, job, JobState.FAILED)

    assert failed.failure_code == "destination_unproven"
    assert "let it know our AE title TRITOME" in (failed.failure_reason or "")


def test_a_report_of_a_conflict_needs_a_person_at_once(queue: JobQueue, entries: Entries, job: Job):
    """Sending the same again would give the same."""
    with a_pacs() as pacs:
        pacs.loses, pacs.report_failure = 1000, 0x0119
        with delivering(entries, pacs.as_destination(confirm="storage-commitment", **QUICK)):
            failed = ended(queue, job, JobState.FAILED)

    assert failed.failure_code == "destination_refused"
    assert len(pacs.asked) == 1


def test_a_peer_that_can_never_say_has_lost_the_object(queue: JobQueue, entries: Entries, job: Job):
    """Busy again and again: sent again after the time, and then a person looks."""
    with a_pacs() as pacs:
        pacs.loses, pacs.report_failure = 1000, 0x0213
        place = pacs.as_destination(confirm="storage-commitment", confirm_tries=2, **QUICK)
        with delivering(entries, place):
            failed = ended(queue, job, JobState.FAILED)

    assert failed.failure_code == "destination_lost"
    assert "its storage commitment says 0x0213" in (failed.failure_reason or "")
    assert len(pacs.asked) == 2


def test_a_peer_that_cannot_say_is_asked_ever_more_seldom(
    entries: Entries, job: Job, engine: sa.Engine
):
    """As long again as it has had already."""
    place = _asked(entries, "2.25.5")
    with transaction(engine) as connection:
        connection.execute(deliveries.update().values(sent_at_s=now_s() - 200.0))
    uid = _row(engine).sop_instance_uid

    assert CommitmentReports(entries, (place,)).take(Report("2.25.5", frozenset(), {uid: 0x0110}))

    with transaction(engine) as connection:
        wait_s = connection.execute(sa.select(deliveries.c.not_before_s - now_s())).scalar_one()
    assert wait_s > 100.0
    assert _row(engine).state == DeliveryState.SENT.value


def test_a_report_counts_also_after_the_peer_was_asked_again(
    queue: JobQueue, entries: Entries, job: Job, engine: sa.Engine
):
    """Some archives commit over night; the object is where the first report says it is."""
    place = _asked(entries, "2.25.5", "2.25.6")
    uid = _row(engine).sop_instance_uid

    assert CommitmentReports(entries, (place,)).take(Report("2.25.5", frozenset([uid]), {}))

    ended(queue, job, JobState.DELIVERED)


def test_a_report_on_an_earlier_sending_changes_nothing(
    entries: Entries, job: Job, engine: sa.Engine
):
    """It was lost and is sent again; what was said of the first sending is over."""
    place = _asked(entries, "2.25.5")
    uid = _row(engine).sop_instance_uid
    reports = CommitmentReports(entries, (place,))
    assert reports.take(Report("2.25.5", frozenset(), {uid: 0x0112}))
    with transaction(engine) as connection:
        connection.execute(deliveries.update().values(not_before_s=now_s()))
    _asked(entries, "2.25.6")

    assert reports.take(Report("2.25.5", frozenset(), {uid: 0x0112}))

    assert (_row(engine).state, _row(engine).losses) == (DeliveryState.SENT.value, 1)


def test_an_object_that_cannot_be_asked_for_delays_no_other(
    queue: JobQueue, entries: Entries, job: Job, engine: sa.Engine, tmp_path: Path
):
    """Though it comes first, again and again."""
    stuck_uid = _row(engine).sop_instance_uid
    other, _ = a_finished_job(queue, engine, tmp_path, "pacs")
    with a_pacs() as pacs:
        pacs.unclear.add(stuck_uid)
        place = pacs.as_destination(confirm="query", confirm_first_s=0.01)
        for _ in range(2):
            delivery = entries.claim("pacs")
            assert delivery is not None
            entries.accepted(delivery, "accepted", 0.0, 0.1)
            pacs.kept.add(delivery.result.sop_instance_uid)
        patient = ScuSettings(retry_first_s=1000.0, retry_max_s=1000.0)
        prover = Prover(entries, place, patient, CommitmentReports(entries, (place,)))
        thread = threading.Thread(target=prover.run)
        thread.start()
        try:
            ended(queue, other, JobState.DELIVERED)
        finally:
            prover.stop()
            thread.join()

    ended(queue, job, JobState.DELIVERING)


def test_a_peer_without_the_service_is_named_and_asked_again(
    queue: JobQueue, entries: Entries, job: Job, engine: sa.Engine
):
    """Somebody will enable it, or change the settings."""
    with (
        a_pacs(proves=False, takes=CTImageStorage) as pacs,
        delivering(entries, pacs.as_destination(confirm="storage-commitment", **QUICK)),
    ):
        until(lambda: "offers no storage commitment" in (_row(engine).last_error or ""))
    with a_pacs() as other, delivering(entries, other.as_destination(confirm="none")):
        ended(queue, job, JobState.DELIVERED)


def test_an_arrival_by_stow_is_proven_by_qido(queue: JobQueue, entries: Entries, job: Job):
    """The first one is lost."""
    with a_web_pacs() as pacs:
        pacs.loses = 1
        place = Destination(
            name="pacs", dicomweb=DicomwebDestination(url=pacs.url), confirm="query", **QUICK
        )
        with delivering(entries, place):
            ended(queue, job, JobState.DELIVERED)

    assert len(pacs.objects) == 2
    assert stages(queue, job) == ["accepted", "lost", "accepted", "proven", "delivered"]


def test_a_cancelled_job_waits_for_no_proof(
    queue: JobQueue, entries: Entries, job: Job, engine: sa.Engine
):
    """And what was lost of it isn't sent again."""
    with a_pacs() as pacs:
        pacs.reports_to = SILENT
        place = pacs.as_destination(confirm="storage-commitment", confirm_first_s=0.05)
        with delivering(entries, place) as reports:
            until(lambda: pacs.commitments)
            assert queue.cancel(job.job_id)
            uid = _row(engine).sop_instance_uid
            assert reports.take(Report(pacs.commitments[-1], frozenset(), {uid: 0x0112}))

    assert _row(engine).state == DeliveryState.FAILED.value
    assert len(pacs.asked) == 1


def test_a_destination_that_is_gone_fails_also_what_waits_for_proof(
    queue: JobQueue, entries: Entries, job: Job, engine: sa.Engine
):
    """Nobody could ask for it any more."""
    with transaction(engine) as connection:
        connection.execute(
            deliveries.update().values(state=DeliveryState.SENT.value, sent_at_s=now_s())
        )

    assert entries.fail_unknown_destinations(["archive"]) == 1

    ended(queue, job, JobState.FAILED)


def _asked(entries: Entries, *transaction_uids: str) -> Destination:
    """Where the next due delivery was accepted, and a proof was asked for so many times."""
    place = Destination(
        name="pacs",
        host_ip="127.0.0.1",
        port=free_port(),
        ae_title="PACS",
        confirm="storage-commitment",
    )
    delivery = entries.claim("pacs")
    assert delivery is not None
    entries.accepted(delivery, "accepted", 0.0, 0.1)
    entries.release(delivery)
    for uid in transaction_uids:
        entries.asked([delivery], 600.0, uid)
    return place


def _closed_port() -> ProofPeer:
    return ProofPeer(port=free_port(), ae_title="PACS")


def _row(engine: sa.Engine) -> Any:
    with transaction(engine) as connection:
        return connection.execute(sa.select(deliveries)).one()
