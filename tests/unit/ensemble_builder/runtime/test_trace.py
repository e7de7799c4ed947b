"""The codec that carries MONAI's applied operations between two models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Invertd,
    Orientationd,
    Resized,
    Spacingd,
    SpatialPadd,
)
from monai.utils import GridSampleMode

from ensemble_builder.runtime.trace import TraceError, decode_trace, encode_trace


def _an_image() -> MetaTensor:
    affine = torch.tensor(
        [[0, 0.9, 0, 5], [-0.8, 0, 0.1, -7], [0, 0.2, 2.5, 11], [0, 0, 0, 1]], dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(20, 24, 12, generator=generator)
    return MetaTensor(values, meta={"affine": affine, "original_channel_dim": "no_channel"})


def _crossed(operations: list[dict[str, object]]) -> list[dict[str, object]]:
    return decode_trace(json.dumps(json.loads(encode_trace(operations))))


@pytest.mark.parametrize("nearest", [True, False])
def test_an_inverse_after_the_crossing_equals_the_one_before(nearest: bool) -> None:
    """Invertd gives the same bits whether the trace crossed to another process or not."""
    recipe = Compose(
        [
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.5, 1.5, 2.0), mode="bilinear"),
            CropForegroundd("image", source_key="image", allow_smaller=True),
            SpatialPadd("image", spatial_size=(32, 32, 32)),
            Resized("image", spatial_size=(24, 24, 24)),
        ]
    )
    image = recipe({"image": _an_image()})["image"]
    inverse = Invertd("pred", transform=recipe, orig_keys="image", nearest_interp=nearest)
    here = inverse({"image": image, "pred": image.clone()})["pred"]

    other = MetaTensor(torch.empty(0), affine=image.affine)
    other.applied_operations = _crossed(image.applied_operations)
    plain = MetaTensor(image.as_tensor().clone(), affine=image.affine)
    there = inverse({"image": other, "pred": plain})["pred"]

    assert here.shape == (1, 20, 24, 12)
    assert torch.equal(here.as_tensor(), there.as_tensor())
    assert torch.equal(here.affine, there.affine)


def test_every_value_has_its_type_again() -> None:
    """Tensors, arrays, tuples, enums, dtypes and numpy scalars come back as what they were."""
    operation = {
        "class": "X",
        "extra": {
            "tensor": torch.tensor([[1.5, -2.0]], dtype=torch.float64),
            "array": np.array([1, 2], dtype=np.int16),
            "tuple": (1, (2.5, "a")),
            "enum": GridSampleMode.BILINEAR,
            "dtype": torch.float32,
            "scalar": np.float64(0.1),
            "none": None,
        },
    }
    (back,) = _crossed([operation])
    extra = back["extra"]
    assert isinstance(extra, dict)
    assert extra["tensor"].dtype == torch.float64
    assert extra["tensor"].tolist() == [[1.5, -2.0]]
    assert extra["array"].dtype == np.int16
    assert extra["tuple"] == (1, (2.5, "a"))
    assert extra["enum"] is GridSampleMode.BILINEAR
    assert extra["dtype"] is torch.float32
    assert extra["scalar"] == 0.1
    assert extra["none"] is None


def test_ids_of_this_process_never_leave_it() -> None:
    """Every operation's id becomes "none", nested ones too."""
    (back,) = _crossed([{"id": 140, "extra_info": {"applied": [{"id": 7, "class": "Y"}]}}])
    assert back == {"id": "none", "extra_info": {"applied": [{"id": "none", "class": "Y"}]}}


def test_what_has_no_tag_is_refused_by_name() -> None:
    """A value that JSON can't carry is refused when it is written, not when it is read."""
    with pytest.raises(TraceError, match="set"):
        encode_trace([{"extra": {1, 2}}])


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        "[1]",
        '[{"x":{"__type__":"pickle","data":"gASV"}}]',
        '[{"x":{"__type__":"tensor","dtype":"object","data":[1]}}]',
        '[{"x":{"__type__":"ndarray","dtype":"|O","data":[1]}}]',
        '[{"x":{"__type__":"enum","class":"os","name":"system"}}]',
        '[{"x":{"__type__":"enum","class":"__builtins__","name":"eval"}}]',
        "[" * 100_000,
    ],
)
def test_a_crafted_trace_is_refused(text: str) -> None:
    """Whoever calls the postprocess model directly gets an error, never an object of theirs."""
    with pytest.raises(TraceError):
        decode_trace(text)
