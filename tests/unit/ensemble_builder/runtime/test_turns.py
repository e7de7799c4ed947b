"""The lists of gateways as the models read them: go on, wait, or end."""

from __future__ import annotations

import errno
import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dicom_gateway.infer.turns import PREFIX, Lanes, Turns, remove_turns
from ensemble_builder.runtime.turns import Turn, at_work
from tests.support.patience import until


class Request:
    """What a turn asks of Triton's request."""

    def __init__(self, name: str, listed: str) -> None:
        self.name, self.listed, self.cancelled = name, listed, False

    def request_id(self) -> str:
        """As the gateway gave it."""
        return self.name

    def parameters(self) -> str:
        """JSON, as the Python backend gives it."""
        return json.dumps({"tritome_listed": self.listed} if self.listed else {})

    def is_cancelled(self) -> bool:
        """Whether Triton knows that the client is gone."""
        return self.cancelled


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[Turns]:
    """A gateway's list in a folder of its own."""
    found = Turns(tmp_path)
    assert found.works
    yield found
    found.close()
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def test_a_listed_request_goes_on_and_a_dropped_one_ends(turns: Turns, tmp_path: Path) -> None:
    """Dropping is how a person's cancelling reaches the windows."""
    turn = Turn(Request("a.1.0", turns.name), tmp_path)
    with turns.listed("a.1.0", immediate=False):
        assert (turn(), turn.unwanted()) == (False, False)
        turns.drop("a.1.0")
        assert (turn(), turn.unwanted()) == (True, True)


def test_others_wait_while_an_immediate_one_is_listed(turns: Turns, tmp_path: Path) -> None:
    """And go on when it has ended; the immediate one itself never waits."""
    went_on = threading.Event()

    def go() -> None:
        assert Turn(Request("low", turns.name), tmp_path)() is False
        went_on.set()

    with turns.listed("low", immediate=False):
        with turns.listed("stat", immediate=True):
            assert Turn(Request("stat", turns.name), tmp_path)() is False
            thread = threading.Thread(target=go)
            thread.start()
            assert not went_on.wait(0.3)
        thread.join(30)
    assert went_on.is_set()


def test_immediate_requests_of_another_gateway_count_too(turns: Turns, tmp_path: Path) -> None:
    """They use the same machine."""
    other = Turns(tmp_path)
    with turns.listed("low", immediate=False), other.listed("stat", immediate=True):
        turn = Turn(Request("low", turns.name), tmp_path, most_paused_s=0.1)
        before = time.monotonic()
        assert turn() is False
        assert time.monotonic() - before >= 0.1
    other.close()


def test_endless_urgent_requests_don_t_starve_the_others(turns: Turns, tmp_path: Path) -> None:
    """After so much waiting in all, a request goes on beside them."""
    with turns.listed("low", immediate=False), turns.listed("stat", immediate=True):
        turn = Turn(Request("low", turns.name), tmp_path, most_paused_s=0.1)
        assert [turn() for _ in range(3)] == [False] * 3


def test_the_requests_of_a_killed_gateway_end(tmp_path: Path) -> None:
    """Its file is still there, its lock is not."""
    child = os.fork()
    if child == 0:
        killed = Turns(tmp_path)
        with killed.listed("a.1.0", immediate=True), killed.listed("b.1.0", immediate=False):
            time.sleep(600)
        os._exit(0)
    try:
        until(lambda: list(tmp_path.glob(f"{PREFIX}*")))
        turn = Turn(Request("b.1.0", next(tmp_path.glob(f"{PREFIX}*")).name), tmp_path)
        until(lambda: turn._word(turn._lists()) == "other")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert turn() is True
    assert len(remove_turns(tmp_path)) == 1
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def test_a_living_gateway_s_list_is_no_leftover(turns: Turns, tmp_path: Path) -> None:
    """Its lock says so."""
    assert remove_turns(tmp_path) == ()


def test_requests_of_others_are_left_alone(turns: Turns, tmp_path: Path) -> None:
    """A client that knows nothing of lists is neither paused nor ended, unless Triton says so."""
    request = Request("theirs", "")
    with turns.listed("stat", immediate=True):
        assert Turn(request, tmp_path)() is False
        request.cancelled = True
        assert Turn(request, tmp_path)() is True


def test_where_its_list_was_never_seen_nothing_is_ended(turns: Turns, tmp_path: Path) -> None:
    """Server and gateway may not share the folder, or not the user; other lists prove nothing."""
    with turns.listed("b", immediate=False):
        assert Turn(Request("b", turns.name), tmp_path)() is False
        assert Turn(Request("a", f"{PREFIX}of_another_user"), tmp_path)() is False


def test_links_and_foreign_bytes_are_no_lists(turns: Turns, tmp_path: Path) -> None:
    """Only a regular file with the right sum counts, never one behind a link."""
    with ExitStack() as stack:
        stack.enter_context(turns.listed("low", immediate=False))
        (tmp_path / f"{PREFIX}0000").write_bytes(b"tritome-turns 1 00000000\nx immediate\n")
        (tmp_path / f"{PREFIX}0001").symlink_to(next(tmp_path.glob(f"{PREFIX}????????*")))
        lists = Turn(Request("low", turns.name), tmp_path)._lists()
        assert lists == {turns.name: {"low": "other"}}
    for name in ("0000", "0001"):
        (tmp_path / f"{PREFIX}{name}").unlink()


def test_a_list_that_is_torn_for_long_ends_nobody(turns: Turns, tmp_path: Path) -> None:
    """Its writer may have been put aside between two bytes; the next look will tell."""
    turn = Turn(Request("a", turns.name), tmp_path)
    with turns.listed("a", immediate=False):
        assert turn() is False
        path = tmp_path / turns.name
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        assert (turn(), turn.unwanted()) == (False, False)
        path.write_bytes(whole)
        other = Turns(tmp_path)
        (tmp_path / other.name).write_bytes(b"torn")
        turns.drop("a")
        assert turn() is True, "its own list says so, whatever another one's state"
        other.close()


def test_a_process_without_file_descriptors_ends_nobody(turns: Turns, tmp_path: Path) -> None:
    """What can't be looked at proves nothing."""
    turn = Turn(Request("a", turns.name), tmp_path)
    with turns.listed("a", immediate=False):
        assert turn() is False
        limits, highest = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
        os.close(highest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, limits[1]))
        try:
            ended = (turn(), turn.unwanted())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert ended == (False, False)


def test_a_list_never_becomes_shorter(turns: Turns, tmp_path: Path) -> None:
    """Cutting it off after it was written would tear it for whoever looks in between."""
    path = tmp_path / turns.name
    with ExitStack() as stack:
        for name in ("first", "second", "third"):
            stack.enter_context(turns.listed(name, immediate=False))
        size_bytes = path.stat().st_size
        turns.drop("second")
        turns.drop("third")
        assert path.stat().st_size == size_bytes
        lists = Turn(Request("first", turns.name), tmp_path)._lists()
        assert lists == {turns.name: {"first": "other"}}


def test_others_pause_only_for_urgent_ones_that_a_step_works_on(
    turns: Turns, tmp_path: Path
) -> None:
    """One that waits for the instance that a pausing one keeps busy would wait for nothing."""
    went_on = threading.Event()

    def go() -> None:
        assert Turn(Request("low", turns.name), tmp_path, most_for_nobody_s=0.2)() is False
        went_on.set()

    with turns.listed("low", immediate=False), turns.listed("stat", immediate=True):
        thread = threading.Thread(target=go)
        with at_work(Request("stat", turns.name)):
            with at_work(Request("stat", turns.name)):
                pass  # a branch that is done first
            thread.start()
            assert not went_on.wait(1.0)
        assert went_on.wait(30)
        thread.join(30)


def test_an_id_that_could_break_the_list_is_refused(turns: Turns) -> None:
    """A line break would list another request."""
    with pytest.raises(ValueError, match="letters, digits"), turns.listed("a\nb", immediate=True):
        pass


def test_without_the_folder_everything_works_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line in the log; nothing is listed."""
    turns = Turns(tmp_path / "nowhere")
    with turns.listed("a", immediate=True):
        assert not turns.works
    turns.close()
    assert "not paused" in "".join(capsys.readouterr())


@pytest.mark.parametrize("call_that_fails", [1, 2])
def test_a_full_folder_costs_no_job(
    call_that_fails: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither at the start, where nothing is left behind, nor later; the log says so."""
    calls = []
    pwrite = os.pwrite

    def full(fd: int, text: bytes, offset: int) -> int:
        calls.append(fd)
        if len(calls) == call_that_fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(fd, text, offset)

    monkeypatch.setattr(os, "pwrite", full)
    turns = Turns(tmp_path)
    assert turns.works == (call_that_fails == 2)
    assert len(list(tmp_path.iterdir())) == turns.works
    with turns.listed("a", immediate=True):
        pass
    turns.close()
    assert list(tmp_path.iterdir()) == []
    assert "No space left" in "".join(capsys.readouterr())


def test_a_list_that_we_may_not_remove_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sticky folder another user's file can be opened but not unlinked."""
    (tmp_path / f"{PREFIX}0000").touch()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        assert remove_turns(tmp_path) == ()
    assert remove_turns(tmp_path) == (f"{PREFIX}0000",)


def test_a_lane_stays_free_at_each_model_that_pipelines_share() -> None:
    """Where one other request may be inside, the second waits, whichever pipeline it is of."""
    lanes, inside = Lanes(), threading.Event()

    def second() -> None:
        with lanes.enter({"heart_inferer": 1, "lung_inferer": 1}):
            inside.set()

    with lanes.enter({"lung_inferer": 1}):
        thread = threading.Thread(target=second)
        thread.start()
        with lanes.enter({}), lanes.enter({"colon_inferer": 1}):
            assert not inside.wait(0.3)
    thread.join(30)
    assert inside.is_set()


def test_lanes_are_taken_in_the_order_of_asking() -> None:
    """Who needs two models isn't overtaken for ever by those that need one of them."""
    lanes, entered = Lanes(), list[str]()

    def enter(name: str, most: dict[str, int]) -> threading.Thread:
        def inside() -> None:
            with lanes.enter(most):
                entered.append(name)

        thread = threading.Thread(target=inside)
        thread.start()
        return thread

    with lanes.enter({"heart_inferer": 1}):
        both = enter("both", {"heart_inferer": 1, "lung_inferer": 1})
        until(lambda: lanes._line)
        lung = enter("lung", {"lung_inferer": 1})
        until(lambda: len(lanes._line) == 2)
        assert entered == []
    for thread in (both, lung):
        thread.join(30)
    assert entered == ["both", "lung"]
