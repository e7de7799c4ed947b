"""Mistakes in a structured report."""

from __future__ import annotations

from copy import deepcopy

from pydicom import Dataset

from tests.support.mistakes.anything import Mistake


def _items(ds: Dataset, value_type: str) -> list[Dataset]:
    found = []

    def look(item: Dataset) -> None:
        for child in item.get("ContentSequence", []):
            if child.ValueType == value_type:
                found.append(child)
            look(child)

    look(ds)
    return found


def volumes_exchanged(ds: Dataset) -> None:
    """Of the two segments."""
    one, other = _items(ds, "NUM")
    one.MeasuredValueSequence, other.MeasuredValueSequence = (
        deepcopy(other.MeasuredValueSequence),
        deepcopy(one.MeasuredValueSequence),
    )


def volume_too_large(ds: Dataset) -> None:
    """By a thousandth."""
    value = _items(ds, "NUM")[0].MeasuredValueSequence[0]
    value.NumericValue = round(float(value.NumericValue) * 1.001, 8)


def volume_in_litres(ds: Dataset) -> None:
    """A unit is a factor."""
    unit_code = _items(ds, "NUM")[0].MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]
    unit_code.CodeValue = "L"


def segments_of_report_exchanged(ds: Dataset) -> None:
    """The left lung's volume under the right lung's segment."""
    for item in _items(ds, "IMAGE"):
        reference = item.ReferencedSOPSequence[0]
        reference.ReferencedSegmentNumber = 3 - reference.ReferencedSegmentNumber


def another_segmentation(ds: Dataset) -> None:
    """Of some other job."""
    for item in _items(ds, "IMAGE"):
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _sides(ds: Dataset) -> list[Dataset]:
    return [
        one
        for one in _items(ds, "CODE")
        if one.ConceptNameCodeSequence[0].CodeMeaning == "Laterality"
    ]


def report_sides_exchanged(ds: Dataset) -> None:
    """Left for right, in codes."""
    one, other = (item.ConceptCodeSequence[0] for item in _sides(ds))
    one.CodeValue, other.CodeValue = other.CodeValue, one.CodeValue


def a_group_less(ds: Dataset) -> None:
    """The right lung wasn't measured."""
    container = ds.ContentSequence[-1]
    container.ContentSequence = list(container.ContentSequence)[:-1]


def a_group_twice(ds: Dataset) -> None:
    """Three lungs."""
    container = ds.ContentSequence[-1]
    container.ContentSequence = [*container.ContentSequence, deepcopy(container.ContentSequence[0])]


def another_finding(ds: Dataset) -> None:
    """A kidney."""
    for one in _items(ds, "CODE"):
        if one.ConceptNameCodeSequence[0].CodeMeaning == "Finding":
            one.ConceptCodeSequence[0].CodeValue = "64033007"


def _evidence(ds: Dataset) -> Dataset:
    return ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[-1]


def evidence_less(ds: Dataset) -> None:
    """A source is missing."""
    for series in ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence:
        series.ReferencedSOPSequence = list(series.ReferencedSOPSequence)[:-1]


def evidence_elsewhere(ds: Dataset) -> None:
    """In another series."""
    _evidence(ds).SeriesInstanceUID = "1.2.3"


def another_source_series(ds: Dataset) -> None:
    """Of the segment."""
    for item in _items(ds, "UIDREF"):
        if item.ConceptNameCodeSequence[0].CodeMeaning.startswith("Source Series"):
            item.UID = "1.2.3"


MISTAKES: tuple[Mistake, ...] = (
    volumes_exchanged,
    volume_too_large,
    volume_in_litres,
    segments_of_report_exchanged,
    another_segmentation,
    report_sides_exchanged,
    a_group_less,
    a_group_twice,
    another_finding,
    evidence_less,
    evidence_elsewhere,
    another_source_series,
)
