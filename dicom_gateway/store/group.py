"""Keep, step 4: one commit for all who want one at the same moment.

In: pieces of work for a connection, from several threads. Out: each one's result, when the
transaction that it was part of is committed. Survives a crash: whatever was returned.

An SQLite database has one writer at a time and syncs its log with every commit. While one
thread commits, the others' work gathers; the next takes all of it into one transaction, each
in a savepoint of its own, so that what one of them stumbles over touches nobody else. A
single association commits at once, as without. PostgreSQL does this by itself, across
connections, so there everybody has a transaction of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa

from dicom_gateway.database import transaction
from dicom_gateway.errors import DatabaseUnavailable, GatewayError

T = TypeVar("T")

MOST_AT_ONCE = 64
"""So long a transaction still ends in some tens of milliseconds."""


class _Entry:
    """One thread's work, and what came of it."""

    def __init__(self, work: Callable[[sa.Connection], Any]) -> None:
        self.work = work
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None

    def try_on(self, connection: sa.Connection) -> None:
        """Runs it in a savepoint; its own troubles are its own."""
        try:
            with connection.begin_nested():
                self.result = self.work(connection)
        except (sa.exc.IntegrityError, GatewayError) as error:
            self.error = error


class GroupCommit:
    """Commits work; safe for several threads.

    Args:
        engine: From `open_database`.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._groups = engine.dialect.name == "sqlite"
        self._waiting: list[_Entry] = []
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def run(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in a transaction; returns when it is committed.

        `work` may be run more than once: where it breaks the transaction of a group, each
        is tried by itself.

        Raises:
            DatabaseUnavailable: as `transaction`.
            sqlalchemy.exc.IntegrityError: `work` met one.
        """
        if not self._groups:
            return self._alone(work)
        entry = _Entry(work)
        with self._lock:
            self._waiting.append(entry)
        with self._turn:
            if not entry.done:
                self._commit_some(entry)
        if entry.error is not None:
            raise entry.error
        result: T = entry.result
        return result

    def _commit_some(self, mine: _Entry) -> None:
        with self._lock:
            others = [one for one in self._waiting if one is not mine][: MOST_AT_ONCE - 1]
            batch = [mine, *others]
            self._waiting = [one for one in self._waiting if one not in batch]
        if len(batch) == 1 or not self._together(batch):
            for one in batch:
                try:
                    one.result, one.error = self._alone(one.work), None
                except Exception as error:  # noqa: BLE001 - raised in the thread whose work it is
                    one.error = error
        for one in batch:
            one.done = True

    def _together(self, batch: list[_Entry]) -> bool:
        """False where nothing was committed and each must be tried by itself."""
        try:
            with transaction(self._engine) as connection:
                for one in batch:
                    one.try_on(connection)
        except DatabaseUnavailable as error:
            for one in batch:  # it would be no better for each of them
                one.error = error
        except Exception:  # noqa: BLE001 - each meets its own error when it is tried by itself
            return False
        return True

    def _alone(self, work: Callable[[sa.Connection], T]) -> T:
        with transaction(self._engine) as connection:
            return work(connection)
