"""Wakes the workers when a job may be due, in this process and, on PostgreSQL, in the others.

In: `notify`, and PostgreSQL's notifications. Out: sleepers that go on. Nothing is kept: who
misses it looks once a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dicom_gateway.observe.logging import get_logger

CHANNEL = "tritome_jobs"
"""Of PostgreSQL's LISTEN and NOTIFY."""

_LISTEN_S = 1.0
_AGAIN_S = 1.0


class News:
    """A bell that is never missed: who sleeps says which ring was heard last."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def notify(self) -> None:
        """Wakes everybody."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait(self, timeout_s: float, seen: int) -> int:
        """Sleeps until `notify` was called after news `seen`, at most `timeout_s`.

        Returns:
            The number of the newest news, for the next call. 0 before any.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._count != seen, timeout_s)
            return self._count


def tell_other_processes(connection: sa.Connection) -> None:
    """Wakes the listeners of all processes when the transaction is committed.

    SQLite has no such thing; there other processes find the job at their next look.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_notify(CHANNEL, "")))


class Listener:
    """Passes on what other processes announce; `run` returns when `stop` was called.

    Args:
        engine: Of a PostgreSQL.
        notify: Called for each announcement, and whenever one may have been missed.
    """

    def __init__(self, engine: sa.Engine, notify: Callable[[], None]) -> None:
        self._engine = engine
        self._notify = notify
        self._stopping = threading.Event()
        self._log = get_logger(room="jobs")

    def run(self) -> None:
        """Listens until `stop`, and again after PostgreSQL was away."""
        import psycopg  # noqa: PLC0415 - of the extra `postgres`; who has SQLite lacks it

        away = False
        while not self._stopping.is_set():
            try:
                with self._engine.connect() as connection:
                    connection.execution_options(isolation_level="AUTOCOMMIT")
                    connection.exec_driver_sql(f"LISTEN {CHANNEL}")
                    driver = connection.connection.driver_connection
                    assert isinstance(driver, psycopg.Connection)
                    connection.detach()  # a connection that listens goes to nobody else
                    away = False
                    self._notify()  # for what came while nobody listened
                    while not self._stopping.is_set():
                        for _ in driver.notifies(timeout=_LISTEN_S, stop_after=1):
                            self._notify()
            except (DBAPIError, PoolTimeoutError, psycopg.Error) as error:
                if not away:
                    self._log.warning("not_listening", reason=type(error).__name__)
                away = True
                self._stopping.wait(_AGAIN_S)

    def stop(self) -> None:
        """Asks it to end; it does within a second."""
        self._stopping.set()
