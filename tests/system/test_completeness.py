"""Late instances, aborted associations and a person's word, with a whole gateway and a PACS."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from dicom_gateway.records import JobState, ObjectKind
from tests.support.dicom import CANARY, a_ct_series, write_series
from tests.support.patience import until
from tests.support.peers import Storescp, dciodvfy, storescp, storescu
from tests.support.road import GatewayProcess, Pacs, a_gateway
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


def as_pacs(peer: Storescp) -> Pacs:
    """As a gateway's settings name it."""
    return Pacs("pacs", peer.host, peer.port, peer.ae_title)


def tritome(gateway: GatewayProcess, *arguments: str) -> str:
    """What the command says about this gateway."""
    config = str(gateway.folder / "gateway.yaml")
    command = [sys.executable, "-m", "clients", *arguments, "--config", config]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, env={"COLUMNS": "250"}
    ).stdout


def test_a_late_instance_makes_a_new_result_that_names_the_one_it_replaces(
    triton: SmallTriton, pacs: Storescp, tmp_path: Path
) -> None:
    """New UIDs, a valid reference; the earlier job stays delivered and says what came after."""
    files = write_series(tmp_path / "study", a_ct_series(frames=8))
    with a_gateway(tmp_path / "gateway", triton=triton.url, pacs=[as_pacs(pacs)]) as gateway:
        assert gateway.send(files[:7]).exit_code == 0
        gateway.wait_for_jobs(1)
        assert gateway.send(files[7:]).exit_code == 0
        first, second = gateway.wait_for_jobs(2)
        (old,), (new,) = (gateway.results(job, ObjectKind.SEGMENTATION) for job in (first, second))
        results = {*gateway.results(first), *gateway.results(second)}
        shown = tritome(gateway, "jobs", "show", second.job_id)

    assert (first.state, first.superseded_by) == (JobState.DELIVERED, second.job_id)
    assert (second.state, second.superseded_by) == (JobState.DELIVERED, None)
    received = {str(pydicom.dcmread(path).SOPInstanceUID): path for path in pacs.wait_for(4)}
    assert set(received) == results
    replacing = pydicom.dcmread(received[new])
    assert [one.ReferencedSOPInstanceUID for one in replacing.ReferencedImageSequence] == [old]
    assert "ReferencedImageSequence" not in pydicom.dcmread(received[old])
    assert replacing.SeriesInstanceUID != pydicom.dcmread(received[old]).SeriesInstanceUID
    assert dciodvfy(received[new]) == []
    assert "8 position(s) without a gap" in shown
    assert f"takes the place of job {first.job_id[:8]}" in shown


def test_what_an_aborted_association_left_out_is_waited_for(
    triton: SmallTriton, pacs: Storescp, tmp_path: Path
) -> None:
    """The beginning has no gap either: still one job, with all instances."""
    files = write_series(tmp_path / "study", a_ct_series(frames=8))
    patience = {"after-release-s": 0.2, "quiet-s": 60.0, "give-up-s": 60.0}
    with a_gateway(
        tmp_path / "gateway", triton=triton.url, pacs=[as_pacs(pacs)], completeness=patience
    ) as gateway:
        storescu(files[:5], "127.0.0.1", gateway.port, "SCANNER", "LUNG", options=["--abort"])
        uid = str(pydicom.dcmread(files[0]).SeriesInstanceUID)
        until(
            lambda: "an association was aborted or lost" in tritome(gateway, "series", "show", uid)
        )
        assert gateway.jobs() == []
        gateway.send(files[5:])
        tritome(gateway, "series", "complete", uid)
        (job,) = gateway.wait_for_jobs(1)
        story = "\n".join(gateway.story(job))

    assert job.state is JobState.DELIVERED
    assert "a person has declared it complete; 8 instance(s)" in story
    assert CANARY not in story
