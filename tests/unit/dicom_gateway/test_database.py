"""The index: schema, settings of SQLite, its clock, and what a writer sees of another."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import IntegrityError

from dicom_gateway.database import metadata, now_s, open_database, series, transaction
from dicom_gateway.errors import DatabaseUnavailable

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

    with pytest.raises(DatabaseUnavailable, match=r"index\.sqlite can't be opened"):
        open_database(f"sqlite:///{path}")
