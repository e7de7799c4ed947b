"""A chest CT in by C-STORE, a DICOM SEG out: real peers, real Triton, real shared memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from clients.demo.phantom_study import PhantomStudy
from clients.demo.reading import (
    ReceivedSegmentation,
    SourceVolume,
    read_segmentation,
    read_source,
    source_series_uid,
)
from dicom_gateway.records import JobState
from ensemble_builder.bundle import find_bundle
from ensemble_builder.pipelines.lung_ct.classical import lung_labels
from ensemble_builder.server import TritonServer
from ensemble_builder.verify import StoredVolume, compare, dice, reference
from tests.support.peers import Orthanc, Storescp, dciodvfy
from tests.support.road import GatewayProcess, Pacs, a_gateway

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
]
POSITION_TOLERANCE_MM = 0.001
LEAST_DICE_ON_A_PHANTOM = 0.9
LEAST_DICE_ON_V02 = 0.95
REAL = Path(__file__).resolve().parents[3] / "shared" / "dicom"
REAL_CHESTS = ("v01_ct_chest_ge_100_jls", "v02_ct_thorax_siemens_30_j2k")


@pytest.fixture
def gateway(
    tmp_path: Path,
    triton_server: TritonServer,
    receiving_pacs: Storescp,
    orthanc_pacs: Orthanc,
) -> Iterator[GatewayProcess]:
    """A gateway that sends every result to dcmtk and to Orthanc."""
    pacs = [
        Pacs("dcmtk", receiving_pacs.host, receiving_pacs.port, receiving_pacs.ae_title),
        Pacs("orthanc", orthanc_pacs.host, orthanc_pacs.dicom_port, orthanc_pacs.ae_title),
    ]
    with a_gateway(tmp_path / "gateway", triton=triton_server.grpc_url, pacs=pacs) as found:
        yield found


def _delivered(
    gateway: GatewayProcess, files: list[Path], dcmtk: Storescp, orthanc: Orthanc
) -> Path:
    """Sends a series and gives the SEG that dcmtk received; Orthanc has it and its SR too."""
    sent = gateway.send(files)
    assert sent.exit_code == 0, sent.output
    (job,) = gateway.wait_for_jobs(1)
    assert job.state is JobState.DELIVERED, (job, gateway.log())
    (received,) = dcmtk.wait_for_segmentations(1)
    results = gateway.results(job)
    assert len(results) == len(dcmtk.received()) == 2
    assert set(results) <= set(orthanc.sop_instance_uids())
    return received


def _checked(segmentation: Path, files: list[Path]) -> tuple[ReceivedSegmentation, SourceVolume]:
    """Valid, and every frame exactly on its source instance; left on the left."""
    assert dciodvfy(segmentation) == []
    source = read_source(files, source_series_uid(segmentation))
    received = read_segmentation(segmentation, source)
    assert received.frames > 0
    assert received.worst_offset_mm <= POSITION_TOLERANCE_MM
    assert received.misreferenced_frames == 0
    assert [segment.side for segment in received.segments] == ["left", "right"]
    left, right = (_centre_x_mm(segment.mask, source) for segment in received.segments)
    assert left > right, "LPS: the patient's left is towards larger x"
    return received, source


def _centre_x_mm(
    mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], source: SourceVolume
) -> float:
    k, j, i = np.argwhere(mask).mean(axis=0)
    return float((source.affine_lps @ (i, j, k, 1.0))[0])


def test_a_phantom_comes_back_as_its_lungs(
    gateway: GatewayProcess,
    chest_study: PhantomStudy,
    receiving_pacs: Storescp,
    orthanc_pacs: Orthanc,
) -> None:
    """Both PACS get one valid SEG; each lung is where the phantom has it."""
    files = list(chest_study.files)
    segmentation = _delivered(gateway, files, receiving_pacs, orthanc_pacs)
    received, _ = _checked(segmentation, files)
    for label, segment in enumerate(received.segments, 1):
        assert dice(segment.mask, chest_study.labels == label) >= LEAST_DICE_ON_A_PHANTOM


@pytest.mark.skipif(not REAL.is_dir(), reason="the real series are not on this machine")
@pytest.mark.parametrize("name", REAL_CHESTS)
def test_a_real_chest_comes_back_as_its_lungs(
    name: str, gateway: GatewayProcess, receiving_pacs: Storescp, orthanc_pacs: Orthanc
) -> None:
    """The same for a real series; the served mask is MONAI's; v02, never seen, is good enough."""
    files = sorted((REAL / name / "dicom").iterdir())
    segmentation = _delivered(gateway, files, receiving_pacs, orthanc_pacs)
    received, source = _checked(segmentation, files)
    hu = source.hu.astype(np.int16)
    truth = lung_labels(hu, source.affine_lps)
    for label, segment in enumerate(received.segments, 1):
        score = dice(segment.mask, truth == label)
        print(f"{name}: {segment.name}: Dice {score:.4f}")
        if name.startswith("v02"):
            assert score >= LEAST_DICE_ON_V02
    mask = sum(
        (
            segment.mask.astype(np.uint8) * label
            for label, segment in enumerate(received.segments, 1)
        ),
        start=np.zeros(source.hu.shape, np.uint8),
    )
    rescale = np.tile([1.0, 0.0], (len(hu), 1))
    expected = reference(find_bundle("lung_ct"), StoredVolume(hu, rescale, source.affine_lps))
    parity = compare(expected, mask)
    print(f"{name}: {100 * parity.agreement:.4f} % of the voxels are MONAI's")
    assert parity.agreement >= 0.999


def test_the_volume_goes_through_the_arena(
    gateway: GatewayProcess, chest_study: PhantomStudy, triton_server: TritonServer
) -> None:
    """While a job runs Triton has the arena; 2 bytes per voxel go in, 1 comes out."""
    client = triton.InferenceServerClient(triton_server.grpc_url)
    seen: list[tuple[str, int]] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            status = client.get_system_shared_memory_status(as_json=True)
            for name, region in status.get("regions", {}).items():
                if any(job.state is JobState.RUNNING for job in gateway.jobs()):
                    seen.append((name, int(region["byte_size"])))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assert gateway.send(chest_study.files).exit_code == 0
        (job,) = gateway.wait_for_jobs(1)
    finally:
        done.set()
        watcher.join()
        client.close()
    assert {size for name, size in seen if name.startswith("tritome_arena_")} == {256 * 1024**2}
    voxels = chest_study.labels.size
    story = "\n".join(gateway.story(job))
    assert f"{2 * voxels} bytes in, {voxels} bytes out" in story


def test_the_same_study_again_makes_no_second_job(
    gateway: GatewayProcess, chest_study: PhantomStudy, receiving_pacs: Storescp
) -> None:
    """A scanner that resends what it sent gets success, and the PACS nothing twice."""
    assert gateway.send(chest_study.files).exit_code == 0
    gateway.wait_for_jobs(1)
    receiving_pacs.wait_for(2)
    assert gateway.send(chest_study.files).exit_code == 0
    assert len(gateway.wait_for_jobs(1)) == 1
    assert len(receiving_pacs.received()) == 2  # a SEG and an SR
