"""A stored image for PyTorch's kernel, of which only what is read just now is there as floats.

In: stored values as a request brings them, and where each axis of what is resampled comes from.
Out: a tensor of the full size whose rows are rescaled, turned and converted when they are asked
for, and let go of afterwards. Nothing survives.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_builder.runtime.axes import AxisMap
from ensemble_builder.runtime.volumes import is_exact_in_float32


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as the request brings it.

    Attributes:
        values: int16 or float32 [C, K, J, I].
        rescale: float64 [C, K, 2].
    """

    values: torch.Tensor
    rescale: torch.Tensor

    @property
    def channels(self) -> int:
        """How many images lie on one grid."""
        return int(self.values.shape[0])

    @property
    def size_ijk(self) -> tuple[int, ...]:
        """Columns, rows, slices."""
        return tuple(int(n) for n in reversed(self.values.shape[1:]))


class Rows:
    """The image turned, rescaled and converted, of which only some rows are there.

    It has its full size of addresses, so that PyTorch's coordinates mean what they mean for
    the whole image; the kernel gives memory to what is written, and takes it back from what
    isn't needed any more.
    """

    def __init__(
        self,
        source: StoredImage,
        turned: Sequence[AxisMap],
        order: Sequence[int],
        dtype: torch.dtype,
        pool: Executor,
    ) -> None:
        """Reserves addresses.

        Args:
            source: The image.
            turned: Where each axis of the image that is resampled comes from.
            order: Those axes in the order of the memory, the one of the slabs first.
            dtype: Of the resampling.
            pool: Fills rows beside each other.
        """
        self._pool = pool
        dims = [3 - turned[a].axis for a in order]
        values = source.values.numpy().transpose(0, *dims)
        slices = (slice(None), *(_slice(turned[a].index) for a in order))
        self._values = values[slices]
        factors = source.rescale.numpy()[:, :, None, None]
        factors = np.moveaxis(factors, 1, 1 + dims.index(1))
        along = [slice(None) if d == 1 else slice(0, 1) for d in dims]
        turn = tuple(s if a == slice(None) else a for s, a in zip(slices[1:], along, strict=True))
        self._slope, self._intercept = (factors[..., n][(slice(None), *turn)] for n in (0, 1))
        self._exact = is_exact_in_float32(source.values, source.rescale)
        shape = self._values.shape
        item = dtype.itemsize
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._memory = mmap.mmap(-1, int(np.prod(shape)) * item, flags=private)
        self._floats = np.frombuffer(
            self._memory, dtype=np.float64 if item == 8 else np.float32
        ).reshape(shape)
        self._row_bytes = int(np.prod(shape[2:])) * item
        self._held = (0, 0)
        back = [0] * len(order)
        for place, axis in enumerate(order):
            back[axis] = place + 1
        self.image = torch.from_numpy(self._floats).permute(0, *back)

    def hold(self, first: int, last: int) -> None:
        """Fills the rows `first:last` and lets the others go."""
        low, high = self._held
        if not low < high or last <= low or high <= first:
            self._release(low, high)
            self._fill(first, last)
        else:
            self._fill(first, min(low, last))
            self._fill(max(high, first), last)
            self._release(low, min(first, high))
            self._release(max(last, low), high)
        self._held = (first, last)

    def _fill(self, first: int, last: int) -> None:
        # One by one, so that what is converted is still in the cache when it is rescaled.
        for _ in self._pool.map(self._fill_row, range(first, last)):
            pass

    def _fill_row(self, row: int) -> None:
        values, into = self._values[:, row], self._floats[:, row]
        slope, intercept = (
            f[:, row if f.shape[1] > 1 else 0] for f in (self._slope, self._intercept)
        )
        if not self._exact:
            # Rounded to float32 once, as a reader's image is, whatever the resampling uses.
            np.copyto(into, (values * slope + intercept).astype(np.float32))
            return
        np.copyto(into, values)
        if (slope != 1).any():
            np.multiply(into, slope.astype(into.dtype), out=into)
        if (intercept != 0).any() or (slope < 0).any():  # -0 + 0 is 0, as in float64
            np.add(into, intercept.astype(into.dtype), out=into)

    def scatter(self, channel: int, around: Sequence[NDArray[np.int64]]) -> None:
        """Fills what some points are mixed from.

        Args:
            channel: Which one.
            around: int64 [M, n] for each axis in the order of the memory: places that each of M
                points may be mixed from.
        """
        n = len(around)
        shape = [-1] + [1] * n
        where = [
            one.reshape([*shape[: a + 1], one.shape[1], *shape[a + 2 :]])
            for a, one in enumerate(around)
        ]
        places = tuple(np.broadcast_arrays(*where))
        values = self._values[channel][places]
        slope, intercept = (
            np.broadcast_to(f, self._values.shape)[channel][places]
            for f in (self._slope, self._intercept)
        )
        rescaled = values * slope + intercept
        if not self._exact:
            rescaled = rescaled.astype(np.float32)
        self._floats[channel][places] = rescaled

    def let_go(self) -> None:
        """Lets all rows go."""
        self._release(0, self._floats.shape[1])
        self._held = (0, 0)

    def _release(self, first: int, last: int) -> None:
        page = mmap.PAGESIZE
        for channel in range(len(self._floats)):
            start = channel * self._floats[0].nbytes + first * self._row_bytes
            end = start + (last - first) * self._row_bytes
            start, end = -(-start // page) * page, end // page * page
            if start < end:
                self._memory.madvise(mmap.MADV_DONTNEED, start, end - start)


def _slice(index: torch.Tensor) -> slice:
    """Positions that go up or down one by one, as a slice."""
    first, last = int(index[0]), int(index[-1])
    if last >= first:
        return slice(first, last + 1)
    return slice(first, last - 1 if last else None, -1)
