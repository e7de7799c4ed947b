"""What the source files themselves say, read anew: the measure for every result.

In: a volume. Out: its planes as their files place them, whose study and patient they are, or
`Misplaced`. Nothing here is shared with the code that encodes, so that a mistake in it can't
hide in its own check.

Source: PS3.3 C.7.6.2 (Image Plane), C.7.6.16 (functional groups of multi-frame objects).
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
"""How far direction cosines, and millimetres per pixel, may be from the source's."""

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


@dataclass(frozen=True, slots=True)
class Plane:
    """One source frame where its file says it lies.

    Attributes:
        frame_number: 1 for an instance of one frame.
        several: The instance has more than one frame.
        origin: float64 [3], LPS millimetres, centre of its first pixel.
        along_i: float64 [3], millimetres per column.
        along_j: float64 [3], millimetres per row.
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
    placed = _of_frame(first, 1, "PlanePositionSequence", "ImagePositionPatient") is not None
    truth = Truth(
        planes=tuple(planes),
        study_instance_uid=str(first.StudyInstanceUID),
        identity=identity_of(first),
        frame_of_reference_uid=str(first.get("FrameOfReferenceUID") or "") or None,
        placed=placed,
        thickness_mm=float(_of_frame(first, 1, "PixelMeasuresSequence", "SliceThickness") or 0.0),
    )
    if placed:
        _hold_volume_against(truth, volume)
    return truth


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
        several=int(ds.get("NumberOfFrames") or 1) > 1,
        rows=int(ds.Rows),
        columns=int(ds.Columns),
        origin=origin,
        along_i=along_i,
        along_j=along_j,
    )


def _of_frame(ds: Dataset, frame_number: int, group: str, keyword: str) -> Any:
    if ds.get(keyword) not in (None, ""):
        return ds[keyword].value
    own = ds.get("PerFrameFunctionalGroupsSequence") or []
    for holder in (
        *own[frame_number - 1 : frame_number],
        *(ds.get("SharedFunctionalGroupsSequence") or []),
    ):
        for item in holder.get(group) or []:
            if item.get(keyword) not in (None, ""):
                return item[keyword].value
    return None


def _hold_volume_against(truth: Truth, volume: Volume) -> None:
    """The mask was made under the volume's affine: that must be where its files lie."""
    if volume.shape_kji != (len(truth.planes), truth.planes[0].rows, truth.planes[0].columns):
        msg = "the volume has another shape than its sources"
        raise Misplaced(msg)
    affine = volume.affine_lps
    for k, plane in enumerate(truth.planes):
        turned = max(
            float(np.abs(plane.along_i - affine[:3, 0]).max()),
            float(np.abs(plane.along_j - affine[:3, 1]).max()),
        )
        if turned > DIRECTION_TOLERANCE:
            msg = "the volume is turned or scaled against its sources"
            raise Misplaced(msg)
        stated = np.array(volume.slices[k].position_lps_mm)
        if float(np.abs(plane.origin - stated).max()) > POSITION_TOLERANCE_MM:
            msg = f"slice {k + 1} of the volume doesn't lie on its source"
            raise Misplaced(msg)
    last = len(truth.planes) - 1
    ends = {0: affine[:3, 3], last: affine[:3, 3] + last * affine[:3, 2]}
    for k, end in ends.items():
        if float(np.abs(truth.planes[k].origin - end).max()) > POSITION_TOLERANCE_MM:
            msg = "the volume's first or last slice doesn't lie on its source"
            raise Misplaced(msg)
    if last:
        steps = np.diff(np.array([plane.origin for plane in truth.planes]), axis=0)
        if not ((steps @ affine[:3, 2]) > 0).all():
            msg = "the volume's slices are not in the order in which they lie"
            raise Misplaced(msg)
