"""The whole gateway as a process: real peers, a real (small) Triton, and crashes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import MRImageStorage

from dicom_gateway.records import JobState
from tests.support.databases import Postgresql
from tests.support.dicom import CANARY, a_ct_series, write_series
from tests.support.patience import until
from tests.support.peers import Storescp, storescp
from tests.support.road import GatewayProcess, Pacs, a_gateway
from tests.support.shared_memory import dev_shm_as_before
from tests.support.small_triton import SmallTriton, a_repository

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallTriton]:
    """A small server whose pipeline answers to the name lung_ct."""
    repository = a_repository(tmp_path_factory.mktemp("models"), "lung_ct")
    with SmallTriton(tmp_path_factory.mktemp("triton"), repository) as server:
        yield server


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Storescp]:
    """Dcmtk receives the results."""
    with storescp(tmp_path / "pacs", "PACS") as peer:
        yield peer


def _as_pacs(peer: Storescp) -> Pacs:
    return Pacs("pacs", peer.host, peer.port, peer.ae_title)


def _uids(peer: Storescp) -> list[str]:
    return [str(pydicom.dcmread(path).SOPInstanceUID) for path in peer.received()]


def a_study(folder: Path, frames: int = 8, gap_at: int | None = None) -> list[Path]:
    """A small CT series as files."""
    return write_series(folder, a_ct_series(frames=frames, gap_at=gap_at))


def test_a_study_comes_back_as_a_segmentation_and_a_report(
    triton: SmallTriton, pacs: Storescp, tmp_path: Path
):
    """In by storescu, out to storescp; the story has its stages; nothing is left behind."""
    with (
        dev_shm_as_before(prefixes=("tritome_",), mapped_too=False),
        a_gateway(tmp_path / "gateway", triton=triton.url, pacs=[_as_pacs(pacs)]) as gateway,
    ):
        assert gateway.send(a_study(tmp_path / "study")).exit_code == 0
        (job,) = gateway.wait_for_jobs(1)
        assert job.state is JobState.DELIVERED, job.failure_reason
        stages = [line.partition(":")[0] for line in gateway.story(job)]
        results = gateway.results(job)
        assert gateway.stop() == 0

    expected = "received started assembled inferred encoded sent sent delivered"
    assert " ".join(stages) == expected
    assert sorted(_uids(pacs)) == sorted(results)
    modalities = {str(pydicom.dcmread(path).Modality) for path in pacs.received()}
    assert modalities == {"SEG", "SR"}
    assert CANARY not in gateway.log()


def test_killed_at_any_moment_every_study_is_delivered_once(
    triton: SmallTriton, pacs: Storescp, tmp_path: Path
):
    """Kill -9 after the last C-STORE response; after the restart nothing is missing."""
    moments_s = random.Random(2).sample([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.2], 4)
    with (
        dev_shm_as_before(prefixes=("tritome_",), mapped_too=False),
        a_gateway(tmp_path / "gateway", triton=triton.url, pacs=[_as_pacs(pacs)]) as gateway,
    ):
        for number, moment_s in enumerate(moments_s, 1):
            assert gateway.send(a_study(tmp_path / f"study{number}")).exit_code == 0
            time.sleep(moment_s)
            gateway.kill()
            gateway.start()
            gateway.wait_for_jobs(number)
        jobs = gateway.jobs()
        results = {uid for job in jobs for uid in gateway.results(job)}

    assert [job.state for job in jobs] == [JobState.DELIVERED] * len(moments_s)
    assert len(results) == 2 * len(moments_s)
    # An object whose answer the kill swallowed may come twice, but as the same object.
    assert set(_uids(pacs)) == results


def test_while_triton_is_away_studies_wait_and_finish_when_it_is_back(
    pacs: Storescp, tmp_path: Path
):
    """First never seen, then killed in mid-inference: no hand is needed, and it says so once."""
    (tmp_path / "triton").mkdir()
    triton = SmallTriton(tmp_path / "triton", a_repository(tmp_path / "models", "lung_ct"))
    with a_gateway(tmp_path / "gateway", triton=triton.url, pacs=[_as_pacs(pacs)]) as gateway:
        gateway.send(a_study(tmp_path / "study1"))
        until(lambda: "waits for Triton, which has never said" in gateway.log())
        time.sleep(2.5)  # several looks of the judge
        assert gateway.log().count("waits for Triton, which has never said") == 1
        assert gateway.jobs() == []

        with triton:
            (first,) = gateway.wait_for_jobs(1)
            assert first.state is JobState.DELIVERED
            triton.kill()
            gateway.send(a_study(tmp_path / "study2"))
            until(lambda: any(job.failure_code == "triton_unavailable" for job in gateway.jobs()))
            triton.start()
            second = gateway.wait_for_jobs(2)[1]
            assert second.state is JobState.DELIVERED
            assert second.attempts > 1


def test_a_hole_in_a_series_is_a_named_failure_and_the_next_study_goes_through(
    triton: SmallTriton, pacs: Storescp, tmp_path: Path
):
    """A person sees what is missing; nobody else waits for it."""
    with a_gateway(tmp_path / "gateway", triton=triton.url, pacs=[_as_pacs(pacs)]) as gateway:
        gateway.send(a_study(tmp_path / "holed", gap_at=4))
        gateway.send(a_study(tmp_path / "whole"))
        jobs = {job.state: job for job in gateway.wait_for_jobs(2)}

    assert set(jobs) == {JobState.FAILED, JobState.DELIVERED}
    assert jobs[JobState.FAILED].failure_code == "missing_slices"


def test_a_study_too_large_for_the_arena_fails_at_once_with_the_size_to_set(
    triton: SmallTriton, pacs: Storescp, tmp_path: Path
):
    """Its volume would fit alone, and its mask alone: nothing is decoded in vain, nor twice."""
    files = write_series(tmp_path / "study", a_ct_series(frames=6, rows=256, columns=256))
    with a_gateway(tmp_path / "gateway", triton=triton.url, pacs=[_as_pacs(pacs)]) as gateway:
        gateway.kill()
        gateway.settings["triton"]["arena-bytes"] = 1 << 20
        gateway.start()
        gateway.send(files)
        (job,) = gateway.wait_for_jobs(1)
        stages = [line.partition(":")[0] for line in gateway.story(job)]

    assert (job.failure_code, job.attempts) == ("volume_too_large", 1)
    assert f"at least {6 * 256 * 256 * 3}" in (job.failure_reason or "")
    assert stages == ["received", "started", "failed"]


def test_what_no_pipeline_wants_is_kept_and_ignored_with_a_reason(
    triton: SmallTriton, pacs: Storescp, tmp_path: Path
):
    """An MR series for a CT pipeline."""
    series = a_ct_series(frames=3, modality="MR", sop_class_uid=MRImageStorage)
    files = write_series(tmp_path / "mr", series)
    with a_gateway(tmp_path / "gateway", triton=triton.url, pacs=[_as_pacs(pacs)]) as gateway:
        assert gateway.send(files).exit_code == 0
        until(gateway.ignored)

        reason = gateway.ignored()[str(series[0].SeriesInstanceUID)]
        assert "lung_ct wants" in reason
        assert "MR" in reason
        assert gateway.jobs() == []


def test_a_pipeline_of_another_age_fails_its_jobs_with_one_sentence(pacs: Storescp, tmp_path: Path):
    """The series isn't lost in silence: a person sees what to update."""
    (tmp_path / "triton").mkdir()
    repository = a_repository(tmp_path / "models", "lung_ct", schema_version=2)
    with (
        SmallTriton(tmp_path / "triton", repository) as triton,
        a_gateway(tmp_path / "gateway", triton=triton.url, pacs=[_as_pacs(pacs)]) as gateway,
    ):
        gateway.send(a_study(tmp_path / "study"))
        (job,) = gateway.wait_for_jobs(1)

    assert job.failure_code == "contract_mismatch"
    assert "update the gateway" in (job.failure_reason or "")


def test_two_gateways_never_share_a_folder(triton: SmallTriton, tmp_path: Path):
    """The second says so and ends; the first goes on."""
    with a_gateway(tmp_path / "gateway", triton=triton.url) as first:
        second = _run_beside(first, "from dicom_gateway.program import main")
        assert second.returncode == 2
        assert "another gateway already runs" in second.stderr
        assert "Traceback" not in second.stderr


def test_a_store_whose_disk_is_not_mounted_is_not_begun_anew(triton: SmallTriton, tmp_path: Path):
    """The index, on a database elsewhere say, knows instances: jobs would fail for want of them."""
    with a_gateway(tmp_path / "gateway", triton=triton.url) as gateway:
        gateway.send(a_study(tmp_path / "study"))
        gateway.stop()
        (gateway.folder / "data" / "instances").rename(tmp_path / "unmounted")

        again = _run_beside(gateway, "from dicom_gateway.program import main")

        assert again.returncode == 2
        assert "is the disk of store.folder mounted" in again.stderr


def test_a_gateway_whose_shared_memory_is_removed_ends(triton: SmallTriton, tmp_path: Path):
    """As systemd does when its user logs out: a new start makes it anew, no study fails of it."""
    with a_gateway(tmp_path / "gateway", triton=triton.url, jobs={"ahead-bytes": 0}) as gateway:
        assert gateway.process is not None
        maps = Path(f"/proc/{gateway.process.pid}/maps").read_text(encoding="utf-8").splitlines()
        (arena,) = {Path(line.split()[-1]) for line in maps if "/tritome_arena_" in line}

        arena.unlink()

        assert gateway.process.wait(60) == 1
        assert "its file was removed" in gateway.log()


def test_nobody_else_can_read_what_is_kept(triton: SmallTriton, tmp_path: Path):
    """Index, instances, results: all of it is about patients."""
    with a_gateway(tmp_path / "gateway", triton=triton.url) as gateway:
        gateway.send(a_study(tmp_path / "study"))
        gateway.wait_for_jobs(1)
        kept = [gateway.folder / "data", *(gateway.folder / "data").rglob("*")]

        assert {path.parent.name for path in kept} >= {"data", "results", "audit"}
        assert [path for path in kept if path.stat().st_mode & 0o077] == []


def test_a_gateway_whose_thread_dies_ends(triton: SmallTriton, tmp_path: Path):
    """Never half alive: a supervisor starts it anew."""
    with a_gateway(tmp_path / "gateway", triton=triton.url) as gateway:
        gateway.stop()
        died = _run_beside(
            gateway,
            "import dicom_gateway.judge as judge; judge.Judge.run = lambda self: 1 / 0; "
            "from dicom_gateway.program import main",
        )
        assert died.returncode == 1
        assert "thread_died" in died.stderr
        assert "ZeroDivisionError" in died.stderr


def test_a_gateway_waits_for_a_database_that_comes_up_after_it(triton: SmallTriton, tmp_path: Path):
    """As when a machine starts; ended by a signal meanwhile it ends in order."""
    with (
        Postgresql() as postgresql,
        a_gateway(
            tmp_path / "gateway",
            triton=triton.url,
            store={"folder": "data", "min-free-bytes": 0, "database-url": postgresql.url},
        ) as gateway,
        ThreadPoolExecutor(1) as beside,
    ):
        gateway.stop()
        postgresql.kill()
        log = gateway.folder / "gateway.log"
        starting = beside.submit(gateway.start)
        until(lambda: "index_away" in gateway.log())
        assert gateway.stop() == 0
        assert isinstance(starting.exception(), AssertionError)  # its door never opened

        log.unlink()
        starting = beside.submit(gateway.start)
        until(lambda: log.exists() and "index_away" in gateway.log())
        postgresql.start()
        starting.result()
        assert gateway.send(a_study(tmp_path / "study")).exit_code == 0


def _run_beside(gateway: GatewayProcess, before: str) -> subprocess.CompletedProcess[str]:
    config = str(gateway.folder / "gateway.yaml")
    code = f"import sys; {before}; sys.exit(main(['--config', {config!r}]))"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
