"""Does a SEG lie where its mask lay?

In: a SEG as it was re-read, mask and sources. Out: nothing, or `Misplaced`. Each frame is held
against the source file that it references: its position, its direction, the mask's labels
there.

Source: PS3.3 C.7.6.16 (functional groups), C.8.20.2 (BINARY: bits packed across frames).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_gateway.encode.gate.common import check_described, check_frame_of_reference
from dicom_gateway.encode.gate.groups import FrameGroups, read_groups
from dicom_gateway.encode.gate.truth import (
    DIRECTION_TOLERANCE,
    POSITION_TOLERANCE_MM,
    Misplaced,
    Plane,
    Truth,
)
from dicom_gateway.records import Output

EVEN_FRACTION = 0.11
"""A stated distance between slices may be this much, as a fraction, from any of the true ones."""


def check_segmentation(
    ds: Dataset, mask: NDArray[Any], output: Output, truth: Truth, *, binary: bool
) -> None:
    """Holds a SEG against mask [K, J, I] and sources."""
    check_frame_of_reference(str(ds.FrameOfReferenceUID), truth)
    first = truth.planes[0]
    if (ds.Rows, ds.Columns) != (first.rows, first.columns):
        msg = "its frames have another size than the source's"
        raise Misplaced(msg)
    kind = "BINARY" if binary else "LABELMAP"
    if str(ds.SegmentationType) != kind or int(ds.BitsAllocated) not in (
        {1} if binary else {8, 16}
    ):
        msg = f"it is no {kind} segmentation"
        raise Misplaced(msg)
    described = [item for item in ds.SegmentSequence if int(item.SegmentNumber) or binary]
    if [int(item.SegmentNumber) for item in described] != list(range(1, len(output.segments) + 1)):
        msg = "its segments are not those of the contract"
        raise Misplaced(msg)
    for number, (item, segment) in enumerate(zip(described, output.segments, strict=True), start=1):
        check_described(item, segment, number)
    _check_references(ds, truth)
    _check_spacing(ds, truth)
    _check_frames(ds, mask, output, truth, binary=binary)


def _check_references(ds: Dataset, truth: Truth) -> None:
    (series,) = ds.ReferencedSeriesSequence
    named = [str(one.ReferencedSOPInstanceUID) for one in series.ReferencedInstanceSequence]
    if (
        str(series.SeriesInstanceUID) != truth.planes[0].series_instance_uid
        or len(named) != len(truth.instances)
        or set(named) != truth.instances
    ):
        msg = "the series that it references is not its source"
        raise Misplaced(msg)


def _check_spacing(ds: Dataset, truth: Truth) -> None:
    """A stated distance between slices is the true one: viewers build the volume with it."""
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    stated = measures.get("SpacingBetweenSlices")
    if stated is None or len(truth.planes) < 2:
        return
    normal = np.cross(truth.planes[0].along_i, truth.planes[0].along_j)
    at = np.array([plane.origin for plane in truth.planes]) @ (normal / np.linalg.norm(normal))
    gaps = np.abs(np.diff(at))
    if float(np.abs(gaps - float(stated)).max()) > EVEN_FRACTION * float(gaps.mean()):
        msg = "its distance between slices is not the source's"
        raise Misplaced(msg)


def _check_frames(
    ds: Dataset, mask: NDArray[Any], output: Output, truth: Truth, *, binary: bool
) -> None:
    groups = read_groups(ds)
    if int(ds.NumberOfFrames) != len(groups):
        msg = "it has more or fewer frames than it says"
        raise Misplaced(msg)
    pixels = _pixels(ds, len(groups), binary=binary)
    empty = not mask.any()
    seen: set[tuple[int, int]] = set()
    ranks: dict[int, int] = {}
    for index, one in enumerate(groups):
        which = f"frame {index + 1}"
        k = _plane_of(one, truth, which)
        _check_place(one, truth.planes[k], which)
        number = (one.segment or 0) if binary else 0
        if (k, number) in seen or not binary <= number <= len(output.segments):
            msg = f"{which} is there twice, or of no segment"
            raise Misplaced(msg)
        seen.add((k, number))
        rank = _rank(one, number, which, binary=binary)
        if ranks.setdefault(k, rank) != rank:
            msg = f"the dimension index of {which} puts it on another plane"
            raise Misplaced(msg)
        right = _right(mask[k], output, number)
        if not np.array_equal(pixels(index), right):
            msg = f"{which} doesn't have the voxels of its mask"
            raise Misplaced(msg)
        if not empty and not right.any():
            msg = f"{which} has no content"
            raise Misplaced(msg)
    _check_order(ranks, truth)
    _check_complete(seen, mask, output, binary=binary)


def _right(labels: NDArray[Any], output: Output, number: int) -> NDArray[Any]:
    """What a frame of segment `number` must hold, or one of all segments (0), [J, I]."""
    if number:
        return np.asarray(labels == output.segments[number - 1].label)
    right = np.zeros(labels.shape, dtype=np.uint16)
    for position, segment in enumerate(output.segments, start=1):
        right[labels == segment.label] = position
    return right


def _check_complete(
    seen: set[tuple[int, int]], mask: NDArray[Any], output: Output, *, binary: bool
) -> None:
    for k, labels in enumerate(mask):
        if not labels.any():
            continue
        for number, segment in enumerate(output.segments, start=1):
            wanted = (k, number if binary else 0)
            if wanted not in seen and (labels == segment.label).any():
                msg = f"segment {number} is missing on a slice"
                raise Misplaced(msg)


def _plane_of(groups: FrameGroups, truth: Truth, which: str) -> int:
    if len(groups.sources) != 1:
        msg = f"{which} doesn't reference one source instance"
        raise Misplaced(msg)
    return truth.plane_named(*groups.sources[0])


def _check_place(groups: FrameGroups, plane: Plane, which: str) -> None:
    if not float(np.abs(groups.position - plane.origin).max()) <= POSITION_TOLERANCE_MM:
        msg = f"{which} doesn't lie on its source instance"
        raise Misplaced(msg)
    cosines = np.array(groups.orientation)
    between_rows, between_columns = groups.spacing
    off = max(
        float(np.abs(cosines[:3] * between_columns - plane.along_i).max()),
        float(np.abs(cosines[3:] * between_rows - plane.along_j).max()),
    )
    if not off <= DIRECTION_TOLERANCE:
        msg = f"{which} is turned or scaled"
        raise Misplaced(msg)


def _rank(groups: FrameGroups, number: int, which: str, *, binary: bool) -> int:
    """Viewers sort by the dimension index: it must name the segment, and the plane."""
    if len(groups.index) != 1 + binary or (binary and groups.index[0] != number):
        msg = f"the dimension index of {which} names another segment"
        raise Misplaced(msg)
    return groups.index[-1]


def _check_order(ranks: dict[int, int], truth: Truth) -> None:
    """Ranks run along the normal, in one direction, and none is used for two planes."""
    planes = sorted(ranks, key=ranks.__getitem__)
    if sorted(ranks.values()) != list(range(1, len(planes) + 1)):
        msg = "its dimension index doesn't count its planes"
        raise Misplaced(msg)
    if truth.placed and planes not in (sorted(planes), sorted(planes, reverse=True)):
        msg = "its dimension index doesn't follow the slices as they lie"
        raise Misplaced(msg)


def _pixels(ds: Dataset, frames: int, *, binary: bool) -> Any:
    """Gives the pixels of frame number `index`, [J, I]."""
    rows, columns = int(ds.Rows), int(ds.Columns)
    bits = rows * columns * int(ds.BitsAllocated)
    length = -(-frames * bits // 8)
    if len(ds.PixelData) != length + length % 2:
        msg = "its pixels are more or fewer than its frames"
        raise Misplaced(msg)
    raw = np.frombuffer(ds.PixelData, dtype=np.uint8)

    def binary_frame(index: int) -> NDArray[Any]:
        start, extra = divmod(index * bits, 8)
        packed = raw[start : start + (extra + bits + 7) // 8]
        found = np.unpackbits(packed, bitorder="little")[extra : extra + bits]
        return found.view(np.bool_).reshape(rows, columns)  # zeros and ones

    def label_frame(index: int) -> NDArray[Any]:
        dtype = np.dtype(f"<u{int(ds.BitsAllocated) // 8}")
        return raw[index * bits // 8 : (index + 1) * bits // 8].view(dtype).reshape(rows, columns)

    return binary_frame if binary else label_frame
