"""Jobs that take each other's place, on both databases."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_gateway.config_delivery import ScuSettings
from dicom_gateway.database import jobs, transaction
from dicom_gateway.deliver import Entries
from dicom_gateway.errors import LeaseLost, UnusableSeries
from dicom_gateway.jobs import JobQueue
from dicom_gateway.jobs.owner import this_process
from dicom_gateway.jobs.sameness import content_of
from dicom_gateway.jobs.supersession import withdraw, withdraw_choices
from dicom_gateway.records import DeliveryState, Job, JobState, Priority, Series
from tests.support.jobs import a_kept_instance, a_kept_series, a_result, enqueue

ME = this_process()


def one_more(engine: sa.Engine, folder: Path, series: Series) -> Series:
    """The series with a late instance."""
    late = a_kept_instance(engine, folder, series.study_instance_uid, series.series_instance_uid)
    return dataclasses.replace(series, instances=(*series.instances, late))


def now_is(queue: JobQueue, job: Job) -> Job:
    """The job as it is now."""
    found = queue.show(job.job_id)
    assert found is not None
    return found


@pytest.fixture
def series(engine: sa.Engine, tmp_path: Path) -> Series:
    """A series of three instances."""
    return a_kept_series(engine, tmp_path)


def test_a_running_job_is_superseded_and_its_worker_fenced_off(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, series: Series
) -> None:
    """It can neither renew nor finish; only the new job is claimed."""
    enqueue(queue, engine, series)
    old = queue.claim(ME)
    assert old is not None

    new = enqueue(queue, engine, one_more(engine, tmp_path, series))

    assert new is not None
    assert not queue.renew(old)
    with pytest.raises(LeaseLost):
        queue.finish(old, [a_result(tmp_path, old)])
    assert (now_is(queue, old).state, now_is(queue, old).superseded_by) == (
        JobState.SUPERSEDED,
        new.job_id,
    )
    claimed = queue.claim(ME)
    assert claimed is not None
    assert claimed.job_id == new.job_id
    assert queue.claim(ME) is None


def test_undelivered_results_of_a_superseded_job_are_dropped_with_the_reason(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, series: Series
) -> None:
    """What one destination has already is recorded as it is; no outbox takes the rest."""
    enqueue(queue, engine, series, destinations=("pacs", "archive"))
    old = queue.claim(ME)
    assert old is not None
    queue.finish(old, [a_result(tmp_path, old)])
    entries = Entries(engine, tmp_path, ScuSettings())
    sent = entries.claim("archive")
    assert sent is not None
    entries.delivered(sent, "accepted", 0.1)

    new = enqueue(queue, engine, one_more(engine, tmp_path, series))

    assert new is not None
    assert entries.claim("pacs") is None
    states = {one.destination: (one.state, one.last_error) for one in queue.deliveries(old.job_id)}
    assert states["archive"] == (DeliveryState.DELIVERED, None)
    assert states["pacs"][0] is DeliveryState.FAILED
    assert f"job {new.job_id} takes its place" in (states["pacs"][1] or "")
    assert now_is(queue, old).state is JobState.SUPERSEDED
    assert "1 deliveries of it are dropped" in queue.events(old.job_id)[-1].note


def test_a_delivered_job_stays_delivered_and_says_what_came_after(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, series: Series
) -> None:
    """The PACS has its result; the new one's refers to it."""
    enqueue(queue, engine, series, destinations=())
    old = queue.claim(ME)
    assert old is not None
    made = a_result(tmp_path, old)
    queue.finish(old, [made])

    new = enqueue(queue, engine, one_more(engine, tmp_path, series))

    assert new is not None
    assert (now_is(queue, old).state, now_is(queue, old).superseded_by) == (
        JobState.DELIVERED,
        new.job_id,
    )
    (replaced,) = queue.replaced_results(new)
    assert (replaced.sop_instance_uid, replaced.job_id) == (made.sop_instance_uid, old.job_id)
    assert "supersedes" in [line.stage for line in queue.events(new.job_id)]


def test_a_job_that_made_nothing_stands_for_those_whose_place_it_took(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, series: Series
) -> None:
    """Two late instances in a row: the third result still refers to the first."""
    enqueue(queue, engine, series, destinations=())
    first = queue.claim(ME)
    assert first is not None
    made = a_result(tmp_path, first)
    queue.finish(first, [made])
    more = one_more(engine, tmp_path, series)
    enqueue(queue, engine, more)

    third = enqueue(queue, engine, one_more(engine, tmp_path, more))

    assert third is not None
    assert [one.sop_instance_uid for one in queue.replaced_results(third)] == [
        made.sop_instance_uid
    ]


def test_a_failed_job_leaves_the_failed_list_and_is_not_retried(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, series: Series
) -> None:
    """Its successor is the one to look at."""
    enqueue(queue, engine, series)
    old = queue.claim(ME)
    assert old is not None
    queue.fail(old, UnusableSeries("a hole", code="missing_slices"))

    enqueue(queue, engine, one_more(engine, tmp_path, series))

    assert queue.list_jobs([JobState.FAILED]) == []
    assert not queue.retry(old.job_id)


def test_another_pipeline_or_ae_title_is_left_alone(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, series: Series
) -> None:
    """A job is overtaken by its own successor only."""
    elsewhere = dataclasses.replace(series, called_ae_title="OTHER")
    others = [enqueue(queue, engine, elsewhere)]
    with transaction(engine) as connection:
        others.append(
            queue.enqueue(connection, series, pipeline="other_ct", pipeline_version="1.0.0")
        )

    enqueue(queue, engine, one_more(engine, tmp_path, series))

    assert [now_is(queue, job).state for job in others if job] == [JobState.WAITING] * 2


def test_a_choice_that_comes_back_is_a_new_job(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, series: Series
) -> None:
    """The same series again after another one had its place: not the old job, not none."""
    other = dataclasses.replace(
        a_kept_series(engine, tmp_path), study_instance_uid=series.study_instance_uid
    )
    made = []
    for choice in (series, series, other, series):
        with transaction(engine) as connection:
            made.append(
                queue.enqueue(
                    connection,
                    choice,
                    pipeline="lung_ct",
                    pipeline_version="1.0.0",
                    subject="study/thinnest",
                )
            )

    first, again, second, third = made
    assert again is None
    assert first is not None
    assert second is not None
    assert third is not None
    assert now_is(queue, first).superseded_by == second.job_id
    assert now_is(queue, second).superseded_by == third.job_id
    assert now_is(queue, third).state is JobState.WAITING


def test_roles_are_kept_with_the_job(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, series: Series
) -> None:
    """Exchanged roles are another job."""
    other = a_kept_series(engine, tmp_path)
    made = []
    for roles in ({"a": series, "b": other}, {"a": series, "b": other}, {"a": other, "b": series}):
        with transaction(engine) as connection:
            made.append(
                queue.enqueue(
                    connection, series, pipeline="two_ct", pipeline_version="1.0.0", roles=roles
                )
            )

    assert made[0] is not None
    assert made[1] is None
    assert made[2] is not None
    assert now_is(queue, made[2]).roles == {
        "a": other.series_instance_uid,
        "b": series.series_instance_uid,
    }
    assert made[2].job_id in {job.job_id for job in queue.jobs_of_series(other.series_instance_uid)}


def test_withdrawn_jobs_are_those_that_nobody_asks_for(
    queue: JobQueue, engine: sa.Engine, series: Series
) -> None:
    """The pipelines that still take the series keep theirs."""
    kept, gone = enqueue(queue, engine, series), None
    with transaction(engine) as connection:
        gone = queue.enqueue(connection, series, pipeline="other_ct", pipeline_version="1.0.0")
        withdraw(connection, series.series_instance_uid, "LUNG", ["lung_ct"])

    assert kept is not None
    assert gone is not None
    assert now_is(queue, kept).state is JobState.WAITING
    assert now_is(queue, gone).state is JobState.SUPERSEDED
    assert queue.claim(ME) is not None
    assert queue.claim(ME) is None


def choose(
    queue: JobQueue,
    engine: sa.Engine,
    series: Series,
    rule: str,
    destinations: Sequence[str] = ("pacs",),
    rules: Sequence[str] = (),
    priority: Priority = Priority.NORMAL,
) -> Job | None:
    """A rule's choice within the series' study."""
    with transaction(engine) as connection:
        return queue.enqueue(
            connection,
            series,
            pipeline="lung_ct",
            pipeline_version="1.0.0",
            destinations=destinations,
            rule=rule,
            subject=f"{series.study_instance_uid}/{rule}",
            rules=rules or (rule,),
            priority=priority,
        )


def test_a_choice_is_a_job_of_its_own_where_no_other_one_reaches_its_destinations(
    queue: JobQueue, engine: sa.Engine, series: Series
) -> None:
    """Each is made once; the story names the job that computes the same."""
    by_itself = enqueue(queue, engine, series)
    thin = choose(queue, engine, series, "thin", ["archive"])

    assert by_itself is not None
    assert thin is not None
    assert choose(queue, engine, series, "thin", ["archive"]) is None
    assert choose(queue, engine, series, "large") is None
    assert enqueue(queue, engine, series) is None
    (beside,) = [one.note for one in queue.events(thin.job_id) if one.stage == "beside"]
    assert beside.startswith(f"job {by_itself.job_id[:8]} (rule ")
    assert {now_is(queue, one).superseded_by for one in (by_itself, thin)} == {None}


def test_a_choice_that_another_job_makes_leaves_its_earlier_one(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, series: Series
) -> None:
    """The earlier one would go on for a series that is chosen no more."""
    earlier = choose(queue, engine, series, "thin")
    better = one_more(engine, tmp_path, series)
    by_itself = enqueue(queue, engine, better)

    assert choose(queue, engine, better, "thin") is None
    assert earlier is not None
    assert by_itself is not None
    assert now_is(queue, earlier).superseded_by == by_itself.job_id


@pytest.mark.parametrize("asked", list(Priority))
def test_a_choice_that_another_job_makes_lends_it_its_priority(
    queue: JobQueue, engine: sa.Engine, series: Series, asked: Priority
) -> None:
    """Where it is the more urgent one, and the job still waits."""
    by_itself = enqueue(queue, engine, series, priority=Priority.NORMAL)

    assert choose(queue, engine, series, "thin", priority=asked) is None
    assert by_itself is not None
    expected = Priority.NORMAL if asked is Priority.LOW else asked
    assert now_is(queue, by_itself).priority is expected


def test_a_row_whose_key_is_the_content_alone_stands_for_its_choice_only(
    queue: JobQueue, engine: sa.Engine, series: Series
) -> None:
    """As older indexes have them: nothing is computed again, and nobody else goes without."""
    thin = choose(queue, engine, series, "thin", ["archive"])
    with transaction(engine) as connection:
        content = content_of(series, "lung_ct", "1.0.0", {})
        connection.execute(jobs.update().values(unique_key=content))

    assert thin is not None
    assert choose(queue, engine, series, "thin", ["archive"]) is None
    assert enqueue(queue, engine, series) is not None
    assert now_is(queue, thin).superseded_by is None


def test_the_choice_of_a_rule_that_is_gone_is_taken_over_or_withdrawn(
    queue: JobQueue, engine: sa.Engine, tmp_path: Path, series: Series
) -> None:
    """By a rule that asks for the same; other studies and titles are left alone."""
    old = choose(queue, engine, series, "thin")
    other = choose(queue, engine, a_kept_series(engine, tmp_path), "thin")
    by_itself = enqueue(queue, engine, one_more(engine, tmp_path, series))
    assert choose(queue, engine, series, "fine", rules=["fine"]) is None
    with transaction(engine) as connection:
        withdraw_choices(connection, series, ["fine"])

    assert old is not None
    assert (now_is(queue, old).rule, now_is(queue, old).state) == ("fine", JobState.WAITING)
    assert "taken_over" in [one.stage for one in queue.events(old.job_id)]
    with transaction(engine) as connection:
        withdraw_choices(connection, series, ["best"])
    assert now_is(queue, old).superseded_by == "withdrawn"
    for one in (other, by_itself):
        assert one is not None
        assert now_is(queue, one).superseded_by is None
