"""Conditions of rules: comparison, range, pattern, presence; what is found, what is masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage

from dicom_gateway.config_routing import Condition, Plane, names_title
from dicom_gateway.route.conditions import Finding, examine_one
from dicom_gateway.route.facts import Glance, SeriesFacts, gather_facts, plane_of
from tests.support.dicom import AXIAL, CANARY, CORONAL, SAGITTAL, a_ct_series
from tests.support.series import a_kept_series


def facts_of(folder: Path, datasets: list[Dataset], frames: int = 1) -> SeriesFacts:
    """What the rules see of these."""
    return gather_facts(a_kept_series(folder, datasets), lambda _path: Glance(False, 1, frames))


@pytest.fixture
def facts(tmp_path: Path) -> SeriesFacts:
    """A thin axial chest CT."""
    frames = a_ct_series(3, spacing_mm=1.5)
    for ds in frames:
        ds.ConvolutionKernel = ["B70f", "2"]
        ds.ProtocolName = "Thorax^LowDose"
        ds.ContrastBolusAgent = ""
        item, inner = Dataset(), Dataset()
        item.RequestedProcedureDescription = "CT thorax"
        inner.CodeValue = "71250"
        item.RequestedProcedureCodeSequence = [inner]
        ds.RequestAttributesSequence = [Dataset(), item]
    return facts_of(tmp_path, frames)


def ask(facts: SeriesFacts, **condition: Any) -> Finding:
    """One condition, written as in gateway.yaml with underscores."""
    written = {key.replace("_", "-"): value for key, value in condition.items()}
    return examine_one(Condition.model_validate(written), facts)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"tag": "BodyPartExamined", "equals": "chest"}, True),
        ({"tag": "BodyPartExamined", "equals": ["HEAD", "CHEST"]}, True),
        ({"tag": "BodyPartExamined", "not_equals": "CHEST"}, False),
        ({"tag": "StationName", "not_equals": "CHEST"}, True),
        ({"tag": "(0018,0015)", "matches": "^CH"}, True),
        ({"tag": "00180015", "matches": "^ch"}, False),
        ({"tag": "ImageType", "equals": "AXIAL"}, True),
        ({"tag": "ImageType", "not_equals": "AXIAL"}, False),
        ({"tag": "KVP", "equals": 120}, True),
        ({"tag": "KVP", "equals": "120.0"}, True),
        ({"tag": "KVP", "at_least": 120, "less_than": 121}, True),
        ({"tag": "KVP", "more_than": 120}, False),
        ({"tag": "KVP", "at_most": 119.5}, False),
        ({"tag": "KVP", "between": [100, 120]}, True),
        ({"tag": "BodyPartExamined", "at_least": 0}, False),
        ({"tag": "ContrastBolusAgent", "present": False}, True),
        ({"tag": "ContrastBolusAgent", "present": True}, False),
        ({"tag": "RequestAttributesSequence", "present": True}, True),
        (
            {"tag": "RequestAttributesSequence.RequestedProcedureDescription", "matches": "thorax"},
            True,
        ),
        (
            {
                "tag": "RequestAttributesSequence.RequestedProcedureCodeSequence.CodeValue",
                "equals": "71250",
            },
            True,
        ),
        ({"tag": "ProtocolName.CodeValue", "present": True}, False),
        ({"tag": "PatientName", "equals": "canary^secret^person"}, True),
        ({"plane": "axial"}, True),
        ({"plane": ["coronal", "oblique"]}, False),
        ({"slice_thickness_mm": {"at-most": 1.5}}, True),
        ({"slice_thickness_mm": {"more-than": 1.5}}, False),
        ({"kernel": "B[67]"}, True),
        ({"kernel": "^B3"}, False),
        ({"slices": {"between": [3, 3]}}, True),
        ({"any_of": [{"plane": "coronal"}, {"kernel": "B70"}]}, True),
        ({"any_of": [{"plane": "coronal"}, {"kernel": "B3"}]}, False),
        ({"none_of": [{"plane": "coronal"}, {"kernel": "B3"}]}, True),
        ({"none_of": [{"plane": "axial"}]}, False),
    ],
    ids=str,
)
def test_conditions_hold_or_not(facts: SeriesFacts, condition: dict[str, Any], holds: bool) -> None:
    """Values of several, numbers in text, sequences; empty is absent."""
    assert ask(facts, **condition).holds is holds


@pytest.mark.parametrize(
    ("tag", "found", "asked", "holds"),
    [
        ("PatientID", "12", "0012", False),
        ("PatientID", "0012", "0012", True),
        ("PatientID", "12", 12, True),
        ("StationName", "1E1", "10", False),
        ("SeriesDescription", "nan", "NAN", True),
        ("AccessionNumber", "12345678901234567", "12345678901234568", False),
        ("RedPaletteColorLookupTableDescriptor", 256, "0256", True),
        ("SliceThickness", "1.50", "1.5", True),
        ("SliceThickness", "15e-1", 1.5, True),
        ("SliceThickness", "1.234567890123456", "1.234567890123457", False),
        ("FrameIncrementPointer", 12, "0012", False),
        ("SimpleFrameList", 4294967295, "4294967295", True),
        ("DopplerCorrectionAngle", 0.5, ".5", True),
        ("SelectorUVValue", 12345678901234567, "12345678901234568", False),
        ("SelectorUVValue", 12345678901234567, "12345678901234567.0", True),
    ],
)
def test_only_values_of_numeric_attributes_are_compared_as_numbers(
    tmp_path: Path, tag: str, found: Any, asked: Any, holds: bool
) -> None:
    """Exactly; identifiers that look like numbers are texts, with their zeros."""
    (ds,) = a_ct_series(1)
    setattr(ds, tag, found)

    facts = facts_of(tmp_path, [ds])

    assert ask(facts, tag=tag, equals=asked).holds is holds
    assert ask(facts, tag=tag, not_equals=asked).holds is not holds


def test_a_finding_reads_as_a_sentence(facts: SeriesFacts) -> None:
    """Keyword, number, test; and what was found."""
    finding = ask(facts, tag="KVP", between=[100, 110])

    assert finding.condition == "KVP (0018,0060) is between 100 and 110"
    assert finding.shown(values=False) == (finding.condition, "120")


@pytest.mark.parametrize(
    "tag",
    [
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyDate",
        "(0009,1001)",
        "RequestAttributesSequence.PatientName",
    ],
)
def test_what_may_be_the_patient_s_is_masked(facts: SeriesFacts, tag: str) -> None:
    """Value and wish alike; only who asks for values sees them."""
    finding = ask(facts, tag=tag, matches=CANARY)

    assert finding.is_patients
    assert CANARY not in finding.condition
    assert CANARY not in " ".join(finding.shown(values=False))
    assert CANARY in finding.shown(values=True)[0]


def test_a_masked_condition_in_a_group_masks_the_group(facts: SeriesFacts) -> None:
    """A list of alternatives leaks nothing either."""
    finding = ask(facts, any_of=[{"tag": "PatientID", "matches": CANARY}, {"plane": "axial"}])

    assert finding.holds
    assert CANARY not in " ".join(finding.shown(values=False))


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [
        (AXIAL, Plane.AXIAL),
        (CORONAL, Plane.CORONAL),
        (SAGITTAL, Plane.SAGITTAL),
        ((1, 0, 0, 0, 0.94, -0.342), Plane.AXIAL),
        ((1, 0, 0, 0, 0.766, -0.643), Plane.OBLIQUE),
        ((1, 0, 0, 1, 0, 0), None),
        ((1, 0, 0), None),
        ((float("nan"),) * 6, None),
        ((1e200,) * 6, None),
    ],
)
def test_the_plane_is_the_nearest_axis(orientation: Any, plane: Plane | None) -> None:
    """A head CT that leans by 20 degrees is axial, one by 40 is oblique."""
    assert plane_of(orientation) is plane


def test_enhanced_objects_are_asked_in_their_functional_groups(tmp_path: Path) -> None:
    """Thickness and plane lie deeper there; slices are frames."""
    (ds,) = a_ct_series(1, sop_class_uid=EnhancedCTImageStorage)
    del ds.SliceThickness, ds.ImageOrientationPatient
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.SliceThickness = "2"
    plane.ImageOrientationPatient = list(CORONAL)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    ds.SharedFunctionalGroupsSequence = [shared]

    facts = facts_of(tmp_path, [ds], frames=12)

    assert (facts.slices, facts.slice_thickness_mm, facts.plane) == (12, 2.0, Plane.CORONAL)


def test_the_same_instance_speaks_whatever_came_first(tmp_path: Path) -> None:
    """The lowest instance number that is no localizer, in any order of arrival."""
    frames = a_ct_series(4)
    for ds in frames:
        ds.BodyPartExamined = f"PART{ds.InstanceNumber}"
    numbers = {str(ds.SOPInstanceUID): int(ds.InstanceNumber) for ds in frames}
    series = a_kept_series(tmp_path, frames)
    by_path = {one.path: numbers[one.sop_instance_uid] for one in series.instances}

    def glance(path: Path) -> Glance:
        return Glance(by_path[path] == 1, by_path[path])

    for turned in (series.instances, series.instances[::-1]):
        kept = type(series)(*(getattr(series, n) for n in series.__slots__[:-1]), turned)
        facts = gather_facts(kept, glance)
        assert str(facts.header.BodyPartExamined) == "PART2"
        assert facts.slices == 3


def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    """Assembling will name it; the rules find it empty."""
    series = a_kept_series(tmp_path, a_ct_series(1))
    series.instances[0].path.write_bytes(b"no DICOM")

    facts = gather_facts(series, lambda _path: Glance())

    assert (facts.plane, facts.slice_thickness_mm, facts.kernel) == (None, None, "")


@pytest.mark.parametrize(
    ("pattern", "title", "means"),
    [
        ("CT[1]", "CT[1]", True),
        ("CT[1]", "CT1", False),
        ("CT[1]*", "CT[1]_A", True),
        ("CT[!1]?", "CT[!1]x", True),
        ("CT.1", "CTx1", False),
        ("CT_?", "CT_1", True),
        ("CT_?", "CT_12", False),
        ("*", "ct", True),
        ("CT", "ct", False),
    ],
)
def test_only_asterisk_and_question_mark_are_special_in_ae_titles(
    pattern: str, title: str, *, means: bool
) -> None:
    """Brackets are letters like others."""
    assert names_title((pattern,), title) is means
