"""How much memory one request of a bundle takes on the server, by what its steps really do.

In: a bundle. Out: bytes for each voxel of the input, which the contract says and a gateway may
admit requests by. It counts the tensors that cross between the steps (each lies twice in the
shared memory of the Python backend) and the most that one step works with, since the steps
of a request follow one another. What doesn't grow with the input isn't in it: `STEP_BYTES`.
"""

from __future__ import annotations

import math

import torch

from ensemble_builder.bundle import Bundle
from ensemble_builder.runtime.forward import starts_from_stored
from ensemble_builder.runtime.fusion import run_in_slabs, split
from ensemble_builder.samples import sample

STEP_BYTES = 500 * 10**6
"""What a step may take beside that whatever the input's size, once: slabs, a network of a usual
size at work, and what a step keeps from one study to the next (`runtime/heap.py`)."""

EXAMPLE_KJI = (300, 512, 512)
EXAMPLE_SPACING_MM = (1.25, 0.75, 0.75)
"""A chest CT of thin slices (k, j, i); what needs a size is said for this one."""

EXAMPLE_JI = (1080, 1920)
"""For bundles of 2-D images."""

_BYTES = {"UINT8": 1, "INT16": 2, "UINT16": 2, "FP16": 2, "FP32": 4}
_FLOAT, _DOUBLE = 4, 8


def example_shape(bundle: Bundle) -> tuple[int, ...]:
    """The size for which bytes are said: a CT of 300 slices, or a full-HD picture."""
    layout = next(one.layout for one in bundle.recipe.inputs if one.is_image)
    return EXAMPLE_KJI if layout in ("volume", "channels") else EXAMPLE_JI


def x_voxels(bundle: Bundle) -> int:
    """Voxels of the network's input for the example."""
    x_voxel_mm3 = bundle.findings.x_voxel_mm3
    shape = example_shape(bundle)
    if x_voxel_mm3 is None or len(shape) == 2:
        return bundle.findings.x_voxels_fixed or math.prod(shape)
    return int(math.prod(shape) * math.prod(EXAMPLE_SPACING_MM) / x_voxel_mm3)


def peak_bytes_per_voxel(bundle: Bundle) -> float:
    """Working memory of all steps together for one voxel of the input, an estimate."""
    images = sum(one.channels for one in bundle.recipe.inputs if one.is_image)
    ratio = x_voxels(bundle) / math.prod(example_shape(bundle))
    x = _FLOAT * ratio * bundle.findings.x_dims[0]
    datatype, dims = bundle.y_edge
    y = _BYTES.get(datatype, _FLOAT) * ratio * dims[0] if len(dims) > 1 else 0.0
    answer = sum(
        _BYTES.get(one.datatype, _FLOAT) * math.prod(n for n in one.dims if n != -1)
        for one in bundle.recipe.outputs
        if one.on_input_grid and one.kind != "scores"
    )
    image = sum(_BYTES[one.datatype] * one.channels for one in bundle.recipe.inputs if one.is_image)
    crossing = 2 * (image + x + y + answer)
    before_in_slabs, after_in_slabs = _in_slabs(bundle)
    channels = bundle.findings.y_dims[0] if len(bundle.findings.y_dims) > 1 else 0
    before = 3 * x  # the resampled image, and what a transform makes of it
    if not before_in_slabs:
        # As float, turned around, and as the resampling wants it; its coordinates.
        before += (2 * _FLOAT + _DOUBLE) * images + 7 * _DOUBLE * ratio
    network = x + y + (_FLOAT * ratio * channels if not bundle.recipe.y_channels else 0)
    after = 3 * answer + _DOUBLE * ratio * dims[0]
    if not after_in_slabs:
        # The prediction on the input's grid: resampled in float64, kept in float32, reduced.
        after += (_DOUBLE + 2 * _FLOAT) * dims[0] + 7 * _DOUBLE
    return round(crossing + max(before, network, after), 1)


def _in_slabs(bundle: Bundle) -> tuple[bool, bool]:
    """Whether the steps before and after the network do without copies of the full size."""
    recipe = bundle.recipe
    config = recipe.open(bundle.folder, torch.device("cpu"))
    request = sample(recipe.inputs)
    before = starts_from_stored(
        config.preprocessing(), recipe.inputs, lambda name, _: torch.from_numpy(request[name])
    )
    after = config.postprocessing()
    if recipe.y_channels:
        after = split(after, recipe.pred_key, recipe.y_channels).rest
    return before, run_in_slabs(after, recipe.pred_key, labels=bool(recipe.y_channels))
