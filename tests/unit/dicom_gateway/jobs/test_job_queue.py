"""The queue on both databases."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_gateway.database import deliveries, job_instances, jobs, results, transaction
from dicom_gateway.errors import (
    ArenaFull,
    LeaseLost,
    UnusableSeries,
)
from dicom_gateway.jobs import JobQueue
from dicom_gateway.jobs.owner import this_process
from dicom_gateway.records import DeliveryState, JobState, ObjectKind, Priority
from tests.support.jobs import (
    a_job,
    a_kept_instance,
    a_kept_series,
    a_result,
    enqueue,
    expire_leases,
)

ME = this_process()


def test_the_same_series_makes_no_second_job(queue: JobQueue, engine: sa.Engine, tmp_path: Path):
    """A duplicate is None; another version of the pipeline is a new job."""
    series = a_kept_series(engine, tmp_path)

    first = enqueue(queue, engine, series)
    turned = dataclasses.replace(series, instances=series.instances[::-1])

    assert first is not None
    assert enqueue(queue, engine, turned) is None
    assert enqueue(queue, engine, series, version="1.1.0") is not None


def test_a_late_instance_makes_a_new_job(queue: JobQueue, engine: sa.Engine, tmp_path: Path):
    """One instance more is another job, and each keeps its own instances."""
    series = a_kept_series(engine, tmp_path, frames=3)
    late = a_kept_instance(engine, tmp_path, series.study_instance_uid, series.series_instance_uid)
    more = dataclasses.replace(series, instances=(*series.instances, late))

    first, second = enqueue(queue, engine, series), enqueue(queue, engine, more)

    assert first is not None
    assert second is not None
    with transaction(engine) as connection:
        rows = connection.execute(sa.select(job_instances.c.job_id)).scalars()
        assert Counter({first.job_id: 3, second.job_id: 4}) == Counter(rows)


def test_a_claim_is_exclusive_and_raises_the_fence(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """One job goes to one worker, with its first fence and attempt."""
    waiting = a_job(queue, engine, tmp_path)

    claimed = queue.claim(ME)

    assert claimed is not None
    assert (waiting.job_id, JobState.RUNNING, 1, 1) == (
        claimed.job_id,
        claimed.state,
        claimed.attempts,
        claimed.fence,
    )
    assert queue.claim(ME) is None


def test_priorities_share_six_to_three_to_one(queue: JobQueue, engine: sa.Engine, tmp_path: Path):
    """Immediate goes before all; of the next 20 claims 12 are high, 6 normal, 2 low."""
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
        for _ in range(13):
            a_job(queue, engine, tmp_path, priority=priority)
    a_job(queue, engine, tmp_path, priority=Priority.IMMEDIATE)

    order = [job.priority for job in (queue.claim(ME) for _ in range(21)) if job]

    assert order[0] is Priority.IMMEDIATE
    assert Counter(order[1:]) == {Priority.HIGH: 12, Priority.NORMAL: 6, Priority.LOW: 2}
    assert order[1:7] != [Priority.HIGH] * 6  # in turns, not in blocks


def test_within_a_priority_the_oldest_goes_first(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """First come, first served."""
    expected = [a_job(queue, engine, tmp_path).job_id for _ in range(4)]

    claimed = [job.job_id for job in (queue.claim(ME) for _ in range(4)) if job]

    assert expected == claimed


def test_many_workers_never_get_the_same_job(queue: JobQueue, engine: sa.Engine, tmp_path: Path):
    """Four threads that claim at once get each job exactly once."""
    expected = sorted(a_job(queue, engine, tmp_path).job_id for _ in range(24))
    claimed: list[str] = []

    def work() -> None:
        while (job := queue.claim(ME)) is not None:
            claimed.append(job.job_id)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert expected == sorted(claimed)


def test_an_expired_lease_is_claimed_again_and_fences_the_first_worker_off(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """Who lost the lease can neither renew, nor finish, nor fail the job."""
    a_job(queue, engine, tmp_path)
    first = queue.claim(ME)
    assert first is not None
    expire_leases(engine)

    second = queue.claim("another-host:boot:ns:1:1")

    assert second is not None
    assert (first.job_id, 2) == (second.job_id, second.fence)
    assert not queue.renew(first)
    assert queue.renew(second)
    with pytest.raises(LeaseLost):
        queue.finish(first, [a_result(tmp_path, first)])
    with pytest.raises(LeaseLost):
        queue.fail(first, UnusableSeries("a hole", code="missing_slices"))
    with pytest.raises(LeaseLost):
        queue.retry_later(first, ArenaFull("full"))
    assert queue.results(first.job_id) == []


def test_finish_writes_results_deliveries_and_state_together(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """One delivery per result and destination; the path is kept relative to the store."""
    a_job(queue, engine, tmp_path, destinations=("pacs", "archive"))
    job = queue.claim(ME)
    assert job is not None
    made = a_result(tmp_path, job)

    assert queue.finish(job, [made]) is JobState.DELIVERING

    assert [made] == queue.results(job.job_id)
    assert {("pacs", DeliveryState.WAITING), ("archive", DeliveryState.WAITING)} == {
        (one.destination, one.state) for one in queue.deliveries(job.job_id)
    }
    with transaction(engine) as connection:
        path = connection.execute(sa.select(results.c.path)).scalar_one()
    assert f"results/{made.path.name}" == path


def test_results_may_lie_on_another_disk(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    """Whoever runs the machine has put a link in the folder's place."""
    (tmp_path / "results").symlink_to(tmp_path_factory.mktemp("large_disk"))
    a_job(queue, engine, tmp_path)
    job = queue.claim(ME)
    assert job is not None
    made = a_result(tmp_path, job)

    queue.finish(job, [made])

    assert queue.results(job.job_id) == [made]


def test_a_job_without_destination_is_delivered_at_once(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """Nothing to send means done."""
    a_job(queue, engine, tmp_path, destinations=())
    job = queue.claim(ME)
    assert job is not None

    assert queue.finish(job, [a_result(tmp_path, job)]) is JobState.DELIVERED

    shown = queue.show(job.job_id)
    assert shown is not None
    assert shown.state is JobState.DELIVERED
    assert shown.finished_at_s is not None


def test_a_failed_job_says_why_and_can_be_retried(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """Code and reason are kept until a person starts it again."""
    a_job(queue, engine, tmp_path)
    job = queue.claim(ME)
    assert job is not None
    queue.fail(job, UnusableSeries("between 10 and 15 mm", code="missing_slices"))

    failed = queue.list_jobs([JobState.FAILED])
    assert [(one.failure_code, one.failure_reason) for one in failed] == [
        ("missing_slices", "between 10 and 15 mm")
    ]
    assert queue.retry(job.job_id)
    again = queue.claim(ME)
    assert again is not None
    assert (job.job_id, 2, None) == (again.job_id, again.fence, again.failure_code)
    assert not queue.retry(job.job_id)  # it runs


def test_a_refused_delivery_is_sent_again_without_computing(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """Retry of a job with results goes straight to delivering."""
    a_job(queue, engine, tmp_path)
    job = queue.claim(ME)
    assert job is not None
    made = a_result(tmp_path, job)
    queue.finish(job, [made])
    _refuse_everything(engine)

    assert queue.retry(job.job_id)

    shown = queue.show(job.job_id)
    assert shown is not None
    assert shown.state is JobState.DELIVERING
    assert [one.state for one in queue.deliveries(job.job_id)] == [DeliveryState.WAITING]


def test_a_lost_result_file_is_made_again(queue: JobQueue, engine: sa.Engine, tmp_path: Path):
    """Retry computes where the file is gone, and finish makes its delivery due again."""
    a_job(queue, engine, tmp_path)
    job = queue.claim(ME)
    assert job is not None
    made = a_result(tmp_path, job)
    queue.finish(job, [made])
    _refuse_everything(engine)
    made.path.unlink()

    assert queue.retry(job.job_id)
    again = queue.claim(ME)
    assert again is not None
    assert queue.finish(again, [a_result(tmp_path, again)]) is JobState.DELIVERING

    assert [one.state for one in queue.deliveries(job.job_id)] == [DeliveryState.WAITING]
    assert [made] == queue.results(job.job_id)


def _refuse_everything(engine: sa.Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(deliveries.update().values(state=DeliveryState.FAILED.value))
        connection.execute(jobs.update().values(state=JobState.FAILED.value))


def test_cancel_ends_a_job_and_fences_its_worker_off(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """The worker's renewal says no, its results are dropped."""
    a_job(queue, engine, tmp_path)
    job = queue.claim(ME)
    assert job is not None

    assert queue.cancel(job.job_id)

    assert not queue.renew(job)
    with pytest.raises(LeaseLost):
        queue.finish(job, [a_result(tmp_path, job)])
    assert not queue.cancel(job.job_id)
    assert [one.state for one in queue.list_jobs()] == [JobState.CANCELLED]


def test_cancelled_deliveries_are_not_sent(queue: JobQueue, engine: sa.Engine, tmp_path: Path):
    """What waits in an outbox when a person cancels is ended with that reason."""
    a_job(queue, engine, tmp_path)
    job = queue.claim(ME)
    assert job is not None
    queue.finish(job, [a_result(tmp_path, job)])

    assert queue.cancel(job.job_id)

    assert [(one.state, one.last_error) for one in queue.deliveries(job.job_id)] == [
        (DeliveryState.FAILED, "cancelled by a person")
    ]


def test_a_job_is_shown_by_a_unique_beginning_of_its_id(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """An ambiguous or unknown beginning shows nothing."""
    job = a_job(queue, engine, tmp_path)
    a_job(queue, engine, tmp_path)

    shown = queue.show(job.job_id[:12])

    assert shown is not None
    assert job.job_id == shown.job_id
    assert queue.show("") is None
    assert queue.show("%") is None


def test_the_story_has_waiting_time_and_stages(queue: JobQueue, engine: sa.Engine, tmp_path: Path):
    """Each line has its stage, note and duration, oldest first."""
    job = a_job(queue, engine, tmp_path)
    claimed = queue.claim(ME)
    assert claimed is not None
    queue.add_event(job.job_id, "assembled", "3 instances", 0.25)

    story = queue.events(job.job_id)

    assert [line.stage for line in story] == ["received", "started", "assembled"]
    assert story[1].duration_s is not None
    assert 0.0 <= story[1].duration_s < 60.0
    assert (story[2].note, story[2].duration_s) == ("3 instances", 0.25)


def test_a_delivery_is_written_only_to_whom_takes_the_result(
    engine: sa.Engine, queue: JobQueue, tmp_path: Path
):
    """A job whose results nobody takes is delivered, and its story says why nothing is sent."""

    def only_reports_to_ris(
        _pipeline: str, kind: ObjectKind | None, asked: Sequence[str]
    ) -> list[str]:
        return [one for one in asked if one != "ris" or kind is ObjectKind.STRUCTURED_REPORT]

    routed = JobQueue(engine, tmp_path, addressee=only_reports_to_ris)
    made = a_job(routed, engine, tmp_path, destinations=["pacs", "ris"])
    job = routed.claim(this_process())
    assert job is not None
    assert routed.finish(job, [a_result(tmp_path, job)]) is JobState.DELIVERING
    assert [one.destination for one in routed.deliveries(made.job_id)] == ["pacs"]

    a_job(routed, engine, tmp_path, destinations=["ris"])
    job = routed.claim(this_process())
    assert job is not None
    assert routed.finish(job, [a_result(tmp_path, job)]) is JobState.DELIVERED
    assert routed.events(job.job_id)[-1].note == "no destination takes its results"
