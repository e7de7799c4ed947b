"""Frames that lie parallel on one grid, sorted; or why they don't.

In: `Frame`s in any order. Out: a `Stack`, or a refusal of what no resampling mends. Pure.

Only Image Position and Image Orientation (Patient) count. Slice Location, Instance Number,
Spacing Between Slices and the gantry tilt tag are often missing, and sometimes wrong.

Source: PS3.3 C.7.6.2.1.1 (position and orientation), 10.7.1.3 (pixel spacing).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dicom_gateway.assemble.frames import Frame
from dicom_gateway.errors import UnusableSeries

ORIENTATION_TOLERANCE = 1e-3
"""Direction cosines that differ by more are two orientations (0.06 degrees); scanners round
them to 4-6 digits, differently from slice to slice."""

UNIT_TOLERANCE = 1e-2
"""How far the two directions may be from unit length and a right angle."""

SAME_POSITION_MM = 1e-2
"""Two instances closer than this along the slice axis lie at one position. The thinnest CT
slices are 0.1 mm apart, positions are written to 0.001 mm."""

SPACING_TOLERANCE_MM = 1e-3
"""Pixel spacings that differ by more are two grids."""

CORNER_MM = 0.5
CORNER_PIXELS = 0.5
"""How far what is tolerated above may carry a frame's outermost pixels from where the first
frame's would be, whichever is less: half a pixel on, a voxel is its neighbour."""

LARGEST_MM = 1e6
"""A position or a spacing beyond a kilometre is a damaged value, and may be one that no
arithmetic survives."""

MOST_GRIDS = 1000
"""So many orientations or pixel spacings each frame is held against; a peer chooses both."""

_RESULTS = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
        "1.2.840.10008.5.1.4.1.1.66.5",  # Surface Segmentation
    }
)
"""Objects that are made from images and are none themselves."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Parallel slices on one grid, no two at the same place; evenly spaced or not.

    Attributes:
        frames: Sorted along the normal, which is cross(row direction, column direction).
        positions: float64 [S, 3], Image Position (Patient) of each, LPS millimetres.
        normal: float64 [3], unit vector.
        along: float64 [S], rising: the positions along the normal, millimetres.
    """

    frames: tuple[Frame, ...]
    positions: NDArray[np.float64]
    normal: NDArray[np.float64]
    along: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.frames)


def stack_frames(frames: Sequence[Frame]) -> Stack:
    """Sorts frames along their common normal.

    Raises:
        UnusableSeries: no_pixel_data, unsupported_object, no_geometry, several_orientations,
            mixed_geometry, too_few_slices, duplicate_positions.
    """
    # Whatever order they came in: also where two have the same place.
    frames = sorted(frames, key=lambda frame: (frame.sop_instance_uid, frame.number))
    refuse_other_objects(frames)
    refuse_unplaced(frames)
    orientation = _common_orientation(frames)
    _refuse_mixed_grids(frames)
    if len(frames) < 2:
        msg = (
            "the series has 1 slice and a volume needs at least 2; "
            "choose a series of cross-sections, or send the rest of it"
        )
        raise UnusableSeries(msg, code="too_few_slices")
    positions = np.array([frame.position_lps_mm for frame in frames], dtype=np.float64)
    normal = normal_of(orientation)
    along = positions @ normal
    order = sorted(
        range(len(frames)),
        key=lambda n: (along[n], frames[n].header.instance_number, frames[n].number),
    )
    _refuse_duplicates(along[order])
    ordered = tuple(frames[n] for n in order)
    _refuse_turned(ordered)
    return Stack(
        frames=ordered,
        positions=positions[order],
        normal=normal,
        along=along[order],
    )


def normal_of(orientation: Sequence[float]) -> NDArray[np.float64]:
    """Unit normal of a plane: cross(row direction, column direction), LPS."""
    normal = np.cross(np.array(orientation[:3]), np.array(orientation[3:]))
    return np.asarray(normal / np.linalg.norm(normal), dtype=np.float64)


def is_position(position_lps_mm: Sequence[float] | None) -> bool:
    """Whether this can be a place in a patient, in millimetres."""
    return position_lps_mm is not None and all(abs(mm) <= LARGEST_MM for mm in position_lps_mm)


def is_orientation(orientation: Sequence[float] | None) -> bool:
    """Whether these are two unit vectors at a right angle, as near as headers write them."""
    return orientation is not None and _is_orientation(tuple(orientation))


@lru_cache(maxsize=256)
def _is_orientation(orientation: tuple[float, ...]) -> bool:
    """Asked once for a series: nearly always all of its frames have the same."""
    if not all(abs(cosine) <= 2.0 for cosine in orientation):
        return False
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    defects = (np.linalg.norm(row) - 1, np.linalg.norm(column) - 1, row @ column)
    return bool(max(abs(defect) for defect in defects) <= UNIT_TOLERANCE)


def refuse_other_objects(frames: Sequence[Frame]) -> None:
    """Objects that are no cross-sections.

    Raises:
        UnusableSeries: no_pixel_data, unsupported_object.
    """
    for header in {frame.header.path: frame.header for frame in frames}.values():
        if header.rows is None or header.columns is None or not header.rows * header.columns:
            msg = (
                "the series has objects without an image (no Rows and Columns); "
                "pipelines want series of cross-sections"
            )
            raise UnusableSeries(msg, code="no_pixel_data")
        if header.sop_class_uid in _RESULTS:
            msg = (
                "the series has a segmentation, which is a result and no image; "
                "send the series that it was made from"
            )
            raise UnusableSeries(msg, code="unsupported_object")
        if "MOSAIC" in header.image_type:
            msg = (
                "the series has mosaics (many slices tiled into one image), and what says where "
                "each tile lies is private to their maker; have the scanner or the PACS send "
                "single slices or enhanced objects"
            )
            raise UnusableSeries(msg, code="unsupported_object")


def refuse_unplaced(frames: Sequence[Frame]) -> None:
    """Frames that don't say where in the patient they lie.

    Raises:
        UnusableSeries: no_geometry.
    """
    unplaced = [frame for frame in frames if not _is_placed(frame)]
    if not unplaced:
        return
    several = any(frame.header.number_of_frames > 1 for frame in unplaced)
    what = "frames of multi-frame objects" if several else "instances"
    remedy = (
        "send single-frame instances, or enhanced objects with their functional groups"
        if several
        else "send the original cross-sections"
    )
    msg = (
        f"{len(unplaced)} of {len(frames)} {what} have no usable Image Position (Patient), Image "
        f"Orientation (Patient) or Pixel Spacing, so their place in the patient is unknown; "
        f"{remedy}"
    )
    raise UnusableSeries(msg, code="no_geometry")


def _is_placed(frame: Frame) -> bool:
    spacing = frame.pixel_spacing_mm
    return (
        is_position(frame.position_lps_mm)
        and is_orientation(frame.orientation)
        and spacing is not None
        and min(spacing) > 0
        and max(spacing) <= LARGEST_MM
    )


def orientations(frames: Sequence[Frame]) -> list[tuple[tuple[float, ...], list[Frame]]]:
    """Distinct orientations and the frames that have each; the most frequent first.

    Raises:
        UnusableSeries: (mixed_geometry) there are more than any series has.
    """
    counted = Counter(frame.orientation for frame in frames if frame.orientation is not None)
    known: list[tuple[float, ...]] = []
    place = {
        orientation: known_as(orientation, known, ORIENTATION_TOLERANCE)
        for orientation, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    }
    groups: list[tuple[tuple[float, ...], list[Frame]]] = [(one, []) for one in known]
    for frame in frames:
        if frame.orientation is not None:
            groups[place[frame.orientation]][1].append(frame)
    return groups


def known_as(value: tuple[float, ...], known: list[tuple[float, ...]], tolerance: float) -> int:
    """The place of the first of those known that this one is but for rounding.

    A new one is added to them.

    Raises:
        UnusableSeries: (mixed_geometry) they are more than any series has.
    """
    if known:
        near = np.flatnonzero(np.abs(np.array(known) - value).max(axis=1) <= tolerance)
        if near.size:
            return int(near[0])
    if len(known) >= MOST_GRIDS:
        msg = (
            f"the images have more than {MOST_GRIDS} orientations or pixel spacings, which no "
            "series of cross-sections has; look at it with a DICOM viewer"
        )
        raise UnusableSeries(msg, code="mixed_geometry")
    known.append(value)
    return len(known) - 1


def _common_orientation(frames: Sequence[Frame]) -> tuple[float, ...]:
    found = orientations(frames)
    if len(found) > 1:
        counts = " and ".join(str(len(members)) for _, members in found)
        msg = (
            f"the series has {len(found)} orientations ({counts} images), as a "
            "localizer has; send one orientation as one series"
        )
        raise UnusableSeries(msg, code="several_orientations")
    references = {frame.header.frame_of_reference_uid for frame in frames}
    if len(references) > 1:
        msg = (
            f"the series has {len(references)} frames of reference, so its slices can't be placed "
            "beside each other; send each as its own series"
        )
        raise UnusableSeries(msg, code="mixed_geometry")
    return found[0][0]


def _refuse_mixed_grids(frames: Sequence[Frame]) -> None:
    sizes = Counter((frame.header.rows or 0, frame.header.columns or 0) for frame in frames)
    if len(sizes) > 1:
        found = ", ".join(
            f"{count} of {rows}x{columns}" for (rows, columns), count in sorted(sizes.items())
        )
        msg = f"the images have several sizes ({found}); send each as its own series"
        raise UnusableSeries(msg, code="mixed_geometry")
    spacings = np.array([frame.pixel_spacing_mm for frame in frames])
    if np.ptp(spacings, axis=0).max() > SPACING_TOLERANCE_MM:
        low, high = spacings.min(), spacings.max()
        msg = (
            f"the images have several pixel spacings ({low:g} to {high:g} mm); "
            "send each as its own series"
        )
        raise UnusableSeries(msg, code="mixed_geometry")


def _refuse_turned(frames: Sequence[Frame]) -> None:
    """A volume has one direction and spacing: the first frame's."""
    first, *others = dict.fromkeys((one.orientation, one.pixel_spacing_mm) for one in frames)
    if not others:
        return
    rows, columns = frames[0].header.rows or 0, frames[0].header.columns or 0
    steps = _steps(*first)
    within_mm = min(CORNER_MM, CORNER_PIXELS * float(np.linalg.norm(steps, axis=1).min()))
    for other in others:
        across, down = (_steps(*other) - steps) * np.array([[columns - 1], [rows - 1]])
        off_mm = max(float(np.linalg.norm(one)) for one in (across, down, across + down))
        if off_mm > within_mm:
            msg = (
                "the slices don't agree with each other in direction or pixel spacing (their "
                f"corners lie up to {off_mm:.2g} mm off); send each direction as its own series"
            )
            raise UnusableSeries(msg, code="mixed_geometry")


def _steps(
    orientation: tuple[float, ...] | None, spacing_mm: tuple[float, ...] | None
) -> NDArray[np.float64]:
    """[2, 3] LPS millimetres from column to column, and from row to row."""
    assert orientation is not None
    assert spacing_mm is not None
    directions = np.array(orientation, dtype=np.float64).reshape(2, 3)
    return np.asarray(directions * [[spacing_mm[1]], [spacing_mm[0]]], dtype=np.float64)


def _refuse_duplicates(along: NDArray[np.float64]) -> None:
    same = np.diff(along) < SAME_POSITION_MM
    if same.any():
        places = len(along) - int(same.sum())
        msg = (
            f"{len(along)} images lie at {places} position(s), as in a series over time or "
            f"with several echoes (first repeated at {along[int(same.argmax())]:g} mm); "
            "send one time point or echo as one series"
        )
        raise UnusableSeries(msg, code="duplicate_positions")
