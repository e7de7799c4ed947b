"""Does an SR say what was measured, of the right segment, on the right images?

In: an SR as it was re-read, mask or scores, and sources. Out: nothing, or `Misplaced`. The
volumes are computed anew from the mask and the source files.

Source: PS3.16 TID 1500, 1411, 1419, 1501; PS3.3 C.17 (SR content and evidence).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_gateway.encode.gate.common import LEFT, RIGHT, check_is
from dicom_gateway.encode.gate.truth import Misplaced, Truth
from dicom_gateway.records import CodedConcept, Output, Segment

RELATIVE_TOLERANCE = 1e-5
"""How far a number may be from its true value: it is written with six digits."""

_GROUP = ("125007", "DCM")
_REFERENCED_SEGMENT = ("121191", "DCM")
_SOURCE_SERIES = ("121232", "DCM")
_SOURCE_IMAGE = ("260753009", "SCT")
_SOURCE_IMAGE_TOO = ("121112", "DCM")
_FINDING = ("121071", "DCM")
_CATEGORY = ("276214006", "SCT")
_SITE = ("363698007", "SCT")
_LATERALITY = ("272741003", "SCT")
_VOLUME = ("118565006", "SCT")


def check_volumes(
    ds: Dataset,
    mask: NDArray[Any],
    output: Output,
    truth: Truth,
    segmentation: tuple[str, str, str] | None,
) -> None:
    """Holds an SR with volumes against mask [K, J, I] and sources.

    Args:
        ds: The SR.
        mask: Labels.
        output: Its segment table.
        truth: The sources.
        segmentation: SOP class, instance and series of the SEG that it must refer to, if any.
    """
    heights = truth.heights_mm()
    groups = list(_groups(ds))
    if heights is None or len(groups) != len(output.segments):
        msg = "it has more or fewer groups of measurements than there are segments"
        raise Misplaced(msg)
    plane = truth.planes[0]
    area_mm2 = float(np.linalg.norm(np.cross(plane.along_i, plane.along_j)))
    for number, (group, segment) in enumerate(zip(groups, output.segments, strict=True), start=1):
        which = f"segment {number}"
        counts = np.array([np.count_nonzero(labels == segment.label) for labels in mask])
        _check_number(group, _VOLUME, float(counts @ heights) * area_mm2 / 1000.0, "mL", which)
        _check_named(group, segment, which)
        if segmentation is not None:
            _check_segment(group, number, segmentation, truth, which)
        else:
            with_content = {int(k) for k in np.flatnonzero(counts)} or {0}
            _check_images(group, with_content, truth, which)
    _check_evidence(ds, truth, segmentation)


def check_scores(ds: Dataset, scores: NDArray[np.float32], output: Output, truth: Truth) -> None:
    """Holds an SR with scores [n] against them and the sources."""
    groups = list(_groups(ds))
    numbers = [] if len(groups) != 1 else [i for i in groups[0] if i.ValueType == "NUM"]
    if len(numbers) != len(scores):
        msg = "it has more or fewer scores than the pipeline gave"
        raise Misplaced(msg)
    for place, (item, score) in enumerate(zip(numbers, scores, strict=True)):
        _check_value(item, float(score), "1", f"score {place + 1}")
        if output.classes:
            one = output.classes[place]
            name = item.ConceptNameCodeSequence
            if one.code is not None:
                check_is(name, one.code, f"score {place + 1}")
            elif str(name[0].CodeMeaning) != " ".join(one.name.replace("\\", "/").split())[:64]:
                msg = f"score {place + 1} has another name than the contract gives it"
                raise Misplaced(msg)
    _check_images(groups[0], set(range(len(truth.planes))), truth, "the scores")
    _check_evidence(ds, truth, None)


def _groups(ds: Dataset) -> Iterator[Sequence[Dataset]]:
    for item in ds.ContentSequence:
        if _name(item) == _GROUP:
            yield item.ContentSequence
        elif "ContentSequence" in item:
            yield from _groups(item)


def _name(item: Dataset) -> tuple[str, str]:
    if "ConceptNameCodeSequence" not in item:
        return "", ""
    concept = item.ConceptNameCodeSequence[0]
    return str(concept.CodeValue), str(concept.CodingSchemeDesignator)


def _only(group: Sequence[Dataset], name: tuple[str, str], which: str) -> Dataset:
    found = [item for item in group if _name(item) == name]
    if len(found) != 1:
        msg = f"{which} says something twice, or not at all"
        raise Misplaced(msg)
    return found[0]


def _check_number(
    group: Sequence[Dataset], name: tuple[str, str], right: float, unit: str, which: str
) -> None:
    _check_value(_only(group, name, which), right, unit, f"the volume of {which}")


def _check_value(item: Dataset, right: float, unit: str, which: str) -> None:
    (measured,) = item.MeasuredValueSequence
    stated = float(measured.NumericValue)
    if not abs(stated - right) <= RELATIVE_TOLERANCE * abs(right):
        msg = f"{which} is not what was measured"
        raise Misplaced(msg)
    if str(measured.MeasurementUnitsCodeSequence[0].CodeValue) != unit:
        msg = f"{which} has another unit"
        raise Misplaced(msg)


def _check_named(group: Sequence[Dataset], segment: Segment, which: str) -> None:
    check_is(_only(group, _FINDING, which).ConceptCodeSequence, segment.type, which)
    check_is(_only(group, _CATEGORY, which).ConceptCodeSequence, segment.category, which)
    label = " ".join(segment.name.replace("\\", "/").split())
    tracking = _only(group, ("112039", "DCM"), which).TextValue
    if not str(tracking).endswith(label[-16:]) and len(str(tracking)) < 64:
        msg = f"{which} has another name than the contract gives it"
        raise Misplaced(msg)
    sides: list[CodedConcept | None] = [None]
    if segment.type_modifier and segment.type_modifier.value in {LEFT, RIGHT}:
        sides = [segment.type_modifier]
    elif segment.type_modifier:
        sides = [segment.type_modifier, None]
    found = [item for item in group if _name(item) == _SITE]
    stated = [
        child.ConceptCodeSequence
        for site in found
        for child in site.get("ContentSequence", [])
        if _name(child) == _LATERALITY
    ]
    for side in sides:
        if len(stated) == (side is not None) and (
            side is None or str(stated[0][0].CodeValue) == side.value
        ):
            return
    msg = f"{which} is on another side than the contract has it"
    raise Misplaced(msg)


def _check_segment(
    group: Sequence[Dataset],
    number: int,
    segmentation: tuple[str, str, str],
    truth: Truth,
    which: str,
) -> None:
    (reference,) = _only(group, _REFERENCED_SEGMENT, which).ReferencedSOPSequence
    named = str(reference.ReferencedSOPClassUID), str(reference.ReferencedSOPInstanceUID)
    if named != segmentation[:2] or int(reference.ReferencedSegmentNumber) != number:
        msg = f"{which} is referenced in another segmentation, or under another number"
        raise Misplaced(msg)
    if str(_only(group, _SOURCE_SERIES, which).UID) != truth.planes[0].series_instance_uid:
        msg = f"{which} names another source series"
        raise Misplaced(msg)


def _check_images(group: Sequence[Dataset], right: set[int], truth: Truth, which: str) -> None:
    named: list[int] = []
    for item in group:
        if item.ValueType == "IMAGE" and _name(item) in {_SOURCE_IMAGE, _SOURCE_IMAGE_TOO}:
            (reference,) = item.ReferencedSOPSequence
            frames = reference.get("ReferencedFrameNumber")
            several = [frames] if frames is None or isinstance(frames, int) else list(frames)
            for frame in several:
                one = Dataset()
                one.ReferencedSOPClassUID = reference.ReferencedSOPClassUID
                one.ReferencedSOPInstanceUID = reference.ReferencedSOPInstanceUID
                if frame is not None:
                    one.ReferencedFrameNumber = int(frame)
                named.append(truth.plane_of(one))
    if sorted(named) != sorted(right):
        msg = f"{which} names other images than it was measured on"
        raise Misplaced(msg)


def _check_evidence(ds: Dataset, truth: Truth, segmentation: tuple[str, str, str] | None) -> None:
    """Everything it was made from is in its lists of evidence, and nothing else."""
    named: list[tuple[str, str]] = []
    lists = ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
    for study in (one for keyword in lists for one in ds.get(keyword, [])):
        if str(study.StudyInstanceUID) != truth.study_instance_uid:
            msg = "its evidence lies in another study"
            raise Misplaced(msg)
        for series in study.ReferencedSeriesSequence:
            for one in series.ReferencedSOPSequence:
                uid = str(one.ReferencedSOPInstanceUID)
                named.append((str(series.SeriesInstanceUID), uid))
    right = {(plane.series_instance_uid, plane.sop_instance_uid) for plane in truth.planes}
    others = [pair for pair in named if pair not in right]
    expected = [(segmentation[2], segmentation[1])] if segmentation else []
    if len(set(named)) != len(named) or right - set(named) or others != expected:
        msg = "its evidence is not what it was made from"
        raise Misplaced(msg)
