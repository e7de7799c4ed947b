"""Fetching: the list that survives, and what a person is told of each fetch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_gateway.config_web import PacsPeer
from dicom_gateway.errors import DatabaseUnavailable, PeerUnavailable
from dicom_gateway.receive.fetches import FetchDesk
from dicom_gateway.receive.retrieve import Fetcher, Progress, RemoteSeries, Retrieved
from dicom_gateway.records import Fetch, FetchState
from tests.support.dicom import CANARY
from tests.support.gateway import a_store
from tests.support.patience import until

PEER = PacsPeer.model_validate(
    {
        "name": "archive",
        "called-ae-title": "LUNG",
        "dimse": {"host-ip": "127.0.0.1", "port": 104, "ae-title": "ARCHIVE"},
    }
)
TWO = [RemoteSeries("1.2", "1.2.1", 3), RemoteSeries("1.2", "1.2.2", 2)]


@dataclass
class ScriptedPacs:
    """Finds these series; `sends` says how retrieving one goes."""

    series: list[RemoteSeries]
    sends: Callable[[RemoteSeries, Progress], Retrieved]
    asked: list[Mapping[str, str]] = field(default_factory=list)
    finds_by = "C-FIND"
    moves_by = "C-MOVE"

    def find(self, keys: Mapping[str, str], series: Sequence[str]) -> list[RemoteSeries]:
        """Of `PacsClient`."""
        self.asked.append(dict(keys))
        return self.series

    def retrieve(self, one: RemoteSeries, called_ae_title: str, progress: Progress) -> Retrieved:
        """Of `PacsClient`."""
        return self.sends(one, progress)

    def close(self) -> None:
        """Of `PacsClient`."""


def everything(one: RemoteSeries, progress: Progress) -> Retrieved:
    """All of it comes."""
    progress(1, 0)
    return Retrieved(one.instances or 0, 0)


@dataclass
class Office:
    """A running fetcher and what it stated."""

    desk: FetchDesk
    pacs: ScriptedPacs
    kept: dict[str, int]
    stated: list[tuple[str, str, int, str]] = field(default_factory=list)

    def fetch(self) -> Fetch:
        """Asks, and waits for the end."""
        fetch_id = self.desk.ask("archive", "LUNG", {"PatientName": CANARY})
        return self.ended(fetch_id)

    def ended(self, fetch_id: str) -> Fetch:
        """The fetch, once it has ended."""

        def look() -> bool:
            found = self.desk.show(fetch_id)
            return found is not None and found.state not in (
                FetchState.WAITING,
                FetchState.RUNNING,
            )

        until(look)
        found = self.desk.show(fetch_id)
        assert found is not None
        return found


@contextmanager
def an_office(
    folder: Path, pacs: ScriptedPacs, *, kept: dict[str, int] | None = None
) -> Iterator[Office]:
    """Runs a fetcher on a real index while the block lasts."""
    with a_store(folder) as keeping:
        office = Office(FetchDesk(keeping.engine), pacs, kept or {"1.2.1": 3, "1.2.2": 2})

        def state(uid: str, title: str, count: int, source: str) -> None:
            office.stated.append((uid, title, count, source))

        fetcher = Fetcher(
            office.desk,
            [PEER],
            lambda _: pacs,
            expect=state,
            expect_series=state,
            count_kept=lambda uid, _: office.kept.get(uid, 0),
        )
        thread = threading.Thread(target=fetcher.run)
        thread.start()
        try:
            yield office
        finally:
            fetcher.stop()
            thread.join(30)
            assert not thread.is_alive()


def test_a_fetch_that_the_database_has_cut_off_is_begun_anew(tmp_path: Path) -> None:
    """Whoever waits for it would wait until the next start of the gateway."""
    cuts = [DatabaseUnavailable("the index does not answer")]

    def cut_off(one: RemoteSeries, progress: Progress) -> Retrieved:
        if cuts:
            raise cuts.pop()
        return everything(one, progress)

    with an_office(tmp_path, ScriptedPacs(TWO, cut_off)) as office:
        done = office.fetch()
    assert (done.state, done.kept) == (FetchState.DONE, 5)
    assert office.pacs.asked == 2 * [{"PatientName": CANARY}]


def test_what_the_pacs_states_is_passed_on_and_the_query_forgotten(tmp_path: Path) -> None:
    """Counts before the first object comes, and again when all have come."""
    with an_office(tmp_path, ScriptedPacs(TWO, everything)) as office:
        done = office.fetch()

    assert (done.state, done.expected, done.kept, done.failed) == (FetchState.DONE, 5, 5, 0)
    assert done.note == "5 instance(s) of 2 series kept"
    assert office.pacs.asked == [{"PatientName": CANARY}]
    assert done.keys == {}
    assert office.stated == [
        ("1.2.1", "LUNG", 3, "C-FIND of archive"),
        ("1.2.2", "LUNG", 2, "C-FIND of archive"),
        ("1.2", "LUNG", 2, "C-FIND of archive"),
        ("1.2.1", "LUNG", 3, "C-MOVE of archive"),
        ("1.2.2", "LUNG", 2, "C-MOVE of archive"),
    ]


def test_what_did_not_come_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    """Whether the PACS says so, or claims to have sent what never came; the rest is fetched."""

    def sends(one: RemoteSeries, progress: Progress) -> Retrieved:
        if one is TWO[0]:
            return Retrieved(1, 2, "'archive' could not send 2 instance(s)")
        return everything(one, progress)

    with an_office(tmp_path, ScriptedPacs(TWO, sends), kept={"1.2.2": 1}) as office:
        ended = office.fetch()

    assert (ended.state, ended.kept, ended.failed) == (FetchState.FAILED, 3, 2)
    assert "could not send 2 instance(s)" in ended.note
    assert "of series 1.2.2 'archive' says it has 2 instances, and 1 came here" in ended.note


@pytest.mark.parametrize(
    ("pacs", "words"),
    [
        (ScriptedPacs([], everything), "'archive' has nothing that matches"),
        (ScriptedPacs(TWO, lambda *_: _raise(PeerUnavailable("it hung up"))), "it hung up"),
        (ScriptedPacs(TWO, lambda *_: _raise(ValueError(CANARY))), "something unforeseen"),
    ],
    ids=["nothing", "away", "unforeseen"],
)
def test_each_trouble_is_said_and_the_next_fetch_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pacs: ScriptedPacs, words: str
) -> None:
    """In words, without a patient; the fetcher lives on."""
    with an_office(tmp_path, pacs) as office:
        first = office.fetch()
        pacs.series, pacs.sends = TWO, everything
        second = office.fetch()

    assert first.state is FetchState.FAILED
    assert words in first.note
    assert second.state is FetchState.DONE
    written = capsys.readouterr()
    assert CANARY not in first.note + written.out + written.err


def _raise(error: Exception) -> Retrieved:
    raise error


def test_a_person_can_cancel_what_is_under_way(tmp_path: Path) -> None:
    """It ends between two objects."""
    begun = threading.Event()

    def sends(_: RemoteSeries, progress: Progress) -> Retrieved:
        begun.set()
        until(lambda: not progress(1, 0))
        return Retrieved(0, 0)

    with an_office(tmp_path, ScriptedPacs(TWO, sends)) as office:
        fetch_id = office.desk.ask("archive", "LUNG", {})
        assert begun.wait(30)
        office.desk.finish(fetch_id, FetchState.CANCELLED, "cancelled by a person")
        office.pacs.sends = everything
        assert office.fetch().state is FetchState.DONE
        cancelled = office.desk.show(fetch_id)

    assert cancelled is not None
    assert (cancelled.state, cancelled.note) == (FetchState.CANCELLED, "cancelled by a person")


def test_what_was_under_way_is_begun_anew_after_a_restart(engine: sa.Engine) -> None:
    """The list is in the index; the same object twice is one."""
    desk = FetchDesk(engine)
    fetch_id = desk.ask("archive", "LUNG", {"PatientID": "1"}, ["1.2.1"])
    claimed = desk.claim()
    assert claimed is not None
    assert desk.claim() is None
    assert desk.progress(fetch_id, expected=5, kept=2, failed=0)

    assert desk.release_own() == 1
    again = desk.claim()

    assert again is not None
    assert (again.fetch_id, again.keys, again.series) == (fetch_id, {"PatientID": "1"}, ("1.2.1",))
    assert (again.kept, again.failed) == (0, 0)
