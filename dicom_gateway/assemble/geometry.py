"""From the frames of a series to the order of its slices and its affine, or a refusal.

In: `Frame`s in any order. Out: a `Stack`, sorted along the slice axis; what is irregular
about it, by name; or, where nothing is, a `Geometry` with the affine (i, j, k, 1) -> LPS
millimetres. Pure; nothing survives a crash and nothing needs to.

Source: PS3.3 C.7.6.2.1.1 (position and orientation), 10.7.1.3 (pixel spacing).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dicom_gateway.assemble.frames import Frame, frames_of
from dicom_gateway.assemble.headers import Header
from dicom_gateway.assemble.stack import (
    SAME_POSITION_MM,
    Stack,
    is_orientation,
    is_position,
    normal_of,
    stack_frames,
)
from dicom_gateway.errors import UnusableSeries

__all__ = [
    "SAME_POSITION_MM",
    "Gap",
    "Geometry",
    "Stack",
    "arrange",
    "drift_mm",
    "evenness",
    "find_gaps",
    "irregularity",
    "is_orientation",
    "is_position",
    "normal_of",
    "regular",
    "stack_frames",
]

UNIFORM_FRACTION = 0.01
"""Gaps are uniform when none differs from their median by more than this fraction of it."""

ROUNDING_MM = 0.0105
"""... or by what two decimals in the positions can do to a gap: 0.625 mm slices are written
as 0.62 and 0.63 by some."""

MISSING_FRACTION = 0.1
"""A gap is a missing slice when it is, within this fraction, 2, 3, ... times the usual one."""

TILT_TOLERANCE_DEG = 0.1
"""A stack that leans by more is tilted. Rounded positions give up to 0.01 degrees."""

TILT_TOLERANCE_MM = 0.05
"""... if it also drifts sideways by more than this: thin short stacks round worse."""

STRAIGHT_TOLERANCE_MM = 0.1
"""How far a slice may lie beside the straight line from first to last."""


UNEVEN_FRACTION = 0.25
"""How far a slice may lie from where even spacing puts it, as a fraction of the spacing:
gaps that each differ by little can add up to whole slices."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A hole in the stack: the slice positions on both its sides, along the normal."""

    from_mm: float
    to_mm: float
    missing: int
    """How many slices of the usual spacing would fill it; 0 when no whole number does."""

    def __str__(self) -> str:
        return f"between {self.from_mm:g} and {self.to_mm:g} mm"


@dataclass(frozen=True, slots=True)
class Geometry:
    """A regular stack.

    Attributes:
        frames: In the order of k.
        affine_lps: float64 [4, 4]: (i, j, k, 1) -> LPS millimetres.
        spacing_mm: Between slices (mean).
    """

    frames: tuple[Frame, ...]
    affine_lps: NDArray[np.float64]
    spacing_mm: float

    @property
    def headers(self) -> tuple[Header, ...]:
        """Of the instance that each frame is in, in the order of k."""
        return tuple(frame.header for frame in self.frames)


def arrange(headers: Sequence[Header]) -> Geometry:
    """The geometry of a series that is one regular volume.

    k rises along cross(row direction, column direction); column 2 of the affine is
    (last position - first position) / (K - 1).

    Raises:
        UnusableSeries: as `stack_frames` does, and gantry_tilt, missing_slices,
            irregular_spacing.
    """
    stack = stack_frames([frame for header in headers for frame in frames_of(header)])
    irregular = irregularity(stack)
    if irregular is not None:
        raise irregular
    return regular(stack)


def irregularity(stack: Stack) -> UnusableSeries | None:
    """What keeps a stack from being a regular volume; None where nothing does.

    The codes: gantry_tilt, missing_slices, irregular_spacing.
    """
    return _tilt(stack) or _gaps(stack.along) or _stray_slices(stack.positions)


def regular(stack: Stack) -> Geometry:
    """The geometry of a stack without irregularity; of another one it is only the mean."""
    return Geometry(
        frames=stack.frames,
        affine_lps=_affine(stack.frames[0], stack.positions),
        spacing_mm=float((stack.along[-1] - stack.along[0]) / (len(stack) - 1)),
    )


def find_gaps(along_mm: Sequence[float] | NDArray[np.float64]) -> tuple[Gap, ...]:
    """Holes in a sorted list of distinct slice positions.

    The usual spacing is the lower median, so that of two gaps the smaller one counts. A gap
    wider than one and a half of it is a hole.
    """
    gaps = [float(b - a) for a, b in pairwise(along_mm)]
    if len(gaps) < 2:
        return ()
    usual = statistics.median_low(gaps)
    holes = []
    for start, gap in zip(along_mm, gaps, strict=False):
        if gap > 1.5 * usual:
            times = gap / usual if usual else math.inf
            # A position that is damaged can make a gap that no number of slices fills.
            nearest = round(times) if math.isfinite(times) else 0
            whole = nearest > 0 and abs(times - nearest) <= MISSING_FRACTION
            start_mm = round(float(start), 3)
            end_mm = round(float(start) + gap, 3)
            holes.append(Gap(start_mm, end_mm, nearest - 1 if whole else 0))
    return tuple(holes)


def evenness(along_mm: Sequence[float] | NDArray[np.float64]) -> float:
    """The share of the gaps in a sorted list of slice positions that are the usual one."""
    gaps = np.diff(along_mm)
    usual = statistics.median_low(gaps.tolist())
    return float((np.abs(gaps - usual) <= _tolerance_mm(usual)).mean())


def drift_mm(stack: Stack) -> tuple[float, float]:
    """How far the stack leans: sideways over its whole height in millimetres, and in degrees."""
    run = stack.positions[-1] - stack.positions[0]
    height = float(stack.along[-1] - stack.along[0])
    drift = float(np.linalg.norm(run - height * stack.normal))
    return drift, float(np.degrees(np.arctan2(drift, height)))


def _tilt(stack: Stack) -> UnusableSeries | None:
    drift, angle = drift_mm(stack)
    if angle <= TILT_TOLERANCE_DEG or drift <= TILT_TOLERANCE_MM:
        return None
    msg = (
        f"the slices are sheared by {angle:.1f} degrees against their normal (gantry tilt; "
        f"{drift:.1f} mm over the stack), {_NOT_RESAMPLED}; send a reconstruction without tilt"
    )
    return UnusableSeries(msg, code="gantry_tilt")


def _gaps(along: NDArray[np.float64]) -> UnusableSeries | None:
    gaps = np.diff(along)
    if np.abs(gaps - np.median(gaps)).max() <= _tolerance_mm(float(np.median(gaps))):
        return _unevenness(along)
    holes = find_gaps(along)
    usual = statistics.median_low(gaps.tolist())
    others = gaps[gaps <= 1.5 * usual]
    even = np.abs(others - usual).max() <= MISSING_FRACTION * usual
    if holes and even and all(hole.missing for hole in holes):
        count = sum(hole.missing for hole in holes)
        shown = ", ".join(str(hole) for hole in holes[:5])
        more = f" and {len(holes) - 5} more places" if len(holes) > 5 else ""
        msg = (
            f"{count} slice(s) missing {shown}{more}: {len(along)} of {len(along) + count} are "
            f"there, {usual:.3g} mm apart; send the whole series again"
        )
        return UnusableSeries(msg, code="missing_slices")
    msg = (
        f"the distances between slices vary from {gaps.min():.3g} to {gaps.max():.3g} mm "
        f"(mostly {usual:.3g} mm), {_NOT_RESAMPLED}; send an evenly spaced reconstruction"
    )
    return UnusableSeries(msg, code="irregular_spacing")


def _tolerance_mm(gap_mm: float) -> float:
    """By how much gaps of one size may differ."""
    return max(UNIFORM_FRACTION * gap_mm, ROUNDING_MM)


def _unevenness(along: NDArray[np.float64]) -> UnusableSeries | None:
    spacing = (along[-1] - along[0]) / (len(along) - 1)
    beside = np.abs(along - np.linspace(along[0], along[-1], len(along)))
    worst = float(beside.max())
    if worst <= UNEVEN_FRACTION * spacing:
        return None
    msg = (
        f"the distances between slices change little by little, so that slices lie up to "
        f"{worst:.3g} mm ({worst / spacing:.0%} of the spacing) from where even spacing "
        f"would put them, {_NOT_RESAMPLED}; send an evenly spaced reconstruction"
    )
    return UnusableSeries(msg, code="irregular_spacing")


def _stray_slices(positions: NDArray[np.float64]) -> UnusableSeries | None:
    run = positions[-1] - positions[0]
    direction = run / np.linalg.norm(run)
    beside = positions - positions[0]
    beside = beside - np.outer(beside @ direction, direction)
    worst = float(np.linalg.norm(beside, axis=1).max())
    if worst <= STRAIGHT_TOLERANCE_MM:
        return None
    msg = (
        f"the slices don't lie on a straight line (up to {worst:.1f} mm beside it), "
        f"{_NOT_RESAMPLED}; send a reconstruction with one common centre"
    )
    return UnusableSeries(msg, code="irregular_spacing")


def _affine(first: Frame, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    assert first.orientation is not None
    assert first.pixel_spacing_mm is not None
    between_rows, between_columns = first.pixel_spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * between_columns
    affine[:3, 1] = np.array(first.orientation[3:]) * between_rows
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 3] = positions[0]
    return affine


_NOT_RESAMPLED = (
    "and this pipeline isn't allowed to take it resampled (by its contract, or assembly.irregular "
    "in gateway.yaml)"
)
