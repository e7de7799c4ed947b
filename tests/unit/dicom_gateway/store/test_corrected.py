"""A series that is sent again after nothing came of it: what it is then, and when it may be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import generate_uid

from dicom_gateway.database import job_events, jobs, transaction
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.jobs import JobQueue
from dicom_gateway.records import Series, SeriesState
from dicom_gateway.store import InstanceStore, SeriesIndex
from dicom_gateway.store.rebuild import rebuild
from tests.support.databases import an_empty_index
from tests.support.dicom import a_ct_series, an_arrival
from tests.support.gateway import Keeping

BROKEN = UnusableSeries("broken; send it again", code="no_geometry")


@pytest.fixture
def keeping(engine: sa.Engine, tmp_path: Path) -> Keeping:
    """A store on an empty index, once of each kind."""
    folder = tmp_path / "store"
    return Keeping(
        folder.resolve(), engine, InstanceStore(folder, engine, 0), SeriesIndex(engine, folder)
    )


def keep(keeping: Keeping, frames: list[Dataset], called: str = "LUNG") -> Series:
    """Keeps them and gives the series as it is then."""
    for ds in frames:
        keeping.store.keep(an_arrival(ds, called_ae_title=called))
    return keeping.index.load_series(frames[0].SeriesInstanceUID, called)


def correct(frames: list[Dataset], **attributes: str) -> list[Dataset]:
    """The same instances with other bytes."""
    for ds in frames:
        ds.AcquisitionNumber = 99
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)
    return frames


def decide(
    keeping: Keeping,
    series: Series,
    *pipelines: str,
    roles: Mapping[str, Series] | None = None,
) -> list[str]:
    """With a job for each pipeline, or ignored where there is none; gives the jobs' ids."""
    queue = JobQueue(keeping.engine, keeping.folder)
    made = []
    with transaction(keeping.engine) as connection:
        for one in (roles or {"": series}).values():
            state = SeriesState.DECIDED if pipelines else SeriesState.IGNORED
            assert keeping.index.mark_series(connection, one, state, "because")
        for pipeline in pipelines:
            job = queue.enqueue(
                connection, series, pipeline=pipeline, pipeline_version="1.0.0", roles=roles
            )
            assert job is not None
            made.append(job.job_id)
    return made


def fail_next(keeping: Keeping) -> None:
    """The job that is due fails."""
    queue = JobQueue(keeping.engine, keeping.folder)
    job = queue.claim("worker")
    assert job is not None
    queue.fail(job, BROKEN)


def is_replaced(new: Series, old: Series) -> bool:
    """Every instance, by other bytes."""
    return len(new.instances) == len(old.instances) and {
        one.sha256 for one in new.instances
    }.isdisjoint(one.sha256 for one in old.instances)


def test_a_corrected_series_has_the_modality_and_study_of_what_is_used_now(
    keeping: Keeping, tmp_path: Path
) -> None:
    """After it was ignored, and after it failed; the new index says the same."""
    frames = a_ct_series(3, modality="OT")
    decide(keeping, keep(keeping, frames))

    ct = keep(keeping, correct(frames, Modality="CT"))
    assert (ct.modality, {one.modality for one in ct.instances}) == ("CT", {"CT"})

    decide(keeping, ct, "lung_ct")
    fail_next(keeping)
    study = generate_uid()
    mr = keep(keeping, correct(frames, Modality="MR", StudyInstanceUID=study))
    assert (mr.modality, mr.study_instance_uid) == ("MR", study)
    (opened,) = keeping.index.open_series()
    assert opened.study_instance_uid == study
    with an_empty_index(f"sqlite:///{tmp_path}/again.sqlite") as again:
        rebuild(again, keeping.folder)
        (made_again,) = SeriesIndex(again, keeping.folder).open_series()
        assert made_again.study_instance_uid == study
        assert SeriesIndex(again, keeping.folder).load_series(mr.series_instance_uid, "LUNG") == mr


def test_another_ae_title_goes_by_what_it_uses_itself(keeping: Keeping) -> None:
    """Only where the bytes were exchanged is the series another one."""
    frames = a_ct_series(2)
    decide(keeping, keep(keeping, frames))
    keep(keeping, frames, called="LIVER")

    assert keep(keeping, correct(frames, Modality="MR")).modality == "MR"
    uid = frames[0].SeriesInstanceUID
    assert keeping.index.load_series(uid, "LIVER").modality == "CT"


@pytest.mark.parametrize("which", ["flat", "upright"])
def test_each_series_of_a_failed_job_may_be_sent_again(keeping: Keeping, which: str) -> None:
    """In whatever role it was used."""
    study = generate_uid()
    frames = {role: a_ct_series(2, study_instance_uid=study) for role in ("flat", "upright")}
    roles = {role: keep(keeping, some) for role, some in frames.items()}
    decide(keeping, roles["flat"], "pair", roles=roles)
    fail_next(keeping)

    new = keep(keeping, correct(frames[which]))

    assert is_replaced(new, roles[which])
    (opened,) = keeping.index.open_series()
    assert opened.series_instance_uid == new.series_instance_uid


def test_a_series_of_a_job_that_has_not_failed_stays_as_it_is_in_every_role(
    keeping: Keeping,
) -> None:
    """And the job's story tells of what came."""
    study = generate_uid()
    frames = {role: a_ct_series(2, study_instance_uid=study) for role in ("flat", "upright")}
    roles = {role: keep(keeping, some) for role, some in frames.items()}
    (job_id,) = decide(keeping, roles["flat"], "pair", roles=roles)

    assert keep(keeping, correct(frames["upright"])) == roles["upright"]

    assert keeping.index.open_series() == []
    with transaction(keeping.engine) as connection:
        told = connection.execute(
            sa.select(job_events.c.note).where(
                job_events.c.job_id == job_id, job_events.c.stage == "conflict"
            )
        ).scalars()
        assert len(list(told)) == 2


def test_a_second_role_that_another_job_needs_is_not_exchanged_with_a_failed_one(
    keeping: Keeping,
) -> None:
    """One of the two may still come to something."""
    study = generate_uid()
    flat, upright = (a_ct_series(2, study_instance_uid=study) for _ in range(2))
    roles = {"flat": keep(keeping, flat), "upright": keep(keeping, upright)}
    decide(keeping, roles["flat"], "pair", roles=roles)
    fail_next(keeping)
    decide(keeping, roles["upright"], "alone")

    assert keep(keeping, correct(upright)) == roles["upright"]


def test_a_job_that_no_rule_asks_for_any_more_holds_up_no_correction(keeping: Keeping) -> None:
    """It has ended long since, whatever it came to; the one that stands has failed."""
    frames = a_ct_series(4)
    decide(keeping, keep(keeping, frames[:2]), "small")
    queue = JobQueue(keeping.engine, keeping.folder)
    job = queue.claim("worker")
    assert job is not None
    queue.finish(job, [])
    old = keep(keeping, frames)
    with transaction(keeping.engine) as connection:
        connection.execute(jobs.update().values(superseded_by="withdrawn"))
    decide(keeping, old, "large")
    fail_next(keeping)

    assert is_replaced(keep(keeping, correct(frames)), old)
