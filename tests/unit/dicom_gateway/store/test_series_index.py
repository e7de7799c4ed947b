"""The index's answers: what is still coming, what was decided, and when it opens again."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_gateway.database import transaction
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.records import Series, SeriesState
from tests.support.dicom import a_ct_series, an_arrival
from tests.support.gateway import Keeping, a_store


def keep_all(
    keeping: Keeping, datasets: list[Dataset], association_id: str = "a1", called: str = "LUNG"
) -> Series:
    """Keeps them all and gives the series as it is then."""
    for ds in datasets:
        keeping.store.keep(an_arrival(ds, association_id=association_id, called_ae_title=called))
    return keeping.index.load_series(datasets[0].SeriesInstanceUID, called)


def decide(keeping: Keeping, series: Series, state: SeriesState = SeriesState.DECIDED) -> bool:
    """Marks the series as the judge does."""
    with transaction(keeping.engine) as connection:
        return keeping.index.mark_series(connection, series, state, "because")


def test_a_series_is_open_from_its_first_instance(tmp_path: Path) -> None:
    """It is listed with its count and ages, and its association is open."""
    with a_store(tmp_path) as keeping:
        series = keep_all(keeping, a_ct_series(3))

        (opened,) = keeping.index.open_series()
        assert opened.series_instance_uid == series.series_instance_uid
        assert (opened.called_ae_title, opened.instances) == ("LUNG", 3)
        assert opened.association_open
        assert opened.since_first_arrival_s >= opened.since_last_arrival_s >= 0


def test_the_end_of_the_association_is_noted_with_its_age(tmp_path: Path) -> None:
    """Only the series that it brought last are released."""
    with a_store(tmp_path) as keeping:
        keep_all(keeping, a_ct_series(1), "a1")
        other = keep_all(keeping, a_ct_series(1), "a2")
        keeping.index.association_ended("a1")

        ended = {
            one.series_instance_uid: one.since_association_ended_s
            for one in keeping.index.open_series()
        }
        assert ended.pop(other.series_instance_uid) is None
        (age_s,) = ended.values()
        assert age_s is not None
        assert age_s >= 0


def test_an_instance_by_a_new_association_opens_it_again(tmp_path: Path) -> None:
    """A sender that comes back after an abort is waited for."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(2)
        keep_all(keeping, frames[:1], "a1")
        keeping.index.association_ended("a1")
        keep_all(keeping, frames, "a2")

        (opened,) = keeping.index.open_series()
        assert opened.association_open
        keeping.index.association_ended("a1")
        assert keeping.index.open_series()[0].association_open
        keeping.index.association_ended("a2")
        assert not keeping.index.open_series()[0].association_open


def test_after_a_restart_no_association_is_open(tmp_path: Path) -> None:
    """What an earlier process was receiving counts as released now."""
    with a_store(tmp_path) as keeping:
        keep_all(keeping, a_ct_series(1))
    with a_store(tmp_path) as restarted:
        assert restarted.index.close_orphaned_associations() == 1

        (opened,) = restarted.index.open_series()
        assert not opened.association_open
        assert restarted.index.close_orphaned_associations() == 0


def test_a_decided_series_is_no_longer_open(tmp_path: Path) -> None:
    """And an ignored one is listed with its reason."""
    with a_store(tmp_path) as keeping:
        assert decide(keeping, keep_all(keeping, a_ct_series(1)))
        ignored = keep_all(keeping, a_ct_series(2))
        assert decide(keeping, ignored, SeriesState.IGNORED)

        assert keeping.index.open_series() == []
        (listed,) = keeping.index.ignored_series()
        assert listed.series_instance_uid == ignored.series_instance_uid
        assert (listed.reasons, listed.instances, listed.modality) == ("because", 2, "CT")


def test_a_late_instance_opens_a_decided_series_again(tmp_path: Path) -> None:
    """So that the complete series is judged once more."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(3)
        decide(keeping, keep_all(keeping, frames[:2]))
        keep_all(keeping, frames[2:], "a2")

        (opened,) = keeping.index.open_series()
        assert opened.instances == 3


def test_the_same_instances_again_do_not_open_a_decided_series(tmp_path: Path) -> None:
    """A repetition is no news, so it makes no second job."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(3)
        decide(keeping, keep_all(keeping, frames))
        keep_all(keeping, frames, "a2")

        assert keeping.index.open_series() == []


def test_a_conflicting_instance_does_not_open_a_decided_series(tmp_path: Path) -> None:
    """It is never used, so there is nothing to judge again."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(2)
        decide(keeping, keep_all(keeping, frames))
        frames[0].InstanceNumber = 99
        keep_all(keeping, frames[:1], "a2")

        assert keeping.index.open_series() == []


def test_a_series_of_nothing_but_conflicts_is_open_and_empty(tmp_path: Path) -> None:
    """A person must hear of it, so it is judged; there is nothing to use."""
    with a_store(tmp_path) as keeping:
        (frame,) = a_ct_series(1)
        keep_all(keeping, [frame])
        frame.InstanceNumber = 99
        series = keep_all(keeping, [frame], called="LIVER")

        assert series.instances == ()
        opened = {one.called_ae_title: one.instances for one in keeping.index.open_series()}
        assert opened == {"LUNG": 1, "LIVER": 0}


def test_an_instance_that_comes_during_the_judgement_is_not_lost(tmp_path: Path) -> None:
    """A decision about an older state of the series is not taken."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(3)
        judged = keep_all(keeping, frames[:2])
        keep_all(keeping, frames[2:])

        assert not decide(keeping, judged)
        assert len(keeping.index.open_series()) == 1


def test_a_job_keeps_the_instances_it_was_made_from(tmp_path: Path) -> None:
    """Whatever comes later belongs to a later job."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(3)
        judged = keep_all(keeping, frames[:2])
        queue = JobQueue(keeping.engine, tmp_path)
        with transaction(keeping.engine) as connection:
            job = queue.enqueue(connection, judged, pipeline="lung_ct", pipeline_version="1.0.0")
        keep_all(keeping, frames[2:])

        assert job is not None
        assert keeping.index.instances_of_job(job.job_id) == judged


def test_what_never_came_is_a_key_error(tmp_path: Path) -> None:
    """Asking for an unknown series or job is the caller's mistake."""
    with a_store(tmp_path) as keeping:
        with pytest.raises(KeyError):
            keeping.index.load_series("1.2.3", "LUNG")
        with pytest.raises(KeyError):
            keeping.index.instances_of_job("0123")
