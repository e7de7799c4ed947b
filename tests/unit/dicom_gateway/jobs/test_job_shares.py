"""Many jobs (TRITOME_JOBS), several processes, kills: shares, and each job once to its end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_gateway.database import job_events, job_turns, jobs, now_s, open_database, transaction
from dicom_gateway.jobs import JobQueue
from dicom_gateway.jobs.owner import this_process
from dicom_gateway.jobs.shares import WEIGHTS, pick
from dicom_gateway.records import Priority
from tests.support.jobs import a_job
from tests.support.patience import until
from tests.support.queue_worker import a_queue_process

JOBS = int(os.environ.get("TRITOME_JOBS", "400"))
PROCESSES, WORKERS = 3, 2
LEASE_S = 3.0


def many_jobs(engine: sa.Engine, count: int, priorities: list[Priority]) -> None:
    """Waiting jobs in turn of each priority, without a series behind them."""
    rows = [
        {
            "job_id": f"{number:032x}",
            "unique_key": f"{number}",
            "pipeline": "lung_ct",
            "called_ae_title": "LUNG",
            "calling_ae_title": "CT_1",
            "study_instance_uid": f"1.2.{number}",
            "series_instance_uid": f"1.3.{number}",
            "destinations": [],
            "priority": priorities[number % len(priorities)].value,
            "state": "waiting",
            "attempts": 0,
            "strikes": 0,
            "fence": 0,
            "created_at_s": 1000.0 + number,
            "not_before_s": 1000.0,
            "subject": f"{number}",
            "rule": "",
            "roles": {},
        }
        for number in range(count)
    ]
    with transaction(engine) as connection:
        connection.execute(jobs.insert(), rows)


def _events(engine: sa.Engine, stage: str) -> list[tuple[int, str, str]]:
    """Id, job and priority of all events of one stage, in order."""
    with transaction(engine) as connection:
        found = connection.execute(
            sa.select(job_events.c.id, jobs.c.job_id, jobs.c.priority)
            .join(jobs, jobs.c.job_id == job_events.c.job_id)
            .where(job_events.c.stage == stage)
            .order_by(job_events.c.id)
        )
        return [(row.id, row.job_id, row.priority) for row in found]


def _waiting(engine: sa.Engine) -> int:
    with transaction(engine) as connection:
        ended = jobs.c.state == "delivered"
        return connection.execute(
            sa.select(sa.func.count()).select_from(jobs).where(~ended)
        ).scalar_one()


@pytest.mark.timeout(600)
def test_many_jobs_share_six_to_three_to_one_and_each_ends_once(
    engine: sa.Engine, tmp_path: Path
) -> None:
    """Three processes, killed and stopped now and then; 20 immediate jobs come in between."""
    many_jobs(engine, JOBS, [Priority.HIGH, Priority.NORMAL, Priority.LOW])
    queue = JobQueue(engine, tmp_path)
    url = engine.url.render_as_string(hide_password=False)
    rng = random.Random(7)

    def started() -> subprocess.Popen[bytes]:
        return a_queue_process(url, tmp_path, lease_s=LEASE_S, workers=WORKERS)

    processes = [started() for _ in range(PROCESSES)]
    try:
        urgent: dict[str, int] = {}  # job -> the last start before it came
        while len(urgent) < 20 or _waiting(engine):
            if len(urgent) < 20 and len(_events(engine, "started")) >= JOBS // 50 * (
                len(urgent) + 1
            ):
                urgent |= _an_immediate_job(engine, len(urgent))
                queue.notify()
                victim = rng.randrange(PROCESSES)
                if len(urgent) in (4, 9, 14):
                    processes[victim].kill()
                    processes[victim].wait()
                    processes[victim] = started()
                if len(urgent) == 7:  # its leases run out while it sleeps, and it wakes up
                    processes[victim].send_signal(signal.SIGSTOP)
                if len(urgent) == 12:
                    for process in processes:
                        process.send_signal(signal.SIGCONT)
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()

    delivered = Counter(job_id for _, job_id, _ in _events(engine, "delivered"))
    assert len(delivered) == JOBS + 20, "none is lost"
    assert set(delivered.values()) == {1}, "none ends twice"

    starts = _events(engine, "started")
    shared = [priority for _, _, priority in starts if priority != "immediate"][: JOBS // 2]
    for priority, weight in WEIGHTS.items():
        share = shared.count(priority.value) / len(shared)
        assert share == pytest.approx(weight / 10, abs=0.03)

    for job_id, last in urgent.items():
        since = [(one, priority) for number, one, priority in starts if number > last]
        before = since[: [one for one, _ in since].index(job_id)]
        # Other immediate ones, of a worker that was killed, are as urgent and were there first.
        assert all(one < job_id for one, priority in before if priority == "immediate")
        waiting = [one for one, priority in before if priority != "immediate"]
        assert len(waiting) <= PROCESSES * WORKERS, "whoever is free next takes it"


def _an_immediate_job(engine: sa.Engine, number: int) -> dict[str, int]:
    """Enqueues it; gives it with the last start that it can't have been before."""
    job_id = f"{0xFFFF0000 + number:032x}"
    with transaction(engine) as connection:
        template = connection.execute(sa.select(jobs).limit(1)).one()._mapping
        fresh = {
            "job_id": job_id,
            "unique_key": job_id,
            "subject": job_id,
            "priority": "immediate",
            "state": "waiting",
            "attempts": 0,
            "fence": 0,
            "strikes": 0,
            "lease_owner": None,
            "lease_until_s": None,
            "finished_at_s": None,
            "started_at_s": None,
        }
        last = connection.execute(
            sa.select(sa.func.max(job_events.c.id)).where(job_events.c.stage == "started")
        ).scalar_one()
        connection.execute(jobs.insert().values({**template, **fresh, "not_before_s": now_s()}))
    return {job_id: last}


def test_the_turns_outlive_the_process(engine: sa.Engine, tmp_path: Path) -> None:
    """A queue that is opened for each claim shares as one that stays."""
    many_jobs(engine, 60, [Priority.HIGH, Priority.NORMAL, Priority.LOW])
    me = this_process()

    taken = [JobQueue(engine, tmp_path).claim(me) for _ in range(20)]

    assert Counter(job.priority for job in taken if job) == {
        Priority.HIGH: 12,
        Priority.NORMAL: 6,
        Priority.LOW: 2,
    }
    with transaction(engine) as connection:
        assert connection.execute(sa.select(sa.func.sum(job_turns.c.credit))).scalar_one() == 0


def test_who_had_nothing_to_do_saves_nothing_up() -> None:
    """After a hundred turns without high jobs, high gets its six of ten and no more."""
    credit: dict[Priority, int] = {}
    for _ in range(100):
        _, credit = pick([Priority.NORMAL, Priority.LOW], credit)
    chosen = []
    for _ in range(10):
        one, credit = pick(list(WEIGHTS), credit)
        chosen.append(one)
    assert chosen.count(Priority.HIGH) == 6


def test_an_express_worker_leaves_the_others_where_they_are(
    engine: sa.Engine, tmp_path: Path
) -> None:
    """Only immediate jobs go to it."""
    many_jobs(engine, 4, [Priority.HIGH, Priority.IMMEDIATE])
    queue, me = JobQueue(engine, tmp_path), this_process()

    taken = [queue.claim(me, only_immediate=True) for _ in range(3)]

    assert [job and job.priority for job in taken] == [Priority.IMMEDIATE] * 2 + [None]


def test_a_job_of_another_process_is_heard_of(postgresql_url: str, tmp_path: Path) -> None:
    """PostgreSQL tells listeners about an enqueued job when its transaction commits."""
    here, there = (JobQueue(open_database(postgresql_url), tmp_path) for _ in range(2))
    listener = here.listener()
    assert listener is not None
    thread = threading.Thread(target=listener.run)
    thread.start()
    try:
        seen = here.wait_for_news(60, 0)  # it listens now
        a_job(there, there._engine, tmp_path)
        until(lambda: here.wait_for_news(1, seen) > seen)
    finally:
        listener.stop()
        thread.join()
        for queue in (here, there):
            queue._engine.dispose()
