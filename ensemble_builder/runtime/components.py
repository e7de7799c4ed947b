"""MONAI's KeepLargestConnectedComponentd on narrow labels, by runs instead of voxels.

In: a label map (or masks) and MONAI's transform. Out: the labels that MONAI would leave, in
their own dtype. A run is a stretch of equal labels along a row of the memory; a segmentation
has a thousand times fewer runs than voxels, and two of them touch where their ends overlap in
rows that touch. Which component is the largest doesn't depend on the order of axes; where two
are equally large MONAI's choice does, and what isn't decided here raises `NotRecorded`. Labels
on a GPU are fetched for it, unless cucim is there. Nothing survives the call.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import KeepLargestConnectedComponentd
from numpy.typing import NDArray

from ensemble_builder.runtime.recording import NotRecorded

MOST_RUNS = 4_000_000
"""More (about 60 bytes each, a label map full of noise) are left to MONAI."""

SLAB_VOXELS = 8_000_000
"""Voxels whose runs are looked for at once."""


def is_keep_largest(transform: Any, key: str) -> bool:
    """True for a transform that `keep_largest` can do on `key`."""
    return type(transform) is KeepLargestConnectedComponentd and tuple(transform.keys) == (key,)


def keep_largest(transform: KeepLargestConnectedComponentd, labels: torch.Tensor) -> torch.Tensor:
    """The labels without what isn't part of a largest component.

    Args:
        transform: MONAI's.
        labels: uint8 or int16 [C, *spatial], two or three spatial axes.

    Returns:
        The same shape, dtype and order of memory; `labels` itself where nothing goes.

    Raises:
        NotRecorded: MONAI must do it: other tensors, options that aren't known here, two
            components of one size, or noise.
    """
    converter = transform.converter
    if labels.dtype not in (torch.uint8, torch.int16):
        msg = "components of other tensors than narrow labels"
        raise NotRecorded(msg)
    if labels.device.type != "cpu":
        if _found_on_the_gpu():
            msg = "components that cucim finds on the GPU"
            raise NotRecorded(msg)
        # MONAI would fetch them as well, in float32, and look at every voxel.
        fetched = labels.cpu()
        left = keep_largest(transform, fetched)
        return labels if left is fetched else left.to(labels.device)
    if labels.ndim not in (3, 4):
        msg = "components in other than two or three dimensions"
        raise NotRecorded(msg)
    hops = converter.connectivity or labels.ndim - 1
    one_hot = len(labels) > 1 if converter.is_onehot is None else bool(converter.is_onehot)
    wanted = converter.applied_labels
    if wanted is not None and not all(int(n) == n and n >= (not one_hot) for n in wanted):
        msg = "components of labels that are no whole numbers, or of the background"
        raise NotRecorded(msg)
    several = one_hot and (not converter.independent or wanted is None)
    if several or (not one_hot and len(labels) != 1):
        msg = "components of the union of channels, or of channels that nobody named"
        raise NotRecorded(msg)
    chosen = None if wanted is None else {int(n) for n in wanted}
    result = labels
    for channel in range(len(labels)):
        if one_hot and chosen is not None and channel not in chosen:
            continue
        rows = _as_rows(labels[channel])
        united = one_hot or not converter.independent
        runs = _runs_of(rows, None if one_hot else chosen, united=united)
        gone = runs.small(hops, converter.num_components)
        if not len(gone.first):
            continue
        if result is labels:
            result = labels.clone()  # keeps the order of memory; it may be the server's
        flat = _as_rows(result[channel]).reshape(-1)
        for part in range(0, len(gone.first), MOST_RUNS // 16):
            flat[gone.voxels(part, part + MOST_RUNS // 16)] = 0
    return result


def _found_on_the_gpu() -> bool:
    """Whether what MONAI needs for it is installed."""
    return all(importlib.util.find_spec(name) for name in ("cupy", "cucim"))


@dataclass(frozen=True, slots=True)
class _Runs:
    """Stretches of equal labels, in the order of the memory.

    Attributes:
        shape: Of the memory, [outer, rows, row length].
        first: int64 [n], place of the first voxel.
        length: int64 [n].
        value: [n], what must be equal to belong together.
    """

    shape: tuple[int, int, int]
    first: NDArray[np.int64]
    length: NDArray[np.int64]
    value: NDArray[Any]

    def small(self, hops: int, keep: int) -> _Runs:
        """Those that belong to none of the `keep` largest components of their value.

        Raises:
            NotRecorded: two components of one size compete for the last place.
        """
        component = self._components(hops)
        sizes = np.bincount(component, weights=self.length).astype(np.int64)
        values = np.zeros(len(sizes), dtype=self.value.dtype)
        values[component] = self.value
        stays = np.zeros(len(sizes), dtype=bool)
        for value in np.unique(values):
            members = np.flatnonzero(values == value)
            if len(members) > keep:
                members = members[np.argsort(sizes[members])[::-1]]
                if keep < 1 or sizes[members[keep - 1]] == sizes[members[keep]]:
                    msg = "two components of one size"
                    raise NotRecorded(msg)
                members = members[:keep]
            stays[members] = True
        gone = ~stays[component]
        return _Runs(self.shape, self.first[gone], self.length[gone], self.value[gone])

    def voxels(self, begin: int, end: int) -> NDArray[np.int64]:
        """The places of some of the runs' voxels."""
        first, length = self.first[begin:end], self.length[begin:end]
        ends = np.cumsum(length)
        places: NDArray[np.int64] = np.arange(ends[-1])
        places += np.repeat(first - (ends - length), length)
        return places

    def _components(self, hops: int) -> NDArray[np.int32]:
        """Number of each run's component."""
        from scipy.sparse import coo_array  # noqa: PLC0415 - brought by what MONAI needs for it
        from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

        count = len(self.first)
        rows_apart = ((0, 1), (1, -1), (1, 0), (1, 1))  # one of each pair of directions
        pairs = [self._touching(o, r, hops) for o, r in rows_apart if o + abs(r) <= hops]
        a = np.concatenate([one for one, _ in pairs])
        b = np.concatenate([other for _, other in pairs])
        graph = coo_array((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
        found: NDArray[np.int32] = connected_components(graph, directed=False)[1]
        return found

    def _touching(
        self, outer: int, row: int, hops: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of runs of equal value in rows so far apart that touch."""
        _, rows, n = self.shape
        wide = n + 2  # room for a diagonal neighbour beyond either end
        at_row, start = np.divmod(self.first, n)
        start += 1
        end = start + self.length
        reach = 1 if outer + abs(row) < hops else 0
        in_plane = at_row % rows + row
        inside = (in_plane >= 0) & (in_plane < rows)
        mine = np.flatnonzero(inside)
        base = (at_row[mine] + outer * rows + row) * wide
        low = np.searchsorted(at_row * wide + end, base + start[mine] - reach, side="right")
        high = np.searchsorted(at_row * wide + start, base + end[mine] + reach, side="left")
        counts = np.maximum(high - low, 0)
        ends = np.cumsum(counts)
        a = np.repeat(mine, counts)
        b = np.arange(len(a)) + np.repeat(low - (ends - counts), counts)
        same = self.value[a] == self.value[b]
        return a[same], b[same]


def _as_rows(channel: torch.Tensor) -> NDArray[Any]:
    """[outer, rows, row length] in the order of the memory, a view.

    Raises:
        NotRecorded: the memory has gaps.
    """
    strides = channel.stride()
    order = sorted(range(channel.ndim), key=lambda axis: -int(strides[axis]))
    straight = channel.as_subclass(torch.Tensor).detach().permute(order)
    if not straight.is_contiguous():
        msg = "components of a part of another tensor"
        raise NotRecorded(msg)
    return straight.view(-1, *straight.shape[-2:]).numpy()


def _runs_of(rows: NDArray[Any], chosen: set[int] | None, *, united: bool) -> _Runs:
    """The runs of some labels; of all but zero where `chosen` is None.

    Raises:
        NotRecorded: there are too many.
    """
    outer, height, n = rows.shape
    plane = height * n
    step = max(1, SLAB_VOXELS // plane)
    starts: list[NDArray[np.int64]] = []
    lengths: list[NDArray[np.int64]] = []
    values: list[NDArray[Any]] = []
    found = 0
    for first in range(0, outer, step):
        slab = rows[first : first + step]
        if united:
            slab = _members(slab, chosen)
        changes = np.empty(slab.shape, dtype=bool)
        changes[..., 0] = True  # no run goes on in the next row
        np.not_equal(slab[..., 1:], slab[..., :-1], out=changes[..., 1:])
        at = np.flatnonzero(changes)
        value = slab.reshape(-1)[at]
        length = np.diff(at, append=slab.size)
        taken = _wanted(value, None if united else chosen)
        starts.append(at[taken] + first * plane)
        lengths.append(length[taken])
        values.append(value[taken])
        found += int(taken.sum())
        if found > MOST_RUNS:
            msg = "components of noise"
            raise NotRecorded(msg)
    return _Runs(
        (outer, height, n), np.concatenate(starts), np.concatenate(lengths), np.concatenate(values)
    )


def _members(slab: NDArray[Any], chosen: set[int] | None) -> NDArray[np.uint8]:
    """1 where a label is one of the chosen, or anything above zero."""
    if chosen is None:
        return (slab > 0).view(np.uint8)
    return np.isin(slab, sorted(chosen)).view(np.uint8)


def _wanted(value: NDArray[Any], chosen: set[int] | None) -> NDArray[np.bool_]:
    return value != 0 if chosen is None else np.isin(value, sorted(chosen))
