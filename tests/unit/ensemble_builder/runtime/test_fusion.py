"""Which transforms run where, and that the result is MONAI's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureTyped,
    Identityd,
    Invertd,
    KeepLargestConnectedComponentd,
    Lambdad,
    Orientationd,
    Spacingd,
    SpatialPadd,
)

from ensemble_builder.errors import ParityError
from ensemble_builder.runtime import fusion
from ensemble_builder.runtime.fusion import run, split

SOFTMAX = Activationsd("pred", softmax=True)
SIGMOID = Activationsd("pred", sigmoid=True)
ARGMAX = AsDiscreted("pred", argmax=True)
THRESHOLD = AsDiscreted("pred", threshold=0.5)
LARGEST = KeepLargestConnectedComponentd("pred", applied_labels=[1])
BEFORE = Compose(
    [Orientationd("image", axcodes="LPI", labels=None), Spacingd("image", pixdim=(1.5, 1.0, 2.0))]
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def an_inverse(**options: Any) -> Invertd:
    """Back to the image's grid."""
    options = {"transform": BEFORE, "orig_keys": "image", "nearest_interp": False} | options
    return Invertd("pred", **options)


def a_dictionary(channels: int = 3) -> dict[str, Any]:
    """What the postprocessing gets: the image's history and smooth scores."""
    torch.manual_seed(channels)
    affine = torch.diag(torch.tensor([-0.7, -0.8, 2.5, 1], dtype=torch.float64))
    image = BEFORE({"image": MetaTensor(torch.rand(1, 22, 20, 12), affine=affine)})["image"]
    small = torch.randn(1, channels, 4, 4, 4)
    pred = torch.nn.functional.interpolate(small, size=tuple(image.shape[1:]), mode="trilinear")
    return {"image": image, "pred": MetaTensor(3 * pred[0], meta=dict(image.meta))}


@pytest.mark.parametrize(
    ("transforms", "folded", "channels", "datatype"),
    [
        ([SOFTMAX, ARGMAX, an_inverse()], 2, 1, "UINT8"),
        ([EnsureTyped("pred"), ARGMAX, LARGEST], 1, 1, "UINT8"),
        ([SIGMOID, THRESHOLD], 2, 3, "UINT8"),
        ([THRESHOLD, ARGMAX], 1, 3, "UINT8"),
        ([SOFTMAX, an_inverse(), ARGMAX], 0, 3, "FP32"),
        ([SIGMOID, ARGMAX], 0, 3, "FP32"),
        ([Activationsd("pred", other=torch.tanh), ARGMAX], 0, 3, "FP32"),
        ([AsDiscreted("pred", argmax=True, to_onehot=3)], 0, 3, "FP32"),
        ([AsDiscreted(["pred", "label"], argmax=True)], 0, 3, "FP32"),
        ([Lambdad("pred", func=lambda x: -x), ARGMAX], 0, 3, "FP32"),
    ],
)
def test_what_the_inferer_can_do(
    transforms: list[Any], folded: int, channels: int, datatype: str
) -> None:
    """Leading activations and discretisations that make the edge narrow, nothing else."""
    parts = split(Compose(transforms), "pred", channels=3)
    assert (channels, datatype) == (parts.channels, parts.datatype)
    assert len(transforms) - folded == len(parts.rest.transforms)
    assert (parts.reduce is not None) == (folded > 0)


def test_many_channels_need_wider_labels() -> None:
    """255 channels fit UINT8 beside the mark for unsettled voxels; more get INT16."""
    assert split(Compose([ARGMAX]), "pred", 255).datatype == "UINT8"
    assert split(Compose([ARGMAX]), "pred", 256).datatype == "INT16"


@pytest.mark.parametrize(
    "transforms",
    [
        [SOFTMAX, an_inverse(), ARGMAX],
        [SOFTMAX, ARGMAX, an_inverse(nearest_interp=True)],
        [SOFTMAX, ARGMAX, LARGEST, an_inverse()],
        [SOFTMAX, an_inverse(), ARGMAX, LARGEST],
        [an_inverse(), EnsureTyped("pred"), SOFTMAX, ARGMAX, Identityd("pred")],
        [SIGMOID, an_inverse(), THRESHOLD, Lambdad("pred", func=lambda x: x[1:] * 2)],
        [an_inverse(), AsDiscreted("pred", argmax=True, to_onehot=3)],
        [an_inverse(), Lambdad("pred", func=lambda x: x + 1)],
        [an_inverse(post_func=lambda x: x * 2), ARGMAX],
        [SOFTMAX, ARGMAX],
        [SIGMOID, ARGMAX],
        [SpatialPadd("pred", spatial_size=(30, 30, 30), lazy=True), SOFTMAX, ARGMAX],
        [SOFTMAX, ARGMAX, SpatialPadd("pred", spatial_size=(30, 30, 30), lazy=True)],
    ],
)
def test_both_parts_give_monais_result(transforms: list[Any]) -> None:
    """Split, run in two steps: the same values, shape and affine; float32 for what follows."""
    post = Compose(transforms)
    expected = post(a_dictionary())["pred"]
    parts = split(post, "pred", channels=3)
    data = a_dictionary()
    if parts.reduce is not None:
        data["pred"] = MetaTensor(parts.reduce(data["pred"].as_tensor()), meta=data["pred"].meta)
        assert data["pred"].dtype == parts.dtype
    actual = run(parts.rest, data, "pred", check=False)["pred"]
    assert torch.equal(expected.as_tensor(), actual.as_tensor().to(expected.dtype))
    assert torch.equal(expected.affine, actual.affine)


def test_in_inference_mode_too() -> None:
    """The models run in inference mode; the fused inverse isn't lost there."""
    with torch.inference_mode():
        post = Compose([SOFTMAX, an_inverse(), ARGMAX])
        actual = run(post, a_dictionary(), "pred")["pred"]
        expected = post(a_dictionary())["pred"]
    assert torch.equal(expected.as_tensor(), actual.as_tensor().float())
    assert actual.dtype == torch.uint8


def test_labels_that_are_only_moved_stay_narrow() -> None:
    """Labels of the inferer step, brought back by nearest neighbours, never become float32."""
    post = Compose([SOFTMAX, ARGMAX, an_inverse(nearest_interp=True)])
    parts = split(post, "pred", channels=3)
    data = a_dictionary()
    assert parts.reduce is not None
    data["pred"] = MetaTensor(parts.reduce(data["pred"].as_tensor()), meta=data["pred"].meta)
    assert run(parts.rest, data, "pred")["pred"].dtype == torch.uint8


def test_other_keys_stay() -> None:
    """Only the prediction changes."""
    data = a_dictionary() | {"note": "kept"}
    done = run(Compose([an_inverse(), ARGMAX]), data, "pred")
    assert done["note"] == "kept"
    assert done["image"] is data["image"]
    assert data["pred"].shape[0] == 3


def test_the_check_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    """With TRITOME_CHECK_FUSION=1 a difference is an error that says how large it is."""
    monkeypatch.setenv(fusion.CHECK, "1")
    post = Compose([SOFTMAX, an_inverse(), ARGMAX])
    run(post, a_dictionary(), "pred")
    wrong = fusion.invert_and_reduce

    def off_by_one(*args: Any) -> dict[Any, Any]:
        done = wrong(*args)
        done["pred"][0, 0, 0, 0] += 1
        return done

    monkeypatch.setattr(fusion, "invert_and_reduce", off_by_one)
    with pytest.raises(ParityError, match="1 of"):
        run(post, a_dictionary(), "pred")
