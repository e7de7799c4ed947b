"""The part of a stitched volume that windows still add to, and what becomes of finished rows.

Rows that no later window touches are divided by their weights, reduced, written out, and their
memory is used for the next rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ensemble_builder.runtime.window_plan import WindowPlan

Reduce = Callable[[torch.Tensor], torch.Tensor]
"""[C, ...] -> [C', ...], each voxel by itself."""


class Slab:
    """The part of the stitched volume that windows still add to."""

    def __init__(
        self,
        plan: WindowPlan,
        channels: int,
        reduce: Reduce | None,
        first: int | None = None,
        end: int | None = None,
    ) -> None:
        """Makes the rolling slab, or (with `first` and `end`) one of MONAI's buffers.

        Args:
            plan: What is stitched.
            channels: Of the network's output.
            reduce: Makes labels of finished rows.
            first: The buffer's first window.
            end: One after its last window.
        """
        self._plan, self._channels, self._reduce = plan, channels, reduce
        axis, roi = plan.axis, plan.roi[plan.axis]
        size = plan.image[axis]
        self._device = plan.device
        if first is not None and end is not None:
            self.first = first
            self._start = plan.windows[first][axis]
            size = plan.windows[end - 1][axis] + roi - self._start
            self._device = plan.window_device
        else:
            self.first = 0
            self._start = 0
            size = min(size, self._tallest())
        shape = list(plan.image)
        shape[axis] = size
        self._sums = torch.zeros(1, channels, *shape, dtype=plan.inputs.dtype, device=self._device)
        self._out: torch.Tensor | None = None

    def _tallest(self) -> int:
        """Rows that must be held at once: a window, and what a batch or buffer spans."""
        plan, tallest = self._plan, 0
        ends = plan.buffers or tuple(last for _, last in plan.batches)
        first = 0
        for end in ends:
            starts = [w[plan.axis] for w in (plan.windows[first], plan.windows[end - 1])]
            tallest = max(tallest, max(starts) + plan.roi[plan.axis] - min(starts))
            first = end
        return tallest

    def add_weighted(self, windows: Sequence[tuple[int, ...]], outputs: torch.Tensor) -> None:
        """Adds windows (times their weights) to the sums."""
        for window, output in zip(windows, outputs, strict=True):
            place = self._plan.place(window, self._start)
            self._sums[0][_index(place)] += output

    def add_slab(self, buffer: Slab) -> None:
        """Adds one of MONAI's buffers."""
        axis = self._plan.axis + 2
        rows = buffer._sums.shape[axis]
        part = self._sums.narrow(axis, buffer._start - self._start, rows)
        part += buffer._sums.to(self._device)

    def advance(self, row: int) -> None:
        """Finishes the rows before `row`, to which no window adds any more."""
        done = row - self._start
        if done <= 0:
            return
        axis = self._plan.axis + 2
        rows = self._sums.shape[axis]
        finished = min(done, rows)
        self._write(self._sums.narrow(axis, 0, finished), self._start)
        keep = rows - finished
        for first in range(0, keep, finished):  # in steps that don't overlap
            count = min(finished, keep - first)
            part = self._sums.narrow(axis, first, count)
            part.copy_(self._sums.narrow(axis, first + finished, count))
        self._sums.narrow(axis, keep, finished).zero_()
        self._start += done

    def finish(self) -> torch.Tensor:
        """Finishes the rest: [1, C', *spatial], without the padding."""
        axis = self._plan.axis
        rows = self._plan.image[axis] - self._start
        self._write(self._sums.narrow(axis + 2, 0, rows), self._start)
        assert self._out is not None
        return self._out

    def _write(self, sums: torch.Tensor, start: int) -> None:
        """Divides by the weights, cuts the padding off, reduces, and writes."""
        plan = self._plan
        axis = plan.axis
        sums /= self._counts(start, sums.shape[axis + 2])
        keep = list(plan.keep)
        first = max(keep[axis].start, start)
        last = min(keep[axis].stop, start + sums.shape[axis + 2])
        if last <= first:
            return
        where = slice(first - keep[axis].start, last - keep[axis].start)
        keep[axis] = slice(first - start, last - start)
        part = sums[0][_index(keep)]
        reduced = part if self._reduce is None else self._reduce(part)
        if self._out is None:
            size = [k.stop - k.start for k in plan.keep]
            self._out = torch.empty(
                1, len(reduced), *size, dtype=reduced.dtype, device=reduced.device
            )
        self._out[0].narrow(axis + 1, where.start, where.stop - where.start).copy_(reduced)

    def _counts(self, start: int, rows: int) -> torch.Tensor:
        """The sum of weights of some rows, added up in MONAI's order: [1, 1, ...]."""
        plan = self._plan
        axis, roi = plan.axis, plan.roi[plan.axis]
        shape = list(plan.image)
        shape[axis] = rows
        counts = torch.zeros(1, 1, *shape, dtype=plan.inputs.dtype, device=self._device)
        weights = plan.weights.to(self._device)
        for window in plan.windows:
            first = max(window[axis], start)
            last = min(window[axis] + roi, start + rows)
            if first < last:
                place = list(plan.place(window))
                place[axis] = slice(first - start, last - start)
                part = weights.narrow(axis + 2, first - window[axis], last - first)
                counts[0][_index(place)] += part[0]
        return counts


def _index(place: Sequence[slice]) -> tuple[slice, ...]:
    """All channels of a place."""
    return (slice(None), *place)
