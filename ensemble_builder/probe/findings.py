"""The whole of it: inputs, then results, summed up in `Findings`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from ensemble_builder.probe.inputs import Reading, find_inputs
from ensemble_builder.probe.results import (
    DATATYPES,
    find_labels,
    find_outputs,
    find_pred_key,
    run_after,
)
from ensemble_builder.probe.words import extra_list, quiet, refuse_randomness
from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.runtime.loading import (
    network_input,
)
from ensemble_builder.runtime.recipe import Carried, Output


@dataclass(frozen=True, slots=True)
class Findings:
    """What probing found.

    Attributes:
        y_dims: Dims of Y, -1 where it depends on the input.
        labels: Label -> the network's channel that it stands for, for the label map.
        example_shapes: Input's tensor -> the shape it had in the probe.
        x_voxel_mm3: Size of X's voxels where the preprocessing resamples; None where X has
            the input's own.
        x_voxels_fixed: Voxels of X where it is resized to one shape.
    """

    inputs: tuple[Input, ...]
    network_key: str
    pred_key: str
    outputs: tuple[Output, ...]
    carried: tuple[Carried, ...]
    window: tuple[int, ...]
    x_dims: tuple[int, ...]
    extra_dims: Mapping[str, tuple[tuple[int, ...], str]]
    y_dims: tuple[int, ...]
    labels: Mapping[int, int]
    example_shapes: Mapping[str, tuple[int, ...]]
    x_voxel_mm3: float | None = None
    x_voxels_fixed: int | None = None


def probe(
    bundle: BundleConfig,
    network: torch.nn.Module,
    metadata_inputs: Mapping[str, Any],
    extra_keys: Sequence[str] | Mapping[str, str],
) -> Findings:
    """Finds out what a bundle takes and gives.

    Args:
        bundle: Parsed.
        network: Without weights, in eval mode.
        metadata_inputs: `network_data_format.inputs` of its metadata.
        extra_keys: Keys that the evaluator's prepare_batch gives the network besides the image.

    Raises:
        BundleError: no layout works, or it gives something that can't be served.
    """
    with quiet():
        before = bundle.preprocessing()
        after = bundle.postprocessing()
        refuse_randomness("preprocessing", before)
        refuse_randomness("postprocessing", after)
        found = find_inputs(bundle, before, network, metadata_inputs, extra_keys)
        pred_key = find_pred_key(bundle, after)
        carried, done = run_after(after, bundle.again().postprocessing(), found, pred_key)
        outputs = find_outputs(before, after, done, pred_key, found)
        labels = find_labels(after, found, pred_key, outputs, carried)
    x = network_input(found.network_key, found.done)
    extras = {}
    for key in extra_list(extra_keys):
        tensor = torch.as_tensor(found.done[key])
        extras[key] = (tuple([-1] * tensor.ndim), DATATYPES.get(tensor.dtype, "FP32"))
    scores = found.y.ndim == 2
    y_dims = found.y.shape[1:] if scores else (found.y.shape[1], *[-1] * (found.y.ndim - 2))
    return Findings(
        inputs=found.inputs,
        network_key=found.network_key,
        pred_key=pred_key,
        outputs=outputs,
        carried=carried,
        window=found.window,
        x_dims=(x.shape[0], *[-1] * (x.ndim - 1)),
        extra_dims=extras,
        y_dims=tuple(y_dims),
        labels=labels,
        example_shapes=found.example_shapes,
        **_grid_of_x(found, x),
    )


def _grid_of_x(found: Reading, x: torch.Tensor) -> dict[str, Any]:
    """Whether X lies on the input's grid, on one of a fixed spacing, or has a fixed shape."""
    image = found.done[found.network_key]
    if not isinstance(image, MetaTensor) or x.ndim - 1 != len(found.grid.shape):
        return {}
    names = " ".join(str(op.get("class", "")) for op in image.applied_operations)
    if "Spacing" in names or "SpatialResample" in names:
        return {"x_voxel_mm3": float(torch.linalg.det(image.affine[:3, :3].double()).abs())}
    return {"x_voxels_fixed": int(np.prod(x.shape[1:]))} if "Resize" in names else {}
