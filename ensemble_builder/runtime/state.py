"""What the postprocessing must know of the preprocessing, as one small tensor: TRACE.

`Invertd` reads only the operations that MONAI recorded on an image and the image's metadata,
never its voxels: so an empty image with both stands in for it in the other process. Numbers
and short lists that the preprocessing left (bounding boxes, sizes) cross as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from ensemble_builder.runtime.placing import InputGrid
from ensemble_builder.runtime.trace import TraceError, decode, encode

LARGEST_VALUE = 4096
"""Elements of an array that still crosses as text; larger ones must be carried as tensors."""


@dataclass(frozen=True, slots=True)
class State:
    """The preprocessing's dictionary without its voxels.

    Attributes:
        grid: Of the first image.
        images: Key -> an empty MetaTensor with the operations and the metadata.
        values: Key -> anything small.
    """

    grid: InputGrid
    images: Mapping[str, MetaTensor]
    values: Mapping[str, Any]

    def data(self) -> dict[str, Any]:
        """A dictionary for the postprocessing; it may change it."""
        return {**self.images, **self.values}


def state_of(data: Mapping[Any, Any], grid: InputGrid) -> State:
    """The state of a preprocessing's result, nothing copied."""
    images: dict[str, MetaTensor] = {}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, MetaTensor):
            images[str(key)] = value
        elif isinstance(value, torch.Tensor | np.ndarray):
            size = value.numel() if isinstance(value, torch.Tensor) else value.size
            if size <= LARGEST_VALUE:
                values[str(key)] = value
        else:
            values[str(key)] = value
    return State(grid, images, values)


def encode_state(state: State) -> str:
    """The state as text; what can't be said as JSON is left out of `values` and metadata.

    Raises:
        TraceError: an operation recorded something that can't cross.
    """
    images = {
        key: {
            "operations": encode(list(image.applied_operations)),
            "meta": _sayable({**image.meta, "affine": image.affine}),
        }
        for key, image in state.images.items()
    }
    affine = state.grid.affine
    whole = {
        "input_shape": list(state.grid.shape),
        "input_affine": None if affine is None else affine.tolist(),
        "images": images,
        "values": _sayable(state.values),
    }
    return json.dumps(whole, separators=(",", ":"))


def decode_state(text: str) -> State:
    """Reads what `encode_state` wrote.

    Raises:
        TraceError: the text is no such state.
    """
    try:
        whole = json.loads(text)
        images = {
            str(key): _stand_in(decode(one["operations"]), decode(one["meta"]))
            for key, one in whole["images"].items()
        }
        affine = whole["input_affine"]
        grid = InputGrid(
            tuple(int(n) for n in whole["input_shape"]),
            None if affine is None else torch.tensor(affine, dtype=torch.float64).reshape(4, 4),
        )
        return State(grid, images, decode(whole["values"]))
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
        RuntimeError,
    ) as error:
        msg = "TRACE is not what the preprocess model writes"
        raise TraceError(msg) from error


def dictionary_of(
    network_key: str,
    pred_key: str,
    state: State,
    y: torch.Tensor,
    carried: Mapping[str, torch.Tensor],
) -> dict[str, Any]:
    """The postprocessing's input: the preprocessing's dictionary with the prediction in it."""
    data = state.data()
    for key, tensor in carried.items():
        stand_in = data.get(key)
        if isinstance(stand_in, MetaTensor):
            operations = stand_in.applied_operations
            data[key] = MetaTensor(tensor, meta=stand_in.meta, applied_operations=operations)
        else:
            data[key] = tensor
    image = state.images.get(network_key)
    # Invertd inverts a MetaTensor; a plain tensor it would only warn about and pass through.
    data[pred_key] = MetaTensor(y, meta=None if image is None else dict(image.meta))
    return data


def _stand_in(operations: Any, meta: Any) -> MetaTensor:
    if not isinstance(operations, list) or not all(isinstance(one, dict) for one in operations):
        msg = "not a list of operations"
        raise TypeError(msg)
    return MetaTensor(torch.empty(0), meta=dict(meta), applied_operations=operations)


def _sayable(values: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        try:
            found[str(key)] = encode(value)
        except TraceError:
            continue
    return found
