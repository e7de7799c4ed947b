"""The index's answers: what is still coming, what was decided, and when it opens again."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing
from pydicom import Dataset
from pydicom.uid import JPEGLSLossless, generate_uid

from dicom_gateway.database import transaction
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.records import JobState, Series, SeriesState
from dicom_gateway.store import InstanceStore, SeriesIndex
from tests.support.databases import a_postgresql, an_empty_index
from tests.support.dicom import CANARY, a_ct_series, an_arrival
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
        keeping.index.association_ended("a1", in_order=True)

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
        keeping.index.association_ended("a1", in_order=True)
        keep_all(keeping, frames, "a2")

        (opened,) = keeping.index.open_series()
        assert opened.association_open
        keeping.index.association_ended("a1", in_order=True)
        assert keeping.index.open_series()[0].association_open
        keeping.index.association_ended("a2", in_order=True)
        assert not keeping.index.open_series()[0].association_open


def test_after_a_restart_no_association_is_open(tmp_path: Path) -> None:
    """What an earlier process was receiving counts as released now."""
    with a_store(tmp_path) as keeping:
        keep_all(keeping, a_ct_series(1))
    with a_store(tmp_path) as restarted:
        assert restarted.index.close_orphaned_associations() == 1

        (opened,) = restarted.index.open_series()
        assert not opened.association_open
        assert opened.broken_off
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


def test_a_series_has_ended_when_the_last_of_its_associations_has(tmp_path: Path) -> None:
    """One that is still sending keeps it open, whoever brought the last instance."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(4)
        keep_all(keeping, frames[:2], "a1")
        keep_all(keeping, frames[2:], "a2")
        keeping.index.association_ended("a2", in_order=True)
        assert keeping.index.open_series()[0].association_open

        keeping.index.association_ended("a1", in_order=True)
        (opened,) = keeping.index.open_series()
        assert (opened.association_open, opened.broken_off) == (False, False)


def test_a_broken_association_is_remembered_until_the_series_is_decided(tmp_path: Path) -> None:
    """Also when another one ends in order afterwards; a late instance begins anew."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(3)
        keep_all(keeping, frames[:1], "a1")
        series = keep_all(keeping, frames[1:2], "a2")
        keeping.index.association_ended("a1", in_order=False)
        keeping.index.association_ended("a2", in_order=True)
        assert keeping.index.open_series()[0].broken_off

        decide(keeping, series)
        keep_all(keeping, frames[2:], "a3")
        assert not keeping.index.open_series()[0].broken_off


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
        whole = keep_all(keeping, [frame])
        frame.SeriesInstanceUID = generate_uid()
        series = keep_all(keeping, [frame])

        assert series.instances == ()
        opened = {one.series_instance_uid: one.instances for one in keeping.index.open_series()}
        assert opened == {whole.series_instance_uid: 1, series.series_instance_uid: 0}


def test_what_conflicts_is_judged_for_each_called_ae_title(tmp_path: Path) -> None:
    """One title got the series compressed, the other plain: each uses what it got."""
    frames = a_ct_series(3)
    study, series_uid, frame_uid = (
        frames[0].StudyInstanceUID,
        frames[0].SeriesInstanceUID,
        frames[0].FrameOfReferenceUID,
    )
    again = a_ct_series(
        3,
        transfer_syntax_uid=JPEGLSLossless,
        study_instance_uid=study,
        series_instance_uid=series_uid,
        frame_of_reference_uid=frame_uid,
    )
    for first, second in zip(frames, again, strict=True):
        second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    with a_store(tmp_path) as keeping:
        plain = keep_all(keeping, frames, called="LUNG")
        compressed = keep_all(keeping, again, called="LIVER")

        assert {one.transfer_syntax_uid for one in compressed.instances} == {JPEGLSLossless}
        assert len(compressed.instances) == 3
        assert keeping.index.load_series(series_uid, "LUNG") == plain


# Sent again -----------------------------------------------------------------------------


def correct(frames: list[Dataset], number: int = 99) -> list[Dataset]:
    """The same instances with other bytes."""
    for ds in frames:
        ds.AcquisitionNumber = number
    return frames


def a_job_of(keeping: Keeping, series: Series, state: JobState) -> None:
    """Decides the series with a job that has come as far as `state`."""
    queue = JobQueue(keeping.engine, keeping.folder)
    with transaction(keeping.engine) as connection:
        job = queue.enqueue(connection, series, pipeline="lung_ct", pipeline_version="1.0.0")
        keeping.index.mark_series(connection, series, SeriesState.DECIDED)
    assert job is not None
    if state is JobState.CANCELLED:
        queue.cancel(job.job_id)
    elif state is not JobState.WAITING:
        claimed = queue.claim("worker")
        assert claimed is not None
        if state is JobState.FAILED:
            queue.fail(claimed, UnusableSeries("a slice is missing", code="missing_slices"))
        elif state is JobState.DELIVERED:
            queue.finish(claimed, [])


def test_what_is_corrected_after_a_failure_takes_the_place_of_the_old(tmp_path: Path) -> None:
    """Every instance of it, in whatever order; the old ones are kept and set apart."""
    with a_store(tmp_path) as keeping, structlog.testing.capture_logs() as logs:
        frames = a_ct_series(4)
        old = keep_all(keeping, frames)
        a_job_of(keeping, old, JobState.FAILED)
        new = keep_all(keeping, correct(frames), "a2")

        assert len(new.instances) == 4
        assert {one.sha256 for one in new.instances}.isdisjoint(o.sha256 for o in old.instances)
        assert all(one.path.exists() for one in old.instances)
        (opened,) = keeping.index.open_series()
        assert opened.instances == 4
        queue = JobQueue(keeping.engine, tmp_path)
        with transaction(keeping.engine) as connection:
            assert keeping.index.mark_series(connection, new, SeriesState.DECIDED)
            assert queue.enqueue(connection, new, pipeline="lung_ct", pipeline_version="1.0.0")
    said = [log["event"] for log in logs]
    assert sum("takes the place" in event for event in said) == 4
    assert sum("judged again" in event for event in said) == 1
    assert CANARY not in str(logs)


def test_the_missing_slice_may_come_before_the_corrected_ones(tmp_path: Path) -> None:
    """What opened the series again makes no difference to what takes whose place."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(4)
        old = keep_all(keeping, frames[:3])
        a_job_of(keeping, old, JobState.FAILED)
        keep_all(keeping, frames[3:], "a2")
        new = keep_all(keeping, correct(frames[:3]), "a2")

        assert len(new.instances) == 4
        assert {one.sha256 for one in new.instances}.isdisjoint(o.sha256 for o in old.instances)


def test_an_ignored_series_that_comes_corrected_is_used_as_it_came_last(tmp_path: Path) -> None:
    """All of it, although the first instance has opened the series already."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(3)
        old = keep_all(keeping, frames)
        decide(keeping, old, SeriesState.IGNORED)
        new = keep_all(keeping, correct(frames), "a2")

        assert {one.sha256 for one in new.instances}.isdisjoint(o.sha256 for o in old.instances)
        assert keeping.index.open_series()[0].instances == 3
        decide(keeping, new)
        assert keep_all(keeping, correct(frames, 100), "a3") == new


@pytest.mark.parametrize("state", [JobState.WAITING, JobState.RUNNING, JobState.DELIVERED])
def test_while_something_comes_of_it_other_bytes_stay_apart(
    tmp_path: Path, state: JobState
) -> None:
    """Nobody can say which is right, so nothing is exchanged below a job."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(3)
        old = keep_all(keeping, frames)
        a_job_of(keeping, old, state)

        assert keep_all(keeping, correct(frames), "a2") == old
        assert keeping.index.open_series() == []


def test_what_was_set_apart_is_used_when_it_comes_after_the_failure(tmp_path: Path) -> None:
    """The corrected bytes were known already, and are sent once more."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(2)
        old = keep_all(keeping, frames)
        keep_all(keeping, correct(frames))
        a_job_of(keeping, old, JobState.FAILED)
        new = keep_all(keeping, frames, "a2")

        assert {one.sha256 for one in new.instances}.isdisjoint(o.sha256 for o in old.instances)
        assert len(new.instances) == 2


def test_a_failure_is_no_reason_to_touch_another_series(tmp_path: Path) -> None:
    """The same SOP Instance UID under another Series Instance UID is no correction."""
    with a_store(tmp_path) as keeping:
        (frame,) = a_ct_series(1)
        old = keep_all(keeping, [frame])
        a_job_of(keeping, old, JobState.FAILED)
        frame.SeriesInstanceUID = generate_uid()
        other = keep_all(keeping, [frame], "a2")

        assert other.instances == ()
        assert keeping.index.load_series(old.series_instance_uid, "LUNG") == old


def test_an_ignored_series_that_is_sent_again_is_judged_again(tmp_path: Path) -> None:
    """Unchanged: what did not want it may want it now."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(2)
        series = keep_all(keeping, frames)
        decide(keeping, series, SeriesState.IGNORED)
        assert keep_all(keeping, frames, "a2") == series

        (opened,) = keeping.index.open_series()
        assert (opened.instances, opened.association_open) == (2, True)
        assert keeping.index.ignored_series() == []


def test_a_judgement_of_bytes_that_were_replaced_meanwhile_is_not_taken(tmp_path: Path) -> None:
    """As many instances as before, but others."""
    with a_store(tmp_path) as keeping:
        frames = a_ct_series(2)
        decide(keeping, keep_all(keeping, frames), SeriesState.IGNORED)
        judged = keep_all(keeping, frames)
        keep_all(keeping, correct(frames[1:]), "a2")

        assert not decide(keeping, judged)
        assert len(keeping.index.open_series()) == 1


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


def test_postgresql_gives_the_same_answers(tmp_path: Path) -> None:
    """Ended associations, a failure, and what takes whose place afterwards."""
    with a_postgresql() as url, an_empty_index(url) as engine:
        keeping = Keeping(
            tmp_path, engine, InstanceStore(tmp_path, engine, 0), SeriesIndex(engine, tmp_path)
        )
        frames = a_ct_series(3)
        keep_all(keeping, frames[:1], "a1")
        old = keep_all(keeping, frames[1:], "a2")
        keeping.index.association_ended("a2", in_order=False)
        assert keeping.index.open_series()[0].association_open
        keeping.index.association_ended("a1", in_order=True)
        (opened,) = keeping.index.open_series()
        assert (opened.association_open, opened.broken_off) == (False, True)

        a_job_of(keeping, old, JobState.FAILED)
        new = keep_all(keeping, correct(frames), "a3")
        assert {one.sha256 for one in new.instances}.isdisjoint(o.sha256 for o in old.instances)
        assert keeping.index.close_orphaned_associations() == 1
        assert decide(keeping, new, SeriesState.IGNORED)
        assert keeping.index.ignored_series()[0].instances == 6
