"""How many there should be, as the data itself states it.

In: the counting elements of each instance's header (`Counts`). Out: `Expected`, one for each
statement that can be believed. Pure.

Most of these elements are filled in carelessly. One that says fewer than are there is
certainly wrong and says nothing; one that says more makes the judge wait a little longer,
never for ever. Only the parts of a concatenation are counted by whoever wrote them.

Source: PS3.3 C.7.6.1 (Images in Acquisition), C.7.6.16.2.2.4 (concatenations), C.8.9.1 (PET),
C.8.3.1 (Number of Temporal Positions); PS3.4 C.3.4 (related instances).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dicom_gateway.assemble.elements import Elements, integer, text

KEYWORDS = (
    "AcquisitionNumber",
    "ConcatenationUID",
    "ImagesInAcquisition",
    "InConcatenationTotalNumber",
    "NumberOfSeriesRelatedInstances",
    "NumberOfSlices",
    "NumberOfTemporalPositions",
    "NumberOfTimeSlices",
)
"""What `of_instance` looks at."""

LARGEST = 1_000_000
"""A number beyond it is a damaged value."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The counting elements of one instance; None where one is no use."""

    acquisition_number: int | None = None
    images_in_acquisition: int | None = None
    series_related_instances: int | None = None
    temporal_positions: int | None = None
    slices: int | None = None
    time_slices: int | None = None
    concatenation_uid: str = ""
    concatenation_parts: int | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """A statement of how many there should be.

    Attributes:
        count: So many.
        have: So many have come.
        source: Who says so, as it reads in "30 of 40 that ... states".
        is_firm: Whoever says so has counted them.
    """

    count: int
    have: int
    source: str
    is_firm: bool = False

    @property
    def is_met(self) -> bool:
        """All are there."""
        return self.have >= self.count

    def __str__(self) -> str:
        if self.have == self.count:
            return f"all {self.count} that {self.source} states"
        return f"{self.have} of {self.count} that {self.source} states"


def of_instance(ds: Elements) -> Counts:
    """The counting elements of a data set."""
    return Counts(
        acquisition_number=integer(ds, "AcquisitionNumber"),
        images_in_acquisition=_count(ds, "ImagesInAcquisition"),
        series_related_instances=_count(ds, "NumberOfSeriesRelatedInstances"),
        temporal_positions=_count(ds, "NumberOfTemporalPositions"),
        slices=_count(ds, "NumberOfSlices"),
        time_slices=_count(ds, "NumberOfTimeSlices"),
        concatenation_uid=text(ds, "ConcatenationUID"),
        concatenation_parts=_count(ds, "InConcatenationTotalNumber"),
    )


def expected(counts: Sequence[Counts], at_each_position: Iterable[int]) -> tuple[Expected, ...]:
    """What all instances of a series together say; in any order the same.

    Args:
        counts: Of each instance.
        at_each_position: How many instances lie at each distinct slice position.
    """
    positions = list(at_each_position)
    found = [
        *_concatenations(counts),
        *_acquisitions(counts),
        *_related(counts),
        *_slices(counts),
        *_times(counts, positions),
    ]
    return tuple(one for one in found if one.have <= one.count)


def _concatenations(counts: Sequence[Counts]) -> list[Expected]:
    parts = Counter(one.concatenation_uid for one in counts if one.concatenation_uid)
    stated = {
        uid: max(
            (one.concatenation_parts or 0 for one in counts if one.concatenation_uid == uid),
            default=0,
        )
        for uid in sorted(parts)
    }
    source = "In-concatenation Total Number (0020,9163)"
    return [Expected(stated[uid], parts[uid], source, is_firm=True) for uid in stated]


def _acquisitions(counts: Sequence[Counts]) -> list[Expected]:
    stated: dict[int | None, set[int | None]] = {}
    for one in counts:
        stated.setdefault(one.acquisition_number, set()).add(one.images_in_acquisition)
    total = 0
    for values in stated.values():
        value = values.pop()
        if values or value is None:
            return []  # not every instance says the same of its acquisition
        total += value
    return [Expected(total, len(counts), "Images in Acquisition (0020,1002)")] if total else []


def _related(counts: Sequence[Counts]) -> list[Expected]:
    stated = max((one.series_related_instances or 0 for one in counts), default=0)
    source = "Number of Series Related Instances (0020,1209)"
    return [Expected(stated, len(counts), source)] if stated else []


def _slices(counts: Sequence[Counts]) -> list[Expected]:
    stated = max(((one.slices or 0) * (one.time_slices or 1) for one in counts), default=0)
    return [Expected(stated, len(counts), "Number of Slices (0054,0081)")] if stated else []


def _times(counts: Sequence[Counts], at_each_position: list[int]) -> list[Expected]:
    placed = sum(at_each_position)
    if placed < len(counts) or not placed:
        return []
    times = max((one.temporal_positions or 0 for one in counts), default=0)
    if times > 1:
        source = "Number of Temporal Positions (0020,0105)"
        return [Expected(times * len(at_each_position), placed, source)]
    # Several times or echoes: as many at one position as at most of the others.
    usual, _ = min(Counter(at_each_position).items(), key=lambda item: (-item[1], -item[0]))
    if usual > 1 and min(at_each_position) < usual:
        source = "the number at the other positions"
        return [Expected(usual * len(at_each_position), placed, source)]
    return []


def _count(ds: Elements, keyword: str) -> int | None:
    value = integer(ds, keyword)
    return value if value is not None and 0 < value <= LARGEST else None
