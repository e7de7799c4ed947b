"""What is tried again, and what is given up, on both databases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_gateway.database import jobs, now_s, transaction
from dicom_gateway.errors import (
    ArenaFull,
    RequestLost,
    TooLittleMemory,
    TritonUnavailable,
)
from dicom_gateway.jobs import JobQueue
from dicom_gateway.jobs.owner import this_process
from dicom_gateway.records import JobState, Priority
from tests.support.jobs import a_job, expire_leases

ME = this_process()


def _dead_process() -> str:
    """The name of a process that had our id before us."""
    place, _, started = ME.rpartition(":")
    return f"{place}:{int(started) - 1}"


def _make_due(engine: sa.Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(jobs.update().values(not_before_s=now_s() - 1))


def test_retryable_errors_never_use_a_job_up(queue: JobQueue, engine: sa.Engine, tmp_path: Path):
    """After forty attempts it still waits, at most a minute, and its story says what for."""
    job = a_job(queue, engine, tmp_path)
    for _ in range(40):
        claimed = queue.claim(ME)
        assert claimed is not None
        delay_s = queue.retry_later(claimed, TritonUnavailable("no answer at 127.0.0.1:8001"))
        assert 0.5 <= delay_s <= 60.0
        assert queue.claim(ME) is None  # not before its time
        _make_due(engine)

    shown = queue.show(job.job_id)
    assert shown is not None
    assert (
        shown.state,
        shown.attempts,
        shown.failure_code,
    ) == (JobState.WAITING, 40, "triton_unavailable")
    assert "no answer at 127.0.0.1:8001" in queue.events(job.job_id)[-1].note


def test_a_job_that_loses_every_request_is_given_up_with_the_last_reason(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """After five times a person sees it; whatever it waited for between doesn't count."""
    job = a_job(queue, engine, tmp_path)
    delays_s = []
    for number in range(1, 6):
        for error in (TritonUnavailable("away"), ArenaFull("full")):
            claimed = queue.claim(ME)
            assert claimed is not None
            assert queue.retry_later(claimed, error) is not None
            _make_due(engine)
        claimed = queue.claim(ME)
        assert claimed is not None
        delays_s.append(queue.retry_later(claimed, RequestLost(f"stub {number} is not healthy")))
        _make_due(engine)

    assert None not in delays_s[:4]
    assert delays_s[4] is None
    shown = queue.show(job.job_id)
    assert shown is not None
    assert (shown.state, shown.failure_code) == (JobState.FAILED, "gave_up")
    assert "15 attempts" in (shown.failure_reason or "")
    assert "stub 5 is not healthy" in (shown.failure_reason or "")
    assert shown.finished_at_s is not None
    assert queue.events(job.job_id)[-1].stage == "failed"
    assert queue.claim(ME) is None


def test_who_stood_by_is_not_given_up_with_the_job_that_breaks_things(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """Both lost their requests once; then never together again, and others aren't held up."""
    pair = {a_job(queue, engine, tmp_path).job_id for _ in range(2)}
    claimed = [queue.claim(ME), queue.claim(ME)]
    for one in claimed:
        assert one is not None
        queue.retry_later(one, RequestLost("socket closed"))
    _make_due(engine)
    other = a_job(queue, engine, tmp_path)

    first, second, third = (queue.claim(ME) for _ in range(3))

    assert first is not None
    assert first.job_id in pair
    assert second is not None
    assert second.job_id == other.job_id
    assert third is None
    queue.finish(first, [])
    last = queue.claim(ME)
    assert last is not None
    assert {first.job_id, last.job_id} == pair


def test_a_volume_that_never_finds_enough_memory_is_given_up(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """Its neighbours may be to blame a few times; a GPU that is too small stays so."""
    job = a_job(queue, engine, tmp_path)
    delays_s = []
    for _ in range(15):
        claimed = queue.claim(ME)
        assert claimed is not None
        delays_s.append(queue.retry_later(claimed, TooLittleMemory("the GPU has too little")))
        _make_due(engine)

    assert None not in delays_s[:14]
    assert delays_s[14] is None
    shown = queue.show(job.job_id)
    assert shown is not None
    assert (shown.state, shown.failure_code) == (JobState.FAILED, "gave_up")
    assert "the GPU has too little" in (shown.failure_reason or "")


def test_a_job_given_up_begins_anew_when_a_person_retries_it(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """One more lost request is not the end of it."""
    job = a_job(queue, engine, tmp_path)
    for _ in range(5):
        claimed = queue.claim(ME)
        assert claimed is not None
        queue.retry_later(claimed, RequestLost("no answer in time"))
        _make_due(engine)

    assert queue.retry(job.job_id)
    claimed = queue.claim(ME)
    assert claimed is not None
    assert queue.retry_later(claimed, RequestLost("no answer in time")) is not None


def test_a_job_that_kills_its_gateway_each_time_is_given_up(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """Ten deaths at bad moments it survives, the fifteenth ends in front of a person."""
    job = a_job(queue, engine, tmp_path)
    states = []
    for _ in range(15):
        assert queue.claim(_dead_process()) is not None
        assert queue.release_own() == 1
        shown = queue.show(job.job_id)
        assert shown is not None
        states.append(shown.state)
        _make_due(engine)

    assert states == [JobState.WAITING] * 14 + [JobState.FAILED]
    shown = queue.show(job.job_id)
    assert shown is not None
    assert shown.failure_code == "gave_up"
    assert "the process that worked on it died" in (shown.failure_reason or "")


def test_a_job_taken_from_dead_gateways_lets_the_others_go_first(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """At once after a few deaths, later after more and more of a wait."""
    a_job(queue, engine, tmp_path)
    for _ in range(3):
        assert queue.claim(_dead_process()) is not None
        queue.release_own()
    assert queue.claim(_dead_process()) is not None
    queue.release_own()

    assert queue.claim(ME) is None


def test_leases_of_vanished_gateways_count_too_and_our_own_do_not(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """A container comes back under another name; an index that was away is nobody's fault."""
    job = a_job(queue, engine, tmp_path)
    for _ in range(20):
        assert queue.claim(ME) is not None
        expire_leases(engine)

    for number in range(15):
        expire_leases(engine)
        next_one = f"gone:boot:ns:1:{number}"
        if queue.claim(next_one) is None:
            _make_due(engine)
            queue.claim(next_one)

    shown = queue.show(job.job_id)
    assert shown is not None
    assert (shown.state, shown.failure_code) == (JobState.FAILED, "gave_up")
    assert shown.attempts == 20 + 14  # the last look takes it back and gives it up


@pytest.mark.parametrize(
    ("priority", "is_soon"), [(Priority.IMMEDIATE, True), (Priority.LOW, False)]
)
def test_a_study_that_can_t_wait_asks_for_the_arena_again_and_again(
    priority: Priority, is_soon: bool, queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """However often it was full; others ask more and more rarely."""
    a_job(queue, engine, tmp_path, priority=priority)
    claimed = queue.claim(ME)
    assert claimed is not None
    delay_s = queue.retry_later(replace(claimed, attempts=10), ArenaFull("full"))
    first_s = queue._retry_first_s
    assert delay_s is not None
    assert (delay_s <= first_s) == is_soon


def test_jobs_that_wait_for_triton_hurry_when_it_is_back(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """Only those whose reason has gone."""
    for error in (TritonUnavailable("away"), ArenaFull("full")):
        a_job(queue, engine, tmp_path)
        claimed = queue.claim(ME)
        assert claimed is not None
        queue.retry_later(claimed, error)

    assert queue.hurry("triton_unavailable") == 1

    assert queue.claim(ME) is not None
    assert queue.claim(ME) is None


def test_a_clock_that_was_set_back_holds_no_job_up(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path
):
    """The machine had started with a wrong one; what waits longer than any job may is due."""
    a_job(queue, engine, tmp_path)
    claimed = queue.claim(ME)
    assert claimed is not None
    queue.retry_later(claimed, TritonUnavailable("away"))
    assert queue.claim(ME) is None  # as long as it has to wait
    with transaction(engine) as connection:
        connection.execute(jobs.update().values(not_before_s=jobs.c.not_before_s + 7200))

    assert queue.claim(ME) is not None
