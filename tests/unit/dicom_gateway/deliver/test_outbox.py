"""Results leave by their outbox, whatever the other destinations do."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_gateway.config_delivery import Destination, DicomwebDestination, ScuSettings
from dicom_gateway.database import deliveries, jobs, now_s, transaction
from dicom_gateway.deliver import Caretaker, Entries, Outbox
from dicom_gateway.errors import DatabaseUnavailable, DestinationRefused
from dicom_gateway.jobs import JobQueue
from dicom_gateway.jobs.owner import this_process
from dicom_gateway.records import Delivery, DeliveryState, Job, JobState
from tests.support.jobs import (
    a_finished_job,
    a_kept_instance,
    a_kept_series,
    a_result,
    enqueue,
)
from tests.support.patience import until
from tests.support.processes import free_port
from tests.support.scripted_pacs import HANG_UP, a_pacs
from tests.support.scripted_web_pacs import a_web_pacs, stored

# pynetdicom drops the socket of a connection that failed instead of closing it; CPython
# closes it on the spot, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

IMPATIENT = ScuSettings(retry_first_s=0.05, retry_max_s=0.2)


@pytest.fixture
def entries(engine: sa.Engine, tmp_path: Path) -> Entries:
    """Outbox rows with little patience."""
    return Entries(engine, tmp_path, IMPATIENT)


@contextmanager
def an_outbox(entries: Entries, destination: Destination) -> Iterator[Outbox]:
    """Runs in a thread of its own while the block lasts."""
    outbox = Outbox(entries, destination, "TRITOME")
    thread = threading.Thread(target=outbox.run)
    thread.start()
    try:
        yield outbox
    finally:
        outbox.stop()
        thread.join()


def _state(queue: JobQueue, job: Job) -> JobState | None:
    shown = queue.show(job.job_id)
    return shown and shown.state


def test_the_last_delivery_makes_the_job_delivered(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """Not the first one; and the story tells who said what."""
    job, uid = a_finished_job(queue, engine, tmp_path, "pacs", "archive")
    with a_pacs() as pacs, a_pacs([0xB000]) as archive:
        with an_outbox(entries, pacs.as_destination("pacs")):
            until(lambda: pacs.stored == [uid])
        assert _state(queue, job) is JobState.DELIVERING
        with an_outbox(entries, archive.as_destination("archive")):
            until(lambda: _state(queue, job) is JobState.DELIVERED)

    notes = [line.note for line in queue.events(job.job_id) if line.stage == "sent"]
    assert notes == [
        "pacs: accepted",
        "archive: accepted with warning 0xB000: it changed values (coercion of data elements)",
    ]
    assert queue.events(job.job_id)[-1].stage == "delivered"


def test_a_result_is_sent_until_it_is_accepted(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """Out of resources, busy, hung up in the middle: the same object comes again."""
    job, uid = a_finished_job(queue, engine, tmp_path, "pacs")
    with (
        a_pacs([0xA700, 0x0110, HANG_UP, 0xA701, 0x0000]) as pacs,
        an_outbox(entries, pacs.as_destination()),
    ):
        until(lambda: _state(queue, job) is JobState.DELIVERED)

    assert pacs.asked == [uid] * 5
    assert pacs.stored == [uid]
    (delivery,) = queue.deliveries(job.job_id)
    assert (delivery.state, delivery.attempts) == (DeliveryState.DELIVERED, 5)


def test_a_refused_result_fails_its_job_at_once_and_can_be_sent_again(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """A person sees code and reason; retry sends the same file without computing."""
    job, uid = a_finished_job(queue, engine, tmp_path, "pacs")
    with a_pacs([0xA900, 0x0000]) as pacs, an_outbox(entries, pacs.as_destination()):
        until(lambda: _state(queue, job) is JobState.FAILED)
        shown = queue.show(job.job_id)
        assert shown is not None
        assert shown.failure_code == "destination_refused"
        assert "0xA900" in (shown.failure_reason or "")

        assert queue.retry(job.job_id)
        until(lambda: _state(queue, job) is JobState.DELIVERED)

    assert pacs.asked == [uid, uid]


def test_a_dead_destination_holds_up_nobody(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """One hangs and one is away; the third has everything meanwhile."""
    made = [a_finished_job(queue, engine, tmp_path, "stuck", "away", "pacs") for _ in range(3)]
    away = Destination(name="away", host_ip="127.0.0.1", port=free_port(), ae_title="PACS")
    with a_pacs() as stuck, a_pacs() as pacs:
        stuck.hold.clear()
        with (
            an_outbox(entries, stuck.as_destination("stuck")),
            an_outbox(entries, away),
            an_outbox(entries, pacs.as_destination("pacs")),
        ):
            until(lambda: sorted(pacs.stored) == sorted(uid for _, uid in made))
            assert stuck.stored == []
            stuck.hold.set()
            until(lambda: sorted(stuck.stored) == sorted(uid for _, uid in made))

    assert {_state(queue, job) for job, _ in made} == {JobState.DELIVERING}


def test_what_one_destination_refused_still_goes_to_the_others(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """The job is failed and seen, and the other PACS has the result all the same."""
    job, uid = a_finished_job(queue, engine, tmp_path, "strict", "pacs")
    with a_pacs([0xA900]) as strict, a_pacs() as pacs:
        with an_outbox(entries, strict.as_destination("strict")):
            until(lambda: _state(queue, job) is JobState.FAILED)
        with an_outbox(entries, pacs.as_destination("pacs")):
            until(lambda: pacs.stored == [uid])

    assert _state(queue, job) is JobState.FAILED


def test_a_crash_in_the_middle_of_sending_sends_again(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """A claimed delivery that nobody ended is due again soon, under the same UID."""
    job, uid = a_finished_job(queue, engine, tmp_path, "pacs")
    assert entries.claim("pacs") is not None  # and then the process is killed
    next_life = Entries(engine, tmp_path, IMPATIENT)

    with a_pacs() as pacs, an_outbox(next_life, pacs.as_destination()):
        until(lambda: _state(queue, job) is JobState.DELIVERED)

    assert pacs.stored == [uid]


def test_an_answer_that_breaks_a_library_ends_one_attempt_and_nothing_else(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """JSON nested too deep for its reader: the reason is in the story, and it is tried again."""
    job, _ = a_finished_job(queue, engine, tmp_path, "pacs")
    with a_web_pacs([(200, b"[" * 100_000), (200, stored())]) as pacs:
        where = Destination(name="pacs", dicomweb=DicomwebDestination(url=pacs.url))
        with an_outbox(entries, where):
            until(lambda: _state(queue, job) is JobState.DELIVERED)

    assert any("unexpected RecursionError" in one.note for one in queue.events(job.job_id))


def test_a_clock_that_was_set_back_holds_no_delivery_up(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """The machine had started with a wrong one; what waits longer than any may is due."""
    a_finished_job(queue, engine, tmp_path, "pacs")
    entries = Entries(engine, tmp_path, ScuSettings())
    claimed = entries.claim("pacs")
    assert claimed is not None
    entries.release(claimed)
    assert entries.claim("pacs") is None  # as long as it has to wait
    with transaction(engine) as connection:
        connection.execute(
            deliveries.update().values(not_before_s=deliveries.c.not_before_s + 7200)
        )

    assert entries.claim("pacs") is not None


def test_a_claim_whose_commit_failed_holds_nothing_back(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """The next look takes it, in the same process."""
    a_finished_job(queue, engine, tmp_path, "pacs")

    def break_off(_connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, OSError("disk I/O error"))

    sa.event.listen(engine, "commit", break_off)
    with pytest.raises(DatabaseUnavailable):
        entries.claim("pacs")
    sa.event.remove(engine, "commit", break_off)

    assert entries.claim("pacs") is not None


def test_an_outage_that_many_associations_meet_is_one_outage(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """Eight that fail at once wait as long as one that fails once, not as after eight failures."""
    for _ in range(8):
        a_finished_job(queue, engine, tmp_path, "pacs")
    steps: list[int] = []

    class Counting(Entries):
        def delay_s(self, attempts: int) -> float:
            steps.append(attempts)
            return super().delay_s(attempts)

    away = Destination(name="pacs", host_ip="127.0.0.1", port=free_port(), ae_title="PACS")
    all_under_way = threading.Barrier(8, timeout=60)

    def sending(_delivery: Delivery) -> None:
        all_under_way.wait()
        outbox.stop()

    outbox = Outbox(
        Counting(engine, tmp_path, ScuSettings()),
        away,
        "TRITOME",
        sending=sending,
    )
    threads = [threading.Thread(target=outbox.run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert steps == [0] * (8 + 1)  # each claim, and the outage


def test_a_delivery_is_given_up_after_its_time(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """A week without the PACS ends in front of a person."""
    job, _ = a_finished_job(queue, engine, tmp_path, "pacs")
    with transaction(engine) as connection:
        connection.execute(deliveries.update().values(created_at_s=now_s() - 8 * 24 * 3600))
    away = Destination(name="pacs", host_ip="127.0.0.1", port=free_port(), ae_title="PACS")

    with an_outbox(entries, away):
        until(lambda: _state(queue, job) is JobState.FAILED)

    shown = queue.show(job.job_id)
    assert shown is not None
    assert shown.failure_code == "destination_unavailable"
    assert "given up after 192 h" in (shown.failure_reason or "")


def test_a_destination_taken_out_of_the_configuration_is_seen(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """Nobody would ever send it: the job fails with the name, and retry works once it is back."""
    job, uid = a_finished_job(queue, engine, tmp_path, "pacs")

    assert entries.fail_unknown_destinations(["archive"]) == 1

    shown = queue.show(job.job_id)
    assert shown is not None
    assert shown.state is JobState.FAILED
    assert "'pacs' is not in gateway.yaml any more" in (shown.failure_reason or "")
    assert queue.retry(job.job_id)
    with a_pacs() as pacs, an_outbox(entries, pacs.as_destination()):
        until(lambda: pacs.stored == [uid])


def test_a_destination_renamed_while_a_job_ran_is_seen_soon(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """The running gateway notices when the job finishes, not only at its next start."""
    caretaker = Caretaker(entries, ["archive"])
    thread = threading.Thread(target=caretaker.run)
    thread.start()
    try:
        job, _ = a_finished_job(queue, engine, tmp_path, "pacs")
        caretaker.notify()
        until(lambda: _state(queue, job) is JobState.FAILED)

        assert queue.retry(job.job_id)
        caretaker.notify()
        until(lambda: _state(queue, job) is JobState.FAILED)
    finally:
        caretaker.stop()
        thread.join()

    assert [line.stage for line in queue.events(job.job_id)].count("failed") == 2


def test_a_caretaker_leaves_known_destinations_alone(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """Their outbox will send."""
    job, _ = a_finished_job(queue, engine, tmp_path, "pacs")

    assert Caretaker(entries, ["pacs"]).tidy() == 0

    assert _state(queue, job) is JobState.DELIVERING


def test_a_cancelled_job_stays_cancelled_when_its_object_arrives(
    queue: JobQueue, engine: sa.Engine, entries: Entries, tmp_path: Path
):
    """The object was on its way when the person said stop."""
    job, uid = a_finished_job(queue, engine, tmp_path, "pacs")
    with a_pacs() as pacs:
        pacs.hold.clear()
        with an_outbox(entries, pacs.as_destination()):
            until(lambda: pacs.asked == [uid])
            assert queue.cancel(job.job_id)
            pacs.hold.set()

    with transaction(engine) as connection:
        state = connection.execute(sa.select(jobs.c.state)).scalar_one()
    assert state == JobState.CANCELLED.value
    (line,) = [one for one in queue.events(job.job_id) if one.stage == "sent"]
    assert line.note == (
        "pacs: accepted; it was on its way when its delivery ended (cancelled by a person)"
    )


@pytest.mark.parametrize("proof", [False, True])
def test_what_a_peer_takes_of_a_superseded_job_is_in_the_story_and_told(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, *, proof: bool
) -> None:
    """It was on its way; the PACS has it, and whoever asks must find that out."""
    told: list[str | None] = []
    entries = Entries(engine, tmp_path, IMPATIENT, lambda _delivery, failure: told.append(failure))
    job, delivery = _superseded_while(queue, engine, tmp_path, entries)
    if proof:
        entries.accepted(delivery, "accepted", 1.0, 0.1)
    else:
        entries.delivered(delivery, "accepted", 0.1)
    entries.delivered(delivery, "accepted", 0.1)  # another process sent it too

    assert told == [None]
    (one,) = queue.deliveries(job.job_id)
    assert one.state is DeliveryState.DELIVERED
    assert _state(queue, job) is JobState.SUPERSEDED
    line = queue.events(job.job_id)[-1]
    assert line.stage == ("accepted" if proof else "sent")
    assert "it was on its way when its delivery ended (superseded: job" in line.note


@pytest.mark.parametrize("is_there", [False, True])
def test_a_proof_that_comes_after_its_job_was_superseded_counts(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, *, is_there: bool
) -> None:
    """Where the PACS has lost the object, it isn't sent again: the new job's is on its way."""
    told: list[str | None] = []
    entries = Entries(engine, tmp_path, IMPATIENT, lambda _delivery, failure: told.append(failure))
    job, delivery = _superseded_while(queue, engine, tmp_path, entries, accepted=True)
    if is_there:
        entries.delivered(delivery, "proven by C-FIND", stage="proven")
    else:
        assert entries.lost(delivery, DestinationRefused("it has no such object"), 3)

    assert told == ([None] if is_there else [DestinationRefused.code])
    (one,) = queue.deliveries(job.job_id)
    assert one.state is (DeliveryState.DELIVERED if is_there else DeliveryState.FAILED)
    assert _state(queue, job) is JobState.SUPERSEDED


def _superseded_while(
    queue: JobQueue,
    engine: sa.Engine,
    folder: Path,
    entries: Entries,
    *,
    accepted: bool = False,
) -> tuple[Job, Delivery]:
    """A job whose result is under way, or accepted, when a late instance of its series comes."""
    series = a_kept_series(engine, folder)
    enqueue(queue, engine, series)
    job = queue.claim(this_process())
    assert job is not None
    queue.finish(job, [a_result(folder, job)])
    delivery = entries.claim("pacs")
    assert delivery is not None
    if accepted:
        entries.accepted(delivery, "accepted", 0.0, 0.1)
        (delivery,) = entries.waiting_for_proof("pacs")
    late = a_kept_instance(engine, folder, series.study_instance_uid, series.series_instance_uid)
    grown = dataclasses.replace(series, instances=(*series.instances, late))
    assert enqueue(queue, engine, grown) is not None
    return job, delivery
