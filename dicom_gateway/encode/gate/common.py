"""What the gate asks of an object of any kind: whose it is, and what its codes say.

In: an object as it was re-read from the disk. Out: nothing, or `Misplaced` in words without a
value of the data set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_gateway.encode.gate.truth import Misplaced, Truth, identity_of
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
    whose = identity_of(ds)
    for keyword, right in truth.identity.items():
        if whose[keyword] != right and (whose[keyword] or not _may_be_left_out(keyword, right)):
            msg = f"its {keyword} is not that of its sources"
            raise Misplaced(msg)


_DATE = r"[0-9]{4}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])"
_BY_THE_BOOK = {
    "PatientBirthDate": _DATE,
    "PatientSex": r"[MFO]",
    "StudyDate": _DATE,
    "StudyTime": r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?",
    "IssuerOfPatientID": r"[^\\\x00-\x1f\x7f]{1,64}",
}
"""What may be left out of a result where the source's value doesn't look like this. The others
are taken over however odd, for a PACS files by them (PS3.5 6.2)."""


def _may_be_left_out(keyword: str, value: str) -> bool:
    return keyword in _BY_THE_BOOK and not re.fullmatch(_BY_THE_BOOK[keyword], value)


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


LabelMaps = Sequence[tuple[NDArray[Any], Output]]
"""Masks [K, J, I], each with what its labels mean."""


class Sides:
    """What is coded as left lies further to the patient's left than its counterpart.

    Where there are pairs of segments that differ by their side alone, and every pair that was
    found lies the wrong way round, the mask or the table is mirrored. One pair of several may
    be: anatomy varies, and specks are found anywhere. A pair is looked for in one label map,
    and where that has none, among all of an inference: masks that may overlap come as a label
    map each, left in one and right in another.

    Args:
        labelmaps: All of one inference.
        truth: Where they lie.
    """

    def __init__(self, labelmaps: LabelMaps, truth: Truth) -> None:
        self._labelmaps = labelmaps
        self._truth = truth
        self._verdicts: dict[str, bool] = {}

    def check(self, output: Output) -> None:
        """For an object of this output.

        Raises:
            Misplaced: its sides are crossed.
        """
        if output.name not in self._verdicts:
            self._verdicts[output.name] = self._truth.placed and self._are_crossed(output)
        if self._verdicts[output.name]:
            msg = "what is coded as left lies to the right of what is coded as right"
            raise Misplaced(msg)

    def _are_crossed(self, output: Output) -> bool:
        own = [one for one in self._labelmaps if one[1].name == output.name]
        pairs = _pairs(own)
        if not pairs:
            pairs = _pairs([one for one in self._labelmaps if not _pairs([one])])
            # Only those that this output has a part in.
            pairs = [pair for pair in pairs if any(one.name == output.name for _, one, _ in pair)]
        crossed = []
        for pair in pairs:
            left, right = (_middle_x(mask, segment.label, self._truth) for mask, _, segment in pair)
            if left is not None and right is not None:
                crossed.append(left < right)
        return bool(crossed) and all(crossed)


_Sided = tuple[NDArray[Any], Output, Segment]


def _pairs(labelmaps: LabelMaps) -> list[tuple[_Sided, _Sided]]:
    """(left, right) of all segments that have a counterpart."""
    sided: dict[tuple[str, str | None], dict[str, _Sided]] = {}
    for mask, output in labelmaps:
        for segment in output.segments:
            side = segment.type_modifier.value if segment.type_modifier else ""
            if side in {LEFT, RIGHT}:
                region = segment.anatomic_region.value if segment.anatomic_region else None
                pair = sided.setdefault((segment.type.value, region), {})
                pair.setdefault(side, (mask, output, segment))
    return [(pair[LEFT], pair[RIGHT]) for pair in sided.values() if len(pair) == 2]


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
