"""`kill -9` of gateway, tritonserver, a stub and PostgreSQL in a stream of jobs: no hand needed.

TRITOME_KILLS sets how many; the moments are random, from a seed that is told when it fails.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pydicom
import pytest

from dicom_gateway.records import JobState
from ensemble_builder.build import build
from ensemble_builder.bundle import Options
from ensemble_builder.errors import ServerFailed
from ensemble_builder.server import TritonServer
from tests.support.bundles import a_segmentation_bundle
from tests.support.databases import Postgresql
from tests.support.dicom import a_ct_series, write_series
from tests.support.patience import until
from tests.support.peers import Storescp
from tests.support.road import ENDED, GatewayProcess, a_gateway
from tests.support.shared_memory import dev_shm_as_before

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore::FutureWarning:monai")]
KILLS = int(os.environ.get("TRITOME_KILLS", "4"))
SEED = int(os.environ.get("TRITOME_SEED", "20261121"))
LONGEST_PAUSE_S = 4.0
"""From sending a study to the kill: longer than the study takes from end to end."""
MOST_UNDER_WAY = 3
RECOVERY_S = 300.0


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pipeline that loads fast."""
    bundle = a_segmentation_bundle(tmp_path_factory.mktemp("bundles") / "small")
    folder = tmp_path_factory.mktemp("repository")
    list(build(bundle, folder, Options(runtime="torch")))
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A watched tritonserver; at the end nothing of all that was killed is in /dev/shm."""
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    with (
        dev_shm_as_before(prefixes=("tritome_", "triton_"), mapped_too=False),
        TritonServer(repository, log=log) as found,
    ):
        yield found


@pytest.mark.timeout(600 + 90 * KILLS)
def test_every_job_is_delivered_once_whatever_is_killed(
    server: TritonServer, receiving_pacs: Storescp, tmp_path: Path
) -> None:
    """One SOP Instance UID per result at the PACS; nothing failed, nothing left behind."""
    rng = random.Random(SEED)
    kinds = ["gateway", "tritonserver", "stub", "postgresql"]
    victims = [kinds[n % len(kinds)] for n in range(KILLS)]
    rng.shuffle(victims)
    pacs = {
        "name": "pacs",
        "host-ip": receiving_pacs.host,
        "port": receiving_pacs.port,
        "ae-title": receiving_pacs.ae_title,
    }
    title = {"ae-title": "LUNG", "pipelines": ["small"], "destinations": ["pacs"]}
    scp = {
        "host": "127.0.0.1",
        "port": 0,
        "ae-titles": [title],
        "sources": [{"ae-title": "SCANNER"}],
    }
    scu = {"ae-title": "TRITOME", "retry-first-s": 0.5, "retry-max-s": 2.0, "destinations": [pacs]}
    with (
        Postgresql() as postgresql,
        a_gateway(
            tmp_path / "gateway",
            triton=server.grpc_url,
            dicom={"scp": scp, "scu": scu},
            store={"folder": "data", "min-free-bytes": 0, "database-url": postgresql.url},
            jobs={"retry-first-s": 0.5, "retry-max-s": 2.0, "lease-s": 5.0, "workers": 2},
        ) as gateway,
    ):
        kill = {
            "gateway": lambda: _kill_gateway(gateway),
            "tritonserver": lambda: _kill_tritonserver(server),
            "stub": lambda: _kill_a_stub(server, rng),
            "postgresql": lambda: (postgresql.kill(), postgresql.start()),
        }
        for number, victim in enumerate(victims, start=1):
            _send(gateway, tmp_path / f"study{number}")
            time.sleep(rng.uniform(0, LONGEST_PAUSE_S))
            kill[victim]()
            _until_under_way(gateway, number, MOST_UNDER_WAY)
        _until_under_way(gateway, KILLS, 0)

        jobs = gateway.jobs()
        assert Counter(job.state for job in jobs) == {JobState.DELIVERED: KILLS}, victims
        made = [gateway.results(job) for job in jobs]
        assert {len(uids) for uids in made} == {2}, "a segmentation and a report of each"
        every = {uid for uids in made for uid in uids}
        assert len(every) == 2 * KILLS
        received = Counter(
            str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
            for path in receiving_pacs.received()
        )
    assert set(received) == every


def _send(gateway: GatewayProcess, folder: Path) -> None:
    files = write_series(folder, a_ct_series(24, spacing_mm=4.0))

    def taken() -> bool:
        _keep_up(gateway)
        return gateway.send(files).exit_code == 0

    until(taken, timeout_s=RECOVERY_S)  # a sender whose object wasn't taken sends it again


def _until_under_way(gateway: GatewayProcess, sent: int, most: int) -> None:
    def few() -> bool:
        _keep_up(gateway)
        ended = sum(job.state in ENDED for job in gateway.jobs())
        return ended >= sent - most

    try:
        until(few, timeout_s=RECOVERY_S)
    except AssertionError as error:
        stories = [
            (job.state.value, gateway.story(job)[-4:])
            for job in gateway.jobs()
            if job.state is not JobState.DELIVERED
        ]
        msg = f"seed {SEED}, {sent} sent: {stories}\n{gateway.log()}"
        raise AssertionError(msg) from error
    time.sleep(0.2)


def _keep_up(gateway: GatewayProcess) -> None:
    """What compose or systemd does: a gateway that has ended is started again."""
    assert gateway.process is not None
    if gateway.process.poll() is not None:
        gateway.start()


def _kill_gateway(gateway: GatewayProcess) -> None:
    _keep_up(gateway)
    gateway.kill()
    gateway.start()


def _kill_tritonserver(server: TritonServer) -> None:
    """Once there is one: between two tries to bring it back there is none."""

    def killed() -> bool:
        with suppress(ServerFailed, ProcessLookupError):
            os.kill(server.pid, signal.SIGKILL)
            return True
        return False

    until(killed, timeout_s=RECOVERY_S)


def _kill_a_stub(server: TritonServer, rng: random.Random) -> None:
    """Any of those that live, once there is one."""
    found: list[psutil.Process] = []

    def there_is_one() -> bool:
        with suppress(psutil.Error, ServerFailed):
            for child in psutil.Process(server.pid).children(recursive=True):
                with suppress(psutil.Error):  # a killed stub stays a zombie
                    if child.cmdline()[0].endswith("triton_python_backend_stub"):
                        found.append(child)
        return bool(found)

    until(there_is_one, timeout_s=RECOVERY_S)
    rng.choice(found).kill()
