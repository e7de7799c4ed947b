"""Invertd and what makes labels of its result, as one step in slabs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    CropForegroundd,
    DivisiblePadd,
    Flipd,
    Invertd,
    Orientationd,
    Resized,
    Rotate90d,
    Rotated,
    Spacingd,
    SpatialPadd,
)

from ensemble_builder.runtime import grid, resample
from ensemble_builder.runtime.inverse import invert_and_reduce
from ensemble_builder.runtime.recording import NotRecorded, Sample, record
from ensemble_builder.runtime.reduction import reduction_of

EXAMPLES = int(os.environ.get("TRITOME_FUZZ", "40"))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def an_affine(seed: int, kind: str) -> torch.Tensor:
    """Straight, turned (oblique) or sheared, with any spacing and order of axes."""
    random = np.random.default_rng(seed)
    turn = np.eye(3)
    if kind != "straight":
        turn, _ = np.linalg.qr(np.eye(3) + 0.3 * random.normal(size=(3, 3)))
    if kind == "sheared":
        turn = turn + 0.1 * random.normal(size=(3, 3))
    axes = np.eye(3)[random.permutation(3)] * random.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ np.diag(random.choice([0.5, 0.7, 1.0, 1.5, 2.5, 3.0], 3))
    affine[:3, 3] = random.normal(size=3) * 50
    return torch.from_numpy(affine)


def a_prediction(channels: int, size: Any, seed: int, smooth: bool) -> torch.Tensor:
    """Blobs, or noise with many ties."""
    generator = torch.Generator().manual_seed(seed)
    if not smooth:
        return torch.randn(channels, *size, generator=generator).mul_(2).round_()
    small = torch.randn(1, channels, *(max(2, n // 4) for n in size), generator=generator)
    return 6 * torch.nn.functional.interpolate(small, size=tuple(size), mode="trilinear")[0]


STEPS: dict[str, Any] = {
    "orientation": lambda d: Orientationd(
        "image", axcodes=d(st.sampled_from(["RAS", "LPS", "SPL", "PIR"])), labels=None
    ),
    "spacing": lambda d: Spacingd(
        "image",
        pixdim=tuple(d(st.sampled_from([0.8, 1.0, 1.5, 2.0, 4.0])) for _ in range(3)),
        mode=d(st.sampled_from(["bilinear", "bilinear", "nearest"])),
        padding_mode=d(st.sampled_from(["border", "border", "zeros", "reflection"])),
        align_corners=d(st.booleans()),
        dtype=d(st.sampled_from([np.float64, np.float32])),
        diagonal=d(st.sampled_from([False, False, False, True])),
    ),
    "crop": lambda d: CropForegroundd(
        "image", source_key="image", select_fn=lambda x: x > 0.7, allow_smaller=True
    ),
    "pad": lambda d: SpatialPadd("image", spatial_size=(14, 9, 17)),
    "divisible": lambda d: DivisiblePadd("image", k=4),
    "flip": lambda d: Flipd("image", spatial_axis=d(st.sampled_from([0, 1, (0, 2)]))),
    "turn": lambda d: Rotate90d("image", k=d(st.integers(1, 3)), spatial_axes=(0, 2)),
}
ENDS: dict[str, list[Any]] = {
    "argmax": [AsDiscreted("pred", argmax=True)],
    "threshold": [AsDiscreted("pred", threshold=0.3)],
    "softmax after": [Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)],
    "sigmoid after": [Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.6)],
}


def both(
    before: Compose, image: MetaTensor, pred: torch.Tensor, end: list[Any], nearest: bool
) -> tuple[MetaTensor, MetaTensor]:
    """MONAI's result and ours."""
    data = before({"image": image})
    data["pred"] = MetaTensor(pred, meta=dict(data["image"].meta))
    inverse = Invertd("pred", transform=before, orig_keys="image", nearest_interp=nearest)
    ours = invert_and_reduce(inverse, dict(data), "pred", reduction_of(end, "pred"))["pred"]
    return Compose([inverse, *end])(data)["pred"], ours


def assert_equal(expected: MetaTensor, actual: MetaTensor) -> None:
    """The same values, shape, affine and history."""
    assert torch.equal(expected.as_tensor(), actual.as_tensor().to(expected.dtype))
    assert torch.equal(expected.affine, actual.affine)
    assert expected.applied_operations == actual.applied_operations


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_the_same_labels_as_monai(data: st.DataObject) -> None:
    """Any preprocessing of spatial transforms, any way to labels: not one voxel differs."""
    names = data.draw(st.permutations(sorted(STEPS)))[: data.draw(st.integers(0, 4))]
    before = Compose([STEPS[name](data.draw) for name in names] or [Flipd("image", 0)])
    seed = data.draw(st.integers(0, 10_000))
    kind = data.draw(st.sampled_from(["straight", "straight", "oblique", "sheared"]))
    size = [data.draw(st.integers(5, 19)) for _ in range(3)]
    values = torch.rand(1, *size, generator=torch.Generator().manual_seed(seed))
    image = MetaTensor(values, affine=an_affine(seed, kind))
    channels = data.draw(st.integers(2, 12))
    shape = before({"image": image})["image"].shape[1:]
    assume(min(shape) > 0)  # nothing may be left of a crop
    end = data.draw(st.sampled_from(sorted(ENDS)))
    # An activation's last bit depends on the place in memory: no ties there.
    pred = a_prediction(channels, shape, seed, "after" in end or data.draw(st.booleans()))
    if data.draw(st.booleans()):
        pred = pred.softmax(0) if data.draw(st.booleans()) else pred.sigmoid()
    expected, actual = both(before, image, pred, ENDS[end], data.draw(st.booleans()))
    assert_equal(expected, actual)
    assert actual.dtype == torch.uint8


def a_study(seed: int = 0) -> MetaTensor:
    """A small image, straight and anisotropic."""
    values = torch.rand(1, 24, 20, 16, generator=torch.Generator().manual_seed(seed))
    affine = torch.diag(torch.tensor([-0.7, -0.7, 2.0, 1], dtype=torch.float64))
    return MetaTensor(values, affine=affine)


def the_usual(**spacing: Any) -> Compose:
    """What most bundles do."""
    options = {"pixdim": (1.5, 1.5, 1.0), "mode": "bilinear"} | spacing
    return Compose(
        [Orientationd("image", axcodes="RAS", labels=None), Spacingd("image", **options)]
    )


def test_labels_lie_as_dicom_orders_them() -> None:
    """The result can become [K, J, I] without a copy."""
    before = the_usual()
    pred = a_prediction(3, before({"image": a_study()})["image"].shape[1:], 0, smooth=True)
    _, ours = both(before, a_study(), pred, ENDS["argmax"], nearest=False)
    assert ours[0].permute(2, 1, 0).is_contiguous()


@pytest.mark.parametrize("nearest", [True, False])
def test_a_label_map_that_nothing_reduces(nearest: bool) -> None:
    """Labels before the inverse (as in wholeBody and prostate), float32 values after it."""
    before = the_usual()
    shape = before({"image": a_study()})["image"].shape[1:]
    labels = a_prediction(7, shape, 1, smooth=True).argmax(0, keepdim=True).float()
    expected, ours = both(before, a_study(), labels, [], nearest)
    assert_equal(expected, ours)
    assert ours.dtype == torch.float32


def test_scores_that_nothing_reduces_are_monais() -> None:
    """Interpolated scores as a result need MONAI's own code, and get it by name."""
    before = the_usual()
    pred = a_prediction(2, before({"image": a_study()})["image"].shape[1:], 1, smooth=True)
    with pytest.raises(NotRecorded, match="nothing reduces"):
        both(before, a_study(), pred, [], nearest=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_monais(bad: float) -> None:
    """A NaN is the largest for torch.argmax; no shortcut holds for it."""
    before = the_usual()
    pred = a_prediction(2, before({"image": a_study()})["image"].shape[1:], 1, smooth=True)
    pred[1, 3, 3, 3] = bad
    with pytest.raises(NotRecorded, match="finite"):
        both(before, a_study(), pred, ENDS["argmax"], nearest=False)


@pytest.mark.parametrize(
    "before",
    [
        Compose([Rotated("image", angle=(0.1, 0.2, 0.3))]),
        Compose([Resized("image", spatial_size=(9, 9, 9), mode="trilinear")]),
        Compose([Spacingd("image", pixdim=(1.5, 1.5, 1.0)), Spacingd("image", pixdim=(2.0, 2, 2))]),
    ],
)
def test_other_ways_back_are_refused_or_the_same(before: Compose) -> None:
    """An interpolation that isn't known is never guessed."""
    pred = a_prediction(3, before({"image": a_study()})["image"].shape[1:], 2, smooth=True)
    try:
        expected, ours = both(before, a_study(), pred, ENDS["argmax"], nearest=False)
    except NotRecorded:
        return
    assert_equal(expected, ours)


def test_channels_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """More channels than fit converted at once give the same labels, group by group."""
    before = the_usual()
    shape = before({"image": a_study()})["image"].shape[1:]
    monkeypatch.setattr(resample, "CONVERTED_BYTES", 2 * 8 * int(np.prod(shape)))
    monkeypatch.setattr(resample, "CHUNK_POINTS", 700)
    monkeypatch.setattr(resample, "LONGEST_LIST", 2000)
    for smooth in (True, False):
        pred = a_prediction(7, shape, 3, smooth)
        assert_equal(*both(before, a_study(), pred, ENDS["argmax"], nearest=False))


def test_most_voxels_are_never_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a segment nothing is computed: that is where the time is saved."""
    computed = 0
    interpolate = grid.Grid.interpolate

    def counted(self: Any, source: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        nonlocal computed
        computed += len(points)
        return interpolate(self, source, points)

    monkeypatch.setattr(grid.Grid, "interpolate", counted)
    image = MetaTensor(torch.rand(1, 60, 60, 40), affine=a_study().affine)
    before = the_usual()
    shape = before({"image": image})["image"].shape[1:]
    pred = torch.zeros(2, *shape)
    pred[0], pred[1, 8:20, 8:20, 8:20] = 0.4, 1.0
    expected, ours = both(before, image, pred, ENDS["argmax"], nearest=False)
    assert_equal(expected, ours)
    assert computed < 0.15 * expected.numel()


def test_a_recording_takes_no_memory() -> None:
    """MONAI's inverse of a volume of terabytes is recorded without any of it."""
    before = the_usual()
    done = before({"image": a_study()})["image"]
    inverse = Invertd("pred", transform=before, orig_keys="image", nearest_interp=False)

    def compute(stand_in: torch.Tensor) -> Any:
        return inverse({"image": done, "pred": MetaTensor(stand_in, meta=dict(done.meta))})["pred"]

    steps, result = record(compute, (105, 20_000, 20_000, 20_000), done)
    assert [type(step) for step in steps].count(Sample) == 1
    assert result.shape == (105, 24, 20, 16)
