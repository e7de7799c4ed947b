"""What a result takes over from its source instances, cleaned where it must be.

In: a volume, whose source frames have files. Out: a small data set for highdicom with nothing but
geometry and references, and the patient's and study's attributes to put into the result. The
first instance's header says it for all; what differs from frame to frame the volume knows, and
the geometry gate holds it against every file. Nothing is written.

They are kept apart because highdicom and pydicom warn about odd values by quoting them,
and a value may be a patient's name: highdicom never gets to see one.
"""

from __future__ import annotations

import math
import struct
from copy import copy
from dataclasses import dataclass

import numpy as np
import pydicom
import pydicom.config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage
from pydicom.valuerep import DS, format_number_as_ds, validate_value

from dicom_gateway.encode.identity import stand_in_frame_of_reference_uid, stand_in_frame_uid
from dicom_gateway.encode.texts import CharacterSet, settled
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import Slice, Volume

# For the reason above: no validation that quotes values.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE

_UNREADABLE = (
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    AssertionError,
    struct.error,
    RecursionError,
)

_AS_THEY_ARE = (
    "PatientName",
    "PatientID",
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
)
"""Type 2 and what a PACS files a study by: taken over however odd, for it has filed the
source under the same."""

_WHEN_VALID = (
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
)
"""Type 2: empty when the source's value isn't valid."""

_OPTIONAL = (
    "IssuerOfPatientID",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "BodyPartExamined",
)
"""Type 3: left out when missing, empty or not valid."""

_GEOMETRY = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "Modality",
    "Laterality",
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)

_MAY_BE_LACKING = {"SliceThickness": 1, "LossyImageCompressionRatio": 100}
"""Of these: nothing depends on them, so they are left out where they are no numbers, or more
than so many."""

_GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")

_EMPTY_FOR_HIGHDICOM = (*_AS_THEY_ARE, *_WHEN_VALID)


@dataclass(frozen=True, slots=True)
class FrameReference:
    """A source frame as a result names it (PS3.3 Table 10-3).

    Attributes:
        frame_number: 0 for an instance of one frame, which has no frame numbers.
    """

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int


@dataclass(frozen=True, slots=True)
class Sources:
    """The source instances as far as a result needs them.

    Attributes:
        first: The source frame of k = 0, without any patient attribute. One of a multi-frame
            object stands for it, under a UID of its own.
        carried: Patient and study attributes, as elements ready to be put into the result.
        specific_character_set: The one to write them in: that of the source, unless a text
            isn't in it; None for the default repertoire.
        references: The source frames, in the order of k.
        positions: Image Position (Patient) of each, as DICOM writes it.
        placed: False for projections: their images say nowhere where they lie.
    """

    first: Dataset
    carried: tuple[DataElement, ...]
    specific_character_set: CharacterSet
    series_number: int
    references: tuple[FrameReference, ...] = ()
    positions: tuple[str, ...] = ()
    placed: bool = True

    @property
    def instances(self) -> tuple[tuple[str, str], ...]:
        """(SOP Class UID, SOP Instance UID) of each source instance, once, in the order of k."""
        return tuple(
            dict.fromkeys((one.sop_class_uid, one.sop_instance_uid) for one in self.references)
        )


def read_sources(volume: Volume) -> Sources:
    """Reads the header of a volume's first source frame; pixels are not touched.

    Raises:
        EncodingFailed: when it can't be read any more.
    """
    try:
        first = pydicom.dcmread(volume.headers[0], stop_before_pixels=True)
        image = _image(first)
        several = volume.slices[0].number_of_frames > 1
        if several or _has_groups(first) or "ImagePositionPatient" not in image:
            _be_frame(image, volume.slices[0], volume)
        carried, character_set = settled(_carried(first), _character_set(first))
        number = (*_numbers(_element(first, "SeriesNumber")), 0.0)[0]
        return Sources(
            first=image,
            carried=carried,
            specific_character_set=character_set,
            series_number=int(number) if 0 <= number < 10**6 else 0,
            references=tuple(_reference(one) for one in volume.slices),
            positions=tuple(_position(one) for one in volume.slices),
            placed=_is_placed(first),
        )
    except _UNREADABLE as error:
        msg = (
            f"a source instance can't be read any more ({type(error).__name__}); "
            "send the series again"
        )
        raise EncodingFailed(msg) from error


def _reference(slice_: Slice) -> FrameReference:
    several = slice_.number_of_frames > 1
    number = slice_.frame_number if several else 0
    return FrameReference(slice_.sop_class_uid, slice_.sop_instance_uid, number)


def _position(slice_: Slice) -> str:
    return "\\".join(format_number_as_ds(mm) for mm in slice_.position_lps_mm)


def _has_groups(first: Dataset) -> bool:
    """What it says of its place besides is not of its frames (PS3.3 C.7.6.16)."""
    return any(keyword in first for keyword in _GROUPS)


def _is_placed(first: Dataset) -> bool:
    """Whether it says where it lies: itself, its first frame, or for all frames at once."""
    holders = [first]
    for sequence in _GROUPS:
        for groups in (first.get(sequence) or [])[:1]:
            holders += groups.get("PlanePositionSequence") or []
    return any(one.get("ImagePositionPatient") not in (None, "") for one in holders)


def _image(ds: Dataset) -> Dataset:
    image = Dataset()
    for keyword in _EMPTY_FOR_HIGHDICOM:
        setattr(image, keyword, "")
    for keyword in _GEOMETRY:
        element = _element(ds, keyword)
        if element is None or element.value in (None, ""):
            continue
        if keyword in _MAY_BE_LACKING:
            numbers = _numbers(element)
            if len(numbers) > _MAY_BE_LACKING[keyword] or not all(one > 0 for one in numbers):
                continue
        image.add(copy(element))
    if "FrameOfReferenceUID" not in image:
        # Without one a SEG can't say where it lies; the references to the source
        # instances, frame by frame, remain what ties the two together.
        image.FrameOfReferenceUID = stand_in_frame_of_reference_uid(image.SeriesInstanceUID)
    return image


def _be_frame(image: Dataset, slice_: Slice, volume: Volume) -> None:
    """Makes the small data set of a multi-frame object stand for one of its frames."""
    columns, rows = volume.affine_lps[:3, 0], volume.affine_lps[:3, 1]
    between_columns, between_rows = float(np.linalg.norm(columns)), float(np.linalg.norm(rows))
    image.SOPClassUID = CTImageStorage  # any of one frame: highdicom treats others differently
    image.SOPInstanceUID = stand_in_frame_uid(slice_.sop_instance_uid, slice_.frame_number)
    image.ImagePositionPatient = [DS(mm, auto_format=True) for mm in slice_.position_lps_mm]
    cosines = [*(columns / between_columns), *(rows / between_rows)]
    image.ImageOrientationPatient = [DS(float(one), auto_format=True) for one in cosines]
    image.PixelSpacing = [DS(mm, auto_format=True) for mm in (between_rows, between_columns)]


def _carried(first: Dataset) -> list[DataElement]:
    carried = []
    for keyword in (*_AS_THEY_ARE, *_WHEN_VALID):
        element = _element(first, keyword)
        if element is None or (keyword in _WHEN_VALID and not _is_valid(element)):
            blank = Dataset()
            setattr(blank, keyword, "")
            element = blank[keyword]
        carried.append(element)
    for keyword in _OPTIONAL:
        element = _element(first, keyword)
        if element is not None and not element.is_empty and _is_valid(element):
            carried.append(element)
    found = {element.keyword: element for element in carried}
    removed = found.get("PatientIdentityRemoved")
    if removed is not None and removed.value == "YES" and "DeidentificationMethod" not in found:
        # Type 1C (PS3.3 C.7.1.1); many sources say it in codes or not at all.
        carried.append(DataElement("DeidentificationMethod", "LO", "see the source series"))
    return carried


def _element(ds: Dataset, keyword: str) -> DataElement | None:
    """The element, or None where it is missing or its bytes make no sense."""
    try:
        return ds[keyword]
    except _UNREADABLE:  # KeyError: it is missing
        return None


def _numbers(element: DataElement | None) -> list[float]:
    """Its values as numbers; NaN for what is none, such as "A12" or "2.5 mm"."""
    if element is None or element.is_empty:
        return []
    numbers = []
    for value in element.value if element.VM > 1 else [element.value]:
        try:
            number = float(value)
        except (ValueError, TypeError, OverflowError):
            number = math.nan
        numbers.append(number if math.isfinite(number) else math.nan)
    return numbers


def _is_valid(element: DataElement) -> bool:
    if element.keyword == "PatientSex":
        return element.value in ("M", "F", "O", "", None)
    values = element.value if element.VM > 1 else [element.value]
    try:
        for value in values:
            validate_value(element.VR, value, pydicom.config.RAISE)
    except (ValueError, TypeError):
        return False
    return True


def _character_set(first: Dataset) -> CharacterSet:
    value = first.get("SpecificCharacterSet")
    if not value:
        return None
    return str(value) if isinstance(value, str) else [str(term) for term in value]
