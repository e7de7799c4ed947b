"""What `tritome inspect` says of a bundle before anything is written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose

from ensemble_builder.bundle import Bundle
from ensemble_builder.memory import example_shape, peak_bytes_per_voxel, x_voxels
from ensemble_builder.plan import Step, Tensor, steps_of
from ensemble_builder.runtime.steps import Loaded, Written

_BYTES = {"INT16": 2, "FP64": 8, "FP32": 4, "UINT8": 1, "UINT16": 2, "INT64": 8, "FP16": 2,
          "INT32": 4, "BOOL": 1}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TransformRow:
    """One transform of the bundle's and where it runs.

    Attributes:
        step: preprocess, inferer, postprocess, or `left out` for file I/O.
        options: What it was given, short.
        device: Where it computes.
    """

    step: str
    transform: str
    options: str
    device: str


@dataclass(frozen=True, slots=True)
class EdgeRow:
    """One tensor between two steps.

    Attributes:
        source: Step that makes it; `request` for what comes in.
        targets: Steps that read it; `answer` for what goes out.
        example_bytes: At the example's size; None where it can't be said.
    """

    tensor: Tensor
    source: str
    targets: tuple[str, ...]
    example_bytes: int | None


def transforms(bundle: Bundle) -> tuple[TransformRow, ...]:
    """Every transform in its order, and the network with its inferer between them."""
    config = bundle.recipe.open(bundle.folder, torch.device("cpu"))
    inferer = config.inferer()
    rows = list(_rows(config.preprocessing(), "preprocess"))
    network = config.network(bundle.recipe.network_id, bundle.recipe.weights.seed)
    parameters = sum(one.numel() for one in network.parameters())
    runtime = {"auto": "OpenVINO on a CPU, torch on a GPU"}.get(
        bundle.recipe.runtime, bundle.recipe.runtime
    )
    window = "x".join(map(str, bundle.recipe.window))
    rows += [
        TransformRow("inferer", type(inferer).__name__, f"window {window}", "GPU or CPU"),
        TransformRow(
            "inferer", type(network).__name__, f"{parameters / 1e6:.2f} M parameters", runtime
        ),
    ]
    rows += list(_rows(config.postprocessing(), "postprocess"))
    return tuple(rows)


def _rows(compose: Compose, step: str) -> Iterator[TransformRow]:
    for one in compose.flatten().transforms:
        if isinstance(one, Loaded):
            yield TransformRow("left out", "LoadImage", "reads files: " + _keys(one), "")
        elif isinstance(one, Written):
            yield TransformRow("left out", "Save", "writes files: " + _keys(one), "")
        else:
            name = type(one).__name__
            device = "CPU (cupy where it is)" if "ConnectedComponent" in name else "GPU or CPU"
            yield TransformRow(step, name, _options(one), device)


def _keys(one: Any) -> str:
    return ", ".join(map(str, one.keys))


def _options(one: Any) -> str:
    """What tells one transform from another: its keys and its short public settings."""
    found = []
    holders = [one, *(v for v in vars(one).values() if type(v).__module__.startswith("monai.tr"))]
    for holder in holders:
        for name, value in vars(holder).items():
            if name.startswith("_") or name in ("allow_missing_keys", "lazy", "keys"):
                continue
            text = _short(value)
            if text and f"{name}={text}" not in found:
                found.append(f"{name}={text}")
    keys = f"{_keys(one)}: " if getattr(one, "keys", None) else ""
    return (keys + ", ".join(found))[:110]


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 1 and len(value) <= 4:
        value = value.tolist()
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None or value is False or (callable(value) and not isinstance(value, type)):
        return ""
    if isinstance(value, bool | int | float | str):
        return str(value)
    if isinstance(value, list | tuple) and all(isinstance(v, bool | int | float) for v in value):
        return "x".join(map(str, value))
    return ""


def edges(bundle: Bundle) -> tuple[EdgeRow, ...]:
    """Every tensor with its datatype, dims and where it goes."""
    steps = steps_of(bundle)
    found = []
    for tensor in steps[0].inputs:
        found.append(EdgeRow(tensor, "request", _readers(tensor, steps), _size(bundle, tensor)))
    for step in steps:
        for tensor in step.outputs:
            targets = _readers(tensor, steps) or ("answer",)
            found.append(EdgeRow(tensor, step.role, targets, _size(bundle, tensor)))
    return tuple(found)


def _readers(tensor: Tensor, steps: Sequence[Step]) -> tuple[str, ...]:
    return tuple(step.role for step in steps if tensor.name in [one.name for one in step.inputs])


def peak_bytes(bundle: Bundle) -> int:
    """Working memory of all steps for one request of the example's size, an estimate."""
    return int(peak_bytes_per_voxel(bundle) * math.prod(example_shape(bundle)))


def _size(bundle: Bundle, tensor: Tensor) -> int | None:
    """Bytes of a tensor at the example's size; X and Y by the network's own grid."""
    if tensor.datatype not in _BYTES:
        return None
    known = math.prod(n for n in tensor.dims if n != -1)
    open_axes = sum(n == -1 for n in tensor.dims)
    shape = example_shape(bundle)
    if open_axes == 0:
        return known * _BYTES[tensor.datatype]
    if tensor.name in ("X", "Y"):
        return known * _BYTES[tensor.datatype] * x_voxels(bundle)
    if open_axes == len(shape):
        return known * _BYTES[tensor.datatype] * math.prod(shape)
    return known * _BYTES[tensor.datatype] * shape[0] if open_axes == 1 else None
