"""What the gate asks of an object of any kind: whose it is, and what its codes say.

In: an object as it was re-read from the disk. Out: nothing, or `Misplaced` in words without a
value of the data set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_gateway.encode.gate.truth import Misplaced, Truth, patient_of
from dicom_gateway.records import CodedConcept, Output, Segment

LEFT, RIGHT = "7771000", "24028007"


def check_belongs(ds: Dataset, truth: Truth, uid: str, sop_class_uid: str) -> None:
    """The object is the one that is announced, of the sources' study and patient."""
    if (str(ds.SOPInstanceUID), str(ds.SOPClassUID)) != (uid, sop_class_uid):
        msg = "it is another object than announced"
        raise Misplaced(msg)
    if str(ds.StudyInstanceUID) != truth.study_instance_uid:
        msg = "it belongs to another study than its sources"
        raise Misplaced(msg)
    if patient_of(ds) != truth.patient:
        msg = "it names another patient than its sources"
        raise Misplaced(msg)


def check_frame_of_reference(uid: str, truth: Truth) -> None:
    """It lies in the sources' frame of reference."""
    known = truth.frame_of_reference_uid
    if known is not None and uid != known:
        msg = "its frame of reference is not the source's"
        raise Misplaced(msg)


def check_is(items: object, concept: CodedConcept | None, what: str) -> None:
    """A code sequence holds exactly this concept, or nothing where there is none."""
    found = [(str(one.CodeValue), str(one.CodingSchemeDesignator)) for one in items or []]  # type: ignore[attr-defined]
    wanted = [(concept.value, concept.scheme_designator)] if concept else []
    if found != wanted:
        msg = f"{what} is not coded as the contract has it"
        raise Misplaced(msg)


def check_described(item: Dataset, segment: Segment, number: int) -> None:
    """A segment's name and codes (PS3.3 C.8.20.4) are those of the contract."""
    if str(item.SegmentLabel) != " ".join(segment.name.replace("\\", "/").split())[:64].strip():
        msg = f"segment {number} has another name than the contract gives it"
        raise Misplaced(msg)
    check_is(item.SegmentedPropertyCategoryCodeSequence, segment.category, f"segment {number}")
    types = item.SegmentedPropertyTypeCodeSequence
    check_is(types, segment.type, f"segment {number}")
    sides = types[0].get("SegmentedPropertyTypeModifierCodeSequence")
    check_is(sides, segment.type_modifier, f"the side of segment {number}")
    check_is(item.get("AnatomicRegionSequence"), segment.anatomic_region, f"segment {number}")


def check_sides(mask: NDArray[Any], output: Output, truth: Truth) -> None:
    """What is coded as left lies further to the patient's left than its counterpart.

    Where an output has pairs of segments that differ by their side alone, and every pair
    that was found lies the wrong way round, the mask or the table is mirrored. One pair of
    several may be: anatomy varies, and specks are found anywhere.
    """
    if not truth.placed:
        return
    sided: dict[tuple[str, str | None], dict[str, Segment]] = {}
    for segment in output.segments:
        side = segment.type_modifier.value if segment.type_modifier else ""
        if side in {LEFT, RIGHT}:
            region = segment.anatomic_region.value if segment.anatomic_region else None
            sided.setdefault((segment.type.value, region), {}).setdefault(side, segment)
    crossed = []
    for pair in sided.values():
        if len(pair) == 2:
            left, right = (_middle_x(mask, pair[side].label, truth) for side in (LEFT, RIGHT))
            if left is not None and right is not None:
                crossed.append(left < right)
    if crossed and all(crossed):
        msg = "what is coded as left lies to the right of what is coded as right"
        raise Misplaced(msg)


def _middle_x(mask: NDArray[Any], label: int, truth: Truth) -> float | None:
    """Mean x (LPS, towards the patient's left) of a label's voxels."""
    count, total = 0, 0.0
    for labels, plane in zip(mask, truth.planes, strict=True):
        found = labels == label
        here = int(np.count_nonzero(found))
        if here:
            rows, columns = found.sum(axis=1), found.sum(axis=0)
            total += here * plane.origin[0]
            total += float(columns @ np.arange(len(columns))) * plane.along_i[0]
            total += float(rows @ np.arange(len(rows))) * plane.along_j[0]
            count += here
    return total / count if count else None
