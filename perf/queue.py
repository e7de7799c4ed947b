"""How fast the queue is: `python -m perf.queue [--database-url URL]`, a table.

Comes in: an empty database (an SQLite file of its own where none is named; PostgreSQL by
`--database-url`, one that may be emptied). Goes out: how long a job waits when nothing else
does, and what a claim takes with an empty table, 100,000 waiting rows, 100,000 finished rows,
and 100,000 that wait for their next try.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.database import jobs, metadata, now_s, open_database, transaction
from dicom_gateway.jobs import JobQueue, JobRun, Worker
from dicom_gateway.jobs.owner import this_process
from dicom_gateway.observe import set_up_logging
from dicom_gateway.records import Priority, Result
from perf.measure import describe_machine

ROWS = 100_000
CLAIMS = 200
STARTS = 100
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


def claim_ms(engine: sa.Engine, folder: Path) -> float:
    """The median of claims that each find one job more than there was."""
    queue, me, took = JobQueue(engine, folder), this_process(), []
    for number in range(CLAIMS):
        with transaction(engine) as connection:
            fresh = rows(1, 10 * ROWS + number, created_at_s=0.0)
            connection.execute(jobs.insert(), fresh)
        started = time.perf_counter()
        job = queue.claim(me)
        took.append(time.perf_counter() - started)
        assert job is not None
        queue.finish(job, ())
    return 1000 * statistics.median(took)


def start_ms(engine: sa.Engine, folder: Path) -> list[float]:
    """From the commit of an enqueued job to its start in a worker that had nothing to do."""
    queue = JobQueue(engine, folder)
    began, took = threading.Event(), []
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
                connection.execute(jobs.insert(), rows(1, 20 * ROWS + number))
            committed = time.perf_counter()
            queue.notify()
            began.wait(30)
            took.append(1000 * (at[0] - committed))
            time.sleep(0.05)
    finally:
        worker.stop()
        thread.join()
    return took


def measure(url: str, folder: Path, say: Callable[[str], None] = print) -> None:
    """Prints the table of one database."""
    engine = open_database(url)
    fill(engine, 0)
    starts = sorted(start_ms(engine, folder))
    with transaction(engine) as connection:
        later_s = connection.execute(sa.select(now_s() + 86400)).scalar_one()
    tables: dict[str, dict[str, object]] = {
        "waiting": {},
        "finished": {"state": "delivered"},
        "waiting for their next try": {"not_before_s": later_s},
    }
    fill(engine, 0)
    empty = claim_ms(engine, folder)
    say(f"\n| {engine.dialect.name} | ms | of an empty table's |\n|---|---:|---:|")
    say(f"| enqueue to start when idle, p50 | {starts[len(starts) // 2]:.1f} | |")
    say(f"| enqueue to start when idle, p90 | {starts[len(starts) * 9 // 10]:.1f} | |")
    say(f"| claim, empty table | {empty:.2f} | 1 |")
    for name, values in tables.items():
        fill(engine, ROWS, **values)
        took = claim_ms(engine, folder)
        say(f"| claim, {ROWS:,} rows {name} | {took:.2f} | {took / empty:.2f} |")
    engine.dispose()


def main() -> None:
    """Measures SQLite, and whatever else is named."""
    parser = argparse.ArgumentParser(prog="python -m perf.queue", description=__doc__)
    parser.add_argument("--database-url", action="append", default=[], help="it is emptied")
    chosen = parser.parse_args()
    set_up_logging("json")  # to stderr; the table goes to stdout
    with tempfile.TemporaryDirectory() as folder:
        urls = [f"sqlite:///{folder}/index.sqlite", *chosen.database_url]
        for url in urls:
            measure(url, Path(folder))
    print()
    for name, words in describe_machine().items():
        print(f"- {name}: {words}")


if __name__ == "__main__":
    main()
