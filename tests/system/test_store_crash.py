"""`kill -9` at random moments of intake: the sender's ledger and the store agree, bytes and all."""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_gateway.database import arrivals, instances, open_database, reading
from dicom_gateway.store.check import check
from dicom_gateway.store.envelope import read_head
from dicom_gateway.store.rebuild import rebuild
from tests.support.databases import a_postgresql, an_empty_index
from tests.support.intake import Entry, Sender, an_intake, sending
from tests.support.patience import until
from tests.support.processes import needs

pytestmark = pytest.mark.system
KILLS = int(os.environ.get("TRITOME_KILLS", "8"))
LONGEST_S = 0.3
"""Some dozens of instances go in within this time: kills fall all over their way."""


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    """One private PostgreSQL for these tests."""
    with a_postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty index, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/index/index.sqlite"
    found: str = request.getfixturevalue("postgresql_url")
    with an_empty_index(found):
        return found


def rows_of(url: str) -> list[tuple[str, str, str, str, str]]:
    """SOP Instance UID, digest, called, calling, path, in the order of arrival."""
    engine = open_database(url)
    try:
        with reading(engine) as connection:
            return [
                tuple(row)
                for row in connection.execute(
                    sa.select(
                        instances.c.sop_instance_uid,
                        instances.c.sha256,
                        arrivals.c.called_ae_title,
                        arrivals.c.calling_ae_title,
                        instances.c.path,
                    )
                    .join(arrivals, arrivals.c.instance_id == instances.c.id)
                    .order_by(instances.c.id)
                )
            ]
    finally:
        engine.dispose()


def test_kill_9_loses_nothing_that_was_acknowledged(url: str, tmp_path: Path) -> None:
    """Every 0x0000 has its row and its bytes; what was cut off is whole after one repetition."""
    rng = random.Random(20261120)
    folder = tmp_path / "store"
    with an_intake(folder, url) as intake:
        senders = [Sender(number, intake.port) for number in range(1, 4)]
        for _ in range(KILLS):
            intake.start()
            before = sum(len(sender.ledger) for sender in senders)
            with sending(senders):
                until(lambda: sum(len(s.ledger) for s in senders) > before)  # noqa: B023
                time.sleep(rng.uniform(0, LONGEST_S))
                intake.kill()
        ledger = [entry for sender in senders for entry in sender.ledger]
        assert len(ledger) >= KILLS
        kept = {row[:4]: row[4] for row in rows_of(url)}
        for entry in ledger:
            path = kept[_key(entry)]
            with (folder / path).open("rb") as file:
                read_head(file)
                assert hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256

        intake.start()
        for sender in senders:
            sender.send_unanswered()
        ledger = [entry for sender in senders for entry in sender.ledger]
        intake.kill()

    rows = rows_of(url)
    assert {row[:4] for row in rows} == {_key(entry) for entry in ledger}
    assert len(rows) == len(ledger)
    assert {folder / row[4] for row in rows} == set((folder / "instances").rglob("*.dcm"))
    for sender in senders:
        mine = [row[0] for row in rows if row[3] == sender.calling_ae_title]
        assert sorted(mine) == sorted(entry.sop_instance_uid for entry in sender.ledger)


def test_the_index_that_a_killed_gateway_had_is_made_again_from_its_files(
    url: str, tmp_path: Path
) -> None:
    """The same instances, AE titles and order of arrival; `check` finds nothing to say."""
    folder = tmp_path / "store"
    with an_intake(folder, url) as intake:
        senders = [Sender(1, intake.port), Sender(2, intake.port, called_ae_title="LIVER")]
        for _ in range(2):
            intake.start()
            before = sum(len(sender.ledger) for sender in senders)
            with sending(senders):
                until(lambda: sum(len(s.ledger) for s in senders) > before + 10)  # noqa: B023
                intake.kill()
        intake.start()
        for sender in senders:
            sender.send_unanswered()
    had = rows_of(url)

    with an_empty_index(f"sqlite:///{tmp_path}/again.sqlite") as engine:
        done = rebuild(engine, folder)
        checked = check(engine, folder)
    has = rows_of(f"sqlite:///{tmp_path}/again.sqlite")

    assert done.added == len(had) == checked.rows
    assert checked.agrees
    for sender in senders:
        assert [row for row in has if row[3] == sender.calling_ae_title] == [
            row for row in had if row[3] == sender.calling_ae_title
        ]


def test_file_then_folder_then_index_then_answer(url: str, tmp_path: Path) -> None:
    """In this order, for every instance, as the kernel saw it."""
    folder, trace = tmp_path / "store", tmp_path / "trace"
    calls = "openat,write,fsync,fdatasync,rename,renameat,renameat2,sendto,sendmsg,mkdir"
    strace = needs("strace", package="strace")
    prefix = (strace, "-f", "-qq", "-y", "-s", "64", "-e", f"trace={calls}", "-o", str(trace))
    with an_intake(folder, url, prefix=prefix) as intake:
        assert intake.nursery.stdout is not None
        intake.pid = int(intake.nursery.stdout.readline())
        sender = Sender(1, intake.port)
        sender.send_some([sender.next_instance() for _ in range(1)])
        first = len(sender.ledger)
        sender.send_some(iter([sender.next_instance()]))
    assert (first, len(sender.ledger)) == (1, 2), "both were acknowledged"

    lines = [line.split(None, 1)[1] for line in trace.read_text(errors="replace").splitlines()]
    places = [
        number for number, line in enumerate(lines) if re.match(r'rename.*\.part".*\.dcm"', line)
    ]
    assert len(places) == 2
    for renamed in places:
        (part,) = re.findall(r"incoming/(\w+\.part)", lines[renamed])
        target = Path(re.findall(r'"([^"]+\.dcm)"', lines[renamed])[0])
        file_synced = _last(lines, rf"fsync\(\d+<.*{part}>", 0, renamed)
        written = _last(lines, rf"write\(\d+<.*{part}>", 0, renamed)
        folder_synced = _next(lines, rf"fsync\(\d+<{re.escape(str(target.parent))}>", renamed)
        committed = (
            _next(lines, r"(fsync|fdatasync)\(\d+<.*index\.sqlite-wal>", folder_synced)
            if url.startswith("sqlite")
            else _next(lines, r"sendto\(\d+<socket.*COMMIT", folder_synced)
        )
        # P-DATA-TF is PDU type 4 (PS3.8 9.3.1).
        answered = _next(lines, r'sendto\(\d+<.*>, "\\4\\0', committed)
        assert written < file_synced < renamed < folder_synced < committed < answered
        assert not any(
            re.match(r'sendto\(\d+<.*>, "\\4\\0', line) for line in lines[written:committed]
        )


def _last(lines: list[str], pattern: str, begin: int, end: int) -> int:
    return max(n for n in range(begin, end) if re.match(pattern, lines[n]))


def _next(lines: list[str], pattern: str, begin: int) -> int:
    return min(n for n in range(begin + 1, len(lines)) if re.match(pattern, lines[n]))


def _key(entry: Entry) -> tuple[str, str, str, str]:
    return (
        entry.sop_instance_uid,
        entry.sha256,
        entry.called_ae_title,
        entry.calling_ae_title,
    )
