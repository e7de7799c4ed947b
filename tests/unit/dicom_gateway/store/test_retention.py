"""What has had its time leaves, and nothing else does."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.uid import generate_uid

from dicom_gateway.auditing import Audit
from dicom_gateway.config import RetentionSettings
from dicom_gateway.database import (
    arrivals,
    deliveries,
    instances,
    job_events,
    job_instances,
    jobs,
    now_s,
    proof_requests,
    results,
    series,
    transaction,
)
from dicom_gateway.encode.keeping import HELD
from dicom_gateway.encode.keeping import keep as keep_result
from dicom_gateway.errors import EncodingFailed, UnusableSeries
from dicom_gateway.jobs import JobQueue
from dicom_gateway.records import SeriesState
from dicom_gateway.store import InstanceStore, Retention, SeriesIndex
from dicom_gateway.store.check import check
from dicom_gateway.store.rebuild import rebuild
from dicom_gateway.store.retention import Removed
from tests.support.audit_trail import messages, settings_of, what
from tests.support.databases import an_empty_index
from tests.support.dicom import PATIENT_ID, a_ct_series, an_arrival
from tests.support.gateway import Keeping
from tests.support.jobs import a_result, enqueue
from tests.support.patience import until

DAY_S = 86400.0
POLICY = RetentionSettings(
    delivered_after_days=30, ignored_after_days=2, failed_after_days=90, conflicts_after_days=5
)


@pytest.fixture
def keeping(engine: sa.Engine, tmp_path: Path) -> Keeping:
    """A store on an empty index, once of each kind."""
    folder = tmp_path / "store"
    return Keeping(
        folder.resolve(), engine, InstanceStore(folder, engine, 0), SeriesIndex(engine, folder)
    )


def retention(keeping: Keeping, policy: RetentionSettings = POLICY) -> Retention:
    """The part that removes."""
    return Retention(keeping.engine, keeping.folder, policy)


def purge(keeping: Keeping, policy: RetentionSettings = POLICY) -> list[str]:
    """Removes all that is due; gives the reasons."""
    caretaker = retention(keeping, policy)
    due = caretaker.due()
    for one in due:
        caretaker.remove(one)
    return sorted(one.why for one in due)


def keep(keeping: Keeping, frames: list[Dataset], called: str = "LUNG") -> str:
    """Keeps them; gives their series."""
    for ds in frames:
        keeping.store.keep(an_arrival(ds, called_ae_title=called))
    return str(frames[0].SeriesInstanceUID)


def decide(
    keeping: Keeping, uid: str, state: SeriesState = SeriesState.DECIDED, called: str = "LUNG"
) -> None:
    """As the judge does."""
    with transaction(keeping.engine) as connection:
        assert keeping.index.mark_series(
            connection, keeping.index.load_series(uid, called), state, "because"
        )


def a_delivered_series(
    keeping: Keeping, frames: list[Dataset] | None = None, called: str = "LUNG"
) -> str:
    """With a job and a result that has reached its destination."""
    uid = keep(keeping, frames or a_ct_series(3), called)
    queue = JobQueue(keeping.engine, keeping.folder)
    judged = keeping.index.load_series(uid, called)
    assert enqueue(queue, keeping.engine, judged)
    decide(keeping, uid, called=called)
    job = queue.claim("test")
    assert job is not None
    (keeping.folder / "results").mkdir(exist_ok=True)
    queue.finish(job, [a_result(keeping.folder, job)])
    with transaction(keeping.engine) as connection:
        connection.execute(
            deliveries.update()
            .where(deliveries.c.job_id == job.job_id)
            .values(state="delivered", delivered_at_s=now_s())
        )
        asked = sa.select(sa.literal(generate_uid()), deliveries.c.id).where(
            deliveries.c.job_id == job.job_id
        )
        connection.execute(proof_requests.insert().from_select(list(proof_requests.c), asked))
        connection.execute(
            jobs.update()
            .where(jobs.c.job_id == job.job_id)
            .values(state="delivered", finished_at_s=now_s())
        )
    return uid


def days_pass(keeping: Keeping, days: float) -> None:
    """Everything that has happened was so much earlier."""
    past = {
        series: ("last_arrival_at_s", "released_at_s"),
        arrivals: ("received_at_s",),
        instances: ("received_at_s",),
        jobs: ("created_at_s", "finished_at_s", "started_at_s", "not_before_s"),
        deliveries: ("created_at_s", "delivered_at_s"),
    }
    with transaction(keeping.engine) as connection:
        for table, columns in past.items():
            for name in columns:
                connection.execute(table.update().values({name: table.c[name] - days * DAY_S}))


def left(keeping: Keeping) -> dict[str, int]:
    """How many rows each table has."""
    tables = (instances, arrivals, series, jobs, job_instances, job_events, results, deliveries)
    tables = (*tables, proof_requests)
    with transaction(keeping.engine) as connection:
        return {
            table.name: connection.execute(
                sa.select(sa.func.count()).select_from(table)
            ).scalar_one()
            for table in tables
        }


def test_a_delivered_study_goes_with_its_jobs_and_results_and_leaves_nothing(
    keeping: Keeping,
) -> None:
    """Not before its days are over; then neither a file nor a row is left."""
    a_delivered_series(keeping)
    days_pass(keeping, 29)
    assert purge(keeping) == []

    days_pass(keeping, 2)
    assert purge(keeping) == ["delivered"]

    assert set(left(keeping).values()) == {0}
    assert keeping.files() == []
    assert list((keeping.folder / "results").iterdir()) == []
    assert check(keeping.engine, keeping.folder).agrees


def test_each_part_of_the_policy_has_its_own_days(keeping: Keeping) -> None:
    """Ignored ones go early, failed ones late, and what is still coming never."""
    ignored = keep(keeping, a_ct_series(2))
    decide(keeping, ignored, SeriesState.IGNORED)
    failed = keep(keeping, a_ct_series(2))
    queue = JobQueue(keeping.engine, keeping.folder)
    enqueue(queue, keeping.engine, keeping.index.load_series(failed, "LUNG"))
    decide(keeping, failed)
    job = queue.claim("test")
    assert job is not None
    queue.fail(job, UnusableSeries("slice 2 of 3 is missing", code="missing_slices"))
    coming = keep(keeping, a_ct_series(2))

    days_pass(keeping, 3)
    assert purge(keeping) == ["ignored"]
    days_pass(keeping, 80)
    assert purge(keeping) == []
    days_pass(keeping, 10)
    assert purge(keeping) == ["failed"]
    days_pass(keeping, 1000)
    assert purge(keeping) == []
    assert len(keeping.index.load_series(coming, "LUNG").instances) == 2


def test_nothing_of_a_study_goes_while_any_of_its_jobs_has_not_ended(keeping: Keeping) -> None:
    """Nor while another series of it is still coming."""
    first = a_ct_series(2)
    second = a_ct_series(2, study_instance_uid=first[0].StudyInstanceUID)
    ignored = keep(keeping, first)
    decide(keeping, ignored, SeriesState.IGNORED)
    other = keep(keeping, second)
    days_pass(keeping, 1000)
    assert purge(keeping) == []

    queue = JobQueue(keeping.engine, keeping.folder)
    enqueue(queue, keeping.engine, keeping.index.load_series(other, "LUNG"))
    decide(keeping, other)
    days_pass(keeping, 1000)
    assert purge(keeping) == []


@pytest.mark.parametrize("state", ["waiting", "sent"])
def test_nothing_of_a_study_goes_while_a_result_is_still_to_be_sent(
    keeping: Keeping, state: str
) -> None:
    """One destination refused it, so the job has failed; another one is only away."""
    uid = a_delivered_series(keeping)
    first = a_ct_series(
        1, study_instance_uid=keeping.index.load_series(uid, "LUNG").study_instance_uid
    )
    decide(keeping, keep(keeping, first), SeriesState.IGNORED)
    with transaction(keeping.engine) as connection:
        connection.execute(jobs.update().values(state="failed"))
        connection.execute(deliveries.update().values(state=state))
    days_pass(keeping, 1000)
    assert purge(keeping) == []
    assert len(list((keeping.folder / "results").iterdir())) == 1

    # Also where its series was corrected and is of another study now.
    with transaction(keeping.engine) as connection:
        connection.execute(series.update().values(study_instance_uid="1.2.3"))
    assert purge(keeping) == ["ignored"]
    assert len(list((keeping.folder / "results").iterdir())) == 1

    with transaction(keeping.engine) as connection:
        connection.execute(deliveries.update().values(state="failed"))
    assert purge(keeping) == ["failed"]
    assert set(left(keeping).values()) == {0}


def test_without_a_policy_nothing_is_ever_due(keeping: Keeping) -> None:
    """The default keeps everything."""
    a_delivered_series(keeping)
    days_pass(keeping, 10_000)

    assert purge(keeping, RetentionSettings()) == []
    assert RetentionSettings().is_off


def test_what_another_ae_title_has_too_only_leaves_the_one(
    keeping: Keeping, tmp_path: Path
) -> None:
    """The file stays for the other; a new index made from the files agrees."""
    frames = a_ct_series(2)
    uid = keep(keeping, frames)
    keep(keeping, frames, called="LIVER")
    decide(keeping, uid, SeriesState.IGNORED)
    days_pass(keeping, 3)
    assert purge(keeping) == []  # the study is still coming to the other one
    decide(keeping, uid, called="LIVER")
    assert purge(keeping) == ["ignored"]

    assert len(keeping.index.load_series(uid, "LIVER").instances) == 2
    with pytest.raises(KeyError):
        keeping.index.load_series(uid, "LUNG")
    with an_empty_index(f"sqlite:///{tmp_path}/again.sqlite") as again:
        assert rebuild(again, keeping.folder).added == 2


def test_what_was_computed_for_two_ae_titles_goes_from_both(keeping: Keeping) -> None:
    """Neither one's job holds the other's instances; each leaves by itself, too."""
    frames = a_ct_series(2)
    uid = a_delivered_series(keeping, frames)
    a_delivered_series(keeping, frames, called="LIVER")
    (due, other) = retention(keeping, RetentionSettings(delivered_after_days=1e-9)).due()

    removed = retention(keeping, RetentionSettings(delivered_after_days=1e-9)).remove(due)
    assert (removed.instances, removed.results) == (0, 1)
    assert len(keeping.index.load_series(uid, other.called_ae_title).instances) == 2
    days_pass(keeping, 31)
    assert purge(keeping) == ["delivered"]

    assert set(left(keeping).values()) == {0}
    assert keeping.files() == []


def test_the_audit_trail_has_what_went_and_when_a_whole_study_did(
    keeping: Keeping, tmp_path: Path
) -> None:
    """PS3.15 A.5.3.8: also whose it was, though its files are gone; nothing of what stays."""
    first, second = a_ct_series(3), a_ct_series(2)
    for ds in second:
        ds.StudyInstanceUID = first[0].StudyInstanceUID
    for frames in (first, second):
        decide(keeping, keep(keeping, frames), SeriesState.IGNORED)
    keep(keeping, second, called="LIVER")
    decide(keeping, str(second[0].SeriesInstanceUID), called="LIVER")
    days_pass(keeping, 3)
    audit = Audit(settings_of(tmp_path, patient="plain"), keeping.engine)
    ignored = RetentionSettings(ignored_after_days=2)
    caretaker = Retention(keeping.engine, keeping.folder, ignored, audit.going)
    for one in caretaker.due():
        caretaker.remove(one)
    decide(keeping, str(second[0].SeriesInstanceUID), SeriesState.IGNORED, called="LIVER")
    for one in caretaker.due():
        caretaker.remove(one)

    trail = messages(tmp_path)
    assert [what(one)[0] for one in trail] == ["DICOM Instances Accessed", "DICOM Study Deleted"]
    for message, count in zip(trail, ("3", "2"), strict=True):
        assert message[0].attrib["EventActionCode"] == "D"
        found = message.find(".//SOPClass")
        assert found is not None
        assert found.attrib["NumberOfInstances"] == count
        text = ET.tostring(message, encoding="unicode")
        assert str(first[0].StudyInstanceUID) in text
        assert PATIENT_ID in text
    assert keeping.files() == []


def a_failed_pair(keeping: Keeping) -> tuple[str, str]:
    """A job that has failed of two series of one study; theirs, in the order of the roles."""
    study = generate_uid()
    first, second = (keep(keeping, a_ct_series(2, study_instance_uid=study)) for _ in range(2))
    roles = {uid: keeping.index.load_series(uid, "LUNG") for uid in (first, second)}
    queue = JobQueue(keeping.engine, keeping.folder)
    with transaction(keeping.engine) as connection:
        assert queue.enqueue(
            connection, roles[first], pipeline="pair", pipeline_version="1", roles=roles
        )
    decide(keeping, first)
    decide(keeping, second)
    job = queue.claim("test")
    assert job is not None
    queue.fail(job, UnusableSeries("broken", code="no_geometry"))
    return first, second


@pytest.mark.parametrize("which", [0, 1])
def test_all_series_of_a_job_go_together(keeping: Keeping, which: int) -> None:
    """Whichever is taken first; by the days of what became of the job, in every role."""
    uid = a_failed_pair(keeping)[which]
    caretaker = retention(keeping, RetentionSettings(failed_after_days=3, ignored_after_days=3))
    days_pass(keeping, 4)
    due = {one.series_instance_uid: one for one in caretaker.due()}
    assert [one.why for one in due.values()] == ["failed", "failed"]

    assert caretaker.remove(due.pop(uid)).instances == 4
    (rest,) = due.values()
    assert caretaker.remove(rest) == Removed()

    assert set(left(keeping).values()) == {0}
    assert keeping.files() == []


def test_what_a_job_uses_that_stays_is_not_due(keeping: Keeping) -> None:
    """The first series of the pair has another job, which is kept longer."""
    first, _ = a_failed_pair(keeping)
    queue = JobQueue(keeping.engine, keeping.folder)
    assert enqueue(queue, keeping.engine, keeping.index.load_series(first, "LUNG"))
    job = queue.claim("test")
    assert job is not None
    queue.finish(job, [])
    days_pass(keeping, 4)

    only_failed = RetentionSettings(failed_after_days=3)
    with transaction(keeping.engine) as connection:
        connection.execute(jobs.update().where(jobs.c.pipeline == "pair").values(state="delivered"))
        connection.execute(jobs.update().where(jobs.c.pipeline != "pair").values(state="failed"))
    assert purge(keeping, RetentionSettings(delivered_after_days=3)) == []
    assert purge(keeping, only_failed) == ["failed"]
    assert left(keeping)["series"] == 1


def test_what_was_set_apart_goes_by_its_own_days(keeping: Keeping) -> None:
    """The one in use stays."""
    (ds,) = a_ct_series(1)
    uid = keep(keeping, [ds])
    ds.PatientID = "another"
    keep(keeping, [ds])
    decide(keeping, uid)
    days_pass(keeping, 6)

    assert purge(keeping) == ["conflict"]

    (used,) = keeping.index.load_series(uid, "LUNG").instances
    assert [path for path in keeping.files() if path.suffix == ".dcm"] == [used.path]


def test_the_story_of_a_job_tells_of_what_was_set_apart(keeping: Keeping) -> None:
    """What came before the job and what comes after it, without a patient's attribute."""
    first, second = a_ct_series(2)
    uid = keep(keeping, [first, second])
    first.PatientID = "another"
    keep(keeping, [first])
    queue = JobQueue(keeping.engine, keeping.folder)
    job = enqueue(queue, keeping.engine, keeping.index.load_series(uid, "LUNG"))
    assert job is not None
    decide(keeping, uid)
    second.PatientID = "another"
    keep(keeping, [second])

    told = [event.note for event in queue.events(job.job_id) if event.stage == "conflict"]
    assert len(told) == 2
    assert "1 objects of the series are set apart" in told[0]
    assert str(second.SOPInstanceUID) in told[1]
    assert "another object" in told[1]


def test_a_purge_that_was_cut_off_is_done_to_its_end(
    keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between files and rows: the next look finds the rows and finishes."""
    a_delivered_series(keeping)
    days_pass(keeping, 31)
    caretaker = retention(keeping)
    (due,) = caretaker.due()

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dicom_gateway.store.retention._forget_series", dies)
        with pytest.raises(KeyboardInterrupt):
            caretaker.remove(due)
    assert keeping.files() == []
    assert left(keeping)["instances"] == 3

    assert purge(keeping) == ["delivered"]
    assert set(left(keeping).values()) == {0}


def test_what_comes_again_while_it_goes_is_kept(keeping: Keeping) -> None:
    """Senders and the purge at the same objects: whatever was acknowledged is there."""
    frames = a_ct_series(4)
    uid = keep(keeping, frames)
    decide(keeping, uid, SeriesState.IGNORED)
    days_pass(keeping, 3)
    stop = threading.Event()
    failures: list[BaseException] = []
    rng = random.Random(3)

    def purge_on() -> None:
        try:
            while not stop.wait(rng.uniform(0, 0.005)):
                purge(keeping)
        except BaseException as failure:  # noqa: BLE001 - told by the assertion below
            failures.append(failure)

    thread = threading.Thread(target=purge_on)
    thread.start()
    try:
        for _ in range(8):
            for ds in frames:
                kept = keeping.store.keep(an_arrival(ds))
                assert kept.path.exists()
            decide(keeping, uid, SeriesState.IGNORED)
            days_pass(keeping, 3)
    finally:
        stop.set()
        thread.join(60)

    assert failures == []
    purge(keeping)
    assert check(keeping.engine, keeping.folder).agrees


def test_a_thread_of_its_own_does_it_and_stops_when_asked(keeping: Keeping) -> None:
    """As the gateway runs it."""
    a_delivered_series(keeping)
    days_pass(keeping, 31)
    caretaker = retention(keeping)
    thread = threading.Thread(target=caretaker.run)
    thread.start()
    until(lambda: left(keeping)["series"] == 0)
    caretaker.stop()
    thread.join(30)

    assert not thread.is_alive()
    assert keeping.files() == []


def test_what_was_held_goes_with_its_job(keeping: Keeping):
    """It is of the same patient; that of other jobs stays."""
    uid = keep(keeping, a_ct_series(2))
    queue = JobQueue(keeping.engine, keeping.folder)
    enqueue(queue, keeping.engine, keeping.index.load_series(uid, "LUNG"))
    decide(keeping, uid)
    job = queue.claim("test")
    assert job is not None
    queue.fail(job, EncodingFailed("it lies elsewhere", code="result_misplaced"))
    ours = _hold(keeping, job.job_id)
    other = _hold(keeping, "0" * 32)
    days_pass(keeping, 91)

    assert purge(keeping) == ["failed"]

    assert not ours.parent.exists()
    assert other.exists()
    assert left(keeping)[jobs.name] == 0


def test_what_was_held_of_a_job_that_nobody_knows_goes_after_the_days_of_failed_ones(
    keeping: Keeping,
):
    """The index was made again from the files, and jobs aren't in them."""
    old, fresh = _hold(keeping, "0" * 32), _hold(keeping, "1" * 32)
    long_ago_s = time.time() - 91 * DAY_S
    os.utime(old, (long_ago_s, long_ago_s))

    assert retention(keeping).remove_stray_results() == 1

    assert not old.exists()
    assert fresh.exists()


def _hold(keeping: Keeping, job_id: str) -> Path:
    """As the geometry gate does with an object that fails."""
    folder = keeping.folder / HELD / job_id

    def spoilt(_path: Path) -> None:
        raise EncodingFailed("it lies elsewhere", code="result_misplaced")

    with pytest.raises(EncodingFailed):
        keep_result(keeping.folder / "results" / "1.2.3.dcm", lambda f: None, spoilt, folder)
    return folder / "1.2.3.dcm"
