"""`kill -9` of every part at bad moments: nothing acknowledged is lost, nothing comes twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
import tritonclient.grpc as triton

from clients.demo.phantom_study import PhantomStudy, write_phantom_study
from dicom_gateway.records import JobState
from ensemble_builder.server import TritonServer
from ensemble_builder.server.heartbeat import Heart
from tests.support.dicom import write_series
from tests.support.patience import until
from tests.support.peers import Storescp
from tests.support.processes import stubs_of
from tests.support.road import GatewayProcess, Pacs, a_gateway
from tests.support.shared_memory import dev_shm_as_before

pytestmark = pytest.mark.system
MOMENTS = 10
LONGEST_WAIT_S = 6.0
"""A study of this size is delivered within about this time: kills fall all over its way."""


@pytest.fixture(scope="module")
def server(
    repository_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A watched tritonserver that tests here may kill."""
    log = tmp_path_factory.mktemp("triton") / "triton.log"
    with (
        # mapped_too: another test's server may have started meanwhile and still run.
        dev_shm_as_before(prefixes=("tritome_", "triton_"), mapped_too=False),
        TritonServer(repository_root / "model_repository", log=log) as found,
    ):
        yield found


@pytest.fixture
def gateway(
    tmp_path: Path, server: TritonServer, receiving_pacs: Storescp
) -> Iterator[GatewayProcess]:
    """A gateway with one destination."""
    pacs = Pacs("pacs", receiving_pacs.host, receiving_pacs.port, receiving_pacs.ae_title)
    with a_gateway(tmp_path / "gateway", triton=server.grpc_url, pacs=[pacs]) as found:
        yield found


def _as_another_study(study: PhantomStudy, folder: Path, number: int) -> list[Path]:
    """The same images under new UIDs."""
    series = []
    for path in study.files:
        ds = pydicom.dcmread(path)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(ds, keyword, f"{ds[keyword].value[:55]}.{number}")
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        series.append(ds)
    return write_series(folder, series)


def test_a_killed_gateway_delivers_every_acknowledged_study_once(
    gateway: GatewayProcess, chest_study: PhantomStudy, receiving_pacs: Storescp, tmp_path: Path
) -> None:
    """Ten kills at random moments after the last C-STORE response, ten results."""
    rng = random.Random(20261120)
    for number in range(1, MOMENTS + 1):
        files = _as_another_study(chest_study, tmp_path / f"study{number}", number)
        sent = gateway.send(files)
        assert sent.exit_code == 0, sent.output
        time.sleep(rng.uniform(0, LONGEST_WAIT_S))
        gateway.kill()
        gateway.start()
    jobs = gateway.wait_for_jobs(MOMENTS, timeout_s=600)
    assert [job.state for job in jobs] == [JobState.DELIVERED] * MOMENTS
    results = [uid for job in jobs for uid in gateway.results(job)]
    assert len(set(results)) == 2 * MOMENTS  # a SEG and an SR each
    received = [
        pydicom.dcmread(path, stop_before_pixels=True) for path in receiving_pacs.received()
    ]
    # A kill between the PACS's answer and our note of it sends the same object once more.
    assert {ds.SOPInstanceUID for ds in received} == set(results)
    segmentations = [ds for ds in received if ds.Modality == "SEG"]
    sources = {ds.ReferencedSeriesSequence[0].SeriesInstanceUID for ds in segmentations}
    assert len(sources) == MOMENTS


@pytest.fixture(scope="module")
def long_study(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    """A chest on which inference takes seconds, so that a kill falls into it."""
    folder = tmp_path_factory.mktemp("long")
    return write_phantom_study(folder, seed=8, shape_kji=(90, 384, 384), spacing_mm=(3.5, 1.0, 1.0))


def _wait_until_healthy(server: TritonServer) -> None:
    """What an earlier test killed must be back, or this one would kill into a void."""
    heart = Heart(server.grpc_url)
    try:
        until(lambda: heart.beat(60).failure is None, timeout_s=150)
    finally:
        heart.close()


def _answered(server: TritonServer, model: str) -> int:
    """How many requests a model has answered."""
    client = triton.InferenceServerClient(server.grpc_url)
    try:
        found = client.get_inference_statistics(model).model_stats
        return sum(one.inference_stats.success.count for one in found)
    finally:
        client.close()


def _wait_for_inference(gateway: GatewayProcess, server: TritonServer, step: str) -> None:
    """Returns while Triton works on the one job, in the given step of the ensemble."""

    def inferring() -> bool:
        for job in gateway.jobs():
            assert job.state is not JobState.DELIVERED, "too late: Triton was through already"
            if job.state is JobState.RUNNING and "assembled" in gateway.story(job)[-1]:
                return True
        return False

    before = {"lung_ct_inferer": "lung_ct_preprocess", "lung_ct_postprocess": "lung_ct_inferer"}
    previous = before.get(step)
    answered = _answered(server, previous) if previous else 0
    until(inferring, timeout_s=120)
    if previous:
        until(lambda: _answered(server, previous) > answered, timeout_s=120)
    assert inferring()


@pytest.mark.parametrize("victim", ["lung_ct_preprocess", "lung_ct_inferer", "lung_ct_postprocess"])
def test_a_stub_killed_in_mid_inference_costs_no_hand(
    victim: str,
    gateway: GatewayProcess,
    server: TritonServer,
    long_study: PhantomStudy,
    receiving_pacs: Storescp,
) -> None:
    """The model is loaded again and the job delivered, once."""
    _wait_until_healthy(server)
    assert gateway.send(long_study.files).exit_code == 0
    _wait_for_inference(gateway, server, victim)
    for stub in stubs_of(server.pid, victim):  # whichever instance computes
        stub.kill()
    (job,) = gateway.wait_for_jobs(1)
    assert job.state is JobState.DELIVERED, gateway.log()
    assert len(receiving_pacs.wait_for(2)) == 2


def test_a_server_killed_in_mid_inference_costs_no_hand(
    gateway: GatewayProcess,
    server: TritonServer,
    long_study: PhantomStudy,
    receiving_pacs: Storescp,
) -> None:
    """The server is started again and the job delivered, once."""
    _wait_until_healthy(server)
    assert gateway.send(long_study.files).exit_code == 0
    _wait_for_inference(gateway, server, "lung_ct_inferer")
    os.kill(server.pid, signal.SIGKILL)
    (job,) = gateway.wait_for_jobs(1)
    assert job.state is JobState.DELIVERED, gateway.log()
    assert len(receiving_pacs.wait_for(2)) == 2
