"""From a request's tensors to the dictionary that a bundle's readers would have given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor

from ensemble_builder.runtime.inputs import Input
from ensemble_builder.runtime.volumes import LPS_TO_RAS, InputError, monai_image, photograph

Reader = Callable[[str, torch.device], torch.Tensor]
"""Name of an input tensor and where it should lie -> the tensor."""

_CPU = torch.device("cpu")


def loaded(inputs: Sequence[Input], tensor: Reader, device: torch.device) -> dict[str, Any]:
    """The dictionary that the bundle's readers would have given.

    Args:
        inputs: What comes and how.
        tensor: Gives the request's tensors.
        device: Where images go.

    Raises:
        InputError: a tensor is missing or has the wrong shape.
    """
    return {one.key: _one(one, tensor, device) for one in inputs}


def _one(one: Input, tensor: Reader, device: torch.device) -> Any:
    if one.layout == "rgb":
        return photograph(tensor(one.tensor, device), one.tensor)
    if one.is_stored:
        return monai_image(
            tensor(one.tensor, device),
            tensor(one.rescale, _CPU),
            tensor(one.affine, _CPU),
            one.layout,
            (one.tensor, one.rescale, one.affine),
        )
    values = tensor(one.tensor, _CPU)
    if one.layout == "value":
        if values.numel() != 1:
            msg = f"{one.tensor} must have one element, not {values.numel()}"
            raise InputError(msg)
        return values.reshape(-1)[0].item()
    if values.ndim != 2:
        msg = f"{one.tensor} must be [N, D], N points of D indices, not {list(values.shape)}"
        raise InputError(msg)
    return values.tolist()  # as a bundle's JSON file would have brought them


def input_shape(inputs: Sequence[Input], data: Mapping[str, Any]) -> tuple[int, ...]:
    """The first image's spatial shape in MONAI's order of axes."""
    first = next(one for one in inputs if one.is_image)
    return tuple(int(n) for n in data[first.key].meta["spatial_shape"])


def input_affine(inputs: Sequence[Input], tensor: Reader) -> torch.Tensor | None:
    """The first image's, float64 [4, 4], voxel -> RAS millimetres; None of a photograph."""
    first = next(one for one in inputs if one.is_image)
    return LPS_TO_RAS @ tensor(first.affine, _CPU).double() if first.is_stored else None


def network_input(key: str, done: Mapping[Any, Any]) -> torch.Tensor:
    """X: float32 [C, *spatial].

    Raises:
        RuntimeError: the preprocessing left lazy operations pending, which can't be inverted.
    """
    for value in done.values():
        if isinstance(value, MetaTensor) and value.pending_operations:
            msg = "the preprocessing leaves lazy operations pending, which can't be inverted"
            raise RuntimeError(msg)
    return torch.as_tensor(done[key]).to(torch.float32)


def root_cause(error: BaseException) -> BaseException:
    """What a transform raised, without what MONAI's Compose wrapped around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def extra_name(key: str) -> str:
    """Name of the edge that brings a further tensor to the network."""
    return f"X_{tensor_name(key)}"


def tensor_name(key: str) -> str:
    """A key of the bundle's as Triton tensors are named here: UPPER_SNAKE."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in key).strip("_").upper()
