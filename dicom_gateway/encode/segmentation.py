"""A label map becomes a DICOM Segmentation that lies on its source instances.

In: the mask on the source frames, what it was made from. Out: a SEG ready to be written:
BINARY, which most peers take, or LABELMAP, smaller where segments are many. highdicom makes
everything but the frames; those are `frames.py`'s.

Source: PS3.3 A.51 and A.90 (Segmentation and Label Map Segmentation IODs), C.8.20.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.sr.codedict import codes

from dicom_gateway.encode import frames as parts
from dicom_gateway.encode.identity import dimension_organization_uid
from dicom_gateway.encode.origin import MANUFACTURER, Origin, carry, code, long_string, reference
from dicom_gateway.records import Contract, ObjectKind, Output, Segment, Volume

Mask = NDArray[np.uint8] | NDArray[np.uint16]

EVEN_FRACTION = 0.1
"""Distances between slices that differ by more, as a fraction, are not one distance."""

STRAIGHT_FRACTION = 0.01
"""Slices that lie further beside each other, as a fraction of their distance, are tilted."""

_MADE_HERE = ("NumberOfFrames", "PerFrameFunctionalGroupsSequence", "PixelData")


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A SEG in three parts, which lie behind each other in its file.

    Attributes:
        head: Everything before the frames.
        groups: Items of the Per-Frame Functional Groups Sequence.
        pixels: The value of Pixel Data.
    """

    head: Dataset
    groups: bytes
    pixels: bytes

    def write(self, file: BinaryIO) -> None:
        """Writes the file (PS3.10), explicit VR little endian.

        Only Pixel Data and its like have tags behind the frames' (PS3.6 6).
        """
        before = DicomBytesIO()
        self.head.save_as(before, enforce_file_format=True)
        file.write(before.getvalue())
        file.write(parts.element_bytes("PerFrameFunctionalGroupsSequence", self.groups))
        file.write(parts.element_bytes("PixelData", self.pixels, "OB"))


def make_segmentation(mask: Mask, output: Output, origin: Origin, kind: ObjectKind) -> Segmentation:
    """Makes the SEG of one output.

    All segments of the contract are described, also those without a voxel. Frames without a
    voxel are left out; of a mask without any voxel one frame of each segment remains.

    Args:
        mask: [K, J, I] labels on the volume's slices; 0 is background.
        output: Its segment table says what the labels mean.
        origin: What it was made from.
        kind: SEGMENTATION (BINARY) or LABELMAP_SEGMENTATION.
    """
    binary = kind is ObjectKind.SEGMENTATION
    numbered = segment_numbers(mask, output)
    sources = origin.sources
    order = _order(origin)
    head = _head(numbered, output, origin, kind)
    if binary:
        made = parts.binary_frames(numbered, order, len(output.segments))
    else:
        # The library takes as few bits as the number of segments needs.
        made = parts.labelmap_frames(numbered, order, int(head.BitsAllocated))
    head.NumberOfFrames = len(made.frames)
    groups = parts.functional_groups(
        made.frames,
        sources.positions,
        sources.references,
        identify=binary,
    )
    return Segmentation(head, groups, made.pixels)


def segment_numbers(mask: Mask, output: Output) -> Mask:
    """Labels [K, J, I] -> segment numbers: 1, 2, ... in the order of the segment table."""
    if [segment.label for segment in output.segments] == list(range(1, len(output.segments) + 1)):
        return mask
    table = np.zeros(np.iinfo(mask.dtype).max + 1, dtype=mask.dtype)
    for number, segment in enumerate(output.segments, start=1):
        table[segment.label] = number
    return table[mask]  # type: ignore[return-value] # the dtype is the mask's


def _order(origin: Origin) -> list[int]:
    """Planes from the one that lies furthest along the normal to the nearest, as highdicom."""
    normal = np.cross(origin.volume.affine_lps[:3, 0], origin.volume.affine_lps[:3, 1])
    along = np.array([one.position_lps_mm for one in origin.volume.slices]) @ normal
    return [int(plane) for plane in np.argsort(-along, kind="stable")]


def _head(numbered: Mask, output: Output, origin: Origin, kind: ObjectKind) -> Dataset:
    """Everything but the frames: highdicom's SEG of one empty slice, without that slice."""
    volume, contract, sources = origin.volume, origin.contract, origin.sources
    first = sources.first
    measures = _pixel_measures(volume, first)
    if "SliceThickness" not in first:  # type 2, and highdicom can't do without
        first.SliceThickness = measures[0].SliceThickness
    binary = kind is ObjectKind.SEGMENTATION
    uid = origin.uid(output, kind)
    head = hd.seg.Segmentation(
        source_images=[first],
        pixel_array=np.zeros_like(numbered[:1]),
        segmentation_type="BINARY" if binary else "LABELMAP",
        segment_descriptions=[
            _description(number, segment, contract)
            for number, segment in enumerate(output.segments, start=1)
        ],
        series_instance_uid=origin.series_uid(output, kind),
        series_number=origin.series_number(kind),
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=long_string(contract.pipeline),
        software_versions=origin.software_versions,  # type: ignore[arg-type] # it takes several
        device_serial_number=origin.device_serial_number,
        pixel_measures=measures,
        omit_empty_frames=False,
        content_label="SEGMENTATION",
        content_description=long_string(volume.name or contract.description) or None,
        series_description=origin.series_description(kind),
        specific_character_set=None,
    )
    for keyword in _MADE_HERE:
        delattr(head, keyword)
    shared = head.SharedFunctionalGroupsSequence[0]
    if "SegmentIdentificationSequence" in shared:  # of a single segment; each frame names it
        del shared.SegmentIdentificationSequence
    # From one slice highdicom would conclude a distance of its own.
    shared.PixelMeasuresSequence = _pixel_measures(volume, first)
    if "DimensionOrganizationType" in head:
        del head.DimensionOrganizationType  # what it says of one slice doesn't hold for all
    organization = dimension_organization_uid(uid)
    for item in (*head.DimensionOrganizationSequence, *head.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    _refer_to_sources(head, origin)
    replaced = origin.replaced_images(output, kind)
    if replaced:
        head.ReferencedImageSequence = replaced
    carry(head, origin, [output])
    return head


def _refer_to_sources(head: Dataset, origin: Origin) -> None:
    """Names every source instance once (PS3.3 C.12.2, Common Instance Reference)."""
    sources = origin.sources
    head.SourceImageSequence = [reference(*one) for one in sources.instances]
    series = Dataset()
    series.SeriesInstanceUID = sources.first.SeriesInstanceUID
    series.ReferencedInstanceSequence = [reference(*one) for one in sources.instances]
    head.ReferencedSeriesSequence = [series]


def _description(number: int, segment: Segment, contract: Contract) -> hd.seg.SegmentDescription:
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=long_string(segment.name),
        segmented_property_category=code(segment.category),
        segmented_property_type=code(segment.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=long_string(contract.pipeline),
            family=codes.DCM.ArtificialIntelligence,
            version=long_string(contract.version),
            source=long_string(contract.weights.get("source", "")) or None,
        ),
        anatomic_regions=[code(segment.anatomic_region)] if segment.anatomic_region else None,
        display_color=CIELabColor.from_rgb(*segment.colour_rgb) if segment.colour_rgb else None,
    )
    if segment.type_modifier:
        # The side belongs to the type ("Lung", modified by "Left"): PS3.3 C.8.20.4.
        property_type = description.SegmentedPropertyTypeCodeSequence[0]
        property_type.SegmentedPropertyTypeModifierCodeSequence = [code(segment.type_modifier)]
    return description


def _pixel_measures(volume: Volume, first: Dataset) -> hd.PixelMeasuresSequence:
    gaps = slice_gaps_mm(volume)
    spacing_mm = float(gaps.mean()) if len(gaps) else 0.0
    even = bool(len(gaps)) and float(np.ptp(gaps)) <= EVEN_FRACTION * spacing_mm
    even = even and _straight(volume)
    thickness_mm = float(first.get("SliceThickness") or 0.0) or spacing_mm or 1.0
    return hd.PixelMeasuresSequence(
        pixel_spacing=[float(value) for value in first.PixelSpacing],
        slice_thickness=thickness_mm,
        # Source frames that were resampled may have any distance, and tilted ones lie beside
        # each other: then none is claimed, for a viewer might build a volume with it.
        spacing_between_slices=round(spacing_mm, 6) if even else None,
    )


def _straight(volume: Volume) -> bool:
    positions = np.array([one.position_lps_mm for one in volume.slices])
    step = (positions[-1] - positions[0]) / max(1, len(positions) - 1)
    normal = np.cross(volume.affine_lps[:3, 0], volume.affine_lps[:3, 1])
    normal /= np.linalg.norm(normal)
    sideways = step - (step @ normal) * normal
    return float(np.linalg.norm(sideways)) <= STRAIGHT_FRACTION * float(np.linalg.norm(step))


def slice_gaps_mm(volume: Volume) -> NDArray[np.float64]:
    """[K - 1] distances of neighbouring slices along their normal."""
    normal = np.cross(volume.affine_lps[:3, 0], volume.affine_lps[:3, 1])
    along = np.array([one.position_lps_mm for one in volume.slices]) @ normal
    gaps: NDArray[np.float64] = np.abs(np.diff(along)) / float(np.linalg.norm(normal))
    return gaps
