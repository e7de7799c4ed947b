"""Both databases for the tests: a fresh SQLite file, or a fresh PostgreSQL database.

Comes in: a folder. Goes out: a URL for `open_database`. The PostgreSQL server is a private
one in a folder of its own, on a socket only. It refuses to run as root, so there it runs as
somebody else.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from dicom_gateway.database import metadata, open_database
from tests.support.processes import needs
from tests.support.small_disk import on_a_small_disk


@contextmanager
def a_postgresql() -> Iterator[str]:
    """Runs a private PostgreSQL while the block lasts; gives an SQLAlchemy URL."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    folder = Path(tempfile.mkdtemp(prefix="tritome-pg-", dir="/tmp"))
    try:
        user = _other_user(folder)
        data = folder / "data"
        _run([initdb, "-D", data, "-U", "tritome", "--auth=trust", "-E", "UTF8"], user)
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        _run([pg_ctl, "-D", data, "-w", "-l", folder / "log", "-o", options, "start"], user)
        try:
            yield f"postgresql+psycopg://tritome@/postgres?host={folder}"
        finally:
            _run([pg_ctl, "-D", data, "-m", "immediate", "stop"], user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Postgresql:
    """A private PostgreSQL that a test may kill and start again; a context manager."""

    def __enter__(self) -> Postgresql:
        self._folder = Path(tempfile.mkdtemp(prefix="tritome-pg-", dir="/tmp"))
        self._user = _other_user(self._folder)
        self._data = self._folder / "data"
        self.url = f"postgresql+psycopg://tritome@/postgres?host={self._folder}"
        initdb = [_program("initdb"), "-D", self._data, "-U", "tritome", "--auth=trust"]
        _run([*initdb, "-E", "UTF8"], self._user)
        self.start()
        return self

    def start(self) -> None:
        """Starts it; what a killed one left may be in its way for a moment."""
        options = f"-k {self._folder} -c listen_addresses='' -c fsync=off"
        command = [_program("pg_ctl"), "-D", self._data, "-w", "-l", self._folder / "log"]
        for attempt in range(50):
            try:
                _run([*command, "-o", options, "start"], self._user)
            except subprocess.CalledProcessError:
                assert attempt < 49, (self._folder / "log").read_text()
                time.sleep(0.2)
            else:
                return

    def kill(self) -> None:
        """`kill -9` of the postmaster; its children end when they notice."""
        os.kill(int((self._data / "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)

    def __exit__(self, *_: object) -> None:
        try:
            stop = [_program("pg_ctl"), "-D", self._data, "-m", "immediate", "stop"]
            _run(stop, self._user)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def a_postgresql_on_a_small_disk(size_bytes: int) -> Iterator[tuple[str, Path]]:
    """Runs one whose tables lie on a disk of that size; its write-ahead log lies elsewhere.

    Only root may make the disk and then be somebody else on it, as PostgreSQL wants; the test
    is skipped for others.

    Yields:
        An SQLAlchemy URL, and the disk as this process can see it.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can give PostgreSQL a small disk of its own")
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    folder = Path(tempfile.mkdtemp(prefix="tritome-pg-", dir="/tmp"))
    disk, data, wal = folder / "disk", folder / "disk" / "data", folder / "wal"
    try:
        user = str(_other_user(folder))
        entry = pwd.getpwnam(user)
        wal.mkdir()
        os.chown(wal, entry.pw_uid, entry.pw_gid)
        as_user = " ".join(_as_user(user))
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        script = (
            f"{as_user} {initdb} -D {data} -X {wal} -U tritome --auth=trust -E UTF8 && "
            f'exec {as_user} {pg_ctl} -D {data} -w -l {folder}/log -o "{options}" start'
        )
        _run([*on_a_small_disk(disk, size_bytes), "sh", "-c", script], None)
        pid = int((folder / ".s.PGSQL.5432.lock").read_text().splitlines()[0])
        try:
            yield (
                f"postgresql+psycopg://tritome@/postgres?host={folder}",
                Path(f"/proc/{pid}/root{disk}"),
            )
        finally:
            os.kill(pid, signal.SIGQUIT)
            psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def an_empty_index(url: str) -> Iterator[sa.Engine]:
    """Opens the database at `url` and empties it."""
    engine = open_database(url)
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    try:
        yield engine
    finally:
        engine.dispose()


def _program(name: str) -> str:
    """Where a program of PostgreSQL is; Debian keeps them where no PATH looks.

    Raises:
        MissingPeer: it is not installed.
    """
    places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which(name, path=os.pathsep.join(places))
    return found or needs(name, package="postgresql")


def _other_user(folder: Path) -> str | None:
    """PostgreSQL refuses to run as root; in a container the tests often are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        return name
    return None


def _as_user(name: str) -> list[str]:
    entry = pwd.getpwnam(name)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]


def _run(command: list[str | Path], user: str | None) -> None:
    # By a program, not by subprocess's `user`: that forks, and gRPC, which other tests have used
    # in this process, aborts now and then in what was forked. Without it nothing is forked.
    as_user = [] if user is None else _as_user(user)
    subprocess.run(
        [*as_user, *(str(part) for part in command)],
        check=True,
        cwd="/",
        stdin=subprocess.DEVNULL,
        # A file, not a pipe: the server inherits it and would keep a pipe open.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
