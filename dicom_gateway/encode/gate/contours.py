"""Do the contours of an RTSTRUCT enclose the mask, where it lay?

In: an RTSTRUCT as it was re-read, mask and sources. Out: nothing, or `Misplaced`. The
contours are projected onto the source files' planes and filled by counting crossings; every
voxel must come out as it is in the mask.

Source: PS3.3 C.8.8.5, C.8.8.6, C.8.8.8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_gateway.encode.gate.common import check_frame_of_reference, check_is
from dicom_gateway.encode.gate.truth import Misplaced, Plane, Truth
from dicom_gateway.records import Output, Segment

OFF_PLANE_MM = 0.01
"""How far a point may lie beside its plane."""

OUTSIDE_PIXELS = 0.51
"""How far a point may lie beyond the centres of the outermost pixels."""


def check_structure_set(ds: Dataset, mask: NDArray[Any], output: Output, truth: Truth) -> None:
    """Holds an RTSTRUCT against mask [K, J, I] and sources."""
    _check_references(ds, truth)
    count = len(output.segments)
    regions = {int(one.ROINumber): one for one in ds.StructureSetROISequence}
    contours = {int(one.ReferencedROINumber): one for one in ds.ROIContourSequence}
    observed = {int(one.ReferencedROINumber): one for one in ds.RTROIObservationsSequence}
    lengths = {len(ds.StructureSetROISequence), len(ds.ROIContourSequence)}
    if lengths | {len(ds.RTROIObservationsSequence)} != {count} or not (
        regions.keys() == contours.keys() == observed.keys() == set(range(1, count + 1))
    ):
        msg = "its regions are not the segments of the contract"
        raise Misplaced(msg)
    for number, segment in enumerate(output.segments, start=1):
        region = regions[number]
        check_frame_of_reference(str(region.ReferencedFrameOfReferenceUID), truth)
        _check_named(region, observed[number], segment, number)
        _check_filled(contours[number], mask, segment, number, truth)


def filled(points: NDArray[np.float64], rows: int, columns: int) -> NDArray[np.uint8]:
    """How many times, odd or even, a polygon goes round each pixel centre.

    Args:
        points: float64 [P, 2], (i, j) in pixels.
        rows: J.
        columns: I.

    Returns:
        uint8 [J, I]: 1 inside, 0 outside.
    """
    i0, j0 = points[:, 0], points[:, 1]
    i1, j1 = np.roll(i0, -1), np.roll(j0, -1)
    # Each edge crosses the lines of pixel centres from its lower end up to, not at, its upper.
    first = np.clip(np.ceil(np.minimum(j0, j1)), 0, rows).astype(int)
    behind = np.clip(np.ceil(np.maximum(j0, j1)), 0, rows).astype(int)
    crossed = behind - first
    edge = np.repeat(np.arange(len(points)), crossed)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed)
    row = first[edge] + step
    at = i0[edge] + (row - j0[edge]) / (j1[edge] - j0[edge]) * (i1[edge] - i0[edge])
    column = np.clip(np.ceil(at), 0, columns).astype(int)
    toggles = np.bincount(row * (columns + 1) + column, minlength=rows * (columns + 1))
    crossings = np.cumsum(toggles.reshape(rows, columns + 1)[:, :columns], axis=1)
    inside: NDArray[np.uint8] = (crossings % 2).astype(np.uint8)
    return inside


def _check_references(ds: Dataset, truth: Truth) -> None:
    check_frame_of_reference(str(ds.FrameOfReferenceUID), truth)
    (frame,) = ds.ReferencedFrameOfReferenceSequence
    check_frame_of_reference(str(frame.FrameOfReferenceUID), truth)
    (study,) = frame.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    named = [str(one.ReferencedSOPInstanceUID) for one in series.ContourImageSequence]
    if (
        str(study.ReferencedSOPInstanceUID) != truth.study_instance_uid
        or str(series.SeriesInstanceUID) != truth.planes[0].series_instance_uid
        or len(named) != len(truth.instances)
        or set(named) != truth.instances
    ):
        msg = "the series that it references is not its source"
        raise Misplaced(msg)


def _check_named(region: Dataset, observation: Dataset, segment: Segment, number: int) -> None:
    which = f"region {number}"
    if str(region.ROIName) != " ".join(segment.name.replace("\\", "/").split())[:64].strip():
        msg = f"{which} has another name than the contract gives it"
        raise Misplaced(msg)
    codes = observation.RTROIIdentificationCodeSequence
    check_is(codes, segment.type, which)
    sides = codes[0].get("SegmentedPropertyTypeModifierCodeSequence")
    check_is(sides, segment.type_modifier, f"the side of {which}")


def _check_filled(
    region: Dataset, mask: NDArray[Any], segment: Segment, number: int, truth: Truth
) -> None:
    which = f"region {number}"
    first = truth.planes[0]
    drawn: dict[int, NDArray[np.uint8]] = {}
    for contour in region.get("ContourSequence", []):
        if str(contour.ContourGeometricType) != "CLOSED_PLANAR":
            msg = f"{which} has something else than closed contours"
            raise Misplaced(msg)
        (source,) = contour.ContourImageSequence
        k = truth.plane_of(source)
        inside = filled(_in_pixels(contour, truth.planes[k], which), first.rows, first.columns)
        if k not in drawn:
            drawn[k] = inside
        elif (drawn[k] & inside).any():
            msg = f"{which} has contours that overlap"  # viewers differ in what that means
            raise Misplaced(msg)
        else:
            drawn[k] |= inside
    for k, labels in enumerate(mask):
        right = labels == segment.label
        if not np.array_equal(drawn[k], right) if k in drawn else right.any():
            msg = f"the contours of {which} don't enclose its voxels on slice {k + 1}"
            raise Misplaced(msg)


def _in_pixels(contour: Dataset, plane: Plane, which: str) -> NDArray[np.float64]:
    """The points of a contour on its plane, [P, 2] (i, j)."""
    raw = contour.get_item("ContourData").value
    texts = raw.split(b"\\") if isinstance(raw, bytes) else raw
    points = np.array([float(one) for one in texts]).reshape(-1, 3)
    if len(points) != int(contour.NumberOfContourPoints) or len(points) < 3:
        msg = f"a contour of {which} has more or fewer points than it says"
        raise Misplaced(msg)
    away = points - plane.origin
    normal = np.cross(plane.along_i, plane.along_j)
    if not float(np.abs(away @ (normal / np.linalg.norm(normal))).max()) <= OFF_PLANE_MM:
        msg = f"a contour of {which} doesn't lie on the image that it names"
        raise Misplaced(msg)
    i = away @ plane.along_i / (plane.along_i @ plane.along_i)
    j = away @ plane.along_j / (plane.along_j @ plane.along_j)
    beyond = max(-i.min(), -j.min(), i.max() - plane.columns + 1, j.max() - plane.rows + 1)
    if not float(beyond) <= OUTSIDE_PIXELS:
        msg = f"a contour of {which} leaves its image"
        raise Misplaced(msg)
    return np.stack([i, j], axis=1)
