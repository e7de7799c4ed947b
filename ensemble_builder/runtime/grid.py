"""The coordinates of a resampling: PyTorch's own for any points, and what is sure about all.

In: a recorded resampling and where each final axis comes from. Out: the neighbours along each
axis, where the two grids are parallel; and for chosen points the values that PyTorch's
affine_grid and grid_sample give for them when they compute the whole: each of their points is
computed by itself. Nothing survives the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from ensemble_builder.runtime.axes import AxisMap
from ensemble_builder.runtime.recording import Sample


@dataclass(frozen=True, slots=True)
class AxisCells:
    """Which neighbours an axis's positions have.

    Attributes:
        low: int64 [n], the lower neighbour (or the nearest one).
        high: int64 [n], the upper one; the same as `low` on (or next to) a voxel's centre.
        odd: bool [n], True where rounding could change it, or outside the image.
        middle: int64 [n], between the two, where `low` and `high` may be two voxels apart.
        weight: float64 [n], how much of `high` is mixed in; None where nothing is mixed.
    """

    low: torch.Tensor
    high: torch.Tensor
    odd: torch.Tensor
    middle: torch.Tensor | None = None
    weight: torch.Tensor | None = None

    def part(self, first: int, last: int) -> AxisCells:
        """Some of the positions."""
        where = slice(first, last)
        middle, weight = (None if one is None else one[where] for one in (self.middle, self.weight))
        return AxisCells(self.low[where], self.high[where], self.odd[where], middle, weight)


@dataclass(frozen=True)
class Grid:
    """The coordinates of a resampling: PyTorch's own for any points, and bounds for all.

    Attributes:
        source: Spatial size of what is resampled.
        maps: Where each final axis comes from.
        strict: Neighbours count however little they weigh.
    """

    sample: Sample
    source: tuple[int, ...]
    maps: tuple[AxisMap, ...]
    device: torch.device
    strict: bool = False

    @property
    def nearest(self) -> bool:
        """True where no values are mixed."""
        return self.sample.mode == "nearest"

    @cached_property
    def tolerance(self) -> float:
        """How far (in voxels) an ideal coordinate may be from PyTorch's, at least 1e-9.

        Base grid, affine, their product's sum and the step to voxels each round a few times;
        24 roundings of the largest term bound it all, twice that is taken.
        """
        unit = torch.finfo(self.sample.theta.dtype).eps / 2
        reach = 1 + float(self.sample.theta.abs().sum(-1).max())
        return max(48 * unit * reach * max(*self.source, *self.sample.size), 1e-9)

    @cached_property
    def axes(self) -> tuple[AxisCells, ...] | None:
        """Neighbours along each final axis; None where the grids aren't parallel."""
        n = len(self.source)
        theta = self.sample.theta[0].to("cpu", torch.float64)
        size, source = self.sample.size, self.source
        per_voxel = torch.zeros(n, n, dtype=torch.float64)
        shift = torch.zeros(n, dtype=torch.float64)
        for s in range(n):
            row = theta[n - 1 - s]
            scale = (source[s] - 1) / 2 if self.sample.align_corners else source[s] / 2
            shift[s] = (row[n] + 1) * scale - (0 if self.sample.align_corners else 0.5)
            for a in range(n):
                step, first = _base(size[a], align_corners=self.sample.align_corners)
                per_voxel[s, a] = row[n - 1 - a] * step * scale
                shift[s] += row[n - 1 - a] * first * scale
        extent = torch.tensor(size, dtype=torch.float64) - 1
        across = (per_voxel.abs() * extent).sum(1) - per_voxel.diagonal().abs() * extent
        if bool((across > self.tolerance / 2).any()):
            return None
        return tuple(
            self._cells(m, float(shift[m.axis]), float(per_voxel[m.axis, m.axis]))
            for m in self.maps
        )

    def _cells(self, m: AxisMap, shift: float, per_voxel: float) -> AxisCells:
        last = self.source[m.axis] - 1
        position = m.index.to(torch.float64) * per_voxel + shift
        outside = (position < -self.tolerance) | (position > last + self.tolerance)
        if self.sample.padding_mode == "border":
            position = position.clamp(0, last)
            outside.fill_(value=False)
        if self.sample.mode == "nearest":
            fraction = position - position.floor()
            nearest = (position + 0.5).floor().long().clamp(0, last)
            middle = (fraction - 0.5).abs() <= self.tolerance
            if self.sample.padding_mode != "border":
                outside = (position < 0) | (position > last)
            return self._on_device(nearest, nearest, middle | outside)
        if self.strict:
            low = (position - self.tolerance).floor().long().clamp(0, last)
            high = ((position + self.tolerance).floor().long() + 1).clamp(0, last)
            return self._on_device(low, high, outside, torch.minimum(low + 1, high))
        centre = position.round()
        on_centre = (position - centre).abs() <= self.tolerance
        low = torch.where(on_centre, centre, position.floor()).long().clamp(0, last)
        high = torch.where(on_centre, low, low + 1).clamp(0, last)
        weight = (position - low).clamp(0, 1) * (high != low)
        return self._on_device(low, high, outside, weight=weight)

    def _on_device(
        self,
        low: torch.Tensor,
        high: torch.Tensor,
        odd: torch.Tensor,
        middle: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
    ) -> AxisCells:
        there = (None if one is None else one.to(self.device) for one in (middle, weight))
        return AxisCells(low.to(self.device), high.to(self.device), odd.to(self.device), *there)

    @cached_property
    def _base_rows(self) -> tuple[torch.Tensor, ...]:
        """affine_grid's base coordinate for each position of each final axis."""
        rows = []
        for m in self.maps:
            n = self.sample.size[m.axis]
            row = self.sample.theta.new_zeros(n)
            if n > 1:
                torch.linspace(-1, 1, n, out=row)
            if not self.sample.align_corners:
                row = row * (n - 1) / n
            rows.append(row[m.index.to(self.device)])
        return tuple(rows)

    @cached_property
    def coordinate_rows(self) -> tuple[torch.Tensor, ...] | None:
        """PyTorch's normalized coordinate along each final axis; None where axes mix.

        Where the affine has nothing but zeros beside its diagonal, a coordinate is a product
        and a sum, and on the CPU the zeros add nothing to it, in any order. A GPU multiplies
        another number of rows by another kernel, which may round product and sum once instead
        of twice: there every point is multiplied as affine_grid does it.
        """
        if self.device.type != "cpu":
            return None
        n = len(self.source)
        theta = self.sample.theta
        beside = theta[0, :, :n] - torch.diag(theta[0, :, :n].diagonal())
        if bool((beside != 0).any()) or not bool(torch.isfinite(theta).all()):
            return None
        rows = []
        for final, m in enumerate(self.maps):
            base = self._base_rows[0].new_empty(len(m.index), n + 1)
            for other, o in enumerate(self.maps):
                row = self._base_rows[other]
                base[:, n - 1 - o.axis] = row if other == final else row[0]
            base[:, n] = 1
            done = torch.bmm(base[None], theta.transpose(1, 2))[0]
            rows.append(done[:, n - 1 - m.axis].contiguous())
        return tuple(rows)

    def points(self, flat: torch.Tensor) -> torch.Tensor:
        """PyTorch's normalized coordinates of some voxels.

        Args:
            flat: int64 [M], places in the memory of the final grid.

        Returns:
            [M, n], as affine_grid computes them for the whole: each row by itself.
        """
        n = len(self.source)
        straight = self.coordinate_rows
        if straight is not None:
            return self._straight_points(flat, straight)
        base = self._base_rows[0].new_empty(n + 1, len(flat))
        rest = flat
        for final, m in enumerate(self.maps):
            size, rows = len(m.index), self._base_rows[final]
            ahead = rest.div(size, rounding_mode="floor")
            torch.index_select(rows, 0, rest.sub(ahead, alpha=size), out=base[n - 1 - m.axis])
            rest = ahead
        base[n] = 1
        return torch.bmm(base.t()[None], self.sample.theta.transpose(1, 2))[0]

    def _straight_points(self, flat: torch.Tensor, rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
        n = len(rows)
        found = np.empty((len(flat), n), dtype=rows[0].numpy().dtype)
        rest = flat.numpy()  # whose division is several times faster than PyTorch's
        for final, m in enumerate(self.maps[:-1]):
            ahead = rest // len(m.index)
            found[:, n - 1 - m.axis] = rows[final].numpy()[rest - ahead * len(m.index)]
            rest = ahead
        found[:, n - 1 - self.maps[-1].axis] = rows[-1].numpy()[rest]
        return torch.from_numpy(found)

    def box(self, first: int, last: int) -> torch.Tensor:
        """The same for whole planes `first:last` of the final grid's memory."""
        n = len(self.source)
        shape = [len(m.index) for m in self.maps]
        straight = self.coordinate_rows
        if straight is not None:
            found = straight[0].new_empty(last - first, *reversed(shape[:-1]), n)
            for final, m in enumerate(self.maps):
                row = straight[final][first:last] if final == n - 1 else straight[final]
                found[..., n - 1 - m.axis] = row.view(
                    [-1 if d == n - 1 - final else 1 for d in range(n)]
                )
            return found.view(-1, n)
        base = self._base_rows[0].new_empty(last - first, *reversed(shape[:-1]), n + 1)
        for final, m in enumerate(self.maps):
            row = self._base_rows[final]
            if final == n - 1:
                row = row[first:last]
            place = [-1 if d == n - 1 - final else 1 for d in range(n)]
            base[..., n - 1 - m.axis] = row.view(place)
        base[..., n] = 1
        return torch.bmm(base.view(1, -1, n + 1), self.sample.theta.transpose(1, 2))[0]

    def interpolate(self, source: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """PyTorch's resampling at some points.

        Args:
            source: [C, *spatial] in the dtype of the resampling.
            points: [M, n].

        Returns:
            float32 [C, M], as MONAI keeps it.
        """
        n = len(self.source)
        # The kernel on the CPU has one thread per item of a batch: make one for each.
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        count = len(points)
        rows = -(-count // threads)
        if rows * threads != count:
            points = torch.cat([points, points[-1:].expand(rows * threads - count, -1)])
        done = torch.nn.functional.grid_sample(
            source[None].expand(threads, *source.shape),
            points.view(threads, *(1,) * (n - 1), rows, n),
            mode=self.sample.mode,
            padding_mode=self.sample.padding_mode,
            align_corners=self.sample.align_corners,
        )
        values = torch.empty(len(source), threads, rows, device=self.device)
        values.copy_(done.view(threads, len(source), rows).transpose(0, 1))
        return values.view(len(source), threads * rows)[:, :count]


def _base(n: int, *, align_corners: bool) -> tuple[float, float]:
    """Step and first value of affine_grid's base coordinates, ideally."""
    if n <= 1:
        return 0.0, 0.0
    first = -1.0 if align_corners else 1.0 / n - 1.0
    return -2 * first / (n - 1), first
