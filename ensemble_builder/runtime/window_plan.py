"""Where a sliding window will look: MONAI's own windows, batches and buffers, worked out first.

In: a bundle's `SlidingWindowInferer` or `SliceInferer` and its input. Out: a `WindowPlan`, or
None where MONAI must do it itself. The steps follow monai.inferers.sliding_window_inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices, get_valid_patch_size
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.inferers.utils import _get_scan_interval
from monai.utils import PytorchPadMode, ensure_tuple_rep, fall_back_tuple, look_up_option


def is_windowed(inferer: Any) -> bool:
    """True for an inferer whose windows are stitched here."""
    return type(inferer) in (SlidingWindowInferer, SliceInferer) and not (
        inferer.with_coord
        or "__call__" in vars(inferer)
        or (inferer.buffer_steps and torch.cuda.is_available())
    )


@dataclass(frozen=True)
class WindowPlan:
    """Where MONAI would look, in its order.

    Attributes:
        inputs: [1, C, *image], padded where windows are larger than the image.
        windows: Start of each window, in the order in which they are computed.
        batches: `start:stop` in `windows` of each call of the network.
        buffers: Where each of MONAI's buffers ends in `windows`; empty where it has none.
        axis: The spatial axis along which windows move.
        keep: For each spatial axis the part of the image without the padding.
        slice_axis: The axis that a SliceInferer takes slices along; None for other inferers.
    """

    inputs: torch.Tensor
    original: torch.Tensor
    roi: tuple[int, ...]
    weights: torch.Tensor
    windows: tuple[tuple[int, ...], ...]
    batches: tuple[tuple[int, int], ...]
    buffers: tuple[int, ...]
    axis: int
    keep: tuple[slice, ...]
    device: torch.device
    window_device: torch.device
    slice_axis: int | None

    @property
    def image(self) -> tuple[int, ...]:
        """Spatial size, padding included."""
        return tuple(self.inputs.shape[2:])

    def place(self, window: tuple[int, ...], offset: int = 0) -> tuple[slice, ...]:
        """Where a window lies, counted from `offset` on the axis along which windows move."""
        starts = [s - offset if a == self.axis else s for a, s in enumerate(window)]
        return tuple(slice(s, s + n) for s, n in zip(starts, self.roi, strict=True))


def plan_windows(inferer: Any, x: torch.Tensor) -> WindowPlan | None:
    """What MONAI's sliding_window_inference prepares; None leaves it all to MONAI."""
    if not is_windowed(inferer) or not isinstance(x, torch.Tensor) or len(x) != 1:
        return None
    spatial = tuple(x.shape[2:])
    asked = inferer.roi_size
    slice_axis: int | None = None
    if type(inferer) is SliceInferer:
        if inferer.spatial_dim not in (0, 1, 2) or len(inferer.orig_roi_size) != 2:
            return None
        slice_axis = int(inferer.spatial_dim)
        asked = list(inferer.orig_roi_size)
        asked.insert(slice_axis, 1)
        if len(spatial) != 3:
            return None
    if isinstance(asked, Sequence) and len(asked) != len(spatial):
        return None  # MONAI explains what is wrong
    overlap = ensure_tuple_rep(inferer.overlap, len(spatial))
    if any(o < 0 or o >= 1 for o in overlap):
        return None
    device = inferer.device
    if device is None and inferer.cpu_thresh is not None:
        device = "cpu" if x.shape[2:].numel() > inferer.cpu_thresh else None
    plain = x.as_subclass(torch.Tensor)
    roi = fall_back_tuple(asked, spatial)
    inputs, keep = _padded(plain, roi, inferer)
    image = tuple(inputs.shape[2:])
    interval = _get_scan_interval(image, roi, len(spatial), overlap)
    starts = [tuple(s.start for s in w) for w in dense_patch_slices(image, roi, interval)]
    window_device = torch.device(inferer.sw_device or x.device)
    windows, batches, buffers, axis = _order(starts, inferer, len(spatial))
    return WindowPlan(
        inputs=inputs,
        original=x,
        roi=tuple(int(n) for n in roi),
        weights=_weights(inferer, image, roi, window_device, x.dtype),
        windows=tuple(windows),
        batches=tuple(batches),
        buffers=tuple(buffers),
        axis=axis,
        keep=keep,
        device=torch.device(device or x.device),
        window_device=window_device,
        slice_axis=slice_axis,
    )


def _padded(
    x: torch.Tensor, roi: tuple[int, ...], inferer: Any
) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """The image, padded to the window's size as MONAI pads it, and where it lies then."""
    pads: list[int] = []
    keep: list[slice] = []
    for size, window in zip(reversed(x.shape[2:]), reversed(roi), strict=True):
        missing = max(window - size, 0)
        pads += [missing // 2, missing - missing // 2]
        keep.insert(0, slice(missing // 2, missing // 2 + size))
    if any(pads):
        mode = look_up_option(inferer.padding_mode, PytorchPadMode)
        x = torch.nn.functional.pad(x, pads, mode=mode, value=inferer.cval)
    return x, tuple(keep)


def _weights(
    inferer: Any,
    image: tuple[int, ...],
    roi: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """What each voxel of a window counts: [1, 1, *roi]."""
    valid = get_valid_patch_size(image, roi)
    if valid == roi and inferer.roi_weight_map is not None:
        weights = inferer.roi_weight_map
    else:
        weights = compute_importance_map(
            valid, mode=inferer.mode, sigma_scale=inferer.sigma_scale, device=device, dtype=dtype
        )
    if weights.ndim == len(image):
        weights = weights[None, None]
    return cast(torch.Tensor, weights.to(dtype=dtype, device=device))


def _order(
    starts: list[tuple[int, ...]], inferer: Any, axes: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, int]], list[int], int]:
    """Windows, batches, ends of buffers and the axis, as MONAI takes them."""
    step = int(inferer.sw_batch_size)
    if not inferer.buffer_steps or inferer.buffer_steps <= 0:
        total = len(starts)
        return starts, [(n, min(n + step, total)) for n in range(0, total, step)], [], 0
    axis = inferer.buffer_dim % axes
    starts = sorted(starts, key=lambda start: start[axis])  # stable, as MONAI's mergesort
    ends = [n + 1 for n, s in enumerate(starts) if s[axis] != (*starts, s)[n + 1][axis]]
    ends = [*ends, len(starts)] if not ends or ends[-1] != len(starts) else ends
    flushes = [0, *ends][:: min(len(ends), int(inferer.buffer_steps))]
    if flushes[-1] < ends[-1]:
        flushes.append(ends[-1])
    batches = [
        (n, min(n + step, stop))
        for start, stop in pairwise(flushes)
        for n in range(start, stop, step)
    ]
    return starts, batches, flushes[1:], axis
