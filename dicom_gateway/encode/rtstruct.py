"""A label map becomes an RT Structure Set: closed contours on the source's slices.

In: the mask on the source frames, what it was made from. Out: an RTSTRUCT ready to be
written, in implicit VR little endian, DICOM's default transfer syntax: in explicit VR a
contour of some thousand points doesn't fit into the two bytes of its length.

Source: PS3.3 A.19 (RT Structure Set IOD), C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour),
C.8.8.8 (RT ROI Observations).
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage

from dicom_gateway.encode.contours import outlines
from dicom_gateway.encode.origin import Origin, a_header, code, long_string, reference
from dicom_gateway.encode.segmentation import Mask
from dicom_gateway.records import ObjectKind, Output, Segment, Volume

STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"
"""Detached Study Management, retired: what Referenced SOP Class UID of a study must be."""

PALETTE = (
    (230, 80, 70),
    (70, 130, 230),
    (80, 190, 90),
    (240, 180, 60),
    (160, 90, 210),
    (60, 190, 200),
    (240, 120, 190),
    (150, 140, 60),
)
"""Colours (red, green, blue) of segments that the contract gives none, in turn."""

_CONTOUR_DATA = Tag("ContourData")
_ANATOMY = "91723000"


def make_structure_set(mask: Mask, output: Output, origin: Origin) -> Dataset | None:
    """Makes the RTSTRUCT of one output: a region of interest for each segment.

    Args:
        mask: [K, J, I] labels on the volume's slices.
        output: Its segment table; a segment without a voxel has no contours.
        origin: What it was made from.

    Returns:
        None of a projection, which has no place in the patient.
    """
    if not origin.sources.placed:
        return None
    kind = ObjectKind.RT_STRUCTURE_SET
    now = datetime.now()
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.SOPClassUID = RTStructureSetStorage
    a_header(ds, origin, output, kind, "RTSTRUCT")
    ds.OperatorsName = ""
    ds.PositionReferenceIndicator = ""
    ds.FrameOfReferenceUID = origin.sources.first.FrameOfReferenceUID
    ds.StructureSetLabel = long_string(origin.contract.pipeline, 16) or "tritome"
    ds.StructureSetName = long_string(f"{origin.contract.pipeline} {origin.contract.version}")
    ds.StructureSetDate, ds.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    ds.ReferencedFrameOfReferenceSequence = [_frame_of_reference(origin)]
    numbered = list(enumerate(output.segments, start=1))
    ds.StructureSetROISequence = [
        _region(number, segment, ds.FrameOfReferenceUID) for number, segment in numbered
    ]
    ds.ROIContourSequence = [
        _contours(number, segment, mask, origin) for number, segment in numbered
    ]
    ds.RTROIObservationsSequence = [_observation(number, segment) for number, segment in numbered]
    ds.ApprovalStatus = "UNAPPROVED"
    replaced = origin.replaced_references(output, kind)
    if replaced:
        ds.PredecessorStructureSetSequence = replaced
    return ds


def segment_colour(segment: Segment, number: int) -> tuple[int, int, int]:
    """The contract's colour, or one of ours."""
    return segment.colour_rgb or PALETTE[(number - 1) % len(PALETTE)]


def _frame_of_reference(origin: Origin) -> Dataset:
    first = origin.sources.first
    series = Dataset()
    series.SeriesInstanceUID = first.SeriesInstanceUID
    series.ContourImageSequence = [reference(*one) for one in origin.sources.instances]
    study = reference(STUDY_COMPONENT, str(first.StudyInstanceUID))
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _region(number: int, segment: Segment, frame_of_reference_uid: str) -> Dataset:
    region = Dataset()
    region.ROINumber = number
    region.ReferencedFrameOfReferenceUID = frame_of_reference_uid
    region.ROIName = long_string(segment.name)
    region.ROIGenerationAlgorithm = "AUTOMATIC"
    return region


def _contours(number: int, segment: Segment, mask: Mask, origin: Origin) -> Dataset:
    region = Dataset()
    region.ReferencedROINumber = number
    region.ROIDisplayColor = list(segment_colour(segment, number))
    items = []
    for k, labels in enumerate(mask):
        found = labels == segment.label
        if not found.any():
            continue
        source = origin.sources.references[k]
        for polygon in outlines(found):
            contour = Dataset()
            contour.ContourImageSequence = [
                reference(source.sop_class_uid, source.sop_instance_uid, source.frame_number)
            ]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(polygon)
            # As bytes: a number at a time would take minutes for a million.
            text = "\\".join(f"{mm:.4f}" for mm in _lps_mm(polygon, origin.volume, k).ravel())
            value = text.encode("ascii") + b" " * (len(text) % 2)
            contour[_CONTOUR_DATA] = RawDataElement(
                _CONTOUR_DATA, "DS", len(value), value, 0, True, True
            )
            items.append(contour)
    if items:
        region.ContourSequence = items
    return region


def _lps_mm(polygon: NDArray[np.float64], volume: Volume, k: int) -> NDArray[np.float64]:
    """(i, j) in pixels of slice k -> millimetres, [P, 3]."""
    origin = np.array(volume.slices[k].position_lps_mm)
    return np.asarray(origin + polygon @ volume.affine_lps[:3, :2].T)


def _observation(number: int, segment: Segment) -> Dataset:
    observation = Dataset()
    observation.ObservationNumber = number
    observation.ReferencedROINumber = number
    observation.ROIObservationLabel = long_string(segment.name, 16)
    identified = code(segment.type)
    if segment.type_modifier:
        identified.SegmentedPropertyTypeModifierCodeSequence = [code(segment.type_modifier)]
    observation.RTROIIdentificationCodeSequence = [identified]
    observation.RTROIInterpretedType = "ORGAN" if segment.category.value == _ANATOMY else ""
    observation.ROIInterpreter = ""
    return observation
