"""The judge and whole studies: the thinnest, roles, counts of a PACS, a person's word.

The clock decides nothing here (`PATIENT`), unless a test says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import generate_uid

from dicom_gateway.records import JobState, Priority, SeriesState
from tests.support.bench import AT_ONCE, PATIENT, Bench, a_bench
from tests.support.dicom import CORONAL, a_ct_series, an_object_without_pixels

THINNEST = {"name": "thin", "choose": "thinnest", "pipelines": ["lung_ct"]}
PAIR = {
    "name": "pair",
    "roles": {
        "flat": {"where": [{"plane": "axial"}]},
        "upright": {"where": [{"plane": "coronal"}]},
    },
    "pipelines": ["lung_ct"],
}


def a_series(study: str, **make: Any) -> list[Dataset]:
    """A small series of a study."""
    return a_ct_series(make.pop("frames", 3), rows=8, columns=8, study_instance_uid=study, **make)


def uid_of(datasets: list[Dataset]) -> str:
    """Its Series Instance UID."""
    return str(datasets[0].SeriesInstanceUID)


def test_the_thinnest_series_of_a_whole_study_makes_the_only_job(tmp_path: Path) -> None:
    """One association brought all of it and has ended: no clock is needed."""
    study = generate_uid()
    thick, thin = a_series(study, spacing_mm=5.0), a_series(study, spacing_mm=1.0, frames=5)
    with a_bench(tmp_path, rules=[THINNEST], completeness=PATIENT) as bench:
        bench.receive(thick + thin)
        bench.look()

        (job,) = bench.jobs()
        assert (job.series_instance_uid, job.rule) == (uid_of(thin), "thin")
        state, reasons = bench.states(study)[uid_of(thick)]
        assert state == "ignored"
        assert reasons.startswith(f"rule thin: series {uid_of(thin)} is thinner")
        assert "one association brought the whole study" in "\n".join(story(bench, job.job_id))


def test_a_study_that_may_grow_is_waited_for_with_a_recorded_reason(tmp_path: Path) -> None:
    """One series alone says nothing of others; the job is not made too early."""
    study = generate_uid()
    thick = a_series(study, spacing_mm=5.0)
    with a_bench(tmp_path, rules=[THINNEST], completeness=PATIENT) as bench:
        bench.receive(thick)
        bench.look(3)

        assert bench.jobs() == []
        (line,) = bench.story(uid_of(thick))
        assert line.startswith("waits: complete, and rule thin chooses once its study is complete")
        assert "nothing says how many series the study has" in line


def test_the_number_of_series_that_a_pacs_states_completes_a_study(tmp_path: Path) -> None:
    """Not before the last of them has come."""
    study = generate_uid()
    thick, thin = a_series(study, spacing_mm=5.0), a_series(study, spacing_mm=1.0)
    with a_bench(tmp_path, rules=[THINNEST], completeness=PATIENT) as bench:
        bench.docket.expect_series(study, "AI", 2, "C-FIND of pacs")
        bench.receive(thick, "a1")
        bench.look()
        assert bench.jobs() == []
        assert "1 of 2 that C-FIND of pacs (of series in the study) states" in "".join(
            bench.story(uid_of(thick))
        )
        bench.receive(thin, "a2")
        bench.look()

        assert [job.series_instance_uid for job in bench.jobs()] == [uid_of(thin)]


def test_a_series_that_comes_late_and_is_thinner_takes_the_place(tmp_path: Path) -> None:
    """The earlier choice is superseded, and says by whom."""
    study = generate_uid()
    thick, thin = a_series(study, spacing_mm=5.0), a_series(study, spacing_mm=1.0)
    with a_bench(tmp_path, rules=[THINNEST], completeness=AT_ONCE) as bench:
        bench.receive(thick, "a1")
        bench.settle()
        bench.receive(thin, "a2")
        bench.settle()

        first, second = bench.jobs()
        assert (first.state, first.superseded_by) == (JobState.SUPERSEDED, second.job_id)
        assert second.series_instance_uid == uid_of(thin)
        assert bench.states(study)[uid_of(thick)][0] == "ignored"


def test_each_series_is_told_of_once_when_it_is_decided(tmp_path: Path) -> None:
    """Not while it waits, nor again where a later one has its study decided anew."""
    study = generate_uid()
    thick, thin = a_series(study, spacing_mm=5.0), a_series(study, spacing_mm=1.0)
    with a_bench(tmp_path, rules=[THINNEST], completeness=PATIENT) as bench:
        bench.docket.expect_series(study, "AI", 2, "C-FIND of pacs")
        bench.receive(thick, "a1")
        bench.look()
        assert bench.ended == []
        bench.receive(thin, "a2")
        bench.look()
        assert sorted(bench.ended) == [SeriesState.DECIDED, SeriesState.IGNORED]
        bench.receive(a_series(study, spacing_mm=2.0), "a3")
        bench.docket.expect_series(study, "AI", 3, "C-FIND of pacs")
        bench.look()
        assert bench.ended[2:] == [SeriesState.IGNORED]


def test_a_series_by_itself_is_told_of_too(tmp_path: Path) -> None:
    """One that has a job, and one that nobody wants."""
    with a_bench(tmp_path, short_form=["lung_ct"]) as bench:
        bench.receive(a_series(generate_uid()), "a1")
        bench.settle()
        assert bench.ended == [SeriesState.DECIDED]
        bench.receive(a_series(generate_uid(), modality="MR"), "a2")
        bench.settle()
        assert bench.ended == [SeriesState.DECIDED, SeriesState.IGNORED]


def test_a_series_that_comes_late_and_is_thicker_changes_nothing(tmp_path: Path) -> None:
    """The choice stands; the new series says why it wasn't taken."""
    study = generate_uid()
    thin, thick = a_series(study, spacing_mm=1.0), a_series(study, spacing_mm=5.0)
    with a_bench(tmp_path, rules=[THINNEST], completeness=AT_ONCE) as bench:
        bench.receive(thin, "a1")
        bench.settle()
        bench.receive(thick, "a2")
        bench.settle()

        (job,) = bench.jobs()
        assert (job.series_instance_uid, job.superseded_by) == (uid_of(thin), None)
        assert "is thinner" in bench.states(study)[uid_of(thick)][1]


def test_roles_make_one_job_that_holds_the_series_of_each(tmp_path: Path) -> None:
    """Its instances are those of both series."""
    study = generate_uid()
    flat, upright = a_series(study), a_series(study, orientation=CORONAL)
    with a_bench(tmp_path, rules=[PAIR], completeness=PATIENT) as bench:
        bench.receive(upright + flat)
        bench.look()

        (job,) = bench.jobs()
        assert job.roles == {"flat": uid_of(flat), "upright": uid_of(upright)}
        assert bench.uses(job) == {str(ds.SOPInstanceUID) for ds in flat + upright}
        assert job.state is JobState.WAITING


def test_an_incomplete_set_of_roles_ends_before_a_person_once_the_study_is_quiet(
    tmp_path: Path,
) -> None:
    """By the name of the role; when its series comes after all, a new job takes its place."""
    study = generate_uid()
    flat, upright = a_series(study), a_series(study, orientation=CORONAL)
    with a_bench(tmp_path, rules=[PAIR], completeness=AT_ONCE) as bench:
        bench.receive(flat, "a1")
        bench.settle()
        (failed,) = bench.jobs()
        assert (failed.state, failed.failure_code) == (JobState.FAILED, "incomplete_roles")
        assert "the study has none for upright" in (failed.failure_reason or "")
        assert bench.queue.retry(failed.job_id)
        bench.settle()
        assert [job.state for job in bench.jobs()] == [JobState.FAILED], "nothing has changed"

        bench.receive(upright, "a2")
        bench.settle()
        (job,) = bench.standing()
        assert set(job.roles) == {"flat", "upright"}
        assert job.state is JobState.WAITING


def test_an_incomplete_set_of_roles_waits_with_the_name_of_the_role(tmp_path: Path) -> None:
    """While the study may still grow, no job is made, and the reason is on record."""
    flat = a_series(generate_uid())
    with a_bench(tmp_path, rules=[PAIR], completeness=PATIENT) as bench:
        bench.receive(flat)
        bench.look(2)

        assert bench.jobs() == []
        (line,) = bench.story(uid_of(flat))
        assert line.endswith("rule pair still lacks a series for upright")


def test_a_study_without_any_role_s_series_makes_no_job(tmp_path: Path) -> None:
    """It is simply not for that rule."""
    study = generate_uid()
    report = an_object_without_pixels()
    report.StudyInstanceUID = study
    with a_bench(tmp_path, rules=[PAIR], completeness=AT_ONCE) as bench:
        bench.receive([report])
        bench.settle()

        assert bench.jobs() == []
        assert "wants objects without cross-sections" in bench.states(study)[uid_of([report])][1]


def test_a_series_that_grew_out_of_its_rule_has_its_job_withdrawn(tmp_path: Path) -> None:
    """Nobody is sent a result that the rules don't want any more."""
    few = {"name": "few", "where": [{"slices": {"at-most": 3}}], "pipelines": ["lung_ct"]}
    study = generate_uid()
    frames = a_series(study, frames=5)
    with a_bench(tmp_path, rules=[few], completeness=AT_ONCE) as bench:
        bench.receive(frames[:3], "a1")
        bench.settle()
        bench.receive(frames[3:], "a2")
        bench.settle()

        (job,) = bench.jobs()
        assert (job.state, job.superseded_by) == (JobState.SUPERSEDED, "withdrawn")
        state, reasons = bench.states(study)[uid_of(frames)]
        assert state == "ignored"
        assert reasons.startswith("no pipeline of AE title AI wants this series; rule few asks")


def test_what_a_pacs_states_completes_a_series_while_its_association_is_open(
    tmp_path: Path,
) -> None:
    """At once, and a hole is then the series' own; before the count nothing is decided."""
    study = generate_uid()
    frames = a_series(study, frames=6, gap_at=3)
    with a_bench(tmp_path, short_form=["lung_ct"], completeness=PATIENT) as bench:
        bench.docket.expect(uid_of(frames), "AI", 5, "C-FIND of pacs")
        bench.receive(frames[:4], ends=None)
        bench.look()
        assert bench.jobs() == []
        bench.receive(frames[4:], ends=None)
        bench.look()

        (job,) = bench.jobs()
        told = "\n".join(story(bench, job.job_id))
        assert "all 5 that C-FIND of pacs states; slices missing between" in told


def test_what_comes_beyond_a_pacs_s_count_is_not_decided_instance_by_instance(
    tmp_path: Path,
) -> None:
    """The count was of an earlier day: one job more, when the association has ended."""
    study = generate_uid()
    frames = a_series(study, frames=6)
    with a_bench(tmp_path, short_form=["lung_ct"], completeness=PATIENT) as bench:
        bench.docket.expect(uid_of(frames), "AI", 3, "C-FIND of pacs")
        bench.receive(frames[:3], "a1")
        bench.look()
        for ds in frames[3:]:
            bench.receive([ds], "a2", ends=None)
            bench.look()
        assert len(bench.jobs()) == 1
        bench.receive([], "a2")
        bench.look()

        assert [len(bench.uses(job)) for job in bench.jobs()] == [3, 6]


def test_a_person_s_word_completes_a_series_with_a_hole(tmp_path: Path) -> None:
    """Once: what comes later is waited for again."""
    study = generate_uid()
    frames = a_series(study, frames=9, gap_at=(2, 6))
    with a_bench(tmp_path, short_form=["lung_ct"], completeness=PATIENT) as bench:
        bench.receive(frames[:5], "a1")
        bench.look()
        assert bench.jobs() == []
        bench.docket.complete_by_hand(uid_of(frames), "AI")
        bench.look()
        assert len(bench.jobs()) == 1
        assert [line.partition(":")[0] for line in bench.story(uid_of(frames))] == [
            "waits",
            "by_hand",
            "complete",
        ]
        bench.look()
        bench.receive(frames[5:], "a2")
        bench.look()

        assert len(bench.jobs()) == 1
        assert bench.docket.declared_complete() == set()


def test_a_person_s_word_completes_a_whole_study(tmp_path: Path) -> None:
    """Also its series that still lack something."""
    study = generate_uid()
    thick, thin = (
        a_series(study, spacing_mm=5.0),
        a_series(study, spacing_mm=1.0, frames=6, gap_at=3),
    )
    with a_bench(tmp_path, rules=[THINNEST], completeness=PATIENT) as bench:
        bench.receive(thick, "a1")
        bench.receive(thin, "a2")
        bench.look()
        assert bench.jobs() == []
        bench.docket.complete_by_hand(study, "AI")
        bench.look(2)

        assert [job.series_instance_uid for job in bench.jobs()] == [uid_of(thin)]
        assert bench.docket.declared_complete() == set()


def test_rules_that_need_no_study_are_not_held_up_by_one_that_does(tmp_path: Path) -> None:
    """Their job is made once, although the series stays open."""
    every = {"name": "every", "pipelines": ["chest_ct"], "priority": "high"}
    study = generate_uid()
    frames = a_series(study)
    pipelines = {"lung_ct": "CT", "chest_ct": "CT"}
    with a_bench(
        tmp_path, rules=[THINNEST, every], pipelines=pipelines, completeness=PATIENT
    ) as bench:
        bench.receive(frames)
        bench.look(3)

        (job,) = bench.jobs()
        assert (job.pipeline, job.priority) == ("chest_ct", Priority.HIGH)
        assert len(bench.keeping.index.open_series()) == 1


def story(bench: Bench, job_id: str) -> list[str]:
    """All lines of a job's story."""
    return [f"{line.stage}: {line.note}" for line in bench.queue.events(job_id)]
