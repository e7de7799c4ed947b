"""A stack that is no regular volume is put onto a grid that is one; masks find the way back.

In: a `Stack` (tilted, unevenly spaced, with gaps or stray slices). Out: a `Grid` parallel to
the source frames, with their pixel spacing, rectangular, evenly spaced along the normal; the
voxels on it; and, for a mask on the grid, the labels on each source frame. Pure.

The method, declared in the job's story: at each grid plane the two neighbouring source
frames are shifted within their plane to where they lie in the patient (bilinear; exact where
the shift is whole pixels) and mixed linearly by distance. A plane that coincides with a
source frame is that frame. Voxels outside the source frames, and those for which padding
weighs more than pixels, are padding. Back: the nearest voxel of the grid.

Source: PS3.3 C.7.6.2.1.1 (position and orientation of a frame).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dicom_gateway.assemble.geometry import STRAIGHT_TOLERANCE_MM, Stack, drift_mm, regular
from dicom_gateway.assemble.policy import Allowance
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.records import Resampling, Volume

NEAR_FRACTION = 0.1
"""Where a source frame lies further from a grid plane than this fraction of the usual gap,
the grid gets two planes for each gap, so that no frame is further than a quarter."""

SNAP_FRACTION = 0.01
"""A plane this close to a source frame, as a fraction of the grid's spacing, is that frame."""

WHOLE_PIXEL = 1e-3
"""A shift within this of whole pixels is one."""

MAX_GROWTH = 8.0
"""How many times more voxels than the source a grid may have."""

Plane: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Grid:
    """A regular grid parallel to the source frames.

    Attributes:
        shape_kji: (K, J, I).
        affine_lps: float64 [4, 4]: (i, j, k, 1) -> LPS millimetres; column 2 is along the
            normal.
        resampling: How to get onto it and back.
    """

    shape_kji: tuple[int, int, int]
    affine_lps: NDArray[np.float64]
    resampling: Resampling


@dataclass(frozen=True, slots=True)
class _Shifted:
    """One source frame where it lies in the grid, as weights: sum and weight, [J, I]."""

    sums: Plane
    weights: Plane


def plan_grid(stack: Stack, allowed: Allowance, why: UnusableSeries) -> Grid:
    """The grid for an irregular stack.

    Args:
        stack: What is to be resampled.
        allowed: Its limits.
        why: What is irregular about it; becomes a part of the method's words.

    Raises:
        UnusableSeries: with the code of `why`, when a gap, the tilt or the grid is larger
            than allowed.
    """
    gaps = np.diff(stack.along)
    widest = float(gaps.max())
    if widest > allowed.max_gap_mm:
        at = float(stack.along[int(gaps.argmax())])
        msg = (
            f"there is a gap of {widest:.3g} mm between slices (after {at:.1f} mm), more than "
            f"assembly.max-gap-mm in gateway.yaml allows to fill ({allowed.max_gap_mm:g} mm); "
            "send the whole series again"
        )
        raise UnusableSeries(msg, code=why.code)
    drift, angle = drift_mm(stack)
    if angle > allowed.max_tilt_degrees:
        msg = (
            f"the slices lean by {angle:.1f} degrees, more than assembly.max-tilt-degrees in "
            f"gateway.yaml allows to straighten ({allowed.max_tilt_degrees:g}); send a "
            "reconstruction without tilt"
        )
        raise UnusableSeries(msg, code=why.code)

    source = regular(stack)
    column, row = source.affine_lps[:3, 0], source.affine_lps[:3, 1]  # per step in i, in j
    beside = stack.positions - stack.positions[0]
    shift_i = beside @ column / (column @ column)
    shift_j = beside @ row / (row @ row)
    sideways = beside - np.outer(beside @ stack.normal, stack.normal)
    if float(np.linalg.norm(sideways, axis=1).max()) <= STRAIGHT_TOLERANCE_MM:
        shift_i, shift_j = np.zeros(len(stack)), np.zeros(len(stack))
    low_i, low_j = float(shift_i.min()), float(shift_j.min())
    header = stack.frames[0].header
    rows, columns = header.rows or 0, header.columns or 0
    wide = columns + _steps(float(np.ptp(shift_i)))
    high = rows + _steps(float(np.ptp(shift_j)))

    height = float(stack.along[-1] - stack.along[0])
    spacing, planes = _spacing(stack.along, height)
    if planes * high * wide > MAX_GROWTH * len(stack) * rows * columns:
        msg = (
            f"on a regular grid the series would have {planes} slices of {high} x {wide} instead "
            f"of {len(stack)} of {rows} x {columns}; send an evenly spaced reconstruction "
            "without tilt"
        )
        raise UnusableSeries(msg, code=why.code)
    affine = source.affine_lps.copy()
    affine[:3, 2] = spacing * stack.normal
    affine[:3, 3] = stack.positions[0] + low_i * column + low_j * row
    offsets = np.stack(
        [(stack.along - stack.along[0]) / spacing, shift_j - low_j, shift_i - low_i], axis=1
    )
    sheared = f", shear of {angle:.1f} degrees ({drift:.1f} mm) undone" if shift_j.any() else ""
    method = (
        f"resampled ({why.code}): {len(stack)} slices, {gaps.min():.3g} to {widest:.3g} mm apart, "
        f"onto {planes} planes {spacing:.4g} mm apart of {high} x {wide}{sheared}; linear along "
        "the slice normal, padding outside, masks back by nearest neighbour"
    )
    return Grid(
        shape_kji=(planes, high, wide),
        affine_lps=affine,
        resampling=Resampling(
            method=method,
            source_shape_kji=(len(stack), rows, columns),
            source_affine_lps=source.affine_lps,
            offsets_kji=offsets,
        ),
    )


def resample(
    grid: Grid,
    frame: Callable[[int], tuple[Plane, NDArray[np.bool_] | None]],
    out: NDArray[np.int16] | NDArray[np.float32],
    padding: float,
) -> None:
    """Fills the grid.

    Args:
        grid: From `plan_grid`.
        frame: Gives source frame s as float32 [J, I], and where it has padding (or None).
        out: [K, J, I] of `grid.shape_kji`; int16 is rounded and clipped.
        padding: For where there is no pixel.
    """
    offsets = grid.resampling.offsets_kji
    heights = offsets[:, 0]
    shifted: dict[int, _Shifted] = {}

    def at(s: int) -> _Shifted:
        if s not in shifted:
            for old in [n for n in shifted if n < s - 1]:
                del shifted[old]
            shifted[s] = _shift(*frame(s), offsets[s, 1:], grid.shape_kji[1:])
        return shifted[s]

    for k in range(grid.shape_kji[0]):
        above = int(np.searchsorted(heights, k))
        nearest = int(np.abs(heights - k).argmin())
        if abs(heights[nearest] - k) <= SNAP_FRACTION or above in (0, len(heights)):
            one = at(nearest)
            sums, weights = one.sums, one.weights
        else:
            below = above - 1
            share = np.float32((k - heights[below]) / (heights[above] - heights[below]))
            low, high = at(below), at(above)
            sums = (1 - share) * low.sums + share * high.sums
            weights = (1 - share) * low.weights + share * high.weights
        inside = weights >= 0.5
        values = np.full(sums.shape, padding, dtype=np.float32)
        np.divide(sums, weights, out=values, where=inside)
        if out.dtype == np.int16:
            values = np.clip(np.rint(values), -32768, 32767)
        out[k] = values


def land(labels: Labels, volume: Volume) -> tuple[Labels, Volume]:
    """A mask on a volume's grid becomes one on its source frames.

    Args:
        labels: [K, J, I] on the grid of `volume`.
        volume: What the mask was made from.

    Returns:
        Labels [S, J, I] on the source frames, each voxel from the nearest one of the grid,
        and the volume as the results must see it: its slices are the source frames. Both as
        they came where nothing was resampled.
    """
    if volume.resampling is None:
        return labels, volume
    count, rows, columns = volume.resampling.source_shape_kji
    landed: NDArray[Any] = np.zeros((count, rows, columns), dtype=labels.dtype)
    whole = np.rint(volume.resampling.offsets_kji).astype(int)
    for s, (k, j, i) in enumerate(whole):
        plane = labels[min(max(k, 0), labels.shape[0] - 1)]
        found = plane[j : j + rows, i : i + columns]
        landed[s, : found.shape[0], : found.shape[1]] = found
    return landed, landed_volume(volume)


def landed_volume(volume: Volume) -> Volume:
    """The volume as its results must see it: on its source frames.

    It needs no mask: scores refer to the source frames too. As it came where nothing was
    resampled.
    """
    if volume.resampling is None:
        return volume
    return replace(
        volume,
        shape_kji=volume.resampling.source_shape_kji,
        affine_lps=volume.resampling.source_affine_lps,
        resampling=None,
        notes=(*volume.notes, "its results were brought back to the source frames"),
    )


def _steps(pixels: float) -> int:
    return max(0, math.ceil(pixels - WHOLE_PIXEL))


def _spacing(along: NDArray[np.float64], height: float) -> tuple[float, int]:
    """Distance of the planes and their number; first and last lie on the outermost frames."""
    usual = statistics.median_low(np.diff(along).tolist())
    for per_gap in (1, 2):
        steps = max(1, round(height / usual * per_gap))
        spacing = height / steps
        at = (along - along[0]) / spacing
        if float(np.abs(at - np.rint(at)).max()) * spacing <= NEAR_FRACTION * usual:
            break
    return spacing, steps + 1


def _shift(
    pixels: Plane,
    padding: NDArray[np.bool_] | None,
    offset_ji: NDArray[np.float64],
    shape_ji: tuple[int, int],
) -> _Shifted:
    """Puts a frame to its place in the plane of the grid, in parts of pixels."""
    rows, columns = pixels.shape
    weights = np.ones(pixels.shape, dtype=np.float32)
    if padding is not None:
        weights[padding] = 0
        pixels = np.where(padding, np.float32(0), pixels)
    sums_out = np.zeros(shape_ji, dtype=np.float32)
    weights_out = np.zeros(shape_ji, dtype=np.float32)
    for row, share_j in _taps(float(offset_ji[0])):
        for column, share_i in _taps(float(offset_ji[1])):
            share = np.float32(share_j * share_i)
            high, wide = min(rows, shape_ji[0] - row), min(columns, shape_ji[1] - column)
            place = (slice(row, row + high), slice(column, column + wide))
            sums_out[place] += share * pixels[:high, :wide]
            weights_out[place] += share * weights[:high, :wide]
    return _Shifted(sums_out, weights_out)


def _taps(offset: float) -> list[tuple[int, float]]:
    """Whole-pixel shifts and their shares that together shift by `offset`."""
    nearest = round(offset)
    if abs(offset - nearest) <= WHOLE_PIXEL:
        return [(nearest, 1.0)]
    whole = math.floor(offset)
    return [(whole, whole + 1 - offset), (whole + 1, offset - whole)]
