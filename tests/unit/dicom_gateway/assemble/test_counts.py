"""How many there should be, by the data's own words."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dicom_gateway.assemble.completeness import Evidence, Positions, gather, judge
from dicom_gateway.assemble.counts import Counts, Expected, expected
from dicom_gateway.assemble.geometry import Gap
from dicom_gateway.assemble.study import StudyEvidence, judge_study
from dicom_gateway.config import CompletenessSettings
from tests.support.dicom import a_ct_series
from tests.support.series import a_kept_series

SETTINGS = CompletenessSettings(
    after_release_s=1.0, quiet_s=15.0, give_up_s=30.0, study_quiet_s=40.0
)


def of(*counts: Counts, at: tuple[int, ...] = ()) -> list[str]:
    """What is expected of these, in words."""
    return [str(one) for one in expected(counts, at)]


def test_images_in_acquisition_count_for_each_acquisition() -> None:
    """The sum of all acquisitions that the series has."""
    first, second = (Counts(acquisition_number=n, images_in_acquisition=n + 1) for n in (1, 2))

    assert of(first, first, second) == ["3 of 5 that Images in Acquisition (0020,1002) states"]
    assert of(first, first, second, second, second) == [
        "all 5 that Images in Acquisition (0020,1002) states"
    ]


@pytest.mark.parametrize(
    "odd",
    [
        Counts(acquisition_number=1, images_in_acquisition=9),
        Counts(acquisition_number=1),
    ],
)
def test_an_acquisition_that_contradicts_itself_says_nothing(odd: Counts) -> None:
    """Nor one of which only some instances say it."""
    assert of(Counts(acquisition_number=1, images_in_acquisition=5), odd) == []


def test_fewer_than_are_there_is_wrong_and_says_nothing() -> None:
    """Careless elements can't make a complete series of a larger one."""
    assert of(*[Counts(series_related_instances=2)] * 3) == []


def test_parts_of_a_concatenation_are_counted_for_certain() -> None:
    """Each concatenation by itself; whoever wrote it has counted."""
    parts = [Counts(concatenation_uid="1.2", concatenation_parts=3)] * 2
    (found,) = expected([*parts], ())

    assert (found.count, found.have, found.is_firm) == (3, 2, True)


def test_times_and_slices_multiply() -> None:
    """Number of Temporal Positions, PET's slices; and the usual number at a position."""
    assert of(*[Counts(temporal_positions=3)] * 8, at=(3, 3, 2)) == [
        "8 of 9 that Number of Temporal Positions (0020,0105) states"
    ]
    assert of(*[Counts(slices=4, time_slices=2)] * 8) == [
        "all 8 that Number of Slices (0054,0081) states"
    ]
    assert of(*[Counts()] * 8, at=(3, 3, 2)) == [
        "8 of 9 that the number at the other positions states"
    ]
    assert of(*[Counts()] * 4, at=(1, 2, 1)) == []


def test_the_order_makes_no_difference() -> None:
    """All of it is sets and sums."""
    counts = [Counts(acquisition_number=n % 3, images_in_acquisition=20 + n % 3) for n in range(9)]
    first = expected(counts, (3, 3, 3))
    for seed in range(5):
        random.Random(seed).shuffle(counts)
        assert expected(counts, (3, 3, 3)) == first


def test_headers_are_read_for_it(tmp_path: Path) -> None:
    """Also values that are no numbers: those say nothing."""
    frames = a_ct_series(4)
    for ds in frames:
        ds.ImagesInAcquisition = 6
        ds.NumberOfTemporalPositions = 0

    found = gather(a_kept_series(tmp_path, frames))

    assert [str(one) for one in found.expected] == [
        "4 of 6 that Images in Acquisition (0020,1002) states"
    ]


def test_multi_frame_objects_are_whole_in_themselves(tmp_path: Path) -> None:
    """Their frames can't be lost on the way; they have no gaps to wait for."""
    (ds,) = a_ct_series(1)
    ds.NumberOfFrames = 24

    found = gather(a_kept_series(tmp_path, [ds]))

    assert (found.frames, found.placed, found.gaps) == (24, 0, ())
    verdict = judge(Evidence(found, 2.0, False, 2.0), SETTINGS)
    assert verdict.complete
    assert "24 frame(s) of whole multi-frame objects" in verdict.reasons


WHOLE = Positions(instances=40, placed=40)
SHORT = Positions(40, 40, expected=(Expected(60, 40, "a careless element"),))
MET = Positions(40, 40, expected=(Expected(40, 40, "a careful element"),))
HOLED = Positions(39, 39, gaps=(Gap(12.5, 17.5, 1),))
PART = Positions(2, 0, frames=20, expected=(Expected(3, 2, "a concatenation", is_firm=True),))


@pytest.mark.parametrize(
    ("evidence", "waits_s"),
    [
        (Evidence(WHOLE, 0.0, True, stated=((40, "the PACS"),)), None),
        (Evidence(WHOLE, 5.0, False, 5.0, stated=((41, "the PACS"),)), 25.0),
        (Evidence(WHOLE, 30.0, False, 30.0, stated=((41, "the PACS"),)), None),
        (Evidence(HOLED, 0.0, True, stated=((39, "the PACS"),)), None),
        (Evidence(WHOLE, 0.0, True, stated=((40, "one"), (41, "another"))), 30.0),
        (Evidence(WHOLE, 0.0, True, stated=((39, "an older count"),)), 15.0),
        (Evidence(WHOLE, 0.0, True, stated=((39, "an older count"), (40, "a newer"))), None),
        (Evidence(SHORT, 5.0, False, 5.0), 10.0),
        (Evidence(SHORT, 15.0, False, 15.0), None),
        (Evidence(MET, 1.0, True), None),
        (Evidence(MET, 0.5, True), 0.5),
        (Evidence(MET, 1.0, False, 1.0, broken_off=True), None),
        (Evidence(PART, 20.0, False, 20.0), 10.0),
        (Evidence(PART, 0.0, False, 0.0, stated=((2, "the PACS"),)), 30.0),
        (Evidence(PART, 30.0, False, 30.0), None),
        (Evidence(HOLED, 0.0, True, by_hand=True), None),
    ],
)
def test_counts_are_weighed_with_the_rest(evidence: Evidence, waits_s: float | None) -> None:
    """A PACS's count ends the wait at once, a careless one shortens or lengthens it a little."""
    verdict = judge(evidence, SETTINGS)

    assert (verdict.complete, verdict.recheck_after_s) == (waits_s is None, waits_s)


def test_reasons_say_what_decided_first() -> None:
    """And they change only with the evidence: the time is said apart."""
    verdict = judge(Evidence(HOLED, 7.0, False, 7.0, stated=((41, "C-FIND of pacs"),)), SETTINGS)

    assert verdict.reasons == (
        "39 of 41 that C-FIND of pacs states",
        "slices missing between 12.5 and 17.5 mm",
    )
    assert verdict.came == "39 instance(s), the last 7.0 s ago"


@pytest.mark.parametrize(
    ("evidence", "waits_s"),
    [
        (StudyEvidence(2, 0, 50, 1.0, False, 1.0, together=True), None),
        (StudyEvidence(2, 0, 50, 1.0, False, 0.25, together=True), 0.75),
        (StudyEvidence(2, 0, 50, 1.0, True, together=True), 39.0),
        (StudyEvidence(2, 0, 50, 1.0, False, 1.0, broken_off=True, together=True), 39.0),
        (StudyEvidence(1, 0, 50, 1.0, False, 1.0), 39.0),
        (StudyEvidence(1, 0, 50, 40.0, True), None),
        (StudyEvidence(2, 0, 50, 0.0, True, stated_series=((2, "the PACS"),)), None),
        (StudyEvidence(2, 0, 50, 0.0, True, stated_series=((3, "the PACS"),)), 40.0),
        (StudyEvidence(2, 0, 50, 0.0, True, stated_series=((1, "an older count"),)), 40.0),
        (StudyEvidence(2, 0, 50, 40.0, True, stated_series=((3, "the PACS"),)), None),
        (StudyEvidence(2, 0, 50, 0.0, True, stated_instances=((50, "the PACS"),)), None),
        (StudyEvidence(1, 0, 50, 0.0, True, by_hand=True), None),
    ],
)
def test_a_study_is_complete_by_evidence_too(
    evidence: StudyEvidence, waits_s: float | None
) -> None:
    """Counts, whole studies by one association; where nothing is known, the clock."""
    verdict = judge_study(evidence, SETTINGS)

    assert (verdict.complete, verdict.recheck_after_s) == (waits_s is None, waits_s)


def test_a_study_waits_for_each_of_its_series() -> None:
    """Also when a person says that there will be no others."""
    verdict = judge_study(StudyEvidence(3, 1, 50, 99.0, False, 99.0, by_hand=True), SETTINGS)

    assert (verdict.complete, verdict.recheck_after_s) == (False, None)
    assert verdict.reasons == ("1 series of the study not complete yet",)
