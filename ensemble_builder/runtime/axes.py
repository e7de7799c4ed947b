"""Where each voxel of the final grid comes from, axis by axis.

In: the size of a grid and the steps that follow (flip, permute, crop, pad). Out: for each
final axis the axis of that grid it runs along and the positions on it. Such steps move voxels
and never change them, so they are composed here and cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ensemble_builder.runtime.recording import (
    Cast,
    Crop,
    Flip,
    NotRecorded,
    Pad,
    Permute,
    Sample,
    Step,
)


@dataclass(frozen=True, slots=True)
class AxisMap:
    """One final axis.

    Attributes:
        axis: The axis of the first grid that it runs along.
        index: int64 [n], positions on it; padding is left out.
        before: How many voxels of padding come before them.
        after: How many come after.
    """

    axis: int
    index: torch.Tensor
    before: int = 0
    after: int = 0

    @property
    def length(self) -> int:
        """Voxels along the final axis, with padding."""
        return self.before + len(self.index) + self.after


def apply(tensor: torch.Tensor, step: Step) -> torch.Tensor:
    """Does one step that is no resampling to [C, *spatial], as MONAI does it."""
    match step:
        case Flip(axes):
            return tensor.flip([a + 1 for a in axes])
        case Permute(order):
            return tensor.permute(0, *(a + 1 for a in order))
        case Crop(axis, start, stop):
            return tensor.narrow(axis + 1, start, stop - start)
        case Pad(before, after, value):
            pairs = [n for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]
            return torch.nn.functional.pad(tensor, pairs, value=value)
        case Cast(dtype):
            return tensor.to(dtype)
        case Sample():
            msg = "two resamplings in a row"
            raise NotRecorded(msg)


def axis_maps(size: Sequence[int], steps: Sequence[Step]) -> tuple[list[AxisMap], float | None]:
    """Composes steps that only move voxels.

    Args:
        size: Spatial size of the grid they start from.
        steps: What follows on it; casts are ignored.

    Returns:
        One map per final axis, and the value of the padding (None where there is none).

    Raises:
        NotRecorded: padding of several values, padding that is moved into the image, or a
            resampling.
    """
    maps = [AxisMap(axis, torch.arange(n)) for axis, n in enumerate(size)]
    value: float | None = None
    for step in steps:
        match step:
            case Flip(axes):
                for a in axes:
                    m = maps[a]
                    maps[a] = AxisMap(m.axis, m.index.flip(0), m.after, m.before)
            case Permute(order):
                maps = [maps[a] for a in order]
            case Crop(axis, start, stop):
                maps[axis] = _cropped(maps[axis], start, stop)
            case Pad(before, after, padding):
                if value not in (None, padding):
                    msg = "padding of several values"
                    raise NotRecorded(msg)
                value = padding
                maps = [
                    AxisMap(m.axis, m.index, m.before + b, m.after + a)
                    for m, b, a in zip(maps, before, after, strict=True)
                ]
            case Cast():
                continue
            case Sample():
                msg = "two resamplings in a row"
                raise NotRecorded(msg)
    return maps, value


def _cropped(m: AxisMap, start: int, stop: int) -> AxisMap:
    first, last = m.before, m.before + len(m.index)
    index = m.index[max(start - first, 0) : max(min(stop, last) - first, 0)]
    if len(index) == 0:
        msg = "a crop of nothing but padding"
        raise NotRecorded(msg)
    return AxisMap(m.axis, index, max(first - start, 0), max(stop - last, 0))
