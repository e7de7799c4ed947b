"""Runs `Invertd` and the reduction to labels that follows it as one step, in slabs.

In: MONAI's `Invertd`, the postprocessing's dictionary and the reduction. Out: the dictionary
that MONAI's two transforms would give, the prediction as narrow labels. What the inverse does
is recorded from MONAI itself (`recording.py`); what can't be done this way raises
`NotRecorded`, and the caller runs the plain transforms. Nothing survives the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Invertd

from ensemble_builder.runtime.axes import apply, axis_maps
from ensemble_builder.runtime.recording import Cast, NotRecorded, Pad, Sample, Step, record
from ensemble_builder.runtime.reduction import LARGEST_UINT8_LABEL, Reduction
from ensemble_builder.runtime.resample import (
    Canvas,
    resample_constant_regions,
    resample_nearest,
    resample_to_labels,
)


def invert_and_reduce(
    inverse: Invertd, data: Mapping[Any, Any], key: str, reduction: Reduction | None
) -> dict[Any, Any]:
    """The prediction on the image's own grid, as labels.

    Args:
        inverse: Works on `key` alone.
        data: The postprocessing's dictionary; `data[key]` is [C, *spatial], float32 or narrow
            labels that stand for float32.
        key: The prediction's.
        reduction: What follows the inverse; None where nothing does.

    Returns:
        The dictionary after both. `data[key]` has the narrowest dtype that holds the labels
        (without a reduction: float32, or the narrow labels' dtype where they are only moved),
        and the same values as MONAI's.

    Raises:
        NotRecorded: this inverse can't be run in slabs.
    """
    given = data[key]
    narrow = (torch.uint8, torch.int16)
    if (
        not isinstance(given, torch.Tensor)
        or given.dtype not in (torch.float32, *narrow)
        or given.ndim < 3
    ):
        msg = "a prediction that is not float32 [C, *spatial]"
        raise NotRecorded(msg)
    after: dict[Any, Any] = {}

    def compute(stand_in: torch.Tensor) -> Any:
        here = MetaTensor(stand_in)
        if isinstance(given, MetaTensor):
            here.copy_meta_from(given)
        after.update(inverse({**data, key: here}))
        return after[key]

    like = torch.empty(0, dtype=torch.float32, device=given.device)
    steps, result = record(compute, tuple(given.shape), like)
    labels = run_steps(given.as_subclass(torch.Tensor), steps, reduction)
    if tuple(labels.shape[1:]) != tuple(result.shape[1:]):
        msg = "steps that don't lead to the recorded shape"
        raise NotRecorded(msg)
    after[key] = MetaTensor(labels)
    if isinstance(result, MetaTensor):
        after[key].copy_meta_from(result)
    return after


def run_steps(
    source: torch.Tensor, steps: Sequence[Step], reduction: Reduction | None
) -> torch.Tensor:
    """Takes recorded steps, the reduction included.

    Args:
        source: [C, *spatial], float32 or narrow labels that stand for it.
        steps: Those before the last resampling are taken one by one as they are.
        reduction: What follows them.

    Raises:
        NotRecorded: no way through these steps in slabs.
    """
    samples = [n for n, step in enumerate(steps) if isinstance(step, Sample)]
    only_moved = not samples or steps[samples[0]].mode == "nearest"  # type: ignore[union-attr]
    odd_padding = any(isinstance(s, Pad) and s.value not in range(255) for s in steps)
    if reduction is not None or not only_moved or odd_padding:
        source = source.to(torch.float32)
    if not samples:
        return _moved(source, steps, reduction)
    if len(samples) > 1:
        msg = "more than one resampling"
        raise NotRecorded(msg)
    place = samples[0]
    sample = steps[place]
    assert isinstance(sample, Sample)
    before = [s for s in steps[:place] if s != Cast(sample.theta.dtype)]
    after = [s for s in steps[place + 1 :] if s != Cast(torch.float32)]
    if any(isinstance(s, Cast) for s in (*before, *after)):
        msg = "a change of dtype that is not the resampling's own"
        raise NotRecorded(msg)
    for step in before:
        source = apply(source, step)
    maps, padding = axis_maps(sample.size, after)
    if reduction is not None:
        return resample_to_labels(source, sample, maps, padding, reduction)
    if sample.mode == "nearest":
        return resample_nearest(source, sample, maps, padding)
    if len(source) == 1 and sample.theta.dtype == torch.float64 and _is_label_map(source):
        return resample_constant_regions(source, sample, maps, padding)
    msg = "a linear resampling that nothing reduces"
    raise NotRecorded(msg)


def _moved(
    source: torch.Tensor, steps: Sequence[Step], reduction: Reduction | None
) -> torch.Tensor:
    """No resampling: labels first, then voxels are only moved."""
    if any(isinstance(s, Cast) and s.dtype != torch.float32 for s in steps):
        msg = "a change of dtype"
        raise NotRecorded(msg)
    maps, padding = axis_maps(source.shape[1:], steps)
    if reduction is not None:
        if padding is not None:
            padding = float(reduction(source.new_full((len(source), 1), padding))[0, 0])
        source = in_slabs(reduction, source)
    canvas = Canvas(maps, len(source), source.dtype, source)
    moved = source
    for m in maps:
        straight = torch.arange(len(m.index)) + m.index[0]
        if torch.equal(m.index, straight):
            moved = moved.narrow(m.axis + 1, int(m.index[0]), len(m.index))
        else:
            moved = moved.index_select(m.axis + 1, m.index.to(source.device))
    canvas.inner.copy_(moved.permute(0, *(m.axis + 1 for m in reversed(maps))))
    return canvas.whole(padding)


def in_slabs(
    reduction: Reduction, source: torch.Tensor, slab_bytes: int = 64_000_000
) -> torch.Tensor:
    """Labels of a whole prediction, a slab of its first spatial axis at a time.

    Args:
        reduction: What makes them.
        source: [C, *spatial].
        slab_bytes: About how much of `source` is worked on at once.
    """
    channels = reduction.channels(len(source))
    labels = source.new_empty(channels, *source.shape[1:], dtype=reduction.dtype(len(source)))
    rows = max(1, slab_bytes // max(1, source[:, 0].numel() * source.itemsize))
    for first in range(0, source.shape[1], rows):
        part = slice(first, first + rows)
        labels[:, part] = reduction(source[:, part])
    return labels


def _is_label_map(source: torch.Tensor) -> bool:
    low, high = (float(v) for v in torch.aminmax(source))
    if not (low >= 0 and high <= LARGEST_UINT8_LABEL):
        return False
    return bool((source == source.to(torch.uint8)).all())
