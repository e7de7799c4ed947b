"""A study that can't wait, and one that nobody wants: both take effect between two windows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_gateway.database import open_database
from dicom_gateway.jobs import JobDesk
from dicom_gateway.records import Job, JobState, Priority
from ensemble_builder.server import TritonServer
from tests.support.dicom import write_series
from tests.support.patience import until
from tests.support.peers import Storescp
from tests.support.road import GatewayProcess, a_gateway
from tests.support.shared_memory import dev_shm_as_before
from tests.support.slow_pipeline import WINDOWS, SlowPipeline, a_slow_pipeline, a_slow_series

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore::FutureWarning:monai")]
QUEUED = 20


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> SlowPipeline:
    """Windows of 0.4 s."""
    return a_slow_pipeline(tmp_path_factory.mktemp("slow"))


@pytest.fixture(scope="module")
def server(slow: SlowPipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """It serves the slow pipeline; its own heartbeat would look like a study's windows."""
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    with (
        dev_shm_as_before(prefixes=("tritome_", "triton_"), mapped_too=False),
        TritonServer(slow.repository, log=log, watch=False) as found,
    ):
        yield found


@pytest.fixture
def gateway(
    tmp_path: Path, server: TritonServer, receiving_pacs: Storescp
) -> Iterator[GatewayProcess]:
    """Studies for LOW are in no hurry, those for STAT can't wait."""
    titles = [
        {"ae-title": title, "priority": priority, "pipelines": ["slow"], "destinations": ["pacs"]}
        for title, priority in (("LOW", "low"), ("STAT", "immediate"))
    ]
    pacs = {
        "name": "pacs",
        "host-ip": receiving_pacs.host,
        "port": receiving_pacs.port,
        "ae-title": receiving_pacs.ae_title,
    }
    dicom = {
        "scp": {
            "host": "127.0.0.1",
            "port": 0,
            "ae-titles": titles,
            "sources": [{"ae-title": "SCANNER"}],
        },
        "scu": {"ae-title": "TRITOME", "destinations": [pacs]},
    }
    with a_gateway(tmp_path / "gateway", triton=server.grpc_url, dicom=dicom) as found:
        yield found


def _send(gateway: GatewayProcess, folder: Path, called: str, *, marked: bool = False) -> None:
    sent = gateway.send(write_series(folder, a_slow_series(marked=marked)), called=called)
    assert sent.exit_code == 0, sent.output


def _first(gateway: GatewayProcess, priority: Priority) -> Job:
    return next(job for job in gateway.jobs() if job.priority is priority)


def _wait_for_windows(slow: SlowPipeline, since_s: float, count: int = 2) -> None:
    until(lambda: len(slow.windows(since_s=since_s)) >= count, timeout_s=120)


def test_a_stat_study_behind_twenty_low_ones_starts_within_one_window(
    gateway: GatewayProcess, slow: SlowPipeline, tmp_path: Path
) -> None:
    """The running one pauses between two windows until the urgent one is through."""
    files = [
        path
        for number in range(QUEUED + 6)
        for path in write_series(tmp_path / f"low{number}", a_slow_series())
    ]
    assert gateway.send(files, called="LOW").exit_code == 0
    until(lambda: len(gateway.jobs()) == QUEUED + 6, timeout_s=120)
    _wait_for_windows(slow, 0.0)
    _send(gateway, tmp_path / "stat", "STAT", marked=True)
    until(lambda: any(job.priority is Priority.IMMEDIATE for job in gateway.jobs()), timeout_s=60)
    until(lambda: _first(gateway, Priority.IMMEDIATE).state is JobState.DELIVERED, timeout_s=120)

    with open_engine(gateway) as desk:
        urgent = _first(gateway, Priority.IMMEDIATE)
        told = {event.stage: event.at_s for event in desk.events(urgent.job_id)}
        low = [job for job in desk.list_jobs() if job.priority is Priority.LOW]
    began = [job.started_at_s for job in low if job.started_at_s is not None]
    assert len(low) - sum(at < told["assembled"] for at in began) >= QUEUED
    windows = slow.windows(since_s=told["assembled"])
    urgent_ones = [at for at, kind in windows if kind == "marked"]
    assert len(urgent_ones) == WINDOWS
    before = [at for at, kind in windows if kind == "plain" and at < urgent_ones[0]]
    assert len(before) <= 1, "the running one began at most one more window"
    between = [
        at for at, kind in windows if kind == "plain" and urgent_ones[0] < at < urgent_ones[-1]
    ]
    assert between == [], "and none beside the urgent one"
    until(lambda: any(job.state is JobState.DELIVERED for job in _lows(gateway)), timeout_s=120)


def _lows(gateway: GatewayProcess) -> list[Job]:
    return [job for job in gateway.jobs() if job.priority is Priority.LOW]


def test_cancelling_a_running_job_takes_effect_between_two_windows(
    gateway: GatewayProcess, slow: SlowPipeline, tmp_path: Path
) -> None:
    """It doesn't compute the rest, and the next job begins."""
    since_s = _now(slow)
    _send(gateway, tmp_path / "unwanted", "LOW")
    _send(gateway, tmp_path / "next", "LOW", marked=True)
    _wait_for_windows(slow, since_s)
    unwanted = _first(gateway, Priority.LOW)
    with open_engine(gateway) as desk:
        assert desk.cancel(unwanted.job_id)
    until(lambda: len([1 for _, kind in slow.windows(since_s=since_s) if kind == "marked"]) > 0)
    jobs = gateway.wait_for_jobs(2)

    assert sorted(job.state.value for job in jobs) == ["cancelled", "delivered"]
    kinds = [kind for _, kind in slow.windows(since_s=since_s)]
    assert kinds.count("marked") == WINDOWS
    assert kinds.count("plain") < WINDOWS, "the rest of the unwanted one was not computed"


def test_what_a_killed_gateway_asked_for_ends_between_two_windows(
    gateway: GatewayProcess, slow: SlowPipeline, tmp_path: Path
) -> None:
    """Nobody waits for it; the gateway's next life doesn't have to wait for its end."""
    since_s = _now(slow)
    _send(gateway, tmp_path / "one", "LOW")
    _wait_for_windows(slow, since_s)
    gateway.kill()
    gateway.start()
    (job,) = gateway.wait_for_jobs(1)
    assert job.state is JobState.DELIVERED
    assert WINDOWS < len(slow.windows(since_s=since_s)) < 2 * WINDOWS


def _now(slow: SlowPipeline) -> float:
    return max((at for at, _ in slow.windows()), default=0.0)


class open_engine:  # noqa: N801 - reads as a function
    """The desk of a gateway's index."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._folder = gateway.folder / "data"

    def __enter__(self) -> JobDesk:
        self._engine = open_database(f"sqlite:///{self._folder}/index.sqlite")
        return JobDesk(self._engine, self._folder)

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()
