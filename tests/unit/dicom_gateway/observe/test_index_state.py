"""What the index says of how much waits, cheaply, and within bounds where it is in trouble."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.config_delivery import ScuSettings
from dicom_gateway.database import deliveries, jobs, now_s, results, series, transaction
from dicom_gateway.deliver import Entries
from dicom_gateway.errors import Permanent, TritonUnavailable
from dicom_gateway.jobs import JobQueue
from dicom_gateway.jobs.owner import this_process
from dicom_gateway.observe.index_state import (
    OPEN_SERIES,
    UNENDED_JOBS,
    IndexWatch,
    read_state,
    undelivered,
)
from dicom_gateway.records import DeliveryState, JobState
from tests.support.dicom import a_ct_series, an_arrival
from tests.support.gateway import a_store
from tests.support.jobs import a_finished_job, a_job

_MANY = 4000


def test_an_empty_index_has_nothing_that_waits(engine: sa.Engine) -> None:
    """And the oldest of nothing is no age."""
    state = read_state(engine, ["pacs"])
    assert (state.receiving.count, state.receiving.oldest_age_s) == (0, 0.0)
    assert state.jobs == {}
    assert state.deliveries == {}
    assert read_state(engine, []) == state


def test_series_that_are_not_decided_are_counted(tmp_path: Path) -> None:
    """One of two instances is one series."""
    with a_store(tmp_path) as keeping:
        for ds in a_ct_series(frames=2):
            keeping.store.keep(an_arrival(ds))
        with transaction(keeping.engine) as connection:
            connection.execute(series.update().values(last_arrival_at_s=now_s() - 100))
        state = read_state(keeping.engine, [])
    assert state.receiving.count == 1
    assert state.receiving.oldest_age_s >= 100


def test_jobs_and_deliveries_are_counted_by_what_they_wait_for(
    engine: sa.Engine, queue: JobQueue, tmp_path: Path
) -> None:
    """Each with the age of the oldest; what has been delivered isn't there."""
    finished, _ = a_finished_job(queue, engine, tmp_path, "pacs", "archive")
    entries = Entries(engine, tmp_path, ScuSettings())
    delivery = entries.claim("archive")
    assert delivery is not None
    assert delivery.pipeline == "lung_ct"
    entries.delivered(delivery, "accepted")
    for error in (TritonUnavailable("away"), Permanent("broken", code="missing_slices"), None):
        a_job(queue, engine, tmp_path)
        job = queue.claim(this_process())
        assert job is not None
        if isinstance(error, TritonUnavailable):
            queue.retry_later(job, error)
        elif error is not None:
            queue.fail(job, error)
    a_job(queue, engine, tmp_path)
    with transaction(engine) as connection:
        connection.execute(
            jobs.update().where(jobs.c.job_id == finished.job_id).values(created_at_s=now_s() - 50)
        )
        connection.execute(deliveries.update().values(created_at_s=now_s() - 40))

    state = read_state(engine, ["pacs", "archive"])

    assert {key: some.count for key, some in state.jobs.items()} == {
        ("lung_ct", JobState.DELIVERING, ""): 1,
        ("lung_ct", JobState.WAITING, "triton_unavailable"): 1,
        ("lung_ct", JobState.WAITING, ""): 1,
        ("lung_ct", JobState.RUNNING, ""): 1,
        ("lung_ct", JobState.FAILED, "missing_slices"): 1,
    }
    assert state.jobs["lung_ct", JobState.DELIVERING, ""].oldest_age_s >= 50
    assert set(state.deliveries) == {("pacs", DeliveryState.WAITING)}
    assert state.deliveries["pacs", DeliveryState.WAITING].oldest_age_s >= 40


def test_no_query_reads_what_has_ended(engine: sa.Engine, queue: JobQueue, tmp_path: Path) -> None:
    """The plans go by an index, also where nearly all rows are delivered ones."""
    a_finished_job(queue, engine, tmp_path, "pacs")
    _fill_with_delivered(engine)
    for query in (OPEN_SERIES, UNENDED_JOBS, undelivered(["pacs"])):
        plan = _plan(engine, query)
        assert "ix_" in plan, plan
        assert "Seq Scan" not in plan, plan
        assert "SCAN " not in plan, plan


def _fill_with_delivered(engine: sa.Engine) -> None:
    with transaction(engine) as connection:
        for table, change in (
            (jobs, {"state": "delivered", "unique_key": "", "job_id": ""}),
            (results, {"sop_instance_uid": "", "job_id": ""}),
            (deliveries, {"state": "delivered", "sop_instance_uid": "", "job_id": ""}),
        ):
            one = dict(connection.execute(sa.select(table)).mappings().first() or {})
            one.pop("id", None)
            rows = [one | {key: v or str(n) for key, v in change.items()} for n in range(_MANY)]
            connection.execute(table.insert(), rows)
        rows = [
            {
                "series_instance_uid": str(number),
                "called_ae_title": "LUNG",
                "calling_ae_title": "CT",
                "study_instance_uid": "1",
                "modality": "CT",
                "state": "decided",
                "reasons": "",
                "last_arrival_at_s": 0.0,
                "broken_off": False,
                "renewable": False,
            }
            for number in range(_MANY)
        ]
        connection.execute(series.insert(), rows)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":  # SQLite has no statistics unless it is asked
            connection.exec_driver_sql("ANALYZE")


def _plan(engine: sa.Engine, query: sa.Select[tuple[object, ...]]) -> str:
    text = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
    how = "EXPLAIN " if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(how + text.replace("%", "%%")).all()
    return "\n".join(str(row[-1]) for row in rows)


def test_two_who_ask_soon_after_each_other_cost_as_one(
    engine: sa.Engine, queue: JobQueue, tmp_path: Path
) -> None:
    """The second gets the same answer, also where something has changed meanwhile."""
    watch = IndexWatch(engine, ["pacs"], fresh_s=3600.0)
    first = watch.state()
    assert first is not None
    a_job(queue, engine, tmp_path)
    assert watch.state() is first
    impatient = IndexWatch(engine, ["pacs"], fresh_s=0.0)
    assert impatient.state() is not impatient.state()


def test_an_index_that_says_nothing_is_waited_for_a_moment_only(tmp_path: Path) -> None:
    """Here all of its connections are taken; once one is free, it is asked again."""
    engine = sa.create_engine(
        f"sqlite:///{tmp_path}/index.sqlite", pool_size=1, max_overflow=0, pool_timeout=0.5
    )
    watch = IndexWatch(engine, [], fresh_s=0.0, patience_s=0.01)
    with engine.connect():
        assert watch.state() is None
    engine.dispose()


def test_an_index_that_is_away_is_none_and_comes_back(tmp_path: Path) -> None:
    """A file that is no database in its place."""
    with a_store(tmp_path) as keeping:
        watch = IndexWatch(keeping.engine, [], fresh_s=0.0, patience_s=60.0)
        assert watch.state() is not None
        keeping.engine.dispose()
        for path in tmp_path.glob("index.sqlite*"):
            path.rename(tmp_path / f"kept-{path.name}")
        (tmp_path / "index.sqlite").write_bytes(b"no database" * 1000)
        assert watch.state() is None
        keeping.engine.dispose()
        for path in tmp_path.glob("index.sqlite*"):
            path.unlink()
        for path in tmp_path.glob("kept-*"):
            path.rename(tmp_path / path.name.removeprefix("kept-"))
        assert watch.state() is not None
