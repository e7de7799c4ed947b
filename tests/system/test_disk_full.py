"""The disk is full, at any byte: refused, nothing partial, and well again when there is room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dicom_gateway.database import instances, open_database, reading
from dicom_gateway.errors import DatabaseUnavailable, OutOfResources
from dicom_gateway.store import InstanceStore
from dicom_gateway.store.check import check
from tests.support.databases import a_postgresql, a_postgresql_on_a_small_disk, an_empty_index
from tests.support.dicom import a_ct_series, an_arrival
from tests.support.intake import ROOT, Sender, an_intake
from tests.support.patience import until
from tests.support.processes import needs
from tests.support.small_disk import on_a_small_disk

pytestmark = pytest.mark.system
PAGE_BYTES = 4096
STEPS = int(os.environ.get("TRITOME_FULL_STEPS", "60"))

_PROGRAM = """
import json, os, sys
from pathlib import Path
import sqlalchemy as sa
from dicom_gateway.database import instances, open_database, reading
from dicom_gateway.errors import ConfigurationError, DatabaseUnavailable, OutOfResources
from dicom_gateway.store import InstanceStore
from dicom_gateway.store.check import check
from tests.support.dicom import a_ct_series, an_arrival
disk, url, steps, ballast_from = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]

def begun(make):
    while True:
        try:
            return make()
        except (DatabaseUnavailable, ConfigurationError):
            assert ballast_from == "strace"

engine = begun(lambda: open_database(url.replace("DISK", str(disk))))
store = begun(lambda: InstanceStore(disk / "store", engine, 0))
template = a_ct_series(1, rows=64, columns=64)[0]
ballast = disk / "ballast"

def an_object(number):
    template.SOPInstanceUID = template.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number}"
    return an_arrival(template)

def rows():
    columns = sa.select(instances.c.sop_instance_uid, instances.c.path)
    with reading(engine) as connection:
        return dict(connection.execute(columns).all())

def fill(free_bytes):
    # Whole pages, as the file system has them; the last byte that fits is taken.
    with ballast.open("wb") as file:
        left = os.statvfs(disk)
        size = left.f_bavail * left.f_frsize - free_bytes
        if size > 0:
            os.posix_fallocate(file.fileno(), 0, size)

def tried(number):
    try:
        store.keep(an_object(number))
    except OutOfResources as error:
        return "refused", str(error)
    except DatabaseUnavailable as error:
        return "index", str(error) + " / " + str(error.__cause__)[:200]
    return "kept", ""

story = []
for number in range(steps):
    if ballast_from == "tmpfs":
        fill(number * 4096)
    how, why = tried(number)
    said = rows()
    files = [str(p.relative_to(disk / "store")) for p in disk.rglob("instances/*/*.dcm")]
    parts = [p.name for p in (disk / "store").rglob("*.part")]
    if ballast_from == "tmpfs":
        ballast.unlink()
    again, _ = tried(number)
    story.append({
        "how": how, "why": why, "again": again, "parts": parts,
        "known": f"1.2.{number}" in said, "strays": sorted(set(files) - set(said.values())),
        "lost": sorted(set(said.values()) - set(files)),
    })
found = check(engine, disk / "store")
told = json.dumps({"story": story, "agrees": found.agrees, "rows": found.rows}).encode() + b"\\n"
while told:
    try:
        told = told[os.write(1, told):]
    except OSError:
        assert ballast_from == "strace"
"""


def run(prefix: tuple[str, ...], disk: Path, url: str, steps: int, how: str) -> dict[str, Any]:
    """Runs the program above; gives what it tells."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _PROGRAM, str(disk), url, str(steps), how],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture(scope="module")
def postgresql_url() -> Iterator[str]:
    """One private PostgreSQL, on another disk than the store."""
    with a_postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """An index, once of each kind; SQLite's is on the small disk."""
    if request.param == "sqlite":
        return "sqlite:///DISK/index.sqlite"
    found: str = request.getfixturevalue("postgresql_url")
    with an_empty_index(found):
        return found


def test_a_full_disk_refuses_and_leaves_nothing_partial(url: str, tmp_path: Path) -> None:
    """ENOSPC after 0, 1, 2, ... pages: 0xA700, no part of a file, no row; then it is kept."""
    disk = tmp_path / "disk"
    told = run(on_a_small_disk(disk, 8 << 20), disk, url, STEPS, "tmpfs")

    hows = [one["how"] for one in told["story"]]
    assert set(hows) <= {"kept", "refused", "index"}
    assert hows[0] != "kept", "with nothing left, nothing can be kept"
    assert hows[-1] == "kept", "the sweep must reach as far as there is room enough"
    for step, one in enumerate(told["story"]):
        assert one["parts"] == [], (step, one)
        assert one["lost"] == [], (step, one)
        assert one["known"] == (one["how"] == "kept"), (step, one)
        assert one["strays"] == [], (step, one)
        assert one["again"] == "kept", (step, one)
    assert told["agrees"]
    assert told["rows"] == STEPS


def test_whatever_call_the_kernel_refuses_nothing_partial_is_left(url: str, tmp_path: Path) -> None:
    """Every so many calls fails with ENOSPC, wherever it comes: files and index still agree."""
    disk = tmp_path / "disk"
    disk.mkdir()
    open_database(url.replace("DISK", str(disk))).dispose()
    strace = needs("strace", package="strace")
    calls = "write,pwrite64,fsync,fdatasync,rename,ftruncate,fallocate"
    fault = f"inject={calls}:error=ENOSPC:when=40+37"
    prefix = (strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", fault)
    told = run(prefix, disk, url, 30, "strace")

    hows = [one["how"] for one in told["story"]]
    assert "kept" in hows
    assert hows.count("kept") < len(hows), "some call must have failed"
    for one in told["story"]:
        assert one["lost"] == []
        assert not (one["how"] == "kept" and not one["known"])
    assert told["agrees"]


def test_a_full_disk_under_postgresql_refuses_and_is_well_again(tmp_path: Path) -> None:
    """Its tables can't grow: no row, no file, no part of one; with room again all is kept."""
    with a_postgresql_on_a_small_disk(160 << 20) as (url, disk):
        engine = open_database(url)
        store = InstanceStore(tmp_path / "store", engine, 0)
        template = a_ct_series(1, rows=8, columns=8)[0]
        kept: set[str] = set()
        refused = 0

        def keep(number: int) -> None:
            uid = template.SOPInstanceUID = f"1.2.{number}"
            template.file_meta.MediaStorageSOPInstanceUID = uid
            store.keep(an_arrival(template))
            kept.add(uid)

        def rows() -> set[str]:
            with reading(engine) as connection:
                return set(connection.execute(sa.select(instances.c.sop_instance_uid)).scalars())

        keep(0)
        for life in range(1, 4):
            ballast = disk / "ballast"
            with ballast.open("wb") as file:
                left = os.statvfs(disk)
                os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize)
            number = life * 10_000
            while refused < life:
                number += 1
                try:
                    keep(number)
                except (OutOfResources, DatabaseUnavailable):
                    refused += 1
            ballast.unlink()
            files = [path.name for path in (tmp_path / "store" / "instances").rglob("*.dcm")]
            assert rows() == kept
            assert len(files) == len(kept)
            assert not list((tmp_path / "store").rglob("*.part"))
            keep(number)  # the very one that was refused
        assert check(engine, tmp_path / "store").agrees
        engine.dispose()


def test_the_door_answers_a700_and_opens_again_by_itself(tmp_path: Path) -> None:
    """Below the mark every instance is refused; above the second mark they are taken again."""
    disk = tmp_path / "disk"
    with an_intake(
        disk / "store",
        f"sqlite:///{tmp_path}/index.sqlite",
        prefix=on_a_small_disk(disk, 16 << 20),
        min_free_bytes=4 << 20,
        resume_free_bytes=8 << 20,
    ) as intake:
        assert intake.nursery.stdout is not None
        intake.pid = int(intake.nursery.stdout.readline())
        seen = Path(f"/proc/{intake.pid}/root{disk}")
        sender = Sender(1, intake.port, rows=512)

        sender.send_until(lambda: bool(sender.refused))
        assert set(sender.refused) == {0xA700}
        left = os.statvfs(seen)
        assert left.f_bavail * left.f_frsize >= 4 << 20, "results and index keep their reserve"
        assert len(sender.ledger) == len(list(seen.rglob("*.dcm")))
        assert list(seen.rglob("*.part")) == []

        kept = sorted(seen.rglob("*.dcm"))
        for path in kept[:2]:
            path.unlink()  # some room, but less than the second mark asks for
        sender.refused.clear()
        sender.send_some(iter([sender.next_instance()]))
        assert sender.refused == [0xA700]

        for path in kept[2:14]:
            path.unlink()
        before = len(sender.ledger)

        def is_open() -> bool:
            sender.send_some(iter([sender.next_instance()]))
            time.sleep(0.1)
            return len(sender.ledger) > before

        until(is_open, timeout_s=30)
