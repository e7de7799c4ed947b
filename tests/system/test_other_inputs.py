"""More than one CT volume: MR contrasts by role, and radiographs whose scores become a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import MRImageStorage, generate_uid
from scipy import ndimage

from clients.demo.reading import read_segmentation, read_source
from clients.infer import Scored, predict_dicom, series_in, write_report
from dicom_gateway.records import Job, JobState
from ensemble_builder.bundle import Bundle, Options, find_bundle, read_bundle
from ensemble_builder.pipelines.chest_xray.bundle import ChestXrayBundle
from ensemble_builder.plan import plan
from ensemble_builder.repository import write
from ensemble_builder.samples import sample
from ensemble_builder.server import TritonServer
from ensemble_builder.verify import Source, compare_stages, monai_stages, served_stages
from tests.support import zoo
from tests.support.dicom import a_ct_series, write_series
from tests.support.peers import Storescp, dciodvfy, storescp
from tests.support.radiographs import a_radiograph
from tests.support.road import GatewayProcess, a_gateway

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
]
SHAPE = (24, 44, 40)
LARGEST_DIFFERENCE = 1e-4
"""Of a score in the report from MONAI's own: a report has decimal numbers."""


def _role(contrast: str) -> dict[str, Any]:
    return {"where": [{"tag": "SeriesDescription", "equals": contrast}]}


ROUTING = {
    "rules": [
        {
            "name": "brain",
            "called": "BRAIN",
            "roles": {"flair": _role("FLAIR"), "t1": _role("T1")},
            "pipelines": ["two_images"],
        },
        {
            "name": "tumour",
            "called": "TUMOUR",
            "roles": {"t1-gd": _role("FLAIR"), "t1": _role("T1")},
            "pipelines": ["contrasts"],
        },
    ]
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Two named images; two channels; the built-in radiographs."""
    folder = tmp_path_factory.mktemp("bundles")
    random = Options(random_weights=2, runtime="torch", instances=1)
    return {
        "two_images": read_bundle(zoo.a_bundle_with_scripts(folder / "two_images"), random),
        "contrasts": read_bundle(zoo.a_bundle_of_contrasts(folder / "contrasts"), random),
        "chest_xray": read_bundle(find_bundle("chest_xray")),
    }


@pytest.fixture(scope="module")
def server(
    bundles: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """All of them in one repository."""
    repository = tmp_path_factory.mktemp("repository")
    for bundle in bundles.values():
        list(write(plan(bundle), repository))
    log = tmp_path_factory.mktemp("log") / "triton.log"
    with TritonServer(repository, log=log, watch=False) as found:
        yield found


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storescp]:
    """Dcmtk's storescp."""
    with storescp(tmp_path_factory.mktemp("received"), "PACS") as peer:
        yield peer


@pytest.fixture(scope="module")
def gateway(
    server: TritonServer, pacs: Storescp, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """An AE title for each kind of input."""
    titles = [{"ae-title": name, "destinations": ["pacs"]} for name in ("BRAIN", "TUMOUR")]
    cxr = {"ae-title": "CXR", "pipelines": ["chest_xray"], "destinations": ["pacs"]}
    pacs_entry = {
        "name": "pacs",
        "host-ip": pacs.host,
        "port": pacs.port,
        "ae-title": pacs.ae_title,
    }
    dicom = {
        "scp": {
            "host": "127.0.0.1",
            "port": 0,
            "ae-titles": [*titles, cxr],
            "reject-unknown-sources": False,
        },
        "scu": {"ae-title": "TRITOME", "destinations": [pacs_entry]},
    }
    folder = tmp_path_factory.mktemp("gateway")
    with a_gateway(folder, triton=server.grpc_url, dicom=dicom, routing=ROUTING) as found:
        yield found


def _ended(gateway: GatewayProcess, files: Sequence[Path], called: str, count: int) -> list[Job]:
    """Sends files, and gives the jobs made of them once they have ended."""
    before = {job.job_id for job in gateway.jobs()}
    assert gateway.send(files, called=called).exit_code == 0
    jobs = gateway.wait_for_jobs(len(before) + count)
    return [job for job in jobs if job.job_id not in before]


def _delivered(
    gateway: GatewayProcess, pacs: Storescp, jobs: Sequence[Job], modality: str
) -> list[Path]:
    """What the PACS received of delivered jobs."""
    assert {job.state for job in jobs} == {JobState.DELIVERED}, (jobs, gateway.log())
    made = {uid for job in jobs for uid in gateway.results(job)}
    received = [(path, pydicom.dcmread(path)) for path in pacs.wait_for(len(made))]
    return [path for path, ds in received if ds.SOPInstanceUID in made and ds.Modality == modality]


def _contrasts(folder: Path, *, moved_mm: float = 0.0) -> tuple[list[Path], dict[str, Any]]:
    """T1 and FLAIR of one study as files, and as a request brings them."""
    study, place = generate_uid(), generate_uid()
    files: list[Path] = []
    request: dict[str, Any] = {}
    for n, contrast in enumerate(("T1", "FLAIR")):
        stored = _a_head(seed=n)
        slope = 0.5 + n
        frames = a_ct_series(
            pixels=stored,
            slope=slope,
            intercept=3.0,
            study_instance_uid=study,
            frame_of_reference_uid=place,
            modality="MR",
            sop_class_uid=MRImageStorage,
            image_type=("ORIGINAL", "PRIMARY", "OTHER"),
            pixel_spacing_mm=(1.5, 1.25),
            spacing_mm=3.0,
            origin_lps_mm=(-40.0 + n * moved_mm, -30.0, 10.0),
        )
        for ds in frames:
            ds.SeriesDescription = contrast
        files += write_series(folder / contrast, frames)
        affine = np.diag([1.25, 1.5, 3.0, 1.0])
        affine[:3, 3] = -40.0, -30.0, 10.0
        request |= {
            contrast: stored,
            f"{contrast}_RESCALE": np.tile([slope, 3.0], (SHAPE[0], 1)),
            f"{contrast}_AFFINE": affine,
        }
    return files, request


def _a_head(seed: int) -> NDArray[np.int16]:
    """int16 [K, J, I]: smooth blobs, another picture for each seed."""
    rng = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(rng.normal(size=SHAPE), 3.0)
    return np.rint(400 + 300 * blobs / blobs.std()).clip(0, 2000).astype(np.int16)


def _mask_of(segmentation: Path, files: Sequence[Path]) -> NDArray[np.uint8]:
    """A SEG as labels [K, J, I] on its source series, every frame where its instance is."""
    assert dciodvfy(segmentation) == []
    uid = pydicom.dcmread(segmentation).ReferencedSeriesSequence[0].SeriesInstanceUID
    source = read_source(list(files), uid)
    received = read_segmentation(segmentation, source)
    assert received.misreferenced_frames == 0
    assert received.worst_offset_mm <= 0.001
    labels = np.zeros(SHAPE, np.uint8)
    for number, segment in enumerate(received.segments, 1):
        labels[segment.mask] = number
    return labels


def test_two_series_go_in_by_their_roles_and_one_mask_comes_out(
    gateway: GatewayProcess,
    bundles: dict[str, Bundle],
    pacs: Storescp,
    tmp_path: Path,
) -> None:
    """T1 into t1 and FLAIR into flair, whatever the rule's order: the mask is MONAI's own."""
    files, request = _contrasts(tmp_path / "study")
    jobs = _ended(gateway, files, "BRAIN", 1)
    (segmentation,) = _delivered(gateway, pacs, jobs, "SEG")
    expected = monai_stages(Source.of(bundles["two_images"]), request).outputs["MASK"]
    assert len(np.unique(expected)) > 1, "a mask of one label proves nothing"
    np.testing.assert_array_equal(_mask_of(segmentation, files), expected)


def test_channels_go_in_together_and_each_mask_is_a_segmentation(
    gateway: GatewayProcess,
    bundles: dict[str, Bundle],
    pacs: Storescp,
    tmp_path: Path,
) -> None:
    """The contract's channel names are the roles; masks overlap, so each has an object."""
    files, request = _contrasts(tmp_path / "study")
    received = _delivered(gateway, pacs, _ended(gateway, files, "TUMOUR", 1), "SEG")
    together = {
        "IMAGE": np.stack([request["T1"], request["FLAIR"]]),
        "RESCALE": np.stack([request["T1_RESCALE"], request["FLAIR_RESCALE"]]),
        "AFFINE": request["T1_AFFINE"],
    }
    expected = monai_stages(Source.of(bundles["contrasts"]), together).outputs["MASKS"]
    assert (expected[0] != expected[1]).any(), "two equal masks could be exchanged"
    masks = {
        str(pydicom.dcmread(path).SegmentSequence[0].SegmentLabel): _mask_of(path, files)
        for path in received
    }
    assert masks.keys() == {"Whole tumour", "Tumour core"}
    np.testing.assert_array_equal(masks["Whole tumour"], expected[0])
    np.testing.assert_array_equal(masks["Tumour core"], expected[1])


def test_contrasts_on_different_grids_are_refused_by_name(
    gateway: GatewayProcess, tmp_path: Path
) -> None:
    """A patient who moved between the series: nothing is computed, and the job says why."""
    files, _ = _contrasts(tmp_path / "study", moved_mm=6.0)
    (job,) = _ended(gateway, files, "BRAIN", 1)
    assert (job.state, job.failure_code) == (JobState.FAILED, "different_grids")
    assert "t1 and flair" in (job.failure_reason or "")


def test_radiographs_come_back_as_reports_with_monais_scores(
    gateway: GatewayProcess, pacs: Storescp, tmp_path: Path
) -> None:
    """DX and CR, both polarities, several sizes and bit depths; every number is coded."""
    sick = (True, True, False, False)
    sent = [
        a_radiograph(7, findings=sick),
        a_radiograph(7, findings=sick, inverted=True),
        a_radiograph(8, (512, 430), bits_stored=16, modality="CR"),
        a_radiograph(9, (222, 260), bits_stored=8, inverted=True, modality="CR"),
    ]
    files = [path for n, ds in enumerate(sent) for path in write_series(tmp_path / str(n), [ds])]
    reports = _delivered(gateway, pacs, _ended(gateway, files, "CXR", len(sent)), "SR")
    assert len(reports) == len(sent)
    assert [problem for path in reports for problem in dciodvfy(path)] == []
    found = {_source_of(path): _scores_in(path) for path in reports}
    bundle = ChestXrayBundle()
    for ds in sent:
        scores = found[str(ds.SOPInstanceUID)]
        expected = bundle.scores(_as_seen(ds))
        assert list(scores) == ["8186001", "60046008", "36118008", "95436008"]
        np.testing.assert_allclose(list(scores.values()), expected, atol=LARGEST_DIFFERENCE)
    plain, inverted = (found[str(ds.SOPInstanceUID)] for ds in sent[:2])
    assert plain == inverted
    assert plain["8186001"] > plain["36118008"], "an enlarged heart, and no pneumothorax"


def test_the_built_in_radiographs_are_served_as_monai_computes_them(
    server: TritonServer, bundles: dict[str, Bundle]
) -> None:
    """Step by step, with the default runtime."""
    bundle = bundles["chest_xray"]
    request = sample(bundle.recipe.inputs, seed=5)
    served = served_stages(server.grpc_url, bundle.name, bundle.recipe, request)
    stages = compare_stages(monai_stages(Source.of(bundle), request), served)
    assert max(stage.largest_difference for stage in stages) <= LARGEST_DIFFERENCE


def test_a_radiograph_straight_to_triton_gives_the_same_scores(
    server: TritonServer, tmp_path: Path
) -> None:
    """`tritome infer`, without a gateway: scores, and the report that would be sent."""
    ds = a_radiograph(21, inverted=True)
    scored = predict_dicom(
        series_in(write_series(tmp_path / "cxr", [ds])), "chest_xray", server.grpc_url
    )
    assert isinstance(scored, Scored)
    names, scores = zip(*scored.scores, strict=True)
    assert names == ("Cardiomegaly", "Pleural effusion", "Pneumothorax", "Lung consolidation")
    expected = ChestXrayBundle().scores(_as_seen(ds))
    np.testing.assert_allclose(scores, expected, atol=LARGEST_DIFFERENCE)
    report = tmp_path / "report.dcm"
    write_report(scored, report)
    np.testing.assert_allclose(list(_scores_in(report).values()), scores, atol=LARGEST_DIFFERENCE)


def _as_seen(ds: Dataset) -> NDArray[np.int64]:
    """[J, I], bone bright."""
    pixels = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).astype(np.int64)
    inverted = ds.PhotometricInterpretation == "MONOCHROME1"
    return 2**ds.BitsStored - 1 - pixels if inverted else pixels


def _items(container: Dataset) -> Iterator[Dataset]:
    for item in container.get("ContentSequence", ()):
        yield item
        yield from _items(item)


def _source_of(report: Path) -> str:
    """The one image that a report refers to."""
    ds = pydicom.dcmread(report)
    evidence = ds.CurrentRequestedProcedureEvidenceSequence
    (uid,) = {
        str(one.ReferencedSOPInstanceUID)
        for study in evidence
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    return uid


def _scores_in(report: Path) -> dict[str, float]:
    """Code of the finding -> score, in the report's order."""
    return {
        str(item.ConceptNameCodeSequence[0].CodeValue): float(
            item.MeasuredValueSequence[0].NumericValue
        )
        for item in _items(pydicom.dcmread(report))
        if item.ValueType == "NUM"
    }
