"""Complete by evidence: positions, the association's end, and the clock only last."""

from __future__ import annotations

from pathlib import Path

from dicom_gateway.assemble.completeness import Evidence, Positions, gather, judge
from dicom_gateway.assemble.geometry import Gap
from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.config import CompletenessSettings
from tests.support.dicom import a_ct_series, an_object_without_pixels
from tests.support.series import a_kept_series

SETTINGS = CompletenessSettings(after_release_s=1.0, quiet_s=15.0, give_up_s=30.0)
WITHOUT_GAP = Positions(instances=40, placed=40)
WITH_GAP = Positions(instances=39, placed=39, gaps=(Gap(12.5, 17.5, 1),))


def test_a_gapless_series_is_complete_soon_after_the_association() -> None:
    """The end of the association and no gap are evidence enough."""
    verdict = judge(Evidence(WITHOUT_GAP, 1.2, False, 1.1), SETTINGS)
    assert verdict.complete
    assert "40 position(s) without a gap" in verdict.reasons
    assert "the association has ended" in verdict.reasons


def test_right_after_the_association_it_is_asked_again() -> None:
    """Another association may follow at once, so the end itself must be a moment old."""
    verdict = judge(Evidence(WITHOUT_GAP, 5.0, False, 0.25), SETTINGS)
    assert not verdict.complete
    assert verdict.recheck_after_s == 0.75


def test_while_the_association_is_open_quiet_counts() -> None:
    """A peer that keeps its association open doesn't hold its study up for ever."""
    assert judge(Evidence(WITHOUT_GAP, 15.0, True), SETTINGS).complete
    waiting = judge(Evidence(WITHOUT_GAP, 4.0, True), SETTINGS)
    assert (waiting.complete, waiting.recheck_after_s) == (False, 11.0)


def test_after_a_broken_association_the_rest_is_waited_for() -> None:
    """A beginning has no gap either, so the end alone is no evidence."""
    waiting = judge(Evidence(WITHOUT_GAP, 5.0, False, 4.0, broken_off=True), SETTINGS)
    assert (waiting.complete, waiting.recheck_after_s) == (False, 11.0)
    assert "an association was aborted or lost" in waiting.reasons
    assert judge(Evidence(WITHOUT_GAP, 16.0, False, 15.0, broken_off=True), SETTINGS).complete


def test_a_gap_is_waited_for_even_after_the_association() -> None:
    """The missing slice may come in the next association."""
    verdict = judge(Evidence(WITH_GAP, 20.0, False, 19.0), SETTINGS)
    assert not verdict.complete
    assert verdict.recheck_after_s == 10.0
    assert "slices missing between 12.5 and 17.5 mm" in verdict.reasons


def test_a_gap_that_stays_is_given_up_with_the_reason() -> None:
    """Then the job fails by name, in front of a person."""
    verdict = judge(Evidence(WITH_GAP, 30.0, False, 29.0), SETTINGS)
    assert verdict.complete
    assert "gave up waiting: slices missing between 12.5 and 17.5 mm" in verdict.reasons


def test_after_a_restart_the_last_arrival_counts() -> None:
    """When nobody knows how the association ended, quiet since the last instance is used."""
    assert judge(Evidence(WITHOUT_GAP, 1.5, False, None), SETTINGS).complete


def test_nothing_usable_is_never_complete() -> None:
    """A series of nothing but set-apart instances makes no job."""
    assert not judge(Evidence(Positions(0, 0), 99.0, False, 99.0), SETTINGS).complete


def test_objects_without_positions_go_by_the_clock() -> None:
    """A report or a radiograph has no gaps to look for."""
    verdict = judge(Evidence(Positions(instances=1, placed=0), 2.0, False, 2.0), SETTINGS)
    assert verdict.complete
    assert "no positions to go by" in verdict.reasons


def test_gathering_finds_the_gap(tmp_path: Path) -> None:
    """Positions come from the headers of what is kept so far, in any order."""
    found = gather(a_kept_series(tmp_path, a_ct_series(frames=12, gap_at=4, shuffled=True)))
    assert (found.instances, found.placed) == (11, 11)
    assert [gap.missing for gap in found.gaps] == [1]


def test_gathering_looks_at_each_orientation_by_itself(tmp_path: Path) -> None:
    """Two stacks in one series aren't each other's gaps, and time points are none either."""
    turned = a_kept_series(tmp_path / "a", a_ct_series(frames=8, two_orientations=True))
    again = a_kept_series(tmp_path / "b", a_ct_series(frames=8, duplicate_at=3))
    assert gather(turned).gaps == ()
    assert gather(again).gaps == ()


def test_gathering_lives_with_objects_without_geometry(tmp_path: Path) -> None:
    """A report and a vanished file are counted, and say nothing."""
    series = a_kept_series(tmp_path, [an_object_without_pixels()])
    assert gather(series) == Positions(instances=1, placed=0)
    series.instances[0].path.unlink()
    assert gather(series) == Positions(instances=1, placed=0)


def test_a_position_out_of_this_world_says_nothing(tmp_path: Path) -> None:
    """It is counted as an instance without a place."""
    datasets = a_ct_series(frames=4)
    datasets[2].ImagePositionPatient = ["1e308", "-1e308", "1e308"]
    datasets[3].ImageOrientationPatient = ["1e200", "0", "0", "0", "1e200", "0"]
    found = gather(a_kept_series(tmp_path, datasets))
    assert (found.instances, found.placed, found.gaps) == (4, 2, ())


def test_gathering_reads_through_the_caller_s_cache(tmp_path: Path) -> None:
    """Who asks every second needn't read every header every second."""
    series = a_kept_series(tmp_path, a_ct_series(frames=4))
    cache: dict[Path, Header] = {i.path: read_header(i.path) for i in series.instances}
    for instance in series.instances:
        instance.path.unlink()
    assert gather(series, cache.__getitem__).placed == 4
