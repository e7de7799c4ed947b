"""The steps on a GPU: the same numbers, no tensor left behind, no volume fetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    KeepLargestConnectedComponentd,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)

from ensemble_builder.runtime import components, windows
from ensemble_builder.runtime.channels import mask_as_image
from ensemble_builder.runtime.forward import preprocess
from ensemble_builder.runtime.fusion import run
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.runtime.merge import MergeMember, MergeRule, merge
from ensemble_builder.runtime.placing import InputGrid
from ensemble_builder.runtime.recipe import Output
from ensemble_builder.runtime.region import RegionRule, paste, take_region
from ensemble_builder.runtime.results import result
from ensemble_builder.runtime.state import decode_state, dictionary_of, encode_state, state_of
from ensemble_builder.runtime.steps import Loaded
from tests.support.pretended_gpu import GPU, Event, OnGpu, a_gpu

CPU = torch.device("cpu")
VOLUME = Input("image", "IMAGE", "volume")
MASK = Output("pred", "MASK", "labelmap", "UINT8", (-1, -1, -1))
SMALL_BYTES = 4096
"""What may cross while a volume is at work: bounds and counts."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def a_request(slope: float = 1.0) -> dict[str, torch.Tensor]:
    """A small study of blobs, straight and anisotropic."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 4, 6, 6, generator=generator)
    blobs = torch.nn.functional.interpolate(coarse, size=(12, 40, 36), mode="trilinear")[0, 0]
    return {
        "IMAGE": (2000 * blobs - 500).to(torch.int16),
        "RESCALE": torch.tensor([slope, -1024.0], dtype=torch.float64).repeat(12, 1),
        "AFFINE": torch.diag(torch.tensor([0.7, 0.8, 2.5, 1.0], dtype=torch.float64)),
    }


def a_bundle(**spacing: Any) -> Compose:
    """What most bundles do before the network."""
    options = {"pixdim": (1.5, 1.5, 2.0), "mode": "bilinear"} | spacing
    return Compose(
        [
            Loaded("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", **options),
            ScaleIntensityRanged("image", -57, 164, 0, 1, clip=True),
            NormalizeIntensityd("image"),
        ]
    )


ENDS: dict[str, list[Any]] = {
    "argmax": [AsDiscreted("pred", argmax=True)],
    "softmax": [Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)],
    "threshold": [AsDiscreted("pred", threshold=0.4)],
    "largest": [AsDiscreted("pred", argmax=True), KeepLargestConnectedComponentd("pred")],
    "nothing": [],
}


def a_prediction(x: torch.Tensor, channels: int) -> torch.Tensor:
    """Blobs on the network's grid."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, channels, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=x.shape[1:], mode="trilinear")[0]


def served(device: torch.device, end: str, nearest: bool, channels: int, slope: float) -> Any:
    """What a request gives, through all that its steps do, and the network's input."""
    request = a_request(slope)

    def tensor(name: str, where: torch.device) -> torch.Tensor:
        return request[name].to(where)

    with torch.no_grad():
        before = a_bundle()
        done, shape = preprocess(before, [VOLUME], tensor, device)
        x = done["image"]
        assert x.device == device
        told = encode_state(state_of(done, InputGrid(shape, None)))
        y = a_prediction(x, channels).to(device)
        if end == "nothing":
            y = y.argmax(0, keepdim=True).to(torch.uint8)
        state = decode_state(told)
        after = Compose(
            [Invertd("pred", before, orig_keys="image", nearest_interp=nearest), *ENDS[end]]
        )
        found = run(after, dictionary_of("image", "pred", state, y, {}), "pred")["pred"]
        assert found.device == device
        return x.as_subclass(torch.Tensor), found.as_subclass(torch.Tensor)


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("end", sorted(ENDS))
def test_a_study_stays_on_the_gpu(end: str, nearest: bool) -> None:
    """From the stored integers to labels on the image's grid: the CPU's, and nothing fetched."""
    channels = 1 if end == "threshold" else 3
    expected_x, expected = served(CPU, end, nearest, channels, 1.0)
    with a_gpu() as fetched:
        x, found = served(GPU, end, nearest, channels, 1.0)
    assert torch.allclose(x.held, expected_x, atol=1e-5)
    assert torch.equal(found.held, expected)
    assert found.dtype == expected.dtype
    # Labels, a byte each, go to where the components are found.
    large = [size for size in fetched if size > SMALL_BYTES]
    assert large == ([expected.numel()] if end == "largest" else [])


def test_an_image_of_any_slope_stays_there_too() -> None:
    """Where rescaling needs float64, slice by slice."""
    expected_x, expected = served(CPU, "softmax", nearest=False, channels=3, slope=0.37)
    with a_gpu() as fetched:
        x, found = served(GPU, "softmax", nearest=False, channels=3, slope=0.37)
    assert torch.allclose(x.held, expected_x, atol=1e-5)
    assert torch.equal(found.held, expected)
    assert max(fetched) <= SMALL_BYTES


def test_an_output_is_made_there() -> None:
    """Labels in DICOM's order of axes, checked against their datatype."""
    labels = torch.arange(24, dtype=torch.float32).reshape(1, 2, 3, 4)
    grid = InputGrid((2, 3, 4), torch.eye(4, dtype=torch.float64))
    for datatype in ("UINT8", "UINT16"):
        output = Output("pred", "MASK", "labelmap", datatype, (-1, -1, -1))
        expected = result(MetaTensor(labels), output, grid)
        with a_gpu() as fetched:
            found = result(MetaTensor(labels.to(GPU)), output, grid)
        assert isinstance(found, OnGpu)
        assert found.is_contiguous()
        assert torch.equal(found.held, expected)
        assert max(fetched) <= 4  # the least and the largest label


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_windows_stay_there(mode: str) -> None:
    """Cut out, computed and stitched."""
    x = torch.rand(1, 1, 20, 18, 16, generator=torch.Generator().manual_seed(2))
    inferer = SlidingWindowInferer((8, 8, 8), sw_batch_size=2, overlap=0.5, mode=mode)

    def network(part: torch.Tensor) -> torch.Tensor:
        return torch.cat([part, 1 - part], dim=1)

    def reduce(part: torch.Tensor) -> torch.Tensor:
        return part.argmax(0, keepdim=True).to(torch.uint8)

    expected = windows.sliding_window(inferer, x, network, reduce)
    with a_gpu() as fetched:
        found = windows.sliding_window(inferer, x.to(GPU), network, reduce)
    assert torch.equal(found.held, expected)
    assert max(fetched) <= SMALL_BYTES


class AnotherInferer(SlidingWindowInferer):  # type: ignore[misc]
    """One that isn't known, and so is MONAI's own code."""


@pytest.mark.parametrize("kind", [SlidingWindowInferer, AnotherInferer])
def test_a_gpu_is_not_given_a_whole_study_ahead(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has been given can't make room for a more urgent request."""
    ahead: list[int] = []
    given = 0

    class Mark(Event):
        def record(self, stream: object) -> None:
            """A batch is handed over."""
            nonlocal given
            given += 1
            ahead.append(given)

        def synchronize(self) -> None:
            """It is computed."""
            nonlocal given
            given -= 1

    x = torch.rand(1, 1, 20, 18, 16)
    inferer = kind((8, 8, 8))
    with a_gpu():
        monkeypatch.setattr(torch.cuda, "Event", Mark)
        windows.sliding_window(inferer, x.to(GPU), lambda part: part, None, lambda: False)
    assert len(ahead) > 2 * windows.BATCHES_IN_FLIGHT
    assert max(ahead) <= windows.BATCHES_IN_FLIGHT + 1


def test_components_are_left_to_cucim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MONAI finds them on the GPU, nothing is fetched."""
    monkeypatch.setattr(components, "_found_on_the_gpu", lambda: True)
    with a_gpu() as fetched:
        labels = torch.zeros(1, 4, 4, 4, dtype=torch.uint8, device=GPU)
        with pytest.raises(components.NotRecorded, match="cucim"):
            components.keep_largest(KeepLargestConnectedComponentd("pred"), labels)
    assert not fetched


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_pipelines_of_several_bundles_stay_there(dtype: torch.dtype) -> None:
    """A region is cut out, its mask put back, masks are merged and become channels."""
    request = a_request()
    mask = (request["IMAGE"] > 300).to(dtype)
    region = RegionRule("lung", labels=(1,), margin_mm=2.0, outside_value=-1000.0)
    members = tuple(MergeMember(name, name, ((1, n + 1),)) for n, name in enumerate("ab"))
    rule = MergeRule("both", members, "priority", (2, 1), "UINT16")

    def compute(device: torch.device) -> list[torch.Tensor]:
        there = mask.to(device)
        image, rescale, affine = (request[name] for name in ("IMAGE", "RESCALE", "AFFINE"))
        part = take_region(there, image.to(device), rescale, affine, region)
        back = paste(there[part.box.slices], part.box)
        as_image = mask_as_image(there, affine, part.box)
        return [part.image, back, merge([there, back], rule), as_image.image]

    expected = compute(CPU)
    with a_gpu() as fetched:
        found = compute(GPU)
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, OnGpu)
        assert torch.equal(ours.held, theirs)
    assert max(fetched) <= SMALL_BYTES
