"""Volumes and scores become a Structured Report that other programs can read.

In: the mask of one output, or its scores, and what they were made from. Out: a Comprehensive
SR by TID 1500, ready to be written. A segment's volume refers to the segment in our own SEG,
where there is one, else to the source images that it lies on.

Comprehensive SR, not Comprehensive 3D SR: there are no coordinates in it, and more peers
take it.

Source: PS3.16 TID 1500, 1411, 1501 (measurement report and groups), 1004 (device observer),
PS3.3 A.35.3 (Comprehensive SR IOD).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.sr import CodedConcept as Code
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_gateway.encode.identity import device_uid, tracking_uid
from dicom_gateway.encode.origin import MANUFACTURER, Origin, carry, code, long_string
from dicom_gateway.encode.segmentation import Mask, slice_gaps_mm
from dicom_gateway.records import CodedConcept, ObjectKind, Output, Segment

Group = (
    hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations
    | hd.sr.MeasurementsAndQualitativeEvaluations
)

VOLUME = Code("118565006", "SCT", "Volume")
MILLILITRE = Code("mL", "UCUM", "milliliter")
NO_UNITS = Code("1", "UCUM", "no units")

SIDES = frozenset({"7771000", "24028007", "51440002", "66459002"})
"""SNOMED's left, right, right and left, unilateral (PS3.16 CID 244)."""

_PROCEDURES = {
    "CT": Code("77477000", "SCT", "Computed Tomography"),
    "MR": Code("113091000", "SCT", "Magnetic Resonance Imaging"),
    "PT": Code("82918005", "SCT", "Positron emission tomography"),
    "DX": Code("168537006", "SCT", "Plain radiography"),
    "CR": Code("168537006", "SCT", "Plain radiography"),
}
_IMAGING = Code("363679005", "SCT", "Imaging procedure")

_MM3_PER_ML = 1000.0

FEW_LABELS = 16
"""Up to so many are counted faster one by one, by comparing, than all at once."""

_DIGITS = 6
"""Significant digits of a number: a voxel's worth of a large organ, and no more."""


@dataclass(frozen=True, slots=True)
class SegmentationReference:
    """The SEG that has the segments of a report."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str


def make_volume_report(
    mask: Mask, output: Output, origin: Origin, segmentation: SegmentationReference | None
) -> Dataset | None:
    """Makes the SR with the volume of each segment of one output.

    Args:
        mask: [K, J, I] labels on the volume's slices.
        output: Its segment table.
        origin: What it was made from.
        segmentation: Where the segments lie as an object of their own.

    Returns:
        None where the sources have no extent in the third direction (a projection): areas
        of one aren't those of the patient.
    """
    volumes = volumes_ml(mask, output, origin)
    if volumes is None:
        return None
    groups: list[Group] = []
    for number, (segment, volume_ml) in enumerate(
        zip(output.segments, volumes, strict=True), start=1
    ):
        measurement = hd.sr.Measurement(VOLUME, _rounded(volume_ml), MILLILITRE)
        common: dict[str, Any] = {
            "tracking_identifier": _tracking(origin, output, number, segment.name),
            "finding_type": code(segment.type),
            "finding_category": code(segment.category),
            "finding_sites": _sites(segment),
            "algorithm_id": _algorithm(origin),
            "measurements": [measurement],
        }
        if segmentation is not None:
            referenced = hd.sr.ReferencedSegment(
                segmentation.sop_class_uid,
                segmentation.sop_instance_uid,
                segment_number=number,
                source_series=hd.sr.SourceSeriesForSegmentation(
                    str(origin.sources.first.SeriesInstanceUID)
                ),
            )
            groups.append(
                hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                    referenced_segment=referenced, **common
                )
            )
        else:
            planes = np.flatnonzero((mask == segment.label).any(axis=(1, 2)))
            images = _source_images(origin, [int(k) for k in planes] or [0])
            groups.append(
                hd.sr.MeasurementsAndQualitativeEvaluations(source_images=images, **common)
            )
    return _report(groups, output, origin, segmentation)


def make_score_report(scores: NDArray[np.float32], output: Output, origin: Origin) -> Dataset:
    """Makes the SR with the scores of one output, one number for each class.

    Args:
        scores: [n], one for each of the output's classes.
        output: Its classes say what the numbers mean; without any they are counted.
        origin: What they were made from.
    """
    measurements = [
        hd.sr.Measurement(name, _rounded(float(score)), NO_UNITS)
        for name, score in zip(score_names(output, len(scores)), scores, strict=True)
    ]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(origin, output, 0, output.name),
        algorithm_id=_algorithm(origin),
        measurements=measurements,
        source_images=_source_images(origin, range(len(origin.sources.references))),
    )
    return _report([group], output, origin, None)


def volumes_ml(mask: Mask, output: Output, origin: Origin) -> list[float] | None:
    """The volume of each segment: its voxels, each as high as its slice reaches.

    A slice reaches half-way to its neighbours, the outermost ones as far outwards as inwards;
    a single one by its thickness. None where there is no height.
    """
    affine = origin.volume.affine_lps
    gaps = slice_gaps_mm(origin.volume)
    if len(gaps):
        heights = np.concatenate([gaps[:1], (gaps[:-1] + gaps[1:]) / 2, gaps[-1:]])
    else:
        first = origin.sources.first
        placed = origin.sources.placed
        heights = np.array([float(first.get("SliceThickness") or 0.0) if placed else 0.0])
    if not origin.sources.placed or not (heights > 0).all():
        return None
    area_mm2 = float(np.linalg.norm(np.cross(affine[:3, 0], affine[:3, 1])))
    labels = [segment.label for segment in output.segments]
    per_label = heights @ _counts(mask, labels) * area_mm2 / _MM3_PER_ML
    return [float(volume) for volume in per_label]


def _counts(mask: Mask, labels: Sequence[int]) -> NDArray[np.float64]:
    """[K, n]: how many voxels of each label each slice has."""
    counts = np.zeros((len(mask), len(labels)))
    for k, plane in enumerate(mask):
        if not plane.any():
            continue
        if len(labels) <= FEW_LABELS:
            counts[k] = [np.count_nonzero(plane == label) for label in labels]
        else:
            counts[k] = np.bincount(plane.ravel(), minlength=1 + max(labels))[labels]
    return counts


def score_names(output: Output, count: int) -> list[Code]:
    """A code for each score: the class's own, or a private one made from its name."""
    if not output.classes:
        return [Code(f"SCORE-{n}", "99TRITOME", f"Score {n}") for n in range(1, count + 1)]
    return [code(one.code or private_code(one.name)) for one in output.classes]


def private_code(name: str) -> CodedConcept:
    """A code for a class that the bundle gives none: the same for the same name."""
    digest = hashlib.sha256(name.encode("utf-8")).hexdigest()[:8].upper()
    return CodedConcept(f"CLASS-{digest}", "99TRITOME", long_string(name) or "class")


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _tracking(origin: Origin, output: Output, number: int, name: str) -> hd.sr.TrackingIdentifier:
    return hd.sr.TrackingIdentifier(
        uid=tracking_uid(origin.job.job_id, output.name, origin.index, number),
        identifier=long_string(f"{origin.contract.pipeline} {name}"),
    )


def _sites(segment: Segment) -> list[hd.sr.FindingSite] | None:
    side = segment.type_modifier
    if side is not None and side.value not in SIDES:
        side = None
    place = segment.anatomic_region or (segment.type if side else None)
    if place is None:
        return None
    return [hd.sr.FindingSite(code(place), laterality=code(side) if side else None)]


def _algorithm(origin: Origin) -> hd.sr.AlgorithmIdentification:
    contract = origin.contract
    return hd.sr.AlgorithmIdentification(
        long_string(contract.pipeline),
        long_string(contract.version),
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=long_string(contract.weights.get("source", "")) or None,
    )


def _source_images(
    origin: Origin, planes: Sequence[int]
) -> list[hd.sr.SourceImageForMeasurementGroup]:
    frames: dict[tuple[str, str], list[int]] = {}
    for k in planes:
        one = origin.sources.references[k]
        numbers = frames.setdefault((one.sop_class_uid, one.sop_instance_uid), [])
        numbers += [one.frame_number] if one.frame_number else []
    return [
        hd.sr.SourceImageForMeasurementGroup(sop_class, uid, sorted(numbers) or None)
        for (sop_class, uid), numbers in frames.items()
    ]


def _report(
    groups: Sequence[Group],
    output: Output,
    origin: Origin,
    segmentation: SegmentationReference | None,
) -> Dataset:
    contract = origin.contract
    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=device_uid(contract),
            name=long_string(f"{contract.pipeline} {contract.version}"),
            manufacturer_name=MANUFACTURER,
            model_name=long_string(contract.pipeline),
            serial_number=origin.device_serial_number,
        ),
    )
    first = origin.sources.first
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_PROCEDURES.get(str(first.get("Modality", "")), _IMAGING),
        imaging_measurements=groups,
    )
    kind = ObjectKind.STRUCTURED_REPORT
    report = hd.sr.ComprehensiveSR(
        evidence=_evidence(origin, segmentation),
        content=content[0],
        series_instance_uid=origin.series_uid(output, kind),
        series_number=origin.series_number(kind),
        sop_instance_uid=origin.uid(output, kind),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        specific_character_set=None,
    )
    report.SeriesDescription = origin.series_description(kind)
    report.ManufacturerModelName = long_string(contract.pipeline)
    report["SoftwareVersions"] = DataElement(
        "SoftwareVersions", "LO", list(origin.software_versions)
    )
    report.DeviceSerialNumber = origin.device_serial_number
    replaced = origin.replaced_documents(output, kind)
    if replaced:
        report.PredecessorDocumentsSequence = replaced
    carry(report, origin, [output])
    return report


def _evidence(origin: Origin, segmentation: SegmentationReference | None) -> list[Dataset]:
    """Every source instance and the SEG, as highdicom takes them: without a patient."""
    first = origin.sources.first
    evidence: list[Dataset] = []
    for sop_class_uid, sop_instance_uid in origin.sources.instances:
        one = copy(first) if not evidence else Dataset()  # the first gives patient and study
        one.StudyInstanceUID = first.StudyInstanceUID
        one.SeriesInstanceUID = first.SeriesInstanceUID
        # Elements of their own: those of a copy are the original's.
        one["SOPClassUID"] = DataElement("SOPClassUID", "UI", sop_class_uid)
        one["SOPInstanceUID"] = DataElement("SOPInstanceUID", "UI", sop_instance_uid)
        evidence.append(one)
    if segmentation is not None:
        seg = Dataset()
        seg.StudyInstanceUID = first.StudyInstanceUID
        seg.SeriesInstanceUID = segmentation.series_instance_uid
        seg.SOPClassUID = segmentation.sop_class_uid
        seg.SOPInstanceUID = segmentation.sop_instance_uid
        evidence.append(seg)
    return evidence
