"""What an interpolated prediction is nearly, for whole planes at once: enough for most labels.

In: a prediction and a resampling whose grids are parallel. Out: labels of whole planes of the
final grid, and the few places where they are not certain. Along parallel axes a linear
interpolation can be done one axis after the other, in float32 and plane by plane in the cache,
which takes a fiftieth of the time that PyTorch's own kernel takes point by point. Its roundings
are others, but bounded: where the best channel leads by more than the bound, PyTorch's result
has the same label. What is closer than that is left to PyTorch. On the CPU only. Nothing
survives the call.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_builder.runtime.grid import Grid
from ensemble_builder.runtime.reduction import SOFTMAX_MARGIN, Reduction, two_best

BLOCK_PLANES = 16
"""Planes of the source that are turned at once: their voxels share lines of the cache."""

KEPT_PLANES = 3
"""Planes on the final grid's rows and columns that are kept: two are mixed, one comes."""


def off_in_float32(grid: Grid, largest: float) -> float:
    """How far a difference of two values computed here may be from PyTorch's.

    Three steps of a float32 interpolation round at most 12 times what is at most twice
    `largest`, the weights are off by their own rounding and by the grid's tolerance along each
    of three axes, and PyTorch's own result is rounded to float32: 40 roundings of 2^-24 and 12
    tolerances bound it all. More than half as much again is taken.

    Args:
        grid: Whose coordinates count.
        largest: Of all values, and of the threshold.
    """
    return largest * (32 * grid.tolerance + 2**-18)


class NearlyLabels:
    """Labels of whole planes, where they are certain.

    Attributes:
        signed: One number a voxel says it all: two channels, or a threshold.
    """

    def __init__(
        self, grid: Grid, source: torch.Tensor, reduction: Reduction, largest: float
    ) -> None:
        """Keeps what it needs.

        Args:
            grid: Its `axes` are there, and it isn't one for nearest neighbours.
            source: float32 [C, *spatial] on the CPU; one channel where there is a threshold.
            reduction: One that can be foreseen.
            largest: Absolute value in the source, or threshold.
        """
        assert grid.axes is not None
        self._slack = off_in_float32(grid, largest)
        if reduction.softmax:
            self._slack += SOFTMAX_MARGIN
        self._cells = grid.axes[::-1]  # in the order of the memory, the slowest first
        order = [m.axis for m in reversed(grid.maps)]
        self._source = source.permute(0, *(a + 1 for a in order))
        self._threshold = reduction.threshold if reduction.kind == "threshold" else None
        self.signed = self._threshold is not None or len(source) == 2
        weights = [c.weight for c in self._cells]
        assert all(w is not None for w in weights)
        self._weights = [w.to(torch.float32) for w in weights if w is not None]
        self._odd = [c.odd.nonzero()[:, 0].numpy() for c in self._cells[1:]]
        self._block: tuple[int, torch.Tensor] = (-BLOCK_PLANES, source)
        self._planes: OrderedDict[int, torch.Tensor] = OrderedDict()

    def fill(self, out: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Writes the labels of the planes `first:last`.

        Args:
            out: [slowest axis, ..., fastest axis], contiguous, in the labels' dtype.
            first: The first plane.
            last: One after the last one.

        Returns:
            int32 [M]: where they aren't certain, counted from the start of plane `first`.
        """
        size = out[0].numel()
        waiting = []
        for k in range(first, last):
            unsure = self._plane(out[k], k)
            if unsure is not None:
                places = np.flatnonzero(unsure)
                waiting.append((places + (k - first) * size).astype(np.int32))
        return torch.from_numpy(np.concatenate(waiting) if waiting else np.empty(0, np.int32))

    def _plane(self, out: torch.Tensor, k: int) -> NDArray[np.bool_] | None:
        """Writes the labels of one plane; gives where they aren't certain, if anywhere."""
        cells = self._cells[0]
        if bool(cells.odd[k]):
            return np.ones(out.shape, dtype=np.bool_)
        low, high = self._across(int(cells.low[k])), self._across(int(cells.high[k]))
        values = low if low is high else torch.lerp(low, high, float(self._weights[0][k]))
        # Comparisons are several times faster in numpy than in PyTorch.
        unsure: NDArray[np.bool_] = self._labels(out, values) <= self._slack
        for dim, odd in enumerate(self._odd):
            if len(odd):
                unsure[(slice(None),) * dim + (odd,)] = True
        return unsure if unsure.any() else None

    def _labels(self, out: torch.Tensor, values: torch.Tensor) -> NDArray[np.float32]:
        """Writes the labels of [C, ...]; gives by how much each leads."""
        lead: NDArray[np.float32]
        if self.signed:
            value = values[0].numpy()
            np.copyto(out.numpy(), value > 0)
            lead = np.abs(value)
            return lead
        best, second = two_best(values, out)
        assert second is not None
        lead = best.sub_(second).numpy()
        return lead

    def _across(self, k: int) -> torch.Tensor:
        """A plane of the source on the final grid's other axes: [C, ...]."""
        found = self._planes.get(k)
        if found is not None:
            return found
        found = self._turned(k)
        for dim in range(found.ndim - 1, 0, -1):
            found = self._along(found, dim)
        self._planes[k] = found
        while len(self._planes) > KEPT_PLANES:
            self._planes.popitem(last=False)
        return found

    def _turned(self, k: int) -> torch.Tensor:
        """A plane of the source, contiguous: [C, ...], or their difference."""
        first, block = self._block
        if not first <= k < first + BLOCK_PLANES:
            first = k // BLOCK_PLANES * BLOCK_PLANES
            part = self._source[:, first : first + BLOCK_PLANES]
            if self._threshold is not None:
                part = part - self._threshold
            elif self.signed:
                part = part[1:] - part[:1]
            block = part.contiguous()
            self._block = first, block
        return block[:, k - first]

    def _along(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """Goes to the final grid along one axis."""
        cells, weight = self._cells[dim], self._weights[dim]
        low, high = cells.low.numpy(), cells.high.numpy()
        found = _taken(tensor, dim, low)
        if (low == high).all():
            return found
        shape = [-1 if d == dim else 1 for d in range(tensor.ndim)]
        other = _taken(tensor, dim, high)
        return found.lerp_(other, weight.view(shape).expand_as(found))


def _taken(tensor: torch.Tensor, dim: int, index: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(np.take(tensor.numpy(), index, axis=dim, mode="clip"))
