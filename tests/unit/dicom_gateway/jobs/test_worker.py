"""What a worker makes of what happens to a job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_gateway.errors import BrokenPixelData, RequestLost, TritonUnavailable
from dicom_gateway.jobs import JobQueue, JobRun, Worker
from dicom_gateway.jobs.owner import this_process
from dicom_gateway.records import JobState, Result
from tests.support.jobs import a_job, a_result
from tests.support.patience import until


@contextmanager
def a_worker(queue: JobQueue, process: Callable[[JobRun], Sequence[Result]]) -> Iterator[Worker]:
    """A worker in a thread of its own."""
    worker = Worker(queue, process)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


def _state(queue: JobQueue, job_id: str) -> JobState | None:
    shown = queue.show(job_id)
    return shown and shown.state


def test_a_job_enqueued_later_is_run_and_its_stages_are_told(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """The worker wakes, makes the result, and the story has the stage's duration."""

    def process(run: JobRun) -> list[Result]:
        with run.stage("encoded"):
            return [a_result(tmp_path, run.job)]

    with a_worker(queue, process):
        job = a_job(queue, engine, tmp_path)
        queue.notify()
        until(lambda: _state(queue, job.job_id) is JobState.DELIVERING)

    stages = {line.stage: line.duration_s for line in queue.events(job.job_id)}
    assert stages["encoded"] is not None


def test_stages_and_ends_of_jobs_are_told(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
) -> None:
    """With the pipeline, and the code where it failed; a stage that failed isn't told."""
    ended: list[tuple[str, str, str | None]] = []
    measured: list[tuple[str, str]] = []

    def process(run: JobRun) -> list[Result]:
        with run.stage("assembled"):
            pass
        with run.stage("encoded"):
            if len(ended) == 1:
                msg = "broken"
                raise BrokenPixelData(msg)
        return [a_result(tmp_path, run.job)]

    worker = Worker(
        queue,
        process,
        ended=lambda job, failure: ended.append((job.job_id, job.pipeline, failure)),
        measured=lambda pipeline, stage, _duration_s: measured.append((pipeline, stage)),
    )
    first = a_job(queue, engine, tmp_path)
    second = a_job(queue, engine, tmp_path)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        until(lambda: len(ended) == 2)
    finally:
        worker.stop()
        thread.join()

    assert ended == [
        (first.job_id, "lung_ct", None),
        (second.job_id, "lung_ct", "broken_pixel_data"),
    ]
    assert [stage for _, stage in measured] == ["assembled", "encoded", "assembled"]
    assert {pipeline for pipeline, _ in measured} == {"lung_ct"}


def test_a_permanent_error_fails_the_job_with_its_code(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """And the next job goes through."""

    def process(run: JobRun) -> list[Result]:
        if run.job.job_id == bad.job_id:
            msg = "frame 3 has half its bytes"
            raise BrokenPixelData(msg)
        return []

    bad, good = a_job(queue, engine, tmp_path), a_job(queue, engine, tmp_path)
    with a_worker(queue, process):
        until(lambda: _state(queue, good.job_id) is JobState.DELIVERED)

    shown = queue.show(bad.job_id)
    assert shown is not None
    assert (
        shown.state,
        shown.failure_code,
        shown.failure_reason,
    ) == (JobState.FAILED, "broken_pixel_data", "frame 3 has half its bytes")


def test_an_unforeseen_error_fails_the_job_without_quoting_it(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A foreign message may hold a patient's name: neither the job nor the log has it."""

    def process(run: JobRun) -> list[Result]:
        raise ValueError("CANARY^SECRET is no valid PN")

    job = a_job(queue, engine, tmp_path)
    with a_worker(queue, process):
        until(lambda: _state(queue, job.job_id) is JobState.FAILED)

    shown = queue.show(job.job_id)
    assert shown is not None
    assert shown.failure_code == "internal_error"
    assert "ValueError" in (shown.failure_reason or "")
    told = "".join(capsys.readouterr()) + repr(shown) + repr(queue.events(job.job_id))
    assert "job_crashed" in told
    assert "CANARY" not in told


def test_a_passing_error_is_tried_again_until_it_passes(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """Triton comes back, the job is delivered without a hand."""
    attempts: list[int] = []

    def process(run: JobRun) -> list[Result]:
        attempts.append(run.job.attempts)
        if len(attempts) < 3:
            msg = "Triton is away"
            raise TritonUnavailable(msg)
        return []

    job = a_job(queue, engine, tmp_path)
    with a_worker(queue, process):
        while _state(queue, job.job_id) is not JobState.DELIVERED:
            queue.hurry("triton_unavailable")

    assert attempts == [1, 2, 3]


def test_a_job_that_loses_each_request_ends_before_a_person(engine: sa.Engine, tmp_path: Path):
    """And the next job goes through."""
    queue = JobQueue(engine, tmp_path, retry_first_s=0.01, retry_max_s=0.02)

    def process(run: JobRun) -> list[Result]:
        if run.job.job_id == bad.job_id:
            msg = "stub process is not healthy"
            raise RequestLost(msg)
        return []

    bad, good = a_job(queue, engine, tmp_path), a_job(queue, engine, tmp_path)
    with a_worker(queue, process):
        until(lambda: _state(queue, bad.job_id) is JobState.FAILED)
        until(lambda: _state(queue, good.job_id) is JobState.DELIVERED)

    shown = queue.show(bad.job_id)
    assert shown is not None
    assert (shown.failure_code, shown.attempts) == ("gave_up", 5)


def test_the_lease_is_renewed_while_the_job_runs(engine: sa.Engine, tmp_path: Path):
    """A job that takes longer than its lease is not taken over."""
    queue = JobQueue(engine, tmp_path, lease_s=1.5)
    job = a_job(queue, engine, tmp_path)
    go_on = threading.Event()
    claims: list[int] = []

    def process(run: JobRun) -> list[Result]:
        claims.append(run.job.fence)
        go_on.wait(60)
        return []

    with a_worker(queue, process), a_worker(queue, process):
        until(lambda: claims)
        threading.Event().wait(3.0)  # two leases long
        go_on.set()
        until(lambda: _state(queue, job.job_id) is JobState.DELIVERED)

    assert claims == [1]


def test_a_cancelled_job_is_told_to_stop(engine: sa.Engine, tmp_path: Path):
    """The renewal notices, the job's stop is set, and nothing it made is kept."""
    queue = JobQueue(engine, tmp_path, lease_s=1.1)
    job = a_job(queue, engine, tmp_path)
    stopped = threading.Event()
    running = threading.Event()

    def process(run: JobRun) -> list[Result]:
        running.set()
        assert run.stop.wait(60)
        stopped.set()
        return [a_result(tmp_path, run.job)]

    with a_worker(queue, process):
        assert running.wait(60)
        assert queue.cancel(job.job_id)
        assert stopped.wait(60)

    assert _state(queue, job.job_id) is JobState.CANCELLED
    assert queue.results(job.job_id) == []


def test_a_stopped_worker_gives_its_job_back(queue: JobQueue, engine: sa.Engine, tmp_path: Path):
    """The next gateway need not wait for the lease to run out."""
    job = a_job(queue, engine, tmp_path)
    running = threading.Event()

    def process(run: JobRun) -> list[Result]:
        running.set()
        assert run.stop.wait(60)
        msg = "stopped"
        raise TritonUnavailable(msg)

    with a_worker(queue, process):
        assert running.wait(60)

    shown = queue.show(job.job_id)
    assert shown is not None
    assert shown.state is JobState.WAITING
    assert queue.claim("next:boot:ns:1:1") is not None


def test_a_run_knows_what_the_job_has_announced(queue: JobQueue, engine: sa.Engine, tmp_path: Path):
    """Nothing before the job finished once; then its own results, after a retry too."""
    job = a_job(queue, engine, tmp_path)
    claimed = queue.claim(this_process())
    assert claimed is not None
    made = a_result(tmp_path, claimed)
    assert not JobRun(claimed, queue).is_announced(made.sop_instance_uid)
    queue.finish(claimed, [made])
    assert JobRun(job, queue).is_announced(made.sop_instance_uid)
    assert not JobRun(job, queue).is_announced("1.2.3")
