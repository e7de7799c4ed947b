"""A few points of a resampled prediction, without converting all of it.

In: a prediction, and places on the final grid. Out: the float32 values that PyTorch's kernel
gives there in float64. They are computed from their eight neighbours; where everything within the
bound of the difference rounds to one number, it is PyTorch's. For the handful that is left the
kernel itself gets a tensor of the full size, so that coordinates mean what they mean for the
whole, in which only what these points are mixed from is there. Nothing survives.
"""

from __future__ import annotations

import mmap
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_builder.runtime.grid import Grid
from ensemble_builder.runtime.planes import Indices, Neighbours, off_in_float64

WORTH_VOXELS = 64
"""Below one point in so many voxels, single points cost less than converting all."""


def is_worth(source: torch.Tensor, grid: Grid, points: int) -> bool:
    """Whether so few points are asked for that the rest needn't be converted.

    Args:
        source: float32 [C, *spatial].
        grid: Whose coordinates count.
        points: How many.
    """
    return (
        source.device.type == "cpu"
        and source.dtype == torch.float32
        and grid.sample.mode == "bilinear"
        and grid.sample.theta.dtype == torch.float64
        and grid.coordinate_rows is not None
        and points * WORTH_VOXELS < source[0].numel()
    )


def interpolate_few(
    source: torch.Tensor, grid: Grid, flat: torch.Tensor, largest: float
) -> torch.Tensor:
    """PyTorch's values at a few points: float32 [C, M].

    Args:
        source: float32 [C, *spatial], finite.
        grid: `is_worth` says yes to it.
        flat: int64 [M], places in the memory of the final grid.
        largest: Absolute value in the source.
    """
    axes, here = _neighbours(grid), _positions(grid, flat.numpy())
    values = source.numpy()
    found = np.zeros((len(values), len(flat)))
    for corner in product((False, True), repeat=len(axes)):
        weight = np.ones(len(flat))
        places: list[Any] = [slice(None)]
        for axis, at, upper in zip(axes, here, corner, strict=True):
            places.append((axis.high if upper else axis.low)[at])
            weight *= axis.weight[at] if upper else 1 - axis.weight[at]
        found += values[tuple(places)] * weight
    off = off_in_float64(grid, largest)
    result: NDArray[np.float32] = (found + off).astype(np.float32)
    unsure = (result != (found - off).astype(np.float32)).any(axis=0)
    for axis, at in zip(axes, here, strict=True):
        unsure |= np.isin(at, axis.odd)
    left = torch.from_numpy(np.flatnonzero(unsure))
    if len(left):
        some = flat[left]
        whole = _only_around(source, axes, [at[unsure] for at in here])
        result[:, unsure] = grid.interpolate(whole, grid.points(some)).numpy()
    return torch.from_numpy(result)


def _neighbours(grid: Grid) -> list[Neighbours]:
    """Of each axis of the source, in its order."""
    rows = grid.coordinate_rows
    assert rows is not None
    found = {
        m.axis: Neighbours.of(row, grid.source[m.axis], grid)
        for row, m in zip(rows, grid.maps, strict=True)
    }
    return [found[axis] for axis in sorted(found)]


def _positions(grid: Grid, flat: Indices) -> list[Indices]:
    """Where places of the final grid's memory lie on each axis of the source, in its order."""
    found: dict[int, Indices] = {}
    rest = flat
    for m in grid.maps[:-1]:
        rest, found[m.axis] = np.divmod(rest, len(m.index))
    found[grid.maps[-1].axis] = rest
    return [found[axis] for axis in sorted(found)]


def _only_around(source: torch.Tensor, axes: list[Neighbours], here: list[Indices]) -> torch.Tensor:
    """The source in float64, zero but where some points are mixed from it.

    The kernel gives memory to what is written.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, source.numel() * 8, flags=flags)
    floats = np.frombuffer(memory, dtype=np.float64).reshape(source.shape)
    n = len(axes)
    around = []
    for a, (axis, at) in enumerate(zip(axes, here, strict=True)):
        found = axis.around(at)
        around.append(found.reshape(-1, *(found.shape[1] if b == a else 1 for b in range(n))))
    places: tuple[Any, ...] = (slice(None), *np.broadcast_arrays(*around))
    floats[places] = source.numpy()[places]
    return torch.from_numpy(floats)
