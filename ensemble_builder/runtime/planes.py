"""A stored image resampled plane by plane, to the float32 numbers that PyTorch's kernel gives.

In: stored values and a recorded linear resampling in float64 whose axes are those of the image.
Out: planes of the result, and the few places where they are not certain. One axis after the other
in float64 costs a fraction of PyTorch's kernel, which mixes eight neighbours point by point, and
reads no voxel that isn't mixed in. Its last bits are others; but the result is rounded to
float32, and where everything within the bound of the difference rounds to the same number, that
number is PyTorch's too. What lies closer to a boundary is left to PyTorch. On the CPU only.
Nothing survives the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_builder.runtime.axes import AxisMap
from ensemble_builder.runtime.grid import Grid

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def off_in_float64(grid: Grid, largest: float) -> float:
    """How far from PyTorch's kernel in float64 a sum of the same products may be.

    PyTorch may round a coordinate otherwise, where a compiler joins product and sum: then it is
    off by 2 roundings of the size, along three axes, of a slope of twice the largest value. What
    follows rounds less than 64 times.

    Args:
        grid: Whose coordinates count.
        largest: Absolute value of what is mixed.
    """
    return largest * 2.0**-53 * (12 * max(grid.source) + 64)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What positions along one final axis are mixed from.

    Attributes:
        size: Of the axis that is resampled, in voxels.
        position: float64 [n], PyTorch's own coordinate on the axis that is resampled, in voxels.
        low: int64 [n], the lower neighbour.
        high: int64 [n], the upper one; the same where it has no weight.
        weight: float64 [n], of the upper one.
        odd: int64, positions that PyTorch must look at: outside of the image.
    """

    size: int
    position: Floats
    low: Indices
    high: Indices
    weight: Floats
    odd: Indices

    @staticmethod
    def of(coordinates: torch.Tensor, size: int, grid: Grid) -> Neighbours:
        """From normalized coordinates, as grid_sampler_unnormalize turns them into voxels."""
        x: Floats = coordinates.numpy()
        if grid.sample.align_corners:  # noqa: SIM108 - two formulas of PyTorch
            x = (x + 1) / 2 * (size - 1)
        else:
            x = ((x + 1) * size - 1) / 2
        outside = ~((x >= 0) & (x <= size - 1))
        if grid.sample.padding_mode == "border":
            outside[:] = False
        x = np.clip(x, 0, size - 1)
        low = np.floor(x).astype(np.int64)
        high = np.minimum(low + 1, size - 1)
        return Neighbours(size, x, low, high, x - low, np.flatnonzero(outside))

    def around(self, places: Indices) -> Indices:
        """int64 [M, 2 or 3]: what PyTorch can mix in at some positions, wherever it rounds to."""
        x = self.position[places]
        low, high = np.floor(x - 1e-6), np.floor(x + 1e-6) + 1
        columns = [low, high] if (high - low == 1).all() else [low, low + 1, high]
        found: Indices = np.stack(columns, axis=1).astype(np.int64)
        return found.clip(0, self.size - 1)


class PlaneResampling:
    """Planes of the result; the slowest final axis counts them.

    Attributes:
        neighbours: Of each final axis, in the order i, j, k.
    """

    def __init__(
        self,
        grid: Grid,
        stored: NDArray[np.int16] | NDArray[np.float32],
        rescale: Floats,
        turned: Sequence[AxisMap],
        *,
        exact: bool,
    ) -> None:
        """Finds the neighbours.

        Args:
            grid: `fits` says yes to it.
            stored: [C, K, J, I].
            rescale: [C, K, 2].
            turned: Where each axis that is resampled comes from, i, j, k of the stored image.
            exact: `is_exact_in_float32` says so.
        """
        rows = grid.coordinate_rows
        assert rows is not None
        self._stored, self._rescale, self._exact = stored, rescale, exact
        self.neighbours = tuple(
            Neighbours.of(row, grid.source[m.axis], grid)
            for row, m in zip(rows, grid.maps, strict=True)
        )
        # Where each final axis runs in [K, J, I], and which place there each position has.
        self._dims = [2 - turned[m.axis].axis for m in grid.maps]
        places = [turned[m.axis].index.numpy() for m in grid.maps]
        self._low = [p[n.low] for p, n in zip(places, self.neighbours, strict=True)]
        self._high = [p[n.high] for p, n in zip(places, self.neighbours, strict=True)]
        self._slow_places = places[-1]
        ends = np.array([float(v) for v in torch.aminmax(torch.from_numpy(stored))])
        slope, intercept = (rescale[..., n].ravel() for n in (0, 1))
        extremes = slope[:, None] * ends + intercept[:, None]
        largest = float(np.abs(extremes).max())
        self._never_negative = bool((extremes >= 0).all())
        self._off = off_in_float64(grid, largest)
        self._kept: dict[tuple[int, int], Floats] = {}

    @staticmethod
    def fits(grid: Grid, rescale: Floats, turned: Sequence[AxisMap]) -> bool:
        """True where this way holds: linear, in float64, three axes that don't mix."""
        sample = grid.sample
        if (
            sample.mode != "bilinear"
            or sample.theta.dtype != torch.float64
            or len(grid.source) != 3
            or grid.coordinate_rows is None
        ):
            return False
        # A slope of its own for each slice is applied to whole planes, where they are slices.
        slices_are_planes = turned[grid.maps[-1].axis].axis == 2
        return slices_are_planes or bool((rescale == rescale[:, :1]).all())

    def part(
        self, first: int, last: int, out: NDArray[np.float32], pool: Executor
    ) -> list[Indices]:
        """Computes the planes `first:last` of each channel.

        Args:
            first: The first plane.
            last: One after the last one.
            out: float32 [C, last - first, j, i], written to.
            pool: Computes planes beside each other.

        Returns:
            For each channel the places that PyTorch must compute, counted from the start of
            plane `first`.
        """
        slow = self.neighbours[-1]
        wanted = {*slow.low[first:last].tolist(), *slow.high[first:last].tolist()}
        keys = [(c, p) for c in range(len(self._stored)) for p in sorted(wanted)]
        self._kept = {key: kept for key, kept in self._kept.items() if key[1] in wanted}
        missing = [key for key in keys if key not in self._kept]
        self._kept.update(zip(missing, pool.map(self._across, missing), strict=True))

        def plane(place: tuple[int, int]) -> Indices:
            channel, k = place
            places = self._mixed(channel, k, out[channel, k - first])
            places += (k - first) * out[0, 0].size
            return places

        found = []
        for channel in range(len(self._stored)):
            parts = list(pool.map(plane, [(channel, k) for k in range(first, last)]))
            found.append(np.concatenate(parts))
        return found

    def _mixed(self, channel: int, k: int, out: NDArray[np.float32]) -> Indices:
        """Writes plane k; gives the places that aren't certain."""
        slow = self.neighbours[-1]
        low = self._kept[channel, int(slow.low[k])]
        high = self._kept[channel, int(slow.high[k])]
        values = low
        if high is not low:
            values = high - low
            values *= slow.weight[k]
            values += low
        # One rounding to float32 each; where both are the same, all between them is.
        np.add(values, self._off, out=out, casting="same_kind")
        other = np.empty_like(out)
        np.subtract(values, self._off, out=other, casting="same_kind")
        unsure = out != other
        if self._never_negative:
            # Nothing cancels: a zero is made of zeros alone, and PyTorch's is the positive one.
            nothing = values == 0
            out[nothing] = 0
            unsure[nothing] = False
        if k in slow.odd:
            unsure[:] = True
        unsure[self.neighbours[1].odd] = True
        unsure[:, self.neighbours[0].odd] = True
        places: Indices = np.flatnonzero(unsure)
        return places

    def _across(self, place: tuple[int, int]) -> Floats:
        """A plane of the image on the final grid's two faster axes: [j, i], rescaled."""
        channel, p = place
        slow = int(self._slow_places[p])
        plane = np.moveaxis(self._stored[channel], self._dims[2], 0)[slow]
        if self._dims[1] > self._dims[0]:  # the faster final axis is the slower stored one
            plane = plane.T
        k = slow if self._dims[2] == 0 else 0
        slope, intercept = (float(v) for v in self._rescale[channel, k])
        fast, mid = self.neighbours[0], self.neighbours[1]
        rows = self._as_floats(plane.take(self._low[1], axis=0), slope, intercept)
        rows = self._towards(
            rows,
            self._as_floats(plane.take(self._high[1], axis=0), slope, intercept),
            mid.weight[:, None],
        )
        found = self._towards(
            rows.take(self._low[0], axis=1), rows.take(self._high[0], axis=1), fast.weight
        )
        if self._exact:
            # Whole numbers: a mean of rescaled values is the rescaled mean, but for the last bit.
            if slope != 1:
                found *= slope
            if intercept != 0:
                found += intercept
        return found

    def _as_floats(
        self, rows: NDArray[np.int16] | NDArray[np.float32], slope: float, intercept: float
    ) -> Floats:
        if self._exact:
            return rows.astype(np.float64)
        # Rounded to float32 once, as a reader's image is.
        values: Floats = np.multiply(rows, slope, dtype=np.float64)
        return (values + intercept).astype(np.float32).astype(np.float64)

    @staticmethod
    def _towards(low: Floats, high: Floats, weight: Floats) -> Floats:
        high -= low
        high *= weight
        low += high
        return low
