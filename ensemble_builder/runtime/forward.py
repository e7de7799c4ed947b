"""A bundle's preprocessing with the resampling of the image done from its stored integers.

In: the preprocessing and a request's tensors. Out: the dictionary that the transforms give.
The transforms up to the last spatial one (in most bundles: channel first, orientation,
spacing) run on a stand-in, which records what they would do with the voxels; then the
resampling is computed in slabs by PyTorch's own kernel, from rows of the image that are
rescaled, turned and converted just before they are read and let go of right after. So neither
a float image of the full size nor a grid of coordinates is ever there. What isn't recognised
runs plainly, as does everything on a GPU, whose memory is not the CPU's. With
TRITOME_CHECK_FUSION=1 in the environment both are done and compared. Nothing survives the call.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Flipd,
    Identityd,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)
from monai.transforms.compose import execute_compose

from ensemble_builder.errors import ParityError
from ensemble_builder.runtime.axes import AxisMap, apply, axis_maps
from ensemble_builder.runtime.fusion import CHECK, changes_nothing, differing, is_plain
from ensemble_builder.runtime.grid import Grid
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.runtime.loading import Reader, input_shape, loaded
from ensemble_builder.runtime.planes import PlaneResampling
from ensemble_builder.runtime.recording import (
    Cast,
    Flip,
    NotRecorded,
    Permute,
    Sample,
    Step,
    record,
)
from ensemble_builder.runtime.steps import Loaded
from ensemble_builder.runtime.stored import Rows, StoredImage
from ensemble_builder.runtime.volumes import image_meta, is_exact_in_float32

MOST_OPEN = 0.05
"""Where a larger part of a slab isn't certain, PyTorch computes all of it."""

SLAB_POINTS = 1_000_000
"""Points of the output that are computed at once (about 40 bytes each)."""

SLAB_VOXELS = 16_000_000
"""Voxels of the source that a slab is made from, about (4 or 8 bytes each): a result that is much
coarser than its source would be one slab, and need all of it."""

_LEADING = (Loaded, EnsureChannelFirstd, Identityd)
_SPATIAL = (Orientationd, Spacingd, Flipd)
_CPU = torch.device("cpu")
_log = logging.getLogger(__name__)


def preprocess(
    transforms: Compose,
    inputs: Sequence[Input],
    tensor: Reader,
    device: torch.device,
    *,
    check: bool | None = None,
) -> tuple[dict[Any, Any], tuple[int, ...]]:
    """The preprocessing's result.

    Args:
        transforms: The bundle's.
        inputs: What the request brings.
        tensor: Gives the request's tensors.
        device: Where images go.
        check: Also runs the transforms plainly and compares; None asks the environment.

    Returns:
        MONAI's dictionary, and the first image's spatial shape in MONAI's order.

    Raises:
        InputError: a tensor is missing or has the wrong shape.
        ParityError: with `check`, where the two ways differ.
    """
    if check is None:
        check = os.environ.get(CHECK) == "1"
    try:
        done, shape = _from_stored(transforms, inputs, tensor, device)
    except NotRecorded as reason:
        _log.debug("the preprocessing runs as MONAI's own code: %s", reason)
        data = _as_read(inputs, tensor, device)
        return transforms(data), input_shape(inputs, data)
    if check:
        _compare(transforms(_as_read(inputs, tensor, device)), done)
    return done, shape


def _as_read(inputs: Sequence[Input], tensor: Reader, device: torch.device) -> dict[Any, Any]:
    """What MONAI's readers would give, as it lies in memory: a mean in float32 adds along it."""
    return {
        key: value.contiguous() if isinstance(value, torch.Tensor) else value
        for key, value in loaded(inputs, tensor, device).items()
    }


def starts_from_stored(transforms: Compose, inputs: Sequence[Input], tensor: Reader) -> bool:
    """True where `preprocess` makes no float image of the full size on a CPU.

    Args:
        transforms: The bundle's.
        inputs: What a request brings.
        tensor: Gives the tensors of one.
    """
    try:
        _from_stored(transforms, inputs, tensor, _CPU)
    except Exception:  # noqa: BLE001 - a bundle's own transforms may want another image
        return False
    return True


def _from_stored(
    transforms: Compose, inputs: Sequence[Input], tensor: Reader, device: torch.device
) -> tuple[dict[Any, Any], tuple[int, ...]]:
    one = inputs[0]
    stored_layout = len(inputs) == 1 and one.layout in ("volume", "channels")
    if device.type != "cpu" or not stored_layout or not is_plain(transforms):
        msg = "not one volume on the CPU"
        raise NotRecorded(msg)
    names = (one.tensor, one.rescale, one.affine)
    stored, rescale, affine = (tensor(name, _CPU) for name in names)
    shape, meta = image_meta(stored, rescale, affine, one.layout, names)
    waiting = list(transforms.flatten().transforms)
    # A number of memory for the whole image: nothing may look at the voxels here.
    image = MetaTensor(torch.zeros(()).expand(shape), meta=meta)
    data: dict[Any, Any] = {one.key: image}
    while waiting:
        if type(waiting[0]) in _LEADING:
            data = waiting.pop(0)(data)
        elif changes_nothing(waiting[0], one.key) and data[one.key].dtype == torch.float32:
            waiting.pop(0)
        else:
            break
    spatial = []
    while waiting and type(waiting[0]) in _SPATIAL and tuple(waiting[0].keys) == (one.key,):
        spatial.append(waiting.pop(0))
    image = data[one.key]
    if list(data) != [one.key] or image.dtype != torch.float32 or image.ndim != 4:
        msg = "another beginning than reading, orientation and spacing"
        raise NotRecorded(msg)
    steps, result = _recorded(spatial, one.key, image)
    source = StoredImage(_channels_first(stored), rescale.reshape(-1, stored.shape[-3], 2))
    # These look at each voxel by itself: the same on a slab that still is in the cache.
    pointwise = []
    while waiting and _is_pointwise(waiting[0], one.key):
        pointwise.append(waiting.pop(0).scaler)
    values = _resampled(source, steps, pointwise)
    if values.shape != result.shape:
        msg = "steps that don't lead to the recorded shape"
        raise NotRecorded(msg)
    data = {one.key: MetaTensor(values).copy_meta_from(result)}
    # As Compose does it: a lazy transform among them resamples at once, or at the end.
    rest: Any = execute_compose(data, waiting, lazy=transforms.lazy)
    if not isinstance(rest, dict):
        msg = "a result that is no dictionary"
        raise NotRecorded(msg)
    return rest, tuple(shape[-3:])


def _channels_first(stored: torch.Tensor) -> torch.Tensor:
    return stored if stored.ndim == 4 else stored[None]


def _recorded(
    spatial: Sequence[Any], key: str, image: MetaTensor
) -> tuple[tuple[Step, ...], MetaTensor]:
    def compute(stand_in: torch.Tensor) -> Any:
        data = {key: MetaTensor(stand_in).copy_meta_from(image)}
        for transform in spatial:
            data = transform(data)
        return data[key]

    if not spatial:
        msg = "no orientation and no spacing"
        raise NotRecorded(msg)
    like = torch.empty(0, dtype=torch.float32)
    steps, result = record(compute, tuple(image.shape), like)
    if not isinstance(result, MetaTensor) or result.pending_operations:
        msg = "a lazy resampling"
        raise NotRecorded(msg)
    return steps, result


def _is_pointwise(transform: Any, key: str) -> bool:
    return (
        type(transform) is ScaleIntensityRanged
        and tuple(transform.keys) == (key,)
        and transform.scaler.dtype in (np.float32, torch.float32)
    )


def _resampled(
    source: StoredImage, steps: Sequence[Step], pointwise: Sequence[Callable[[Any], Any]]
) -> torch.Tensor:
    """float32 [C, *spatial], in the order of memory that MONAI's own result has.

    Args:
        source: The image.
        steps: That MONAI takes.
        pointwise: What follows them, voxel by voxel.
    """
    places = [n for n, step in enumerate(steps) if isinstance(step, Sample)]
    if len(places) != 1:
        msg = "no resampling, or more than one"
        raise NotRecorded(msg)
    sample = steps[places[0]]
    assert isinstance(sample, Sample)
    before = [s for s in steps[: places[0]] if s != Cast(sample.theta.dtype)]
    after = [s for s in steps[places[0] + 1 :] if s != Cast(torch.float32)]
    if any(isinstance(s, Cast) for s in (*before, *after)):
        msg = "a change of dtype that is not the resampling's own"
        raise NotRecorded(msg)
    turned, padding_before = axis_maps(source.size_ijk, before)
    maps, padding = axis_maps(sample.size, after)
    if padding is not None or padding_before is not None:
        msg = "padding"
        raise NotRecorded(msg)
    grid = Grid(sample, tuple(m.length for m in turned), tuple(maps), _CPU)
    # The order counts: a mean in float32 adds along the memory.
    order = _order_of_memory(source.channels, sample.size, maps, after)
    result = torch.empty(source.channels, *(len(maps[final].index) for final in order))
    result = result.permute(0, *(order.index(final) + 1 for final in range(len(maps))))
    points = _Points(grid)
    depth, plane = len(maps[-1].index), points.plane
    most = min(SLAB_POINTS // plane, SLAB_VOXELS * depth // source.values.numel())
    step = max(2, most // 2 * 2)  # even, for two threads or more to share
    order_read = [m.axis for m in reversed(maps)]
    rescale = source.rescale.numpy()
    planes: PlaneResampling | None = None
    if PlaneResampling.fits(grid, rescale, turned):
        exact = is_exact_in_float32(source.values, source.rescale)
        planes = PlaneResampling(grid, source.values.numpy(), rescale, turned, exact=exact)
    buffer = torch.empty(source.channels, step, *points.plane_shape)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        rows = Rows(source, turned, order_read, sample.theta.dtype, pool)
        for first in range(0, depth, step):
            last = min(first + step, depth)
            part = buffer[:, : last - first]
            if planes is not None and not _nearly_all(planes, rows, grid, first, part, pool):
                planes = None  # what comes after is hardly another kind of image
            if planes is None:
                rows.hold(*_rows_read(grid, first, last))
                values = grid.interpolate(rows.image, points.part(first, last))
                part.copy_(values.view(part.shape))
            done = part
            for one in pointwise:
                done = torch.as_tensor(one(done)).as_subclass(torch.Tensor)
            result[..., first:last].copy_(done.permute(0, 3, 2, 1))
    return result


def _order_of_memory(
    channels: int, size: Sequence[int], maps: Sequence[AxisMap], after: Sequence[Step]
) -> list[int]:
    """Final axes in the order of memory that MONAI's result has, the slowest first.

    A permutation is a view, and a flip keeps the order. But each of MONAI's transforms begins by
    `to(memory_format=contiguous)`, which PyTorch heeds only where it takes a tensor for one with
    its channels last. So it is asked, on a tensor of a few voxels.
    """
    axes = sorted(range(len(maps)), key=lambda final: maps[final].axis)
    if not all(isinstance(step, Flip | Permute) for step in after):
        return axes
    probe = torch.empty(min(channels, 2), *(min(n, 2 + axis) for axis, n in enumerate(size)))
    for step in after:
        probe = apply(probe.to(torch.float32, memory_format=torch.contiguous_format), step)
    return sorted(axes, key=lambda final: -probe.stride(final + 1))


def _nearly_all(  # noqa: PLR0917 - who computes what
    planes: PlaneResampling,
    rows: Rows,
    grid: Grid,
    first: int,
    part: torch.Tensor,
    pool: Executor,
) -> bool:
    """Computes planes one by one, and by PyTorch what isn't certain then.

    Args:
        planes: Who computes.
        rows: Of the image that PyTorch gets.
        grid: Whose coordinates count.
        first: The first plane.
        part: float32 [C, planes, j, i], written to.
        pool: For planes beside each other.

    Returns:
        False where so much isn't certain that PyTorch should compute all of it.
    """
    open_ones = planes.part(first, first + part.shape[1], part.numpy(), pool)
    if max(len(one) for one in open_ones) > MOST_OPEN * part[0].numel():
        return False
    size = part[0, 0].numel()
    for channel, places in enumerate(open_ones):
        if not len(places):
            continue
        k, within = np.divmod(places, size)
        j, i = np.divmod(within, part.shape[3])
        around = [n.around(p) for n, p in zip(planes.neighbours, (i, j, k + first), strict=True)]
        rows.scatter(channel, around[::-1])
        flat = torch.from_numpy(places + first * size)
        values = grid.interpolate(rows.image[channel : channel + 1], grid.points(flat))
        part[channel].view(-1)[torch.from_numpy(places)] = values[0]
    rows.let_go()
    return True


def _rows_read(grid: Grid, first: int, last: int) -> tuple[int, int]:
    """Rows of the source's outermost axis that some planes of the result are made of."""
    axis = grid.maps[-1].axis
    size = grid.source[axis]
    if grid.axes is None or grid.sample.padding_mode == "reflection":
        return 0, size
    cells = grid.axes[-1].part(first, last)
    # One more on either side: which one is nearest, or lower, rounding may decide.
    low = min(int(cells.low.min()), int(cells.high.min())) - 1
    high = max(int(cells.low.max()), int(cells.high.max())) + 2
    return max(low, 0), min(high, size)


class _Points:
    """PyTorch's normalized coordinates of whole planes, outermost axis last."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.plane_shape = tuple(len(m.index) for m in reversed(grid.maps[:-1]))
        self.plane = int(np.prod(self.plane_shape))
        self._rows = grid.coordinate_rows
        self._kept: torch.Tensor | None = None

    def part(self, first: int, last: int) -> torch.Tensor:
        """[M, 3] of the planes `first:last`; valid until the next call."""
        if self._rows is None:
            return self._grid.box(first, last)
        n = len(self._rows)
        if self._kept is None:
            self._kept = self._rows[0].new_empty(last - first, *self.plane_shape, n)
            for final in range(n - 1):
                self._write(self._kept, final, self._rows[final])
        kept = self._kept[: last - first]
        self._write(kept, n - 1, self._rows[n - 1][first:last])
        return kept.view(-1, n)

    def _write(self, kept: torch.Tensor, final: int, row: torch.Tensor) -> None:
        n = kept.shape[-1]
        place = [-1 if d == n - 1 - final else 1 for d in range(n)]
        kept[..., n - 1 - self._grid.maps[final].axis] = row.view(place)


def _compare(plain: Any, done: dict[Any, Any]) -> None:
    for key, expected in plain.items():
        if not isinstance(expected, torch.Tensor):
            continue
        wrong = differing(expected, done.get(key))
        if wrong:
            msg = (
                f"preprocessing in slabs: {wrong} voxels differ from MONAI's own transforms; "
                "please report this bundle"
            )
            raise ParityError(msg)
