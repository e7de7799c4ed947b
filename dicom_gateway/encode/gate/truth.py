"""What the source files themselves say, read anew: the measure for every result.

In: a volume. Out: its planes as their files place them, whose study and patient they are, or
`Misplaced`. Nothing here is shared with the code that encodes, so that a mistake in it can't
hide in its own check.

Source: PS3.3 C.7.6.2 (Image Plane), C.7.6.16 (functional groups of multi-frame objects).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_gateway.records import Volume

POSITION_TOLERANCE_MM = 1e-3
"""How far a frame may lie from its source; DS has 16 characters, so rounding stays far
below."""

DIRECTION_TOLERANCE = 1e-4
"""How far millimetres per pixel, in a direction, may be from those of the first source frame:
they are the same numbers, taken over."""

AGREEMENT_MM = 0.5
AGREEMENT_PIXELS = 0.5
"""How far the direction and spacing of one source frame may carry its outermost pixels from
where those of the first would, whichever is less. Scanners round them differently from slice to
slice, and only the first's are in a result. Half a pixel on, a voxel would be its neighbour."""

IDENTITY = (
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""Whose an object is, and of which study, beside the Study Instance UID."""

_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "SpecificCharacterSet",
    *IDENTITY,
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]

Points = NDArray[np.float64]


class Misplaced(Exception):
    """The object doesn't say what the mask and the sources say; never leaves the gate."""


class Contradictory(Misplaced):
    """The sources don't agree with each other; whoever sent them can mend it, not we."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One source frame where its file says it lies.

    Attributes:
        frame_number: 1 for an instance of one frame.
        several: The instance has more than one frame.
        origin: float64 [3], LPS millimetres, centre of its first pixel.
        along_i: float64 [3], millimetres per column; in a `Truth` the first frame's, from which
            its own are no further than `AGREEMENT_MM`.
        along_j: float64 [3], millimetres per row; likewise.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    frame_number: int
    several: bool
    rows: int
    columns: int
    origin: Points
    along_i: Points
    along_j: Points


@dataclass(frozen=True, slots=True)
class Truth:
    """The source series as its files have it.

    Attributes:
        planes: In the order of k.
        frame_of_reference_uid: None where the source has none.
        identity: Value of each of `IDENTITY`; never gets into a text.
        placed: False for projections, which lie nowhere.
        thickness_mm: Slice Thickness of the first, 0 where it has none.
    """

    planes: tuple[Plane, ...]
    study_instance_uid: str
    identity: dict[str, str]
    frame_of_reference_uid: str | None
    placed: bool
    thickness_mm: float
    _places: dict[tuple[str, int | None], int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for k, plane in enumerate(self.planes):
            self._places.setdefault((plane.sop_instance_uid, plane.frame_number), k)
            if not plane.several:
                self._places.setdefault((plane.sop_instance_uid, None), k)

    @property
    def instances(self) -> set[str]:
        """SOP Instance UIDs."""
        return {plane.sop_instance_uid for plane in self.planes}

    def plane_of(self, reference: Dataset) -> int:
        """Index of the plane that an item names (instance, and frame where it has several)."""
        frame = reference.get("ReferencedFrameNumber")
        return self.plane_named(
            str(reference.ReferencedSOPClassUID),
            str(reference.ReferencedSOPInstanceUID),
            int(frame) if frame else None,
        )

    def plane_named(self, sop_class_uid: str, sop_instance_uid: str, frame: int | None) -> int:
        """The same, for what was read from an item.

        Raises:
            Misplaced: it is no plane of the sources.
        """
        k = self._places.get((sop_instance_uid, frame or None))
        if k is None:
            msg = "it names an image that is none of its sources"
            raise Misplaced(msg)
        if sop_class_uid != self.planes[k].sop_class_uid:
            msg = "it names a source instance by the wrong class"
            raise Misplaced(msg)
        return k

    def heights_mm(self) -> Points | None:
        """[K] how far each plane reaches along the normal; None where that isn't known."""
        normal = np.cross(self.planes[0].along_i, self.planes[0].along_j)
        normal /= np.linalg.norm(normal)
        at = np.array([plane.origin @ normal for plane in self.planes])
        if not self.placed:
            return None
        if len(at) == 1:
            return np.array([self.thickness_mm]) if self.thickness_mm > 0 else None
        # Half-way to both neighbours; the outermost as far outwards as inwards.
        middles = (at[1:] + at[:-1]) / 2
        ends = np.concatenate([[2 * at[0] - middles[0]], middles, [2 * at[-1] - middles[-1]]])
        return np.asarray(np.abs(np.diff(ends)))


def read_truth(volume: Volume) -> Truth:
    """Reads the headers of the sources anew and holds the volume against them.

    Raises:
        Misplaced: the volume lies elsewhere than its sources.
    """
    files: dict[Path, Dataset] = {}
    planes: list[Plane] = []
    for path, slice_ in zip(volume.headers, volume.slices, strict=True):
        if path not in files:
            files[path] = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        ds = files[path]
        if str(ds.SOPInstanceUID) != slice_.sop_instance_uid:
            msg = "the volume's slices are not its source files"
            raise Misplaced(msg)
        planes.append(_plane(ds, slice_.frame_number, volume, len(planes)))
    first = files[volume.headers[0]]
    _hold_against_each_other(files.values())
    placed = _of_frame(first, 1, "PlanePositionSequence", "ImagePositionPatient") is not None
    if placed:
        _hold_volume_against(planes, volume)
        planes = _with_one_direction(planes)
    return Truth(
        planes=tuple(planes),
        study_instance_uid=str(first.StudyInstanceUID),
        identity=identity_of(first),
        frame_of_reference_uid=str(first.get("FrameOfReferenceUID") or "") or None,
        placed=placed,
        thickness_mm=_number(_of_frame(first, 1, "PixelMeasuresSequence", "SliceThickness")),
    )


def _hold_against_each_other(sources: Collection[Dataset]) -> None:
    """A result says of one patient and one study that all of its sources are theirs."""
    for keyword, whose in (("PatientID", "patients"), ("StudyInstanceUID", "studies")):
        if len({_text(ds, keyword).strip() for ds in sources}) > 1:
            msg = f"its source images are of several {whose}: they don't have one {keyword}"
            raise Contradictory(msg)


def _number(value: object) -> float:
    """A number that no place depends on; 0 where it is none: some write "2.5 mm"."""
    try:
        number = float(value or 0.0)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def identity_of(ds: Dataset) -> dict[str, str]:
    """Patient and study, for comparing only: none of the values ever gets into a text."""
    return {keyword: _text(ds, keyword) for keyword in IDENTITY}


def _text(ds: Dataset, keyword: str) -> str:
    try:
        return str(ds.get(keyword) or "").rstrip("\0 ")
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError):
        return ""  # bytes that make no sense can't be taken over


def _plane(ds: Dataset, frame_number: int, volume: Volume, k: int) -> Plane:
    position = _of_frame(ds, frame_number, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _of_frame(ds, frame_number, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _of_frame(ds, frame_number, "PixelMeasuresSequence", "PixelSpacing")
    if position is None:  # a projection: only the volume says anything, of a place of its own
        origin = np.array(volume.slices[k].position_lps_mm, float)
        along_i, along_j = volume.affine_lps[:3, 0], volume.affine_lps[:3, 1]
    else:
        origin = np.array([float(mm) for mm in position])
        cosines = np.array([float(one) for one in orientation])
        # Spacing is between rows first, then between columns (PS3.3 10.7.1.3).
        along_i, along_j = cosines[:3] * float(spacing[1]), cosines[3:] * float(spacing[0])
    return Plane(
        sop_class_uid=str(ds.SOPClassUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        frame_number=frame_number,
        several=_number(ds.get("NumberOfFrames")) > 1,
        rows=int(ds.Rows),
        columns=int(ds.Columns),
        origin=origin,
        along_i=along_i,
        along_j=along_j,
    )


def _of_frame(ds: Dataset, frame_number: int, group: str, keyword: str) -> Any:
    """A frame's own value, or that of all frames, or where neither is there the object's.

    In this order: what an object with functional groups says beside them is not of its frames
    (PS3.3 C.7.6.16; the Image Plane module is for objects of one frame).
    """
    own = ds.get("PerFrameFunctionalGroupsSequence") or []
    for holder in (
        *own[frame_number - 1 : frame_number],
        *(ds.get("SharedFunctionalGroupsSequence") or []),
    ):
        for item in holder.get(group) or []:
            if item.get(keyword) not in (None, ""):
                return item[keyword].value
    return ds[keyword].value if ds.get(keyword) not in (None, "") else None


def _hold_volume_against(planes: Sequence[Plane], volume: Volume) -> None:
    """The mask was made under the volume's affine: that must be where its files lie."""
    first, affine = planes[0], volume.affine_lps
    if volume.shape_kji != (len(planes), first.rows, first.columns):
        msg = "the volume has another shape than its sources"
        raise Misplaced(msg)
    turned = max(
        float(np.abs(first.along_i - affine[:3, 0]).max()),
        float(np.abs(first.along_j - affine[:3, 1]).max()),
    )
    if not turned <= DIRECTION_TOLERANCE:
        msg = "the volume is turned or scaled against its sources"
        raise Misplaced(msg)
    for k, plane in enumerate(planes):
        stated = np.array(volume.slices[k].position_lps_mm)
        if not float(np.abs(plane.origin - stated).max()) <= POSITION_TOLERANCE_MM:
            msg = f"slice {k + 1} of the volume doesn't lie on its source"
            raise Misplaced(msg)
    last = len(planes) - 1
    ends = {0: affine[:3, 3], last: affine[:3, 3] + last * affine[:3, 2]}
    for k, end in ends.items():
        if float(np.abs(planes[k].origin - end).max()) > POSITION_TOLERANCE_MM:
            msg = "the volume's first or last slice doesn't lie on its source"
            raise Misplaced(msg)
    if last:
        steps = np.diff(np.array([plane.origin for plane in planes]), axis=0)
        if not ((steps @ affine[:3, 2]) > 0).all():
            msg = "the volume's slices are not in the order in which they lie"
            raise Misplaced(msg)


def _with_one_direction(planes: Sequence[Plane]) -> list[Plane]:
    """All planes with the first one's directions and spacing, where they agree well enough.

    Raises:
        Contradictory: one would show its outermost pixels elsewhere.
    """
    first = planes[0]
    smallest_mm = min(float(np.linalg.norm(one)) for one in (first.along_i, first.along_j))
    within_mm = min(AGREEMENT_MM, AGREEMENT_PIXELS * smallest_mm)
    for k, plane in enumerate(planes):
        off_mm = _off_at_corners_mm(plane, first)
        if not off_mm <= within_mm:
            msg = (
                "its source images don't agree with each other in direction or pixel spacing "
                f"(slice {k + 1} is {off_mm:.2g} mm off the first one's at a corner)"
            )
            raise Contradictory(msg)
    return [replace(plane, along_i=first.along_i, along_j=first.along_j) for plane in planes]


def _off_at_corners_mm(plane: Plane, other: Plane) -> float:
    """How far apart the corners of two planes are if their first pixels are laid on each other.

    Nowhere between them is it further: it grows linearly with row and column.
    """
    across = (plane.columns - 1) * (plane.along_i - other.along_i)
    down = (plane.rows - 1) * (plane.along_j - other.along_j)
    return max(float(np.linalg.norm(corner)) for corner in (across, down, across + down))
