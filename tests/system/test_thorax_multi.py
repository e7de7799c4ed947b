"""Pipelines of several models on a real tritonserver: thorax_multi, a region, and feeding.

What is served is compared with MONAI's bundles run one by one in this process, and with cropping,
pasting and merging written out in numpy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from scipy import ndimage
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ensemble_builder.build import build
from ensemble_builder.bundle import BUILT_IN, Options, read_bundle
from ensemble_builder.phantoms.thorax import thorax_phantom
from ensemble_builder.pipelines.training.examples import read_dicom
from ensemble_builder.server import TritonServer
from ensemble_builder.verify import Source, StoredVolume, monai_stages, reference, served
from ensemble_builder.verify.pipeline import BuiltPipeline, pipeline_reference
from tests.support.patience import until
from tests.support.pipelines import a_threshold_bundle
from tests.support.volumes import an_oblique_volume

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
]

REAL_CHEST = Path(__file__).parents[3] / "shared" / "dicom" / "v01_ct_chest_ge_100_jls"

Mask = NDArray[np.uint8]

JOINED = """
pipeline: joined
nodes:
  spot: {bundle: bright}
  around: {region_of: spot, labels: [2], margin_mm: 6}
  closer: {bundle: bright, image: around}
  gated: {region_of: spot, labels: [2], margin_mm: 3, crop: false, outside_value: -500}
  blank: {bundle: bright, image: gated}
  guided: {bundle: guided, image: [around, spot]}
  all:
    merge: [guided, closer, blank]
    overlap: priority
    priority: [2, 5, 4, 1, 3, 6]
    segments:
      - {of: guided, label: 1, to: 1, name: Guided one}
      - {of: guided, label: 2, to: 2, name: Guided two}
      - {of: closer, label: 1, to: 3, name: Closer one}
      - {of: closer, label: 2, to: 4, name: Closer two}
      - {of: blank, label: 1, to: 5, name: Blank one}
      - {of: blank, label: 2, to: 6, name: Blank two}
output: all
"""
"""A region, a mask that gates, and a mask fed as a channel, all from one network's result."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks that know only thresholds, and the pipeline that joins them."""
    folder = tmp_path_factory.mktemp("bundles")
    a_threshold_bundle(folder / "bright", channels=1)
    a_threshold_bundle(folder / "guided", channels=2)
    (folder / "joined.yaml").write_text(JOINED, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Triton writes what it traced, a file for each request."""
    return tmp_path_factory.mktemp("traces") / "trace.json"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, bundles: Path) -> Path:
    """Both pipelines with torch, which computes what MONAI computes bit by bit."""
    folder = tmp_path_factory.mktemp("repository")
    list(build("thorax_multi", folder, Options(runtime="torch", instances=1)))
    list(build(bundles / "joined.yaml", folder, Options(runtime="torch", instances=1)))
    return folder


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, repository: Path, traces: Path
) -> Iterator[TritonServer]:
    """A tritonserver that traces every request."""
    log = tmp_path_factory.mktemp("log") / "triton.log"
    trace = ("mode=triton", f"triton,file={traces}", "triton,log-frequency=1", "rate=1")
    flags = [f"--trace-config={one}" for one in (*trace, "level=TIMESTAMPS")]
    with TritonServer(repository, log=log, watch=False, flags=flags) as found:
        yield found


def one_by_one(volume: StoredVolume) -> Mask:
    """lung_ct, then thorax_ct, then the merge: the lungs win."""
    lungs = reference(BUILT_IN / "lung_ct", volume)
    thorax = reference(BUILT_IN / "thorax_ct", volume)
    return np.where(lungs > 0, lungs, np.where(thorax > 0, thorax + 2, 0)).astype(np.uint8)


def test_thorax_multi_is_its_bundles_one_by_one(server: TritonServer) -> None:
    """On a phantom that no training has seen: voxel for voxel, and every label is there."""
    phantom = thorax_phantom(9002, shape_kji=(60, 128, 128), spacing_mm=(5.0, 3.0, 3.0))
    rescale = np.tile([1.0, 0.0], (phantom.hu.shape[0], 1))
    chest = StoredVolume(phantom.hu, rescale, phantom.affine_lps)
    expected = one_by_one(chest)
    assert np.array_equal(served(server.grpc_url, "thorax_multi", chest), expected)
    assert set(np.unique(expected)) == set(range(7))


@pytest.mark.skipif(not REAL_CHEST.is_dir(), reason="no real chest CT beside this checkout")
def test_thorax_multi_on_a_real_chest(server: TritonServer) -> None:
    """The same on the CT that lies beside this checkout."""
    found = read_dicom(REAL_CHEST)
    rescale = np.tile([1.0, 0.0], (found.hu.shape[0], 1))
    chest = StoredVolume(found.hu, rescale, found.affine_lps)
    assert np.array_equal(served(server.grpc_url, "thorax_multi", chest), one_by_one(chest))


def test_branches_overlap_in_time(server: TritonServer, traces: Path) -> None:
    """Triton's own trace shows a model of each branch computing at the same moment."""
    phantom = thorax_phantom(9003, shape_kji=(30, 96, 96), spacing_mm=(10.0, 4.0, 4.0))
    rescale = np.tile([1.0, 0.0], (phantom.hu.shape[0], 1))
    served(server.grpc_url, "thorax_multi", StoredVolume(phantom.hu, rescale, phantom.affine_lps))
    until(lambda: newest_trace(traces, "thorax_multi"))
    computing = newest_trace(traces, "thorax_multi")
    lungs = [span for model, span in computing.items() if "_lungs_" in model]
    thorax = [span for model, span in computing.items() if "_thorax_" in model]
    assert len(lungs) == len(thorax) == 3
    together_ns = [min(a[1], b[1]) - max(a[0], b[0]) for a in lungs for b in thorax]
    assert max(together_ns) > 0
    merge = computing["thorax_multi_all"]
    assert merge[0] >= max(end for _, end in [*lungs, *thorax])


def newest_trace(traces: Path, pipeline: str) -> dict[str, tuple[int, int]]:
    """Model -> when it began and ended to compute (ns), of the newest request to a pipeline."""
    for file in sorted(
        traces.parent.glob(f"{traces.name}.*"), key=lambda p: int(p.suffix[1:]), reverse=True
    ):
        try:
            events = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            continue  # Triton is still writing it
        named = {one["id"]: one for one in events if "model_name" in one}
        whole = [n for n, one in named.items() if one["model_name"] == pipeline]
        if not whole:
            continue
        at = {
            (one["id"], stamp["name"]): stamp["ns"]
            for one in events
            for stamp in one.get("timestamps", ())
        }
        return {
            # COMPUTE_END comes after the next model was given the output.
            one["model_name"]: (at[n, "COMPUTE_START"], at[n, "COMPUTE_OUTPUT_START"])
            for n, one in named.items()
            if one.get("parent_id") == whole[0] and (n, "COMPUTE_END") in at
        }
    return {}


def monai_mask(folder: Path, request: dict[str, NDArray[Any]]) -> Mask:
    """What a bundle gives in this process."""
    source = Source.of(read_bundle(folder))
    mask: Mask = monai_stages(source, request).outputs["MASK"]
    return mask


def joined_in_numpy(bundles: Path, volume: StoredVolume) -> Mask:
    """The pipeline JOINED, written out."""
    spot = monai_mask(bundles / "bright", volume.request())
    two = spot == 2
    spacing = np.linalg.norm(volume.affine_lps[:3, :3], axis=0)[::-1]
    wide, near = (np.ceil(mm / spacing).astype(int) for mm in (6, 3))
    inside = [np.flatnonzero(two.any(axis=tuple({0, 1, 2} - {n}))) for n in range(3)]
    start = [max(0, found[0] - m) for found, m in zip(inside, wide, strict=True)]
    stop = [found[-1] + 1 + m for found, m in zip(inside, wide, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    affine = volume.affine_lps.copy()
    affine[:, 3] = volume.affine_lps @ [*start[::-1], 1]
    part: dict[str, NDArray[Any]] = {
        "IMAGE": volume.image[box],
        "RESCALE": volume.rescale[box[0]],
        "AFFINE": affine,
    }
    assert part["IMAGE"].size < volume.image.size / 4

    kept = ndimage.binary_dilation(two, np.ones(2 * near + 1, bool))
    slopes, intercepts = volume.rescale[:, :1, None], volume.rescale[:, 1:, None]
    blank = np.where(kept, volume.image, np.rint((-500 - intercepts) / slopes))
    ones = np.tile([1.0, 0.0], (len(part["RESCALE"]), 1))
    fed: dict[str, NDArray[Any]] = {
        "IMAGE": np.stack([part["IMAGE"], spot[box].astype(np.int16)]),
        "RESCALE": np.stack([part["RESCALE"], ones]),
        "AFFINE": affine,
    }
    guided, closer = np.zeros_like(spot), np.zeros_like(spot)
    guided[box] = monai_mask(bundles / "guided", fed)
    closer[box] = monai_mask(bundles / "bright", part)
    gated = monai_mask(bundles / "bright", {**volume.request(), "IMAGE": blank.astype(np.int16)})
    out = np.zeros_like(spot)
    claims = {1: guided == 1, 2: guided == 2, 3: closer == 1, 4: closer == 2}
    claims |= {5: gated == 1, 6: gated == 2}
    for label in (6, 3, 1, 4, 5, 2):  # the strongest last
        out[claims[label]] = label
    return out


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_regions_gates_and_channels_are_what_numpy_makes_of_them(
    server: TritonServer, repository: Path, bundles: Path, slope: float
) -> None:
    """Voxel for voxel; the region is a real part, and several labels meet in it."""
    volume = a_bright_spot(slope)
    expected = joined_in_numpy(bundles, volume)
    built = BuiltPipeline.find(repository, "joined")
    assert built is not None
    # What `tritome verify` compares with is the same again.
    mask, idle = pipeline_reference(built, volume.request())
    assert np.array_equal(mask, expected)
    assert not idle
    assert np.array_equal(served(server.grpc_url, "joined", volume), expected)
    assert len(np.unique(expected)) >= 4


def a_bright_spot(slope: float) -> StoredVolume:
    """Random structures, and one place that is brighter than all."""
    volume = an_oblique_volume((24, 60, 64), slope=slope)
    k, j, i = np.ogrid[:24, :60, :64]
    near = np.exp(-(((k - 9) / 2) ** 2 + ((j - 20) / 5) ** 2 + ((i - 40) / 4) ** 2))
    image = np.clip(volume.image + 20_000 * near, -32768, 32767).astype(np.int16)
    return StoredVolume(image, volume.rescale, volume.affine_lps)


def refusal(server: TritonServer, model: str, **tensors: NDArray[Any]) -> InferenceServerException:
    """What one model answers to a request that it can't take."""
    inputs = []
    for name, value in tensors.items():
        tensor = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    with (
        triton.InferenceServerClient(server.grpc_url) as client,
        pytest.raises(InferenceServerException) as caught,
    ):
        client.infer(model, inputs)
    return caught.value


def test_models_between_bundles_refuse_by_name(server: TritonServer) -> None:
    """Whoever reaches Triton can call them: the wrong tensor is named, and it's the caller's."""
    one, two = np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2, 4), np.uint8)
    merge = refusal(server, "joined_all", MASK_GUIDED=one, MASK_CLOSER=two, MASK_BLANK=one)
    assert "MASK_CLOSER is [1, 2, 4], but MASK_GUIDED is [1, 2, 3]" in merge.message()
    box = np.array([[0, 1, 1], [0, 2, 2], [3, 3, 9]], np.int64)
    paste = refusal(server, "joined_paste_uint8", MASK=one, BOX=box)
    assert "BOX must hold start, stop and size of each axis" in paste.message()
    assert {str(one.status()) for one in (merge, paste)} == {"StatusCode.INVALID_ARGUMENT"}
