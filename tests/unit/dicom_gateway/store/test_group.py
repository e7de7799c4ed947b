"""One commit for all who want one at the same moment."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from dicom_gateway.database import completed_by_hand, transaction
from dicom_gateway.errors import BadIdentifier
from dicom_gateway.store.group import GroupCommit
from tests.support.patience import until


def insert(uid: str) -> sa.Insert:
    """A row under a key of its own."""
    return completed_by_hand.insert().values(uid=uid, called_ae_title="LUNG", at_s=0.0)


def uids(engine: sa.Engine) -> set[str]:
    """What is committed."""
    with transaction(engine) as connection:
        return set(connection.execute(sa.select(completed_by_hand.c.uid)).scalars())


class Crowd:
    """Several threads that ask for a commit while another one is under way."""

    def __init__(self, commits: GroupCommit) -> None:
        self._commits = commits
        self._threads: list[threading.Thread] = []
        self.errors: dict[str, Exception] = {}
        self.connections: list[int] = []

    def ask(self, uid: str, *, breaks: Exception | None = None) -> None:
        """One thread more."""

        def work(connection: sa.Connection) -> None:
            self.connections.append(id(connection))
            connection.execute(insert(uid))
            if breaks is not None:
                raise breaks

        def ask() -> None:
            try:
                self._commits.run(work)
            except (IntegrityError, BadIdentifier, ZeroDivisionError) as error:
                self.errors[uid] = error

        thread = threading.Thread(target=ask)
        self._threads.append(thread)
        thread.start()

    def wait_until_all_ask(self, count: int) -> None:
        """So many wait behind the one that commits."""
        until(lambda: len(self._commits._waiting) >= count)

    def join(self) -> None:
        """All have their answer."""
        for thread in self._threads:
            thread.join(60)


def asked_together(engine: sa.Engine, breaks: dict[str, Exception]) -> Crowd:
    """Five threads at once, some of which break."""
    commits = GroupCommit(engine)
    crowd = Crowd(commits)
    with commits._turn:  # as if a commit were under way
        for number in range(5):
            crowd.ask(f"1.{number}", breaks=breaks.get(f"1.{number}"))
        if engine.dialect.name == "sqlite":
            crowd.wait_until_all_ask(5)
    crowd.join()
    return crowd


def test_all_who_wait_are_committed_together(tmp_path: Path, engine: sa.Engine) -> None:
    """On SQLite in one transaction; on PostgreSQL each in its own."""
    crowd = asked_together(engine, {})

    assert uids(engine) == {f"1.{number}" for number in range(5)}
    if engine.dialect.name == "sqlite":
        assert len(set(crowd.connections)) == 1
        assert len(crowd.connections) == 5


def test_who_stumbles_touches_nobody_else(engine: sa.Engine) -> None:
    """An error of the tree, a second row under one key, a mistake in the code: each its own."""
    with transaction(engine) as connection:
        connection.execute(insert("1.3"))
    crowd = asked_together(
        engine, {"1.1": BadIdentifier("no"), "1.2": ZeroDivisionError("a mistake")}
    )

    assert uids(engine) == {"1.0", "1.3", "1.4"}
    assert {uid: type(error) for uid, error in crowd.errors.items()} == {
        "1.1": BadIdentifier,
        "1.2": ZeroDivisionError,
        "1.3": IntegrityError,
    }


def test_one_alone_commits_at_once(engine: sa.Engine) -> None:
    """And its result comes back."""
    uid = GroupCommit(engine).run(
        lambda connection: connection.execute(
            insert("1.9").returning(completed_by_hand.c.uid)
        ).scalar_one()
    )

    assert uid == "1.9"
    assert uids(engine) == {"1.9"}


def test_an_error_alone_is_raised(engine: sa.Engine) -> None:
    """And nothing is committed."""

    def work(connection: sa.Connection) -> None:
        connection.execute(insert("1.9"))
        raise BadIdentifier("no")

    with pytest.raises(BadIdentifier):
        GroupCommit(engine).run(work)
    assert uids(engine) == set()
