"""Keeping instances: durable, once, apart where they conflict, and nothing partial."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
import structlog.testing
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless

from dicom_gateway.errors import ConfigurationError, OutOfResources
from tests.support.dicom import CANARY, a_ct_series, an_arrival, encoded
from tests.support.gateway import Keeping, a_store


def kept_files(keeping: Keeping) -> list[Path]:
    """All files but the notes beside them."""
    return [path for path in keeping.files() if path.suffix != ".json"]


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, JPEG2000Lossless])
def test_the_file_holds_the_received_bytes_untouched(tmp_path: Path, syntax: str | None) -> None:
    """A PS3.10 file whose data set is byte for byte what came, which pydicom reads."""
    ds = a_ct_series(1, **({"transfer_syntax_uid": syntax} if syntax else {}))[0]
    with a_store(tmp_path) as keeping:
        instance = keeping.store.keep(an_arrival(ds))

        content = instance.path.read_bytes()
        read = pydicom.dcmread(instance.path)

    assert content.endswith(encoded(ds))
    assert instance.size_bytes == len(content)
    assert read.SOPInstanceUID == ds.SOPInstanceUID == read.file_meta.MediaStorageSOPInstanceUID
    assert read.file_meta.TransferSyntaxUID == ds.file_meta.TransferSyntaxUID
    assert (read.pixel_array == ds.pixel_array).all()


def test_no_received_value_gets_into_a_file_name(tmp_path: Path) -> None:
    """Names are digests: neither UIDs nor anything of a patient."""
    ds = a_ct_series(1)[0]
    with a_store(tmp_path) as keeping:
        path = keeping.store.keep(an_arrival(ds)).path

        relative = path.relative_to(keeping.folder)
        assert relative.match("instances/[0-9a-f][0-9a-f]/*.dcm")
        assert ds.SOPInstanceUID not in str(path)
        assert path.stat().st_mode & 0o077 == 0


def test_the_same_object_twice_is_one_instance(tmp_path: Path) -> None:
    """A sender that repeats itself changes nothing."""
    arrival = an_arrival(a_ct_series(1)[0])
    with a_store(tmp_path) as keeping:
        first = keeping.store.keep(arrival)
        second = keeping.store.keep(arrival)

        assert first == second
        assert keeping.files() == [first.path]
        series = keeping.index.load_series(first.series_instance_uid, "LUNG")
        assert series.instances == (first,)


def test_one_object_for_two_called_ae_titles_is_kept_once_and_belongs_to_both(
    tmp_path: Path,
) -> None:
    """Each called AE title has its own series, on the same file."""
    ds = a_ct_series(1)[0]
    with a_store(tmp_path) as keeping:
        keeping.store.keep(an_arrival(ds, called_ae_title="LUNG"))
        keeping.store.keep(an_arrival(ds, called_ae_title="LIVER"))

        series = [
            keeping.index.load_series(ds.SeriesInstanceUID, title) for title in ("LUNG", "LIVER")
        ]
        assert series[0].instances == series[1].instances
        assert len(kept_files(keeping)) == 1


def test_another_object_under_the_same_uid_is_set_apart_and_reported(tmp_path: Path) -> None:
    """Both are kept; the second is marked, never used, and the log says so without names."""
    ds = a_ct_series(1)[0]
    with a_store(tmp_path) as keeping, structlog.testing.capture_logs() as logs:
        first = keeping.store.keep(an_arrival(ds))
        ds.PatientName = f"{CANARY}^OTHER"
        second = keeping.store.keep(an_arrival(ds))

        assert not first.conflicts
        assert second.conflicts
        assert second.path != first.path
        assert first.path.exists()
        assert second.path.exists()
        series = keeping.index.load_series(first.series_instance_uid, "LUNG")
        assert series.instances == (first,)
    assert [log["log_level"] for log in logs] == ["warning"]
    assert CANARY not in str(logs)


def test_below_the_watermark_nothing_is_written(tmp_path: Path) -> None:
    """The sender hears 0xA700 and there is not a byte of the object."""
    with a_store(tmp_path, min_free_bytes=1 << 60) as keeping:
        with pytest.raises(OutOfResources, match="min-free-bytes"):
            keeping.store.keep(an_arrival(a_ct_series(1)[0]))

        assert keeping.files() == []
        assert keeping.index.open_series() == []


def test_a_disk_that_fills_up_leaves_nothing_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC at the sync: refused for now, the temporary file is gone, no row is written."""
    arrival = an_arrival(a_ct_series(1)[0])
    with a_store(tmp_path) as keeping:

        def is_full(_fd: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", is_full)
            with pytest.raises(OutOfResources, match="No space left on device") as refusal:
                keeping.store.keep(arrival)

        assert refusal.value.status == 0xA700
        assert keeping.files() == []
        assert keeping.index.open_series() == []
        assert keeping.store.keep(arrival).path.exists()


def test_an_index_that_cannot_grow_gives_the_room_of_the_file_back(tmp_path: Path) -> None:
    """SQLITE_FULL at the commit: refused like a full disk, no file stays without a row."""
    frames = a_ct_series(200, rows=4, columns=4)
    with a_store(tmp_path) as keeping:
        keeping.store.keep(an_arrival(frames[0]))

        def may_not_grow(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA max_page_count=1")  # as many as there are

        sa.event.listen(keeping.engine, "connect", may_not_grow)
        keeping.engine.dispose()
        kept = 1
        with pytest.raises(OutOfResources, match="index can't grow") as refusal:
            for ds in frames[1:]:
                keeping.store.keep(an_arrival(ds))
                kept += 1
        assert refusal.value.status == 0xA700
        assert len(kept_files(keeping)) == kept

        sa.event.remove(keeping.engine, "connect", may_not_grow)
        keeping.engine.dispose()
        assert keeping.store.keep(an_arrival(frames[kept])).path.exists()


def test_a_file_too_large_for_the_process_leaves_nothing_partial(tmp_path: Path) -> None:
    """A write that really stops half-way (RLIMIT_FSIZE) is refused and cleaned up."""
    program = """
import resource, signal, sys
from pathlib import Path
from dicom_gateway.errors import OutOfResources
from tests.support.dicom import a_ct_series, an_arrival
from tests.support.gateway import a_store
arrival = an_arrival(a_ct_series(1, rows=1024, columns=1024)[0])
with a_store(Path(sys.argv[1])) as keeping:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    try:
        keeping.store.keep(arrival)
    except OutOfResources as refusal:
        print(refusal, len(keeping.files()), len(keeping.index.open_series()))
"""
    said = _python(program, str(tmp_path)).communicate(timeout=120)[0]

    assert said.strip() == "the store can't be written (File too large) 0 0"


def test_the_start_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    """Half-written files go, those of results and contracts too; whole ones stay."""
    with a_store(tmp_path) as keeping:
        kept = keeping.store.keep(an_arrival(a_ct_series(1)[0]))
        (tmp_path / "incoming" / "0123.part").write_bytes(b"half")
        for folder, name in (("results", "1.2.dcm"), ("contracts", "lung_ct.json")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / name).write_bytes(b"whole")
            (tmp_path / folder / f".{name}.77.part").write_bytes(b"half")

        assert keeping.store.clean() == 3
        assert keeping.files() == [kept.path]
        assert list(tmp_path.rglob("*.part")) == []
        assert (tmp_path / "results" / "1.2.dcm").exists()


def test_a_file_without_its_row_is_found_again_by_the_next_transmission(tmp_path: Path) -> None:
    """A crash between rename and commit costs a repetition, nothing else."""
    arrival = an_arrival(a_ct_series(1)[0])
    with a_store(tmp_path / "lost") as first:
        path = first.store.keep(arrival).path
    (tmp_path / "lost" / "index.sqlite").unlink()

    with a_store(tmp_path / "lost") as second:
        again = second.store.keep(arrival)

        assert again.path == path
        assert kept_files(second) == [path]
        assert second.index.load_series(again.series_instance_uid, "LUNG").instances == (again,)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The operator learns which key and which folder."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigurationError, match=r"store\.folder: .*file/below can't be made"),
        a_store(tmp_path) as keeping,
    ):
        type(keeping.store)(tmp_path / "file" / "below", keeping.engine, 0)


def test_many_associations_keep_at_once(tmp_path: Path) -> None:
    """Eight threads, each with its own frames and the same shared ones: all kept, once."""
    shared = a_ct_series(4)
    own = [a_ct_series(4, series_instance_uid=shared[0].SeriesInstanceUID) for _ in range(8)]
    failures: list[BaseException] = []
    with a_store(tmp_path) as keeping:

        def send(number: int) -> None:
            try:
                for ds in [*own[number], *shared]:
                    keeping.store.keep(an_arrival(ds, association_id=f"a{number}"))
            except BaseException as failure:  # noqa: BLE001 - told by the assertion below
                failures.append(failure)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        series = keeping.index.load_series(shared[0].SeriesInstanceUID, "LUNG")
        assert failures == []
        assert len(series.instances) == 8 * 4 + 4
        assert not any(instance.conflicts for instance in series.instances)
        assert sorted(i.path for i in series.instances) == kept_files(keeping)


_KILLED_KEEPER = """
import os, random, signal, sys, time
from pathlib import Path
from tests.support.dicom import a_ct_series, an_arrival
from tests.support.gateway import a_store
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
template = a_ct_series(1, rows=64, columns=64)[0]
for number in range(rounds):
    ledger = folder / f"ledger-{number}"
    ledger.touch()
    child = os.fork()
    if child == 0:
        with a_store(folder / "store") as keeping, ledger.open("w", buffering=1) as lines:
            keeping.store.clean()
            for frame in range(1_000_000):
                template.SOPInstanceUID = f"1.2.{number}.{frame}"
                kept = keeping.store.keep(an_arrival(template))
                lines.write(f"{kept.sop_instance_uid} {kept.sha256} {kept.path}\\n")
    while not ledger.stat().st_size:
        time.sleep(0.001)
    time.sleep(random.Random(number).uniform(0, 0.08))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_what_was_acknowledged_survives_kill_9_at_any_moment(tmp_path: Path) -> None:
    """Twenty processes killed in the middle: every instance they returned is there, whole."""
    rounds = 20
    with _python(_KILLED_KEEPER, str(tmp_path), str(rounds)) as nursery:
        assert nursery.wait(timeout=240) == 0

    acknowledged = [
        line.split()
        for ledger in tmp_path.glob("ledger-*")
        for line in ledger.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]
    template = a_ct_series(1, rows=64, columns=64)[0]
    assert len({uid.split(".")[2] for uid, _, _ in acknowledged}) == rounds
    with a_store(tmp_path / "store") as keeping:
        keeping.store.clean()
        series_uid = keeping.index.open_series()[0].series_instance_uid
        indexed = {
            instance.sop_instance_uid: instance
            for instance in keeping.index.load_series(series_uid, "LUNG").instances
        }
        for uid, sha256, path in acknowledged:
            instance = indexed[uid]
            assert (instance.sha256, str(instance.path)) == (sha256, path)
            read = pydicom.dcmread(instance.path)
            assert read.SOPInstanceUID == uid
            assert read.PixelData == template.PixelData
        assert not list((keeping.folder / "incoming").iterdir())


def _python(program: str, *arguments: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[4]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
