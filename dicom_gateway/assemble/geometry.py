"""From the headers of a series to the order of its slices and its affine, or a refusal.

In: `Header`s in any order. Out: a `Geometry`: headers sorted along the slice axis and the
affine (i, j, k, 1) -> LPS millimetres. Pure; nothing survives a crash and nothing needs to.

Only Image Position and Image Orientation (Patient) count. Slice Location, Instance Number,
Spacing Between Slices and the gantry tilt tag are often missing, and sometimes wrong.

Source: PS3.3 C.7.6.2.1.1 (position and orientation), 10.7.1.3 (pixel spacing).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dicom_gateway.assemble.headers import Header
from dicom_gateway.errors import UnusableSeries

ORIENTATION_TOLERANCE = 1e-3
"""Direction cosines that differ by more are two orientations (0.06 degrees); scanners round
them to 4-6 digits, differently from slice to slice."""

UNIT_TOLERANCE = 1e-2
"""How far the two directions may be from unit length and a right angle."""

SAME_POSITION_MM = 1e-2
"""Two instances closer than this along the slice axis lie at one position. The thinnest CT
slices are 0.1 mm apart, positions are written to 0.001 mm."""

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

SPACING_TOLERANCE_MM = 1e-3
"""Pixel spacings that differ by more are two grids."""

UNEVEN_FRACTION = 0.25
"""How far a slice may lie from where even spacing puts it, as a fraction of the spacing:
gaps that each differ by little can add up to whole slices."""

LARGEST_MM = 1e6
"""A position or a spacing beyond a kilometre is a damaged value, and may be one that no
arithmetic survives."""


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
        headers: In the order of k.
        affine_lps: float64 [4, 4]: (i, j, k, 1) -> LPS millimetres.
        spacing_mm: Between slices (mean).
    """

    headers: tuple[Header, ...]
    affine_lps: NDArray[np.float64]
    spacing_mm: float


def arrange(headers: Sequence[Header]) -> Geometry:
    """Sorts the slices along their normal and computes the affine.

    k rises along cross(row direction, column direction); column 2 of the affine is
    (last position - first position) / (K - 1).

    Raises:
        UnusableSeries: no_pixel_data, unsupported_object, no_geometry, several_orientations,
            mixed_geometry, too_few_slices, duplicate_positions, gantry_tilt,
            missing_slices, irregular_spacing.
    """
    _refuse_other_objects(headers)
    positions, normal = _positions(headers)
    _refuse_mixed_grids(headers)
    if len(headers) < 2:
        msg = (
            "the series has 1 slice and a volume needs at least 2; "
            "choose a series of cross-sections, or send the rest of it"
        )
        raise UnusableSeries(msg, code="too_few_slices")
    along = positions @ normal
    order = sorted(range(len(headers)), key=lambda n: (along[n], headers[n].instance_number))
    along, positions = along[order], positions[order]
    _refuse_duplicates(along)
    _refuse_tilt(positions, normal, along)
    _refuse_gaps(along)
    _refuse_stray_slices(positions)
    first = headers[order[0]]
    return Geometry(
        headers=tuple(headers[n] for n in order),
        affine_lps=_affine(first, positions),
        spacing_mm=float((along[-1] - along[0]) / (len(along) - 1)),
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


def normal_of(orientation: Sequence[float]) -> NDArray[np.float64]:
    """Unit normal of a plane: cross(row direction, column direction), LPS."""
    normal = np.cross(np.array(orientation[:3]), np.array(orientation[3:]))
    return np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)


def is_position(position_lps_mm: Sequence[float] | None) -> bool:
    """Whether this can be a place in a patient, in millimetres."""
    return position_lps_mm is not None and all(abs(mm) <= LARGEST_MM for mm in position_lps_mm)


def is_orientation(orientation: Sequence[float] | None) -> bool:
    """Whether these are two unit vectors at a right angle, as near as headers write them."""
    if orientation is None or not all(abs(cosine) <= 2.0 for cosine in orientation):
        return False
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    defects = (np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, row @ column)
    return bool(max(abs(defect) for defect in defects) <= UNIT_TOLERANCE)


def _refuse_other_objects(headers: Sequence[Header]) -> None:
    for header in headers:
        if header.rows is None or header.columns is None or not header.rows * header.columns:
            msg = (
                "the series has objects without an image (no Rows and Columns); "
                "pipelines want series of cross-sections"
            )
            raise UnusableSeries(msg, code="no_pixel_data")
        if header.number_of_frames > 1 or header.sop_class_uid in _MULTI_FRAME:
            msg = (
                f"the series has a multi-frame object ({header.number_of_frames} frames), which "
                "this version doesn't take; send it as single-frame instances "
                "(many PACS convert enhanced objects on request)"
            )
            raise UnusableSeries(msg, code="unsupported_object")
        if "MOSAIC" in header.image_type:
            msg = (
                "the series has mosaics (many slices tiled into one image), which this version "
                "doesn't take; have the scanner or the PACS send single slices"
            )
            raise UnusableSeries(msg, code="unsupported_object")


def _positions(headers: Sequence[Header]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions [K, 3] and the common normal [3]."""
    placed = [header for header in headers if _is_placed(header)]
    if len(placed) < len(headers):
        msg = (
            f"{len(headers) - len(placed)} of {len(headers)} instances have no usable Image "
            "Position (Patient), Image Orientation (Patient) or Pixel Spacing, so their place in "
            "the patient is unknown; send the original cross-sections"
        )
        raise UnusableSeries(msg, code="no_geometry")
    orientations = _orientations(headers)
    if len(orientations) > 1:
        counts = " and ".join(str(count) for _, count in orientations)
        msg = (
            f"the series has {len(orientations)} orientations ({counts} instances), as a "
            "localizer has; send one orientation as one series"
        )
        raise UnusableSeries(msg, code="several_orientations")
    frames = {header.frame_of_reference_uid for header in headers}
    if len(frames) > 1:
        msg = (
            f"the series has {len(frames)} frames of reference, so its slices can't be placed "
            "beside each other; send each as its own series"
        )
        raise UnusableSeries(msg, code="mixed_geometry")
    positions = np.array([header.position_lps_mm for header in headers], dtype=np.float64)
    return positions, normal_of(orientations[0][0])


def _is_placed(header: Header) -> bool:
    spacing = header.pixel_spacing_mm
    return (
        is_position(header.position_lps_mm)
        and is_orientation(header.orientation)
        and spacing is not None
        and min(spacing) > 0
        and max(spacing) <= LARGEST_MM
    )


def _orientations(headers: Sequence[Header]) -> list[tuple[tuple[float, ...], int]]:
    """Distinct orientations and how many instances have each; the most frequent first."""
    groups: list[tuple[tuple[float, ...], int]] = []
    for orientation, count in Counter(header.orientation for header in headers).most_common():
        assert orientation is not None
        for index, (known, so_far) in enumerate(groups):
            if np.abs(np.subtract(known, orientation)).max() <= ORIENTATION_TOLERANCE:
                groups[index] = (known, so_far + count)
                break
        else:
            groups.append((orientation, count))
    return groups


def _refuse_mixed_grids(headers: Sequence[Header]) -> None:
    sizes = Counter((header.rows, header.columns) for header in headers)
    if len(sizes) > 1:
        found = ", ".join(
            f"{count} of {rows}x{columns}" for (rows, columns), count in sizes.items()
        )
        msg = f"the images have several sizes ({found}); send each as its own series"
        raise UnusableSeries(msg, code="mixed_geometry")
    spacings = np.array([header.pixel_spacing_mm for header in headers])
    if np.ptp(spacings, axis=0).max() > SPACING_TOLERANCE_MM:
        low, high = spacings.min(), spacings.max()
        msg = (
            f"the images have several pixel spacings ({low:g} to {high:g} mm); "
            "send each as its own series"
        )
        raise UnusableSeries(msg, code="mixed_geometry")


def _refuse_duplicates(along: NDArray[np.float64]) -> None:
    same = np.diff(along) < SAME_POSITION_MM
    if same.any():
        places = len(along) - int(same.sum())
        msg = (
            f"{len(along)} instances lie at {places} position(s), as in a series over time or "
            f"with several echoes (first repeated at {along[int(same.argmax())]:g} mm); "
            "send one time point or echo as one series"
        )
        raise UnusableSeries(msg, code="duplicate_positions")


def _refuse_tilt(
    positions: NDArray[np.float64], normal: NDArray[np.float64], along: NDArray[np.float64]
) -> None:
    run = positions[-1] - positions[0]
    height = along[-1] - along[0]
    drift = float(np.linalg.norm(run - height * normal))
    angle = float(np.degrees(np.arctan2(drift, height)))
    if angle > TILT_TOLERANCE_DEG and drift > TILT_TOLERANCE_MM:
        msg = (
            f"the slices are sheared by {angle:.1f} degrees against their normal (gantry tilt; "
            f"{drift:.1f} mm over the stack), and this version doesn't resample; "
            "send a reconstruction without tilt"
        )
        raise UnusableSeries(msg, code="gantry_tilt")


def _refuse_gaps(along: NDArray[np.float64]) -> None:
    gaps = np.diff(along)
    tolerance = max(UNIFORM_FRACTION * float(np.median(gaps)), ROUNDING_MM)
    if np.abs(gaps - np.median(gaps)).max() <= tolerance:
        _refuse_uneven(along)
        return
    holes = find_gaps(along)
    usual = statistics.median_low(gaps.tolist())
    others = gaps[gaps <= 1.5 * usual]
    regular = np.abs(others - usual).max() <= MISSING_FRACTION * usual
    if holes and regular and all(hole.missing for hole in holes):
        count = sum(hole.missing for hole in holes)
        shown = ", ".join(str(hole) for hole in holes[:5])
        more = f" and {len(holes) - 5} more places" if len(holes) > 5 else ""
        msg = (
            f"{count} slice(s) missing {shown}{more}: {len(along)} of {len(along) + count} are "
            f"there, {usual:.3g} mm apart; send the whole series again"
        )
        raise UnusableSeries(msg, code="missing_slices")
    msg = (
        f"the distances between slices vary from {gaps.min():.3g} to {gaps.max():.3g} mm "
        f"(mostly {usual:.3g} mm), and this version doesn't resample; "
        "send an evenly spaced reconstruction"
    )
    raise UnusableSeries(msg, code="irregular_spacing")


def _refuse_uneven(along: NDArray[np.float64]) -> None:
    spacing = (along[-1] - along[0]) / (len(along) - 1)
    beside = np.abs(along - np.linspace(along[0], along[-1], len(along)))
    worst = float(beside.max())
    if worst > UNEVEN_FRACTION * spacing:
        msg = (
            f"the distances between slices change little by little, so that slices lie up to "
            f"{worst:.3g} mm ({worst / spacing:.0%} of the spacing) from where even spacing "
            "would put them, and this version doesn't resample; send an evenly spaced "
            "reconstruction"
        )
        raise UnusableSeries(msg, code="irregular_spacing")


def _refuse_stray_slices(positions: NDArray[np.float64]) -> None:
    run = positions[-1] - positions[0]
    direction = run / np.linalg.norm(run)
    beside = positions - positions[0]
    beside = beside - np.outer(beside @ direction, direction)
    worst = float(np.linalg.norm(beside, axis=1).max())
    if worst > STRAIGHT_TOLERANCE_MM:
        msg = (
            f"the slices don't lie on a straight line (up to {worst:.1f} mm beside it), and this "
            "version doesn't resample; send a reconstruction with one common centre"
        )
        raise UnusableSeries(msg, code="irregular_spacing")


def _affine(first: Header, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    assert first.orientation is not None
    assert first.pixel_spacing_mm is not None
    between_rows, between_columns = first.pixel_spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * between_columns
    affine[:3, 1] = np.array(first.orientation[3:]) * between_rows
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine[:3, 3] = positions[0]
    return affine


_MULTI_FRAME = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
        "1.2.840.10008.5.1.4.1.1.128.1",  # Legacy Converted Enhanced PET
        "1.2.840.10008.5.1.4.1.1.130",  # Enhanced PET
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
    }
)
