"""The index: schema, settings of SQLite, its clock, and what a writer sees of another."""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from dicom_gateway import migrations
from dicom_gateway.database import (
    metadata,
    now_s,
    open_database,
    proof_requests,
    reading,
    series,
    transaction,
)
from dicom_gateway.errors import ConfigurationError, DatabaseUnavailable
from tests.support.databases import an_empty_index
from tests.support.processes import free_port

A_SERIES = {
    "series_instance_uid": "1.2.3",
    "called_ae_title": "LUNG",
    "calling_ae_title": "SENDER",
    "study_instance_uid": "1.2",
    "modality": "CT",
    "state": "receiving",
    "reasons": "",
    "last_arrival_at_s": 0.0,
}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """A new index."""
    opened = open_database(f"sqlite:///{tmp_path}/below/index.sqlite")
    yield opened
    opened.dispose()


def test_the_migrations_make_the_tables_that_the_code_uses(engine: sa.Engine) -> None:
    """Nothing is missing and nothing is left over."""
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})

        assert compare_metadata(context, metadata) == []


def test_the_migrations_make_the_same_tables_on_postgresql(postgresql_url: str) -> None:
    """One chain for both databases."""
    with an_empty_index(postgresql_url) as opened, opened.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})

        assert compare_metadata(context, metadata) == []


def test_an_index_of_an_early_development_state_is_put_right(tmp_path: Path) -> None:
    """The order of a claim's columns, and what was asked for a proof that is still to come."""
    url = f"sqlite:///{tmp_path}/index.sqlite"
    engine = sa.create_engine(url)
    config = Config()
    folder = Path(migrations.__file__).parent
    config.set_main_option("script_location", str(folder))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0007_proof_of_arrival")
        connection.exec_driver_sql("DROP INDEX ix_jobs_claim")
        connection.exec_driver_sql("CREATE INDEX ix_jobs_claim ON jobs (state, priority)")
        connection.exec_driver_sql(
            "INSERT INTO deliveries (id, job_id, sop_instance_uid, destination, state, attempts, "
            "created_at_s, not_before_s, proof_uid) "
            "VALUES (7, 'a', '1.2.3', 'pacs', 'sent', 1, 0, 0, '2.25.5')"
        )
    engine.dispose()

    opened = open_database(url)
    with reading(opened) as connection:
        found = {
            one["name"]: one["column_names"] for one in sa.inspect(connection).get_indexes("jobs")
        }
        asked = connection.execute(sa.select(proof_requests)).all()
    opened.dispose()

    assert found["ix_jobs_claim"] == ["state", "priority", "not_before_s", "created_at_s"]
    assert asked == [("2.25.5", 7)]


def test_what_an_association_brought_is_found_by_an_index(engine: sa.Engine) -> None:
    """It is asked at the end of each, among everything that is kept."""
    with engine.begin() as connection:
        (plan,) = connection.exec_driver_sql(
            "EXPLAIN QUERY PLAN SELECT instance_id FROM arrivals WHERE association_id = 'a'"
        )

    assert "USING INDEX" in plan.detail


def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    """An index that is up to date is not touched."""
    url = f"sqlite:///{tmp_path}/index.sqlite"
    first = open_database(url)
    with transaction(first) as connection:
        connection.execute(series.insert().values(**A_SERIES))
    first.dispose()

    second = open_database(url)
    with transaction(second) as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(series)).scalar_one()
    second.dispose()

    assert count == 1


def test_a_commit_survives_a_power_cut(engine: sa.Engine) -> None:
    """WAL with synchronous=FULL (2): the log is synced with each commit."""
    with transaction(engine) as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert settings == ["wal", 2, 1]


def test_the_clock_is_the_database_s(engine: sa.Engine) -> None:
    """Seconds since the epoch, with fractions, and it moves on."""
    readings = []
    for _ in range(2):
        with transaction(engine) as connection:
            readings.append(connection.execute(sa.select(now_s())).scalar_one())
        time.sleep(0.01)

    assert abs(readings[0] - time.time()) < 60
    assert readings[1] > readings[0]


def test_an_exception_rolls_back(engine: sa.Engine) -> None:
    """Half a transaction is none."""

    def stumble() -> None:
        with transaction(engine) as connection:
            connection.execute(series.insert().values(**A_SERIES))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stumble()
    with transaction(engine) as connection:
        assert connection.execute(sa.select(series)).all() == []


def test_a_second_row_with_the_same_key_is_the_room_s_to_interpret(engine: sa.Engine) -> None:
    """Constraint violations pass through."""
    with transaction(engine) as connection:
        connection.execute(series.insert().values(**A_SERIES))

    with pytest.raises(IntegrityError), transaction(engine) as connection:
        connection.execute(series.insert().values(**A_SERIES))


def test_readers_who_become_writers_take_turns(engine: sa.Engine) -> None:
    """Eight threads that read, think and write back: no update is lost, nobody is refused."""
    with transaction(engine) as connection:
        connection.execute(series.insert().values(**A_SERIES))
    failures: list[BaseException] = []

    def count_up() -> None:
        try:
            for _ in range(10):
                with transaction(engine) as connection:
                    reading = connection.execute(sa.select(series.c.last_arrival_at_s)).scalar_one()
                    time.sleep(0.0005)
                    connection.execute(series.update().values(last_arrival_at_s=reading + 1))
        except DatabaseUnavailable as failure:
            failures.append(failure)

    threads = [threading.Thread(target=count_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    with transaction(engine) as connection:
        assert connection.execute(sa.select(series.c.last_arrival_at_s)).scalar_one() == 80


def test_a_locked_index_is_retryable(tmp_path: Path) -> None:
    """Another process holds the write lock: it is told as an index that does not answer."""
    path = tmp_path / "index.sqlite"
    engine = open_database(f"sqlite:///{path}")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with engine.connect() as connection:
        connection.rollback()
    sa.event.listen(engine, "connect", _impatient)
    engine.dispose()
    try:
        with pytest.raises(DatabaseUnavailable, match="tried again"), transaction(engine):
            pass
    finally:
        holder.close()
        engine.dispose()


def test_a_look_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    """Somebody holds the write lock: what was committed before is seen all the same."""
    path = tmp_path / "index.sqlite"
    engine = open_database(f"sqlite:///{path}")
    sa.event.listen(engine, "connect", _impatient)
    engine.dispose()
    with transaction(engine) as connection:
        connection.execute(series.insert().values(**A_SERIES))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    holder.execute("DELETE FROM series")
    try:
        with reading(engine) as connection:
            assert connection.execute(sa.select(series.c.modality)).scalars().all() == ["CT"]
    finally:
        holder.close()
        engine.dispose()


def test_a_connection_that_was_read_with_writes_again(tmp_path: Path) -> None:
    """What a look says of itself ends with it: the next writer takes the lock at once."""
    engine = open_database(f"sqlite:///{tmp_path}/index.sqlite", connections=1)
    begun: list[str] = []
    sa.event.listen(
        engine,
        "before_cursor_execute",
        lambda _c, _cur, statement, *_rest: begun.append(statement),
    )
    with reading(engine):
        pass
    with transaction(engine):
        pass
    engine.dispose()

    assert [one for one in begun if one.startswith("BEGIN")] == ["BEGIN", "BEGIN IMMEDIATE"]


def test_as_many_threads_ask_at_once_as_were_announced(tmp_path: Path) -> None:
    """Nobody waits for a connection of the pool."""
    engine = open_database(f"sqlite:///{tmp_path}/index.sqlite", connections=30)
    with ExitStack() as looks:
        for _ in range(30):
            connection = looks.enter_context(reading(engine))
            assert connection.execute(sa.select(sa.func.count()).select_from(series)).scalar() == 0
    engine.dispose()


@pytest.mark.parametrize("ask", [transaction, reading])
def test_an_exhausted_pool_is_retryable(tmp_path: Path, ask: Any) -> None:
    """Everybody else holds a connection: as if the index did not answer."""
    engine = sa.create_engine(
        f"sqlite:///{tmp_path}/index.sqlite", pool_size=1, max_overflow=0, pool_timeout=0.05
    )
    with (
        engine.connect(),
        pytest.raises(DatabaseUnavailable, match="tried again"),
        ask(engine),
    ):
        pass
    engine.dispose()


@pytest.mark.parametrize("ask", [transaction, reading])
def test_a_damaged_index_is_told_as_one_that_does_not_answer(tmp_path: Path, ask: Any) -> None:
    """SQLite's own word for it is no operational error."""
    path = tmp_path / "index.sqlite"
    engine = open_database(f"sqlite:///{path}")
    engine.dispose()
    path.write_bytes(b"this is no database" * 1000)

    with pytest.raises(DatabaseUnavailable), ask(engine) as connection:
        connection.execute(sa.select(series)).all()
    engine.dispose()


def _impatient(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA busy_timeout=10")


@pytest.mark.parametrize("content", [b"this is no database" * 100, None])
def test_an_index_that_cannot_be_opened_is_named(tmp_path: Path, content: bytes | None) -> None:
    """A damaged file, or a folder in its place."""
    path = tmp_path / "index.sqlite"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)

    with pytest.raises(DatabaseUnavailable, match=r"index\.sqlite can't be opened \(.+\); make"):
        open_database(f"sqlite:///{path}")


def test_an_index_whose_folder_cannot_be_made_is_named(tmp_path: Path) -> None:
    """With the system's reason."""
    (tmp_path / "file").touch()

    with pytest.raises(DatabaseUnavailable, match=r"can't be opened \(Not a directory\)"):
        open_database(f"sqlite:///{tmp_path}/file/below/index.sqlite")


def test_a_postgresql_that_is_away_is_named_with_its_reason() -> None:
    """In its own words, and without the password."""
    with pytest.raises(DatabaseUnavailable) as error:
        open_database(f"postgresql+psycopg://me:secret@127.0.0.1:{free_port()}/tritome")

    assert "Connection refused); start that PostgreSQL" in str(error.value)
    assert "secret" not in str(error.value)


def test_an_index_of_a_newer_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Somebody went back to an older version: it is told, and the index stays as it is."""
    url = f"sqlite:///{tmp_path}/index.sqlite"
    engine = open_database(url)
    with transaction(engine) as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999_later'")
    engine.dispose()

    with pytest.raises(ConfigurationError, match="by a newer tritome than this one"):
        open_database(url)


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain gateway comes without that of PostgreSQL."""
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(ConfigurationError, match=r"pip install 'tritome\[postgres\]'"):
        open_database("postgresql+psycopg://db/tritome")
