"""`tritome jobs` on a real index."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from clients.commands import jobs
from clients.errors import ClientError
from dicom_gateway.config import load_settings
from dicom_gateway.database import transaction
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.records import JobState, Result, SeriesState
from tests.support.dicom import CANARY, a_ct_series, an_arrival
from tests.support.gateway import Keeping, a_store


@dataclass
class AGateway:
    """A gateway's settings and index, with nobody running it."""

    config: Path
    keeping: Keeping
    queue: JobQueue

    def receive(self, *, frames: int = 3) -> tuple[str, str]:
        """Keeps a series; gives its UID and called AE title."""
        datasets = a_ct_series(frames=frames, rows=16, columns=16)
        for ds in datasets:
            self.keeping.store.keep(an_arrival(ds))
        return str(datasets[0].SeriesInstanceUID), "LUNG"

    def a_job(self) -> str:
        """A waiting job of a kept series."""
        series = self.keeping.index.load_series(*self.receive())
        with transaction(self.keeping.engine) as connection:
            job = self.queue.enqueue(
                connection,
                series,
                pipeline="lung_ct",
                pipeline_version="1.0.0",
                destinations=["pacs"],
                note="3 instances",
            )
            self.keeping.index.mark_series(connection, series, SeriesState.DECIDED)
        assert job is not None
        return job.job_id

    def a_failed_job(self, reason: str = "slice 2 of 3 is missing") -> str:
        """A job that a person must look at."""
        job_id = self.a_job()
        job = self.queue.claim("test")
        assert job is not None
        self.queue.fail(job, UnusableSeries(reason, code="missing_slices"))
        return job_id

    def an_ignored_series(self) -> str:
        """A series that no pipeline wants."""
        uid, called = self.receive()
        series = self.keeping.index.load_series(uid, called)
        with transaction(self.keeping.engine) as connection:
            self.keeping.index.mark_series(
                connection, series, SeriesState.IGNORED, "lung_ct wants CT, this is MR"
            )
        return uid


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AGateway]:
    """A gateway that has run before."""
    monkeypatch.setattr(jobs.out, "width", 250)
    config = tmp_path / "gateway.yaml"
    document = {
        "dicom": {
            "scp": {
                "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
                "sources": [{"ae-title": "SENDER"}],
            }
        },
        "store": {"folder": "store"},
    }
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    folder = load_settings(config).store.folder
    with a_store(folder) as keeping:
        yield AGateway(config, keeping, JobQueue(keeping.engine, folder))


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without a patient attribute."""
    text = capsys.readouterr().out
    assert CANARY not in text
    return text


def line_with(text: str, word: str) -> str:
    """The one line that holds `word`."""
    (line,) = [line for line in text.splitlines() if word in line]
    return line


def test_what_others_say_is_no_markup(
    gateway: AGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets in a peer's or Triton's words hide nothing, and break nothing."""
    job_id = gateway.a_failed_job("it says [/etc] and [red]no[/]")

    jobs.list_jobs(gateway.config, [], 50)
    jobs.show(gateway.config, job_id)

    assert printed(capsys).count("it says [/etc] and [red]no[/]") >= 2


def test_the_list_shows_state_and_reason(
    gateway: AGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed job stands there with its reason, a waiting one beside it."""
    failed, waiting = gateway.a_failed_job(), gateway.a_job()
    jobs.list_jobs(gateway.config, [], 50)
    text = printed(capsys)
    assert "failed" in line_with(text, failed[:8])
    assert "missing_slices: slice 2 of 3 is missing" in line_with(text, failed[:8])
    assert "waiting" in line_with(text, waiting[:8])


def test_the_list_can_be_narrowed(gateway: AGateway, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the asked states, and then no series without a job."""
    failed, waiting = gateway.a_failed_job(), gateway.a_job()
    gateway.an_ignored_series()
    jobs.list_jobs(gateway.config, [JobState.FAILED], 50)
    text = printed(capsys)
    assert failed[:8] in text
    assert waiting[:8] not in text
    assert "without a job" not in text


def test_ignored_and_open_series_are_said(
    gateway: AGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """What made no job is not lost: ignored with the reason, or still being received."""
    ignored, (receiving, _) = gateway.an_ignored_series(), gateway.receive(frames=2)
    jobs.list_jobs(gateway.config, [], 50)
    text = printed(capsys)
    assert "lung_ct wants CT, this is MR" in line_with(text, ignored)
    assert receiving in text.partition("Series not decided yet")[2]
    assert "No jobs." in text


def test_a_story_is_told_by_the_beginning_of_the_id(
    gateway: AGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six characters are enough; the stages come in order, with their times."""
    job_id = gateway.a_job()
    job = gateway.queue.claim("test")
    assert job is not None
    gateway.queue.add_event(job_id, "assembled", "3 instances", 0.25)
    path = gateway.keeping.folder / "results" / "r.dcm"
    gateway.queue.finish(job, [Result("1.2.3.4", "1.2.840", job_id, "MASK", path, 2_000_000)])
    jobs.show(gateway.config, job_id[:6])
    text = printed(capsys)
    stages = [text.index(stage) for stage in ("received", "started", "assembled")]
    assert stages == sorted(stages)
    assert "0.25 s" in line_with(text, "assembled")
    assert "2.00 MB" in line_with(text, "1.2.3.4")
    assert "pacs" in line_with(text, "1.2.3.4")
    assert "delivering" in text


def test_an_unknown_or_ambiguous_beginning_is_said(gateway: AGateway) -> None:
    """No guessing which job was meant."""
    gateway.a_job()
    gateway.a_job()
    for beginning, said in (("zz", "no job's id begins with 'zz'"), ("", "2 jobs' ids begin")):
        with pytest.raises(ClientError, match=said):
            jobs.show(gateway.config, beginning)


def test_a_failed_job_starts_again(gateway: AGateway, capsys: pytest.CaptureFixture[str]) -> None:
    """Retry makes it wait again; a second retry has nothing to do."""
    job_id = gateway.a_failed_job()
    jobs.retry(gateway.config, job_id[:6])
    assert "is started again" in printed(capsys)
    job = gateway.queue.show(job_id)
    assert job is not None
    assert job.state is JobState.WAITING
    with pytest.raises(ClientError, match="is waiting; only a failed or cancelled one"):
        jobs.retry(gateway.config, job_id)


def test_a_waiting_job_can_be_cancelled_once(
    gateway: AGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cancel ends it; what has ended can't be cancelled."""
    job_id = gateway.a_job()
    jobs.cancel(gateway.config, job_id)
    assert "is cancelled" in printed(capsys)
    with pytest.raises(ClientError, match="is cancelled already"):
        jobs.cancel(gateway.config, job_id)


def test_an_index_that_never_was_is_not_made(gateway: AGateway, tmp_path: Path) -> None:
    """Looking for jobs makes no empty index, which would look like a quiet gateway."""
    moved = tmp_path / "elsewhere" / "gateway.yaml"
    moved.parent.mkdir()
    moved.write_bytes(gateway.config.read_bytes())
    with pytest.raises(ClientError, match="there is no index yet"):
        jobs.list_jobs(moved, [], 50)
    assert list(moved.parent.iterdir()) == [moved]


def test_looking_leaves_no_connection_open(gateway: AGateway) -> None:
    """The index can be removed right after: nothing holds it."""
    jobs.list_jobs(gateway.config, [], 50)
    gateway.keeping.engine.dispose()
    index = gateway.keeping.folder / "index.sqlite"
    connection = sqlite3.connect(index, timeout=1)
    try:
        assert connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0.0 s"), (3.24, "3.2 s"), (240, "4 min"), (7200, "2 h"), (5e5, "6 d")],
)
def test_durations_are_said_as_people_do(seconds: float, said: str) -> None:
    """Seconds, minutes, hours, days."""
    assert jobs.span(seconds) == said
