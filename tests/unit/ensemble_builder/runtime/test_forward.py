"""The preprocessing from stored integers, in slabs, against MONAI's own transforms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    EnsureTyped,
    Flipd,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)

from ensemble_builder.errors import ParityError
from ensemble_builder.runtime import forward
from ensemble_builder.runtime.forward import preprocess
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.runtime.loading import loaded
from ensemble_builder.runtime.steps import Loaded
from ensemble_builder.runtime.volumes import InputError

EXAMPLES = int(os.environ.get("TRITOME_FUZZ", "40"))
CPU = torch.device("cpu")
VOLUME = Input("image", "IMAGE", "volume")
CHANNELS = Input("image", "IMAGE", "channels", 2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def a_request(
    seed: int,
    size: tuple[int, int, int],
    *,
    kind: str = "straight",
    whole: bool = True,
    several: int = 0,
) -> dict[str, torch.Tensor]:
    """Noise with any order of axes; `oblique` grids aren't parallel to the network's."""
    rng = np.random.default_rng(seed)
    shape = (several, *size) if several else size
    turn = np.eye(3)
    if kind == "oblique":
        turn, _ = np.linalg.qr(np.eye(3) + 0.2 * rng.normal(size=(3, 3)))
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ np.diag(rng.choice([0.6, 0.75, 1.0, 1.5, 2.5], 3))
    affine[:3, 3] = rng.normal(size=3) * 40
    slope = rng.integers(1, 4, shape[:-2]) if whole else rng.uniform(0.1, 3, shape[:-2])
    intercept = rng.integers(-1024, 10, shape[:-2]) * (1.0 if whole else 0.37)
    return {
        "IMAGE": torch.from_numpy(rng.integers(-2000, 2000, shape).astype(np.int16)),
        "RESCALE": torch.from_numpy(np.stack([slope, intercept], -1).astype(np.float64)),
        "AFFINE": torch.from_numpy(affine),
    }


def a_bundles(**spacing: Any) -> Compose:
    """What most bundles do before the network."""
    options = {"pixdim": (1.5, 1.25, 2.0), "mode": "bilinear"} | spacing
    return Compose(
        [
            Loaded("image"),
            EnsureChannelFirstd("image"),
            EnsureTyped("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", **options),
            ScaleIntensityRanged("image", -57, 164, 0, 1, clip=True),
            EnsureTyped("image"),
        ]
    )


def both(
    transforms: Compose, request: dict[str, torch.Tensor], one: Input = VOLUME
) -> tuple[Any, Any]:
    """MONAI's image, and the one from the integers; fails where the slabs weren't used."""

    def tensor(name: str, _: torch.device) -> torch.Tensor:
        return request[name]

    expected = transforms(loaded([one], tensor, CPU))["image"]
    done, shape = forward._from_stored(transforms, [one], tensor, CPU)
    assert list(shape) == list(request["IMAGE"].shape[::-1][:3])
    return expected, done["image"]


def assert_equal(expected: Any, actual: Any) -> None:
    """The same values, shape, order of memory, affine and history."""
    assert expected.shape == actual.shape
    longer = [n for n, size in enumerate(expected.shape) if size > 1]
    assert [expected.stride(n) for n in longer] == [actual.stride(n) for n in longer]
    assert torch.equal(expected.as_tensor(), actual.as_tensor())
    assert torch.equal(expected.affine, actual.affine)
    assert str(_without_ids(expected.applied_operations)) == str(
        _without_ids(actual.applied_operations)
    )
    assert expected.meta.keys() == actual.meta.keys()


def _without_ids(operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k != "id"} for one in operations]


# torch says so of a grid of one voxel, in MONAI's run as in ours.
@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid:UserWarning")
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_the_same_network_input_as_monai(data: st.DataObject) -> None:
    """Any axes, spacing, rescaling and options of the resampling: not one bit differs."""
    size = tuple(data.draw(st.integers(4, 19)) for _ in range(3))
    several = data.draw(st.sampled_from([0, 0, 2]))
    request = a_request(
        data.draw(st.integers(0, 10_000)),
        size,
        kind=data.draw(st.sampled_from(["straight", "straight", "oblique"])),
        whole=data.draw(st.booleans()),
        several=several,
    )
    codes = data.draw(st.sampled_from(["RAS", "LPS", "SPL", "PIR"]))
    spatial = [
        Orientationd("image", axcodes=codes, labels=None),
        Spacingd(
            "image",
            pixdim=tuple(data.draw(st.sampled_from([0.9, 1.3, 2.0, 4.0])) for _ in range(3)),
            mode=data.draw(st.sampled_from(["bilinear", "bilinear", "nearest"])),
            padding_mode=data.draw(st.sampled_from(["border", "border", "zeros", "reflection"])),
            align_corners=data.draw(st.booleans()),
            dtype=data.draw(st.sampled_from([np.float64, np.float32])),
        ),
        Flipd("image", spatial_axis=data.draw(st.sampled_from([0, 1, 2]))),
    ]
    chosen = data.draw(st.permutations(spatial))[: data.draw(st.integers(1, 3))]
    if not any(isinstance(one, Spacingd) for one in chosen):
        chosen.append(spatial[1])
    transforms = Compose([Loaded("image"), EnsureChannelFirstd("image"), *chosen])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "SLAB_POINTS", data.draw(st.sampled_from([1, 300, 1_000_000])))
        patch.setattr(forward, "SLAB_VOXELS", data.draw(st.sampled_from([1, 16_000_000])))
        try:
            expected, actual = both(transforms, request, CHANNELS if several else VOLUME)
        except forward.NotRecorded as reason:
            assert "no resampling" in str(reason)  # the spacing was that already
            return
    assert_equal(expected, actual)


def test_a_float_image_of_any_slope_is_rounded_once() -> None:
    """What 16 bits can't hold is sent as float32, which slope and intercept would round twice."""
    for seed in (1, 4):  # of which some voxels show it
        request = a_request(seed, (20, 30, 32), whole=False)
        generator = torch.Generator().manual_seed(seed)
        request["IMAGE"] = torch.rand(20, 30, 32, generator=generator) * 2000 - 300
        assert_equal(*both(a_bundles(), request))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_comes_after_sees_monais_dictionary(dtype: Any) -> None:
    """Scaling and typing follow as they are."""
    expected, actual = both(a_bundles(dtype=dtype), a_request(3, (20, 30, 40)))
    assert_equal(expected, actual)
    assert actual.is_contiguous()


@pytest.mark.parametrize("codes", ["SAR", "ASR"])
def test_a_mean_is_taken_in_monais_order(codes: str) -> None:
    """Turned after the resampling, the voxels lie as MONAI's do: a mean in float32 shows it."""
    transforms = Compose(
        [
            Loaded("image"),
            EnsureChannelFirstd("image"),
            Spacingd("image", pixdim=(1.5, 1.25, 2.0)),
            Orientationd("image", axcodes=codes, labels=None),
            NormalizeIntensityd("image"),
        ]
    )
    expected, actual = both(transforms, a_request(2, (40, 50, 60)))
    assert_equal(expected, actual)


def test_a_lazy_transform_runs_as_compose_runs_it() -> None:
    """Compose tells it not to be lazy; nothing is left pending."""
    transforms = a_bundles()
    padded = SpatialPadd("image", spatial_size=(70, 70, 70), lazy=True)
    transforms = Compose([*transforms.transforms[:5], padded, *transforms.transforms[5:]])
    expected, actual = both(transforms, a_request(3, (12, 13, 14)))
    assert actual.shape[1:] == (70, 70, 70)
    assert_equal(expected, actual)


def test_memory_of_rows_that_are_done_is_let_go() -> None:
    """Only a few rows of a long image are there at any time."""
    request = a_request(5, (120, 64, 64))
    held = []

    class Watched(forward.Rows):
        def hold(self, first: int, last: int) -> None:
            super().hold(first, last)
            held.append(last - first)
            assert not self._floats[:, :first].any()
            assert not self._floats[:, last:].any()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "Rows", Watched)
        patch.setattr(forward, "SLAB_POINTS", 4000)
        transforms = Compose(
            [
                Loaded("image"),
                EnsureChannelFirstd("image"),
                Spacingd("image", pixdim=(1.9, 1.9, 1.9), mode="bilinear", dtype=np.float32),
            ]
        )
        expected, actual = both(transforms, request)
    assert_equal(expected, actual)
    assert max(held) < 40


@pytest.mark.parametrize("whole", [True, False])
def test_pytorch_computes_but_a_few_points(whole: bool) -> None:
    """Nearly all numbers are certain after the plane by plane way; no float image is there."""
    request = a_request(6, (40, 50, 60), whole=whole)
    computed = []
    interpolate = forward.Grid.interpolate

    class Watched(forward.Rows):
        def let_go(self) -> None:
            super().let_go()
            assert not self._floats.reshape(-1)[:-512].any()  # but a page that isn't whole

    def counted(self: Any, source: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        computed.append(len(points))
        return interpolate(self, source, points)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "Rows", Watched)
        patch.setattr(forward.Grid, "interpolate", counted)
        # Half-way between two numbers of 24 bits is a tie, which PyTorch decides: not here.
        expected, actual = both(a_bundles(pixdim=(1.37, 1.21, 2.03)), request)
    assert_equal(expected, actual)
    assert sum(computed) < 0.01 * actual.numel()


@pytest.mark.parametrize("never_negative", [True, False])
def test_zeros_have_pytorchs_sign(never_negative: bool) -> None:
    """The black around a head takes no second way; where values may cancel, PyTorch decides."""
    request = a_request(7, (22, 33, 44), whole=True)
    request["RESCALE"][..., 0], request["RESCALE"][..., 1] = 1, 0
    if never_negative:
        request["IMAGE"].abs_()
    request["IMAGE"][:, :20] = 0
    computed = []
    interpolate = forward.Grid.interpolate

    def counted(self: Any, source: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        computed.append(len(points))
        return interpolate(self, source, points)

    transforms = Compose(a_bundles(pixdim=(1.37, 1.21, 2.03)).transforms[:5])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward.Grid, "interpolate", counted)
        expected, actual = both(transforms, request)
    assert_equal(expected, actual)
    assert int((expected.as_tensor() == 0).sum()) > 0.3 * expected.numel()
    assert torch.equal(torch.signbit(expected.as_tensor()), torch.signbit(actual.as_tensor()))
    assert (sum(computed) < 0.01 * actual.numel()) is never_negative


@pytest.mark.parametrize(
    "transforms",
    [
        Compose([Loaded("image"), ScaleIntensityRanged("image", 0, 1, 0, 1)]),
        Compose([Loaded("image"), EnsureChannelFirstd("image"), Flipd("image", 0)]),
        Compose(
            [
                Loaded("image"),
                EnsureChannelFirstd("image"),
                CropForegroundd("image", source_key="image", allow_smaller=True),
                Spacingd("image", pixdim=(2.0, 2.0, 2.0)),
            ]
        ),
        Compose(
            [
                Loaded("image"),
                EnsureChannelFirstd("image"),
                Spacingd("image", pixdim=(2.0, 2.0, 2.0), mode=3),
            ]
        ),
    ],
)
def test_the_rest_is_monais(transforms: Compose) -> None:
    """What isn't known gives MONAI's own result."""
    request = a_request(1, (8, 9, 10))

    def tensor(name: str, _: torch.device) -> torch.Tensor:
        return request[name]

    with pytest.raises(forward.NotRecorded):
        forward._from_stored(transforms, [VOLUME], tensor, CPU)
    done, shape = preprocess(transforms, [VOLUME], tensor, CPU)
    assert shape == (10, 9, 8)
    assert torch.equal(transforms(loaded([VOLUME], tensor, CPU))["image"], done["image"])


def test_a_wrong_request_is_the_requests_fault() -> None:
    """The sentences are the same as without slabs."""
    request = a_request(1, (8, 9, 10))
    request["RESCALE"] = request["RESCALE"][:3]
    with pytest.raises(InputError, match="RESCALE"):
        preprocess(a_bundles(), [VOLUME], lambda name, _: request[name], CPU)


def test_the_check_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    """With TRITOME_CHECK_FUSION=1 a difference is an error that says how large it is."""
    monkeypatch.setenv(forward.CHECK, "1")
    request = a_request(1, (12, 13, 14))

    def tensor(name: str, _: torch.device) -> torch.Tensor:
        return request[name]

    preprocess(a_bundles(), [VOLUME], tensor, CPU)
    right = forward._resampled

    def wrong(*args: Any) -> torch.Tensor:
        done = right(*args)
        done[0, 0, 0, 0] = 99
        return done

    monkeypatch.setattr(forward, "_resampled", wrong)
    with pytest.raises(ParityError, match="1 of"):
        preprocess(a_bundles(), [VOLUME], tensor, CPU)


def test_the_check_knows_numbers_that_are_none_and_other_shapes() -> None:
    """The same NaN is no difference; another shape is one, in a sentence."""
    nan = float("nan")
    plain = {"image": torch.tensor([1.0, nan]), "name": "x"}
    forward._compare(plain, {"image": torch.tensor([1.0, nan])})
    with pytest.raises(ParityError, match="1 of 2"):
        forward._compare(plain, {"image": torch.tensor([nan, nan])})
    with pytest.raises(ParityError, match=r"\[3\] instead of \[2\]"):
        forward._compare(plain, {"image": torch.zeros(3)})
    with pytest.raises(ParityError, match=r"\[0\] instead of \[2\]"):
        forward._compare(plain, {})
