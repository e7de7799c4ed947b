"""A planned volume is decoded into the arena and becomes a `Volume`.

Stage: third of a job's. In: a `VolumePlan`. Out: a `Volume` whose voxels lie in shared memory
as Triton wants them: stored values, int16 or float32 [K, J, I]. What survives a crash:
nothing; the job is claimed again and assembles again.

All or nothing: whatever goes wrong, the span goes back and no half-written volume is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_gateway.assemble.ahead import Ahead
from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.assemble.plan import NOTHING_ALLOWED, VolumePlan, plan_volumes
from dicom_gateway.assemble.policy import Allowance
from dicom_gateway.assemble.resample import resample
from dicom_gateway.errors import UnusableSeries, VolumeTooLarge
from dicom_gateway.records import ArenaSpan, Series, Slice, Volume


def assemble_volume(
    series: Series,
    arena: Arena,
    decoders: DecoderPool,
    read: Callable[[Path], Header] = read_header,
    check_room: Callable[[int], None] = lambda _voxels: None,
    *,
    allowed: Allowance = NOTHING_ALLOWED,
) -> Volume:
    """Plans and assembles a series that is one volume.

    The caller owns `volume.image` and gives it back with `arena.free`.

    Args:
        series: Complete, as far as `completeness` can tell.
        arena: Where the voxels go.
        decoders: Who puts them there.
        read: Gives a header by path; a caller that has read them already passes its cache.
        check_room: Asked with the number of voxels before anything is decoded; raises where
            the volume and what comes back would not fit.
        allowed: What may be done to a series that is no regular volume.

    Raises:
        UnusableSeries: no volume, or several; the code says in what way.
        BrokenPixelData, ArenaFull, VolumeTooLarge: as `assemble` does.
    """
    plans = plan_volumes(series, allowed, read)
    if len(plans) > 1:
        names = ", ".join(plan.name for plan in plans[:6])
        msg = f"the series holds {len(plans)} volumes ({names}); take them one by one"
        raise UnusableSeries(msg, code="duplicate_positions")
    return assemble(plans[0], series, arena, decoders, check_room)


def assemble(
    plan: VolumePlan,
    series: Series,
    arena: Arena,
    decoders: DecoderPool,
    check_room: Callable[[int], None] = lambda _voxels: None,
    *,
    ahead: Ahead | None = None,
) -> Volume:
    """Decodes a planned volume into the arena, by way of its grid where it has one.

    The caller owns `volume.image` and gives it back with `arena.free`. What `ahead` has decoded
    already is copied.

    Returns:
        The volume: image INT16 or FP32 [K, J, I]; rescale float64 [K, 2], with the shift of
        unsigned 16-bit data and an inversion folded in; affine float64 [4, 4].

    Raises:
        BrokenPixelData: an instance that can't be decoded, or claims what isn't there.
        UnusableSeries: (no_pixel_data) one without pixels.
        ArenaFull: no room just now.
        VolumeTooLarge: more than the arena has in all.
    """
    check_room(plan.voxels)
    rescale = _rescale(plan)
    if plan.grid is None:
        image, dtype = _decode(plan, arena, decoders, ahead), _dtype(plan)
    else:
        image, dtype, rescale = _decode_and_resample(plan, rescale, arena, decoders, ahead)
    return Volume(
        image=image,
        dtype="FP32" if dtype == np.float32 else "INT16",
        shape_kji=plan.shape_kji,
        rescale=rescale,
        affine_lps=plan.affine_lps,
        slices=tuple(
            Slice(
                frame.header.sop_class_uid,
                frame.sop_instance_uid,
                frame.number,
                _position(frame.position_lps_mm),
                frame.header.number_of_frames,
            )
            for frame in plan.frames
        ),
        headers=tuple(frame.header.path for frame in plan.frames),
        series=series,
        name=plan.name,
        resampling=None if plan.grid is None else plan.grid.resampling,
        notes=plan.notes,
    )


def source_pixels(
    plan: VolumePlan, frames: Sequence[int], arena: Arena, decoders: DecoderPool
) -> NDArray[np.float32]:
    """Decodes some source frames of a planned volume again, to be looked at.

    Args:
        plan: Of the volume.
        frames: Which of `plan.frames`.
        arena: Where they lie for a moment.
        decoders: Who puts them there.

    Returns:
        float32 [n, J, I], rescaled; what is to be shown dark is small.

    Raises:
        BrokenPixelData, UnusableSeries, ArenaFull, VolumeTooLarge: as `assemble` does.
    """
    rescale = _rescale(plan)
    part = replace(
        plan,
        frames=tuple(plan.frames[s] for s in frames),
        tasks=tuple(plan.tasks[s] for s in frames),
        grid=None,
    )
    span = _decode(part, arena, decoders, None)
    try:
        stored = arena.view(span, _dtype(part), part.shape_kji)
        slopes = rescale[list(frames)]
        shown = stored * slopes[:, 0, None, None] + slopes[:, 1, None, None]
        return np.asarray(shown, dtype=np.float32)
    finally:
        arena.free(span)


def _position(position_lps_mm: tuple[float, ...] | None) -> tuple[float, float, float]:
    x_mm, y_mm, z_mm = position_lps_mm or (0.0, 0.0, 0.0)  # a projection has none
    return x_mm, y_mm, z_mm


def _dtype(plan: VolumePlan) -> np.dtype[Any]:
    kinds = {task.dtype for task in plan.tasks}
    if len(kinds) > 1:
        msg = (
            "some images of the series have floating point pixels and some have integers; "
            "send each as its own series"
        )
        raise UnusableSeries(msg, code="unsupported_object")
    return kinds.pop()


def _rescale(plan: VolumePlan) -> NDArray[np.float64]:
    """[S, 2] of the source frames as they are decoded."""
    rescale = np.empty((len(plan.tasks), 2), dtype=np.float64)
    for s, (frame, task) in enumerate(zip(plan.frames, plan.tasks, strict=True)):
        assert frame.rescale is not None  # plan_pixels has refused it
        slope, intercept = frame.rescale
        if plan.invert and not task.floating:
            # x becomes lowest + highest - x (PS3.3 C.7.6.3.1.2).
            lowest = -(1 << (task.bits_stored - 1)) if task.signed else 0
            ends = 2 * lowest + (1 << task.bits_stored) - 1
            slope, intercept = -slope, intercept + slope * ends
        rescale[s] = slope, intercept + task.shift * slope
    return rescale


def _decode(
    plan: VolumePlan, arena: Arena, decoders: DecoderPool, ahead: Ahead | None
) -> ArenaSpan:
    _dtype(plan)
    frame_bytes = plan.tasks[0].size_bytes
    span = arena.allocate(len(plan.tasks) * frame_bytes)
    try:
        frames = [(span.offset_bytes + s * frame_bytes, task) for s, task in enumerate(plan.tasks)]
        if ahead is not None:
            frames = ahead.take(arena, frames)
        decoders.decode(arena.path, frames)
    except BaseException:
        arena.free(span)
        raise
    return span


def _decode_and_resample(
    plan: VolumePlan,
    rescale: NDArray[np.float64],
    arena: Arena,
    decoders: DecoderPool,
    ahead: Ahead | None,
) -> tuple[ArenaSpan, np.dtype[Any], NDArray[np.float64]]:
    """The resampled image, its dtype and its rescale [K, 2]; the source's room goes back."""
    assert plan.grid is not None
    dtype = _dtype(plan)
    source_bytes = len(plan.tasks) * plan.tasks[0].size_bytes
    grid_bytes = plan.voxels * dtype.itemsize
    if source_bytes + grid_bytes > arena.size_bytes:
        msg = (
            f"resampling this series needs {(source_bytes + grid_bytes) / 2**20:.1f} MiB of shared "
            f"memory for a moment, and the arena has {arena.size_bytes / 2**20:.1f} MiB in all; "
            "raise triton.arena-bytes in gateway.yaml, restart the gateway, then 'tritome jobs "
            "retry'"
        )
        raise VolumeTooLarge(msg)
    source = _decode(plan, arena, decoders, ahead)
    try:
        span = arena.allocate(grid_bytes)
        try:
            shape = plan.grid.resampling.source_shape_kji
            frames = arena.view(source, dtype, shape)
            out = arena.view(span, dtype, plan.shape_kji)
            mended = _fill(plan, frames, rescale, out)
        except BaseException:
            arena.free(span)
            raise
    finally:
        arena.free(source)
    return span, dtype, np.tile(mended, (plan.shape_kji[0], 1))


def _fill(
    plan: VolumePlan,
    frames: NDArray[Any],
    rescale: NDArray[np.float64],
    out: NDArray[Any],
) -> tuple[float, float]:
    """Resamples; gives the one rescale that all planes have afterwards."""
    assert plan.grid is not None
    paddings = [_padding(plan, s) for s in range(len(frames))]
    slope, intercept = (float(number) for number in rescale[0])
    if not (rescale == rescale[0]).all():
        # Values of different scale can't be mixed: all go onto one that holds them all.
        slope, intercept = _common_scale(frames, rescale, paddings, floating=out.dtype != np.int16)

    def frame(s: int) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        padding = paddings[s]
        empty = None
        if padding is not None:
            empty = (frames[s] >= padding[0]) & (frames[s] <= padding[1])
        if tuple(rescale[s]) == (slope, intercept):
            return frames[s].astype(np.float32), empty
        values = frames[s] * rescale[s, 0] + rescale[s, 1]
        return ((values - intercept) / slope).astype(np.float32), empty

    first = paddings[0]
    lowest = float(min(plane.min() for plane in frames)) if first is None else float(first[0])
    same = tuple(rescale[0]) == (slope, intercept)
    outside = lowest if same else (lowest * rescale[0, 0] + rescale[0, 1] - intercept) / slope
    resample(plan.grid, frame, out, outside)
    return slope, intercept


def _padding(plan: VolumePlan, s: int) -> tuple[int, int] | None:
    """Of source frame s, as its values lie in the arena."""
    padding, shift = plan.frames[s].header.padding, plan.tasks[s].shift
    return None if padding is None else (padding[0] - shift, padding[1] - shift)


def _common_scale(
    frames: NDArray[Any],
    rescale: NDArray[np.float64],
    paddings: list[tuple[int, int] | None],
    *,
    floating: bool,
) -> tuple[float, float]:
    if floating:
        return 1.0, 0.0
    low, high = np.inf, -np.inf
    for plane, (slope, intercept), padding in zip(frames, rescale, paddings, strict=True):
        # Padding doesn't count, wherever it lies: it would take the range for nothing.
        inside = plane if padding is None else plane[(plane < padding[0]) | (plane > padding[1])]
        if inside.size:
            ends = [float(inside.min()) * slope, float(inside.max()) * slope]
            low = min(low, min(ends) + intercept)
            high = max(high, max(ends) + intercept)
    if not high > low:
        return 1.0, float(low) if np.isfinite(low) else 0.0
    return float(high - low) / 65534, float(high + low) / 2
