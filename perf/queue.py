"""How fast the queue is, on an SQLite file of its own and on any database that may be emptied.

Comes in: how many rows a full table has. Goes out: how long a job waits when nothing else does,
and what a claim takes with an empty table, with rows that wait, that are finished, and that wait
for their next try.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.database import jobs, metadata, now_s, open_database, transaction
from dicom_gateway.jobs import JobQueue, JobRun, Worker
from dicom_gateway.jobs.owner import this_process
from dicom_gateway.observe import set_up_logging
from dicom_gateway.records import Priority, Result
from perf.measure import Measurement
from perf.sections import Found
from perf.stage import Say

CLAIMS = 50
STARTS = 20
"""In each round."""
_FRESH = 1 << 24
"""From this number on no row of a filled table has it."""
_BATCH = 5_000


def rows(count: int, first: int = 0, **values: object) -> list[dict[str, object]]:
    """Jobs of all shared priorities in turn, without a series behind them."""
    shared = [Priority.HIGH, Priority.NORMAL, Priority.LOW]
    return [
        {
            "job_id": f"{number:032x}",
            "unique_key": f"{number}",
            "pipeline": "lung_ct",
            "called_ae_title": "LUNG",
            "calling_ae_title": "CT_1",
            "study_instance_uid": f"1.2.{number}",
            "series_instance_uid": f"1.3.{number}",
            "destinations": [],
            "priority": shared[number % 3].value,
            "state": "waiting",
            "attempts": 0,
            "strikes": 0,
            "fence": 0,
            "created_at_s": 1000.0 + number,
            "not_before_s": 1000.0,
            "subject": f"{number}",
            "rule": "",
            "roles": {},
            **values,
        }
        for number in range(first, first + count)
    ]


def fill(engine: sa.Engine, count: int, **values: object) -> None:
    """Makes `count` rows the whole of the table."""
    with transaction(engine) as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    for first in range(0, count, _BATCH):
        with transaction(engine) as connection:
            connection.execute(jobs.insert(), rows(min(_BATCH, count - first), first, **values))
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE jobs")


def claims_s(engine: sa.Engine, folder: Path) -> list[float]:
    """Of claims that each find one job more than there was."""
    queue, me, took_s = JobQueue(engine, folder), this_process(), []
    for number in range(CLAIMS):
        with transaction(engine) as connection:
            fresh = rows(1, _FRESH + number, created_at_s=0.0)
            connection.execute(jobs.insert(), fresh)
        started = time.perf_counter()
        job = queue.claim(me)
        took_s.append(time.perf_counter() - started)
        assert job is not None
        queue.finish(job, ())
    return took_s


def starts_s(engine: sa.Engine, folder: Path) -> list[float]:
    """From the commit of an enqueued job to its start in a worker that had nothing to do."""
    queue = JobQueue(engine, folder)
    began, took_s = threading.Event(), []
    at = [0.0]

    def process(_: JobRun) -> Sequence[Result]:
        at[0] = time.perf_counter()
        began.set()
        return ()

    worker = Worker(queue, process)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        for number in range(STARTS):
            began.clear()
            with transaction(engine) as connection:
                connection.execute(jobs.insert(), rows(1, 2 * _FRESH + number))
            committed = time.perf_counter()
            queue.notify()
            if not began.wait(30):
                msg = "a job did not start within 30 s in a worker that had nothing to do"
                raise RuntimeError(msg)
            took_s.append(at[0] - committed)
            time.sleep(0.05)
    finally:
        worker.stop()
        thread.join()
    return took_s


def measure(folder: Path, urls: Sequence[str], count: int, rounds: int, say: Say) -> Found:
    """The part of a bench: the tables are filled in turns, once more to warm up.

    Args:
        folder: For an SQLite file of our own.
        urls: Of further databases; they are emptied.
        count: Rows of a full table.
        rounds: That count.
        say: Hears how far it is.
    """
    folder.mkdir()
    set_up_logging(level=logging.WARNING)  # not a line for each job
    measurements = []
    for url in (f"sqlite:///{folder}/index.sqlite", *urls):
        engine = open_database(url)
        with transaction(engine) as connection:
            later_s = connection.execute(sa.select(now_s() + 86400)).scalar_one()
        tables: dict[str, tuple[int, dict[str, object]]] = {
            "empty table": (0, {}),
            f"{count:,} rows waiting": (count, {}),
            f"{count:,} rows finished": (count, {"state": "delivered"}),
            f"{count:,} rows waiting for their next try": (count, {"not_before_s": later_s}),
        }
        claims: dict[str, list[float]] = {name: [] for name in tables}
        starts: list[float] = []
        for number in range(rounds + 1):
            say(f"queue: round {number} of {rounds}, {engine.dialect.name}")
            for name, (size, values) in tables.items():
                fill(engine, size, **values)
                took_s = claims_s(engine, folder)
                claims[name] += took_s if number else []  # the first warms up
            fill(engine, 0)
            took_s = starts_s(engine, folder)
            starts += took_s if number else []
        engine.dispose()
        title = f"queue, {engine.dialect.name}"
        measurements.append(Measurement.of(f"{title}: enqueue to start when idle", starts))
        measurements += [
            Measurement.of(f"{title}: claim, {name}", took_s) for name, took_s in claims.items()
        ]
    return Found(measurements, [])
