"""The judge where several rules name one pipeline: each gets what it has chosen, once.

Every choice within a study is a job of its own, unless another job sends the same result to
all of its destinations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import generate_uid

from dicom_gateway.database import jobs, transaction
from dicom_gateway.jobs.sameness import content_of
from dicom_gateway.records import JobState
from tests.support.bench import Bench, a_sending_bench
from tests.support.dicom import CORONAL, a_ct_series

THIN = {"name": "thin", "choose": "thinnest", "pipelines": ["lung_ct"]}
LARGE = {"name": "large", "choose": "largest", "pipelines": ["lung_ct"]}
ALL = {"name": "all", "pipelines": ["lung_ct"]}
THREE = {
    "name": "set",
    "roles": {
        "flat": {"where": [{"plane": "axial"}]},
        "up": {"where": [{"plane": "coronal"}]},
        "side": {"where": [{"plane": "sagittal"}]},
    },
    "pipelines": ["lung_ct"],
}


def to(rule: dict[str, Any], destination: str) -> dict[str, Any]:
    """The rule with one destination."""
    return {**rule, "destinations": [destination]}


def a_series(study: str, **make: Any) -> list[Dataset]:
    """A small series of a study."""
    return a_ct_series(make.pop("frames", 3), rows=8, columns=8, study_instance_uid=study, **make)


def uid_of(datasets: list[Dataset]) -> str:
    """Its Series Instance UID."""
    return str(datasets[0].SeriesInstanceUID)


def standing(bench: Bench) -> set[tuple[str, str, tuple[str, ...]]]:
    """Rule, series and destinations of each job whose place no other has taken."""
    return {(job.rule, job.series_instance_uid, job.destinations) for job in bench.standing()}


@pytest.mark.parametrize("choosing_first", [True, False])
def test_a_choice_reaches_its_destinations_beside_a_rule_that_takes_every_series(
    tmp_path: Path, *, choosing_first: bool
) -> None:
    """In whatever order they are written; its job says which other one computes the same."""
    study = generate_uid()
    thick, thin = a_series(study, spacing_mm=5.0), a_series(study, spacing_mm=1.0)
    rules = [to(THIN, "a"), to(ALL, "b")]
    with a_sending_bench(tmp_path, rules if choosing_first else rules[::-1]) as bench:
        bench.receive(thick + thin)
        bench.settle()

        assert standing(bench) == {
            ("thin", uid_of(thin), ("a",)),
            ("all", uid_of(thin), ("b",)),
            ("all", uid_of(thick), ("b",)),
        }
        (job,) = [job for job in bench.jobs() if job.rule == "thin"]
        (beside,) = [line for line in bench.queue.events(job.job_id) if line.stage == "beside"]
        assert "(rule all) computes the same" in beside.note


@pytest.mark.parametrize("other", [ALL, LARGE])
def test_a_choice_that_another_job_sends_to_its_destinations_is_not_computed_again(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    """One job, whichever of the two rules has it."""
    study = generate_uid()
    only = a_series(study)
    with a_sending_bench(tmp_path, [to(THIN, "a"), to(other, "a")]) as bench:
        bench.receive(only)
        bench.settle()

        (job,) = bench.jobs()
        assert (job.series_instance_uid, job.destinations) == (uid_of(only), ("a",))


def test_both_choices_move_on_to_a_series_that_is_better_for_both(tmp_path: Path) -> None:
    """None of them stays behind."""
    study = generate_uid()
    large = a_series(study, spacing_mm=5.0, frames=6)
    thin = a_series(study, spacing_mm=1.0, frames=4)
    best = a_series(study, spacing_mm=0.5, frames=9)
    for one, other in (("a", "b"), ("a", "a")):
        with a_sending_bench(
            tmp_path / f"{one}{other}", [to(THIN, one), to(LARGE, other)]
        ) as bench:
            bench.receive(large + thin, "a1")
            bench.settle()
            assert len(standing(bench)) == 2
            bench.receive(best, "a2")
            bench.settle()

            found = standing(bench)
            assert {series for _, series, _ in found} == {uid_of(best)}
            assert {to for _, _, sent in found for to in sent} == {one, other}
            assert len(found) == len({one, other})


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1)])
@pytest.mark.parametrize("destination", ["a", "b"])
def test_a_choice_keeps_its_job_where_another_rule_moves_on(
    tmp_path: Path, order: tuple[int, int, int], destination: str
) -> None:
    """Both had chosen the same series; whatever the order of UIDs in which they are looked at."""
    study = generate_uid()
    root = f"1.2.3.{study[-12:].lstrip('0.')}"
    first = a_series(study, spacing_mm=5.0, frames=9)
    thinner = a_series(study, spacing_mm=1.0, frames=4)
    smaller = a_series(study, spacing_mm=5.0, frames=2)
    for number, one in zip(order, (first, thinner, smaller), strict=True):
        for ds in one:
            ds.SeriesInstanceUID = f"{root}.{number}"
    for ds in smaller:
        ds.BodyPartExamined = "HEAD"
    chest = {**to(THIN, "a"), "where": [{"tag": "BodyPartExamined", "equals": "CHEST"}]}
    with a_sending_bench(tmp_path, [chest, to(LARGE, destination)]) as bench:
        bench.receive(first, "a1")
        bench.settle()
        bench.receive(thinner + smaller, "a2")
        bench.settle()

        assert standing(bench) == {
            ("thin", uid_of(thinner), ("a",)),
            ("large", uid_of(first), (destination,)),
        }


def test_a_renamed_rule_takes_its_job_over(tmp_path: Path) -> None:
    """Nothing is computed again for a name; and its next choice takes the place."""
    study = generate_uid()
    thin, thick = a_series(study, spacing_mm=1.0), a_series(study, spacing_mm=5.0)
    thinnest = a_series(study, spacing_mm=0.5)
    with a_sending_bench(tmp_path, [to(THIN, "a")]) as bench:
        bench.receive(thin, "a1")
        bench.settle()
    renamed = {**to(THIN, "a"), "name": "fine"}
    with a_sending_bench(tmp_path, [renamed]) as bench:
        bench.receive(thick, "a2")
        bench.settle()
        (job,) = bench.jobs()
        assert standing(bench) == {("fine", uid_of(thin), ("a",))}
        bench.receive(thinnest, "a3")
        bench.settle()

        assert standing(bench) == {("fine", uid_of(thinnest), ("a",))}
        old = bench.queue.show(job.job_id)
        assert old is not None
        assert old.state is JobState.SUPERSEDED


def test_the_choice_of_a_rule_that_is_gone_does_not_run(tmp_path: Path) -> None:
    """It was renamed, and the renamed one chooses another series."""
    study = generate_uid()
    thick, thin = a_series(study, spacing_mm=5.0), a_series(study, spacing_mm=1.0)
    with a_sending_bench(tmp_path, [to(THIN, "a")]) as bench:
        bench.receive(thick, "a1")
        bench.settle()
    with a_sending_bench(tmp_path, [{**to(THIN, "a"), "name": "fine"}]) as bench:
        bench.receive(thin, "a2")
        bench.settle()

        assert standing(bench) == {("fine", uid_of(thin), ("a",))}


def test_a_choice_of_an_older_index_is_not_computed_again(tmp_path: Path) -> None:
    """Its row has the content alone as its key; nor does it keep other rules from theirs."""
    study = generate_uid()
    thin, thick = a_series(study, spacing_mm=1.0, frames=5), a_series(study, spacing_mm=5.0)
    with a_sending_bench(tmp_path, [to(THIN, "a")]) as bench:
        bench.receive(thin, "a1")
        bench.settle()
        (job,) = bench.jobs()
        series = bench.keeping.index.load_series(uid_of(thin), "AI")
        with transaction(bench.keeping.engine) as connection:
            connection.execute(
                sa.update(jobs).values(unique_key=content_of(series, "lung_ct", "1.0.0", {}))
            )
    with a_sending_bench(tmp_path, [to(THIN, "a"), to(LARGE, "b")]) as bench:
        bench.receive(thick, "a2")
        bench.settle()

        assert standing(bench) == {("thin", uid_of(thin), ("a",)), ("large", uid_of(thin), ("b",))}
        assert job.job_id in {one.job_id for one in bench.standing()}


@pytest.mark.parametrize(
    ("plane", "missing"), [("coronal", "side"), ("oblique", "up and side")], ids=["fewer", "other"]
)
def test_a_corrected_rule_is_asked_again_by_retrying_the_job_that_lacked_a_series(
    tmp_path: Path, plane: str, missing: str
) -> None:
    """The reason names the way; the series that no role had taken before is found too."""
    study = generate_uid()
    flat, up = a_series(study), a_series(study, orientation=CORONAL)
    wrong = {**THREE, "roles": {**THREE["roles"], "up": {"where": [{"plane": plane}]}}}
    right = {**THREE, "roles": {role: THREE["roles"][role] for role in ("flat", "up")}}
    with a_sending_bench(tmp_path, [wrong]) as bench:
        bench.receive(flat + up)
        bench.settle()
        (failed,) = bench.jobs()
        assert f"has none for {missing};" in (failed.failure_reason or "")
        assert "'tritome jobs retry'" in (failed.failure_reason or "")
    with a_sending_bench(tmp_path, [right]) as bench:
        assert bench.queue.retry(failed.job_id)
        bench.settle()

        (job,) = bench.standing()
        assert (job.state, job.roles) == (
            JobState.WAITING,
            {"flat": uid_of(flat), "up": uid_of(up)},
        )
        old = bench.queue.show(failed.job_id)
        assert old is not None
        assert old.superseded_by == job.job_id
        assert not bench.queue.retry(failed.job_id)


def test_a_role_leaves_another_one_the_only_series_that_it_can_have(tmp_path: Path) -> None:
    """Although it would have liked that best; of what is left it takes the largest."""
    rule = {
        "name": "set",
        "roles": {
            "any": {"where": [{"tag": "Modality", "equals": "CT"}]},
            "up": {"where": [{"plane": "coronal"}]},
        },
        "pipelines": ["lung_ct"],
    }
    study = generate_uid()
    flat, up = a_series(study, frames=4), a_series(study, frames=6, orientation=CORONAL)
    small = a_series(study, frames=3)
    with a_sending_bench(tmp_path, [rule]) as bench:
        bench.receive(flat + up + small)
        bench.settle()

        (job,) = bench.jobs()
        assert (job.state, job.roles) == (
            JobState.WAITING,
            {"any": uid_of(flat), "up": uid_of(up)},
        )
        assert bench.states(study)[uid_of(small)][1].startswith(
            f"rule set: for role any, series {uid_of(flat)} is larger"
        )
