"""Resamples a prediction straight to labels, in slabs, bit for bit as MONAI would.

In: a prediction on the network's grid and the recorded resampling. Out: labels on the image's
grid. Two insights make it fast and small:

- An interpolated value is a mean of up to 2^n neighbours with weights that add up to 1. Where
  the same channel is the largest at all of them, by more than every rounding error, it is the
  largest in the mean too. `_along` finds those voxels by comparing
  bytes, axis by axis.
- PyTorch's resampling computes each point by itself. The rest, a few per cent of a usual
  segmentation, is computed by that very kernel from the very coordinates, packed closely.

The same holds for nearest neighbours: away from the middle between two voxels, no rounding
error can change which one is nearest. Nothing survives the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_builder.runtime.axes import AxisMap
from ensemble_builder.runtime.few import interpolate_few, is_worth
from ensemble_builder.runtime.grid import AxisCells, Grid
from ensemble_builder.runtime.nearly import NearlyLabels
from ensemble_builder.runtime.recording import NotRecorded, Sample
from ensemble_builder.runtime.reduction import Reduction

SLAB_VOXELS = 4_000_000
"""Voxels of the output that are worked on at once."""

CHUNK_POINTS = 500_000
"""Points whose coordinates are held at once (about 150 bytes each)."""

MANY_OPEN = 0.05
"""Where a larger part of a slab is open, whole planes are interpolated nearly: single points take
PyTorch more than twenty times as long."""

MOST_OPEN = 0.8
"""Where a larger part of a slab is open, all of it is computed: no list of places needed."""

LONGEST_LIST = 16_000_000
"""Open points that are remembered (4 bytes each) before they are computed."""

CONVERTED_BYTES = 600_000_000
"""Most memory for channels converted to the dtype of the resampling; more go in groups."""


def resample_to_labels(
    source: torch.Tensor,
    sample: Sample,
    maps: Sequence[AxisMap],
    padding: float | None,
    reduction: Reduction,
) -> torch.Tensor:
    """Labels of the resampled prediction.

    Args:
        source: float32 [C, *spatial], finite.
        sample: How it is resampled.
        maps: Where each final axis comes from.
        padding: Value of the padding outside the resampled grid.
        reduction: What makes labels of it.

    Returns:
        Labels [C', *final]; the memory has the last axis outermost, as DICOM orders slices.

    Raises:
        NotRecorded: a value is not finite, where the shortcuts would not hold.
    """
    low, high = (float(v) for v in torch.aminmax(source))
    largest = max(abs(low), abs(high), abs(reduction.threshold))
    if not largest < float("inf"):
        msg = "a prediction with values that are not finite"
        raise NotRecorded(msg)
    if sample.mode == "nearest":
        return resample_nearest(
            reduction(source), sample, maps, _padded(source, padding, reduction)
        )
    grid = Grid(sample, tuple(source.shape[1:]), tuple(maps), source.device)
    labels = Canvas(maps, reduction.channels(len(source)), reduction.dtype(len(source)), source)
    # A convex combination keeps a lead; what the neglected corners and roundings can take
    # from it is bounded by this.
    slack = largest * (16 * grid.tolerance + 2**-20)
    for channel, part in _parts(source, reduction):
        sure, nearly = None, None
        if grid.axes is not None and reduction.can_foresee():
            if part.device.type == "cpu":
                nearly = NearlyLabels(grid, part, reduction, largest)
            if nearly is None or not nearly.signed:
                sure = reduction.certain(part, slack)[0]
        compute = _Labeller(grid, part, reduction, largest)
        _fill(labels.inner[channel], grid, sure, compute, nearly)
    return labels.whole(_padded(source, padding, reduction))


def resample_nearest(
    source: torch.Tensor, sample: Sample, maps: Sequence[AxisMap], padding: float | None
) -> torch.Tensor:
    """The nearest voxels of anything, in its own dtype: [C, *spatial] -> [C, *final]."""
    grid = Grid(sample, tuple(source.shape[1:]), tuple(maps), source.device)
    result = Canvas(maps, len(source), source.dtype, source)
    for channel in range(len(source)):
        compute = _Picker(grid, source[channel : channel + 1])
        sure = source[channel] if grid.axes is not None else None
        _fill(result.inner[channel], grid, sure, compute)
    return result.whole(padding)


def resample_constant_regions(
    source: torch.Tensor, sample: Sample, maps: Sequence[AxisMap], padding: float | None
) -> torch.Tensor:
    """A label map interpolated linearly: regions of one label stay what they are.

    Args:
        source: float32 [1, *spatial], whole numbers 0..254.
        sample: In float64, so that the mean of equal float32 values is that value.
        maps: Where each final axis comes from.
        padding: Value of the padding outside the resampled grid.

    Returns:
        float32 [1, *final].
    """
    grid = Grid(sample, tuple(source.shape[1:]), tuple(maps), source.device, strict=True)
    result = Canvas(maps, 1, torch.float32, source)
    sure = source[0].to(torch.uint8) if grid.axes is not None else None
    _fill(result.inner[0], grid, sure, _Picker(grid, source))
    return result.whole(padding)


def _padded(source: torch.Tensor, padding: float | None, reduction: Reduction) -> float | None:
    if padding is None:
        return None
    return float(reduction(source.new_full((len(source), 1), padding))[0, 0])


def _parts(source: torch.Tensor, reduction: Reduction) -> Iterator[tuple[int, torch.Tensor]]:
    """What can be reduced by itself: all channels for an argmax, each one for a threshold."""
    if reduction.kind == "argmax":
        yield 0, source
    else:
        for channel in range(len(source)):
            yield channel, source[channel : channel + 1]


class Canvas:
    """The result: [C, *final], the last axis outermost in memory, as DICOM orders slices.

    Attributes:
        inner: [C, last axis, ..., first axis], contiguous, without the padding.
    """

    def __init__(
        self, maps: Sequence[AxisMap], channels: int, dtype: torch.dtype, like: torch.Tensor
    ) -> None:
        self._maps = maps
        inner = [len(m.index) for m in reversed(maps)]
        self.inner = torch.empty(channels, *inner, dtype=dtype, device=like.device)

    def whole(self, padding: float | None) -> torch.Tensor:
        """With the padding around it, the axes in order."""
        result = self.inner
        if padding is not None:
            pairs = [n for m in self._maps for n in (m.before, m.after)]
            result = torch.nn.functional.pad(result, pairs, value=padding)
        return result.permute(0, *range(result.ndim - 1, 0, -1))


@dataclass(frozen=True, slots=True)
class Open:
    """Voxels that aren't settled: some places in the memory, or whole planes.

    Attributes:
        flat: int32 or int64 [M], counted from the start of plane `first`; None for all.
    """

    grid: Grid
    first: int
    last: int
    plane: int
    flat: torch.Tensor | None

    def points(self) -> torch.Tensor:
        """Their normalized coordinates, [M, n]."""
        if self.flat is None:
            return self.grid.box(self.first, self.last)
        return self.grid.points(self.places())

    def write(self, out: torch.Tensor, values: torch.Tensor) -> None:
        """Puts [M] values in their places of the memory."""
        memory = out.view(-1)
        if self.flat is None:
            memory[self.first * self.plane : self.last * self.plane] = values
        else:
            memory.scatter_(0, self.places(), values.to(out.dtype))

    def read(self, out: torch.Tensor) -> torch.Tensor:
        """What is in their places, [M]."""
        memory = out.view(-1)
        if self.flat is None:
            return memory[self.first * self.plane : self.last * self.plane]
        return memory.gather(0, self.places())

    def places(self) -> torch.Tensor:
        """Some places of the whole memory; there must be a list of them."""
        assert self.flat is not None
        return self.flat.long() + self.first * self.plane


class _Labeller:
    """Labels of single points of an interpolated prediction."""

    def __init__(
        self, grid: Grid, source: torch.Tensor, reduction: Reduction, largest: float
    ) -> None:
        self._grid, self._source, self._reduction = grid, source, reduction
        self._largest = largest
        dtype = grid.sample.theta.dtype
        self._group = max(1, CONVERTED_BYTES // (source[0].numel() * dtype.itemsize))
        # Only a plain argmax can be found channel group by channel group.
        if reduction.kind == "threshold" or reduction.activations or source.dtype == dtype:
            self._group = len(source)
        self._whole: torch.Tensor | None = None

    def _few(self, waiting: Sequence[Open]) -> torch.Tensor | None:
        """The places of all that waits, where these are but a few."""
        found = [some.places() for some in waiting if some.flat is not None]
        if len(found) < len(waiting):
            return None
        flat = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
        return flat if is_worth(self._source, self._grid, len(flat)) else None

    def __call__(self, waiting: Sequence[Open], out: torch.Tensor) -> None:
        """Computes points and writes their labels into `out`."""
        dtype = self._grid.sample.theta.dtype
        if self._group >= len(self._source):
            flat = None if self._whole is not None else self._few(waiting)
            if flat is not None:
                values = interpolate_few(self._source, self._grid, flat, self._largest)
                out.view(-1).scatter_(0, flat, self._reduction(values)[0].to(out.dtype))
                return
            if self._whole is None:
                self._whole = self._source.to(dtype)
            for some in waiting:
                values = self._grid.interpolate(self._whole, some.points())
                some.write(out, self._reduction(values)[0])
            return
        best: list[torch.Tensor] = []
        for first in range(0, len(self._source), self._group):
            converted = self._source[first : first + self._group].to(dtype)
            for number, some in enumerate(waiting):
                values = self._grid.interpolate(converted, some.points())
                top, labels = values.amax(0), self._reduction(values)[0].to(out.dtype) + first
                if first == 0:
                    best.append(top)
                else:  # of equal ones the first stays, as in argmax
                    labels = torch.where(top > best[number], labels, some.read(out))
                    torch.maximum(top, best[number], out=best[number])
                some.write(out, labels)


class _Picker:
    """Values of single points, whatever they are."""

    def __init__(self, grid: Grid, source: torch.Tensor) -> None:
        self._grid, self._source = grid, source
        self._whole: torch.Tensor | None = None

    def __call__(self, waiting: Sequence[Open], out: torch.Tensor) -> None:
        """Computes points and writes their values into `out`."""
        if self._whole is None:
            self._whole = self._source.to(self._grid.sample.theta.dtype)
        for some in waiting:
            values = self._grid.interpolate(self._whole, some.points())
            some.write(out, values[0].to(out.dtype))


def _fill(
    out: torch.Tensor,
    grid: Grid,
    sure: torch.Tensor | None,
    compute: Callable[[Sequence[Open], torch.Tensor], None],
    nearly: NearlyLabels | None = None,
) -> None:
    """Writes one channel, slab by slab: what is settled from `sure`, the rest computed.

    Args:
        out: [last axis, ..., first axis], contiguous.
        grid: Whose coordinates count.
        sure: What is sure on the source's grid (uint8 or int16, its largest value where it
            isn't); for nearest neighbours the values themselves; None leaves everything open.
        compute: Computes the open points.
        nearly: Settles all but a few points where many are open.
    """
    cells: tuple[AxisCells, ...] = ()
    if sure is not None and grid.axes is not None:
        cells = grid.axes[::-1]
        # The axis along the memory first, where there is least of it; the slabs come last.
        sure = sure.permute([m.axis for m in reversed(grid.maps)]).contiguous()
        for dim in range(sure.ndim - 1, 0, -1):
            sure = _along(sure, dim, cells[dim], nearest=grid.nearest)
    plane = out[0].numel()
    step = max(1, SLAB_VOXELS // plane)
    waiting: list[Open] = []
    for first in range(0, len(out), step):
        last = min(first + step, len(out))
        open_ones: torch.Tensor | None = None
        if sure is not None:
            settled = _along(sure, 0, cells[0].part(first, last), nearest=grid.nearest)
            out[first:last] = settled
            unsure = (
                _odd(settled, (cells[0].part(first, last), *cells[1:]))
                if grid.nearest
                else settled == torch.iinfo(settled.dtype).max
            )
            open_ones = _places_of(unsure)
        many = open_ones is None or len(open_ones) > MANY_OPEN * plane * (last - first)
        if nearly is not None and many:
            open_ones = nearly.fill(out, first, last)
        if open_ones is None or len(open_ones) > MOST_OPEN * plane * (last - first):
            planes = max(1, CHUNK_POINTS // plane)
            waiting += [
                Open(grid, k, min(k + planes, last), plane, None)
                for k in range(first, last, planes)
            ]
        else:
            waiting += [
                Open(grid, first, last, plane, part.to(torch.int32))
                for part in torch.split(open_ones, CHUNK_POINTS)
                if len(part)
            ]
        if sum(w.plane if w.flat is None else len(w.flat) for w in waiting) > LONGEST_LIST:
            compute(waiting, out)
            waiting = []
    compute(waiting, out)


def _along(tensor: torch.Tensor, dim: int, cells: AxisCells, *, nearest: bool) -> torch.Tensor:
    """Goes to the final grid along one axis; what two neighbours don't share is unsure."""
    found = _taken(tensor, dim, cells.low)
    if nearest:
        return found
    unsure = torch.iinfo(tensor.dtype).max
    for other in (cells.middle, cells.high):
        if other is None or not bool((cells.low != other).any()):
            continue
        neighbour = _taken(tensor, dim, other)
        if tensor.device.type == "cpu":  # the same in numpy: less than half of the time
            differs = np.not_equal(found.numpy(), neighbour.numpy())
            _mark(found.numpy(), differs)
        else:
            # All bits that a label can have.
            found |= (found != neighbour).to(tensor.dtype).mul_(unsure)
    if bool(cells.odd.any()):
        found.index_fill_(dim, cells.odd.nonzero()[:, 0], unsure)
    return found


def _mark(labels: NDArray[Any], differs: NDArray[np.bool_]) -> None:
    """Sets all bits that a label can have where something differs."""
    bits: NDArray[Any] = np.negative(differs.view(np.int8))
    if labels.dtype == np.uint8:
        bits = bits.view(np.uint8)
    else:
        bits = bits.astype(labels.dtype) & np.iinfo(labels.dtype).max
    np.bitwise_or(labels, bits, out=labels)


def _taken(tensor: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        # PyTorch's index_select of bytes is ten to a hundred times slower than numpy's take.
        return torch.from_numpy(np.take(tensor.numpy(), index.numpy(), axis=dim, mode="clip"))
    return tensor.index_select(dim, index)


def _places_of(flags: torch.Tensor) -> torch.Tensor:
    """Where a contiguous tensor of flags is True, counted along its memory."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy()))  # ten times faster than nonzero
    return flags.view(-1).nonzero()[:, 0]


def _odd(like: torch.Tensor, cells: Sequence[AxisCells]) -> torch.Tensor:
    """Where any axis is odd."""
    found = torch.zeros(like.shape, dtype=torch.bool, device=like.device)
    if any(bool(c.odd.any()) for c in cells):
        for dim, c in enumerate(cells):
            found |= c.odd.view([-1 if d == dim else 1 for d in range(like.ndim)])
    return found
