"""Keeping programs running, and leaving nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from clients import supervise
from clients.errors import ClientError
from clients.supervise import (
    Program,
    Supervisor,
    end_with_supervisor,
    ending_on_signals,
    interrupted_once,
    sweep_shared_memory,
)
from tests.support.patience import until
from tests.support.shared_memory import dev_shm


class Said:
    """What the programs said, and a way to wait for it."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._news = threading.Condition()

    def __call__(self, name: str, line: str) -> None:
        """Takes one line, as the supervisor's `on_line`."""
        with self._news:
            self.lines.append((name, line))
            self._news.notify_all()

    def wait(self, true: Callable[[list[tuple[str, str]]], bool], timeout_s: float = 60.0) -> None:
        """Waits until `true` of all lines so far."""
        with self._news:
            assert self._news.wait_for(lambda: true(self.lines), timeout_s), self.lines

    def count(self, line: str) -> int:
        """How often this was said."""
        return [said for _, said in self.lines].count(line)


def python(name: str, code: str) -> Program:
    """A small program."""
    return Program(name, (sys.executable, "-c", code))


SLEEPER = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses."""
    monkeypatch.setattr(supervise, "_FIRST_PAUSE_S", 0.05)


def test_lines_carry_their_programs_name() -> None:
    """Two programs, one stream."""
    said = Said()
    with Supervisor([python("a", SLEEPER), python("b", SLEEPER)], said) as supervisor:
        said.wait(lambda lines: {("a", "up"), ("b", "up")} <= set(lines))
        processes = [supervisor.process_id(name) for name in ("a", "b")]
    assert all(pid is not None and not psutil.pid_exists(pid) for pid in processes)


def test_a_killed_program_is_started_again() -> None:
    """SIGKILL from outside; the other one is left alone."""
    said = Said()
    with Supervisor([python("a", SLEEPER), python("b", SLEEPER)], said) as supervisor:
        said.wait(lambda _: said.count("up") == 2)
        other, victim = supervisor.process_id("b"), supervisor.process_id("a")
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        said.wait(lambda _: said.count("up") == 3)
        assert supervisor.process_id("b") == other
        assert supervisor.process_id("a") != victim
        assert ("a", "ended with code -9; started again in 0.05 s") in said.lines


def test_a_program_that_cannot_stay_up_is_given_up_with_its_last_words() -> None:
    """No endless loop: five deaths in a row end it, and the error says what it said."""
    said = Said()
    broken = python("broken", "import sys; print('the disk is gone'); sys.exit(3)")
    with Supervisor([broken], said) as supervisor:
        assert supervisor.wait(60.0)
        with pytest.raises(ClientError, match="ended 5 times in a row") as caught:
            supervisor.require_running()
    assert "the disk is gone" in str(caught.value)
    assert said.count("the disk is gone") == 5


def test_a_program_that_is_not_there_is_given_up() -> None:
    """A missing executable is told, not raised in a thread."""
    said = Said()
    with Supervisor([Program("ghost", ("/no/such/program",))], said) as supervisor:
        assert supervisor.wait(60.0)
        assert "No such file" in supervisor.last_words("ghost")


def test_what_a_dead_program_left_running_is_ended() -> None:
    """A grandchild in a session of its own, as a tritonserver is, doesn't outlive its parent."""
    said = Said()
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}],"
        " stdout=subprocess.DEVNULL, start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    with Supervisor([python("parent", parent)], said) as supervisor:
        said.wait(lambda lines: len(lines) == 1)
        grandchild, victim = int(said.lines[0][1]), supervisor.process_id("parent")
        assert victim is not None
        assert psutil.pid_exists(grandchild)
        os.kill(victim, signal.SIGKILL)
        said.wait(lambda lines: len(lines) == 3)
        assert not _runs(grandchild)
        second = int(said.lines[2][1])
    assert not _runs(second)


def test_a_program_that_ignores_sigterm_is_killed() -> None:
    """Ending is certain, only not polite."""
    said = Said()
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True); time.sleep(600)"
    )
    with Supervisor([python("stubborn", stubborn)], said, stop_timeout_s=0.5) as supervisor:
        said.wait(lambda _: said.count("up") == 1)
        pid = supervisor.process_id("stubborn")
    assert pid is not None
    assert not _runs(pid)


def test_leftovers_in_shared_memory_are_removed_unless_somebody_maps_them() -> None:
    """A dead stub's region goes; a living one's, and anybody else's, stays."""
    before = dev_shm()
    prefix = f"tritome_stub_{os.getpid()}_test_"
    dead, alive, other = (
        Path("/dev/shm", name) for name in (f"{prefix}dead", f"{prefix}alive", "other_test_region")
    )
    for path in (dead, alive, other):
        path.write_bytes(bytes(4096))
        os.utime(path, (0, 0))
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import mmap, sys, time; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0);"
            "print('mapped', flush=True); time.sleep(600)",
            alive,
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mapped\n"
        removed = sweep_shared_memory(frozenset(before))
        assert dead.name in removed
        assert (dead.exists(), alive.exists(), other.exists()) == (False, True, True)
    finally:
        holder.kill()
        holder.communicate()
        for path in (dead, alive, other):
            path.unlink(missing_ok=True)


def test_a_region_that_was_just_made_is_left_alone() -> None:
    """It may be another server's, who maps it in the next moment."""
    young = Path("/dev/shm", f"tritome_stub_{os.getpid()}_test_young")
    before = dev_shm()
    young.touch()
    try:
        assert young.name not in sweep_shared_memory(before)
        assert young.exists()
    finally:
        young.unlink()


def test_a_supervised_process_ends_when_its_supervisor_is_killed() -> None:
    """`kill -9` of `tritome up` leaves no server behind that holds the ports."""
    child = (
        "import signal, sys, time\n"
        "from clients.supervise import end_with_supervisor\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('in order'))\n"
        "end_with_supervisor(0.05); print('up', flush=True); time.sleep(600)"
    )
    parent = (
        "import sys, time\n"
        "from clients.supervise import Program, Supervisor\n"
        f"programs = [Program('child', (sys.executable, '-c', {child!r}))]\n"
        "with Supervisor(programs, lambda _, line: print(line, flush=True)) as supervisor:\n"
        "    time.sleep(1)\n"
        "    print(supervisor.process_id('child'), flush=True)\n"
        "    time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(2)]
        pid = int(next(line for line in said if line != "up"))
        assert "up" in said
        process.kill()
    until(lambda: not _runs(pid))


def test_a_supervisor_that_was_killed_before_anybody_watched_it_is_missed(
    tmp_path: Path,
) -> None:
    """A child that was still importing when `tritome up` was killed doesn't watch pid 1."""
    child = (
        "import os, pathlib, sys, time\n"
        "parent = os.getppid(); print(os.getpid(), flush=True)\n"
        "while os.getppid() == parent: time.sleep(0.01)\n"
        "from clients.supervise import end_with_supervisor\n"
        "pathlib.Path(sys.argv[1]).touch(); end_with_supervisor(0.05); time.sleep(600)"
    )
    late = tmp_path / "late"
    parent = (
        "import sys, time\n"
        "from clients.supervise import Program, Supervisor\n"
        f"command = (sys.executable, '-c', {child!r}, {str(late)!r})\n"
        "with Supervisor([Program('child', command)], lambda _, line: print(line, flush=True)):\n"
        "    time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    try:
        until(late.exists)
        until(lambda: not _runs(pid))
    finally:
        if _runs(pid):
            os.kill(pid, signal.SIGKILL)


def test_programs_are_kept_running_when_nobody_listens_any_more() -> None:
    """`tritome up | head`: a closed stdout costs the lines, not the restarts."""

    def closed(_name: str, _line: str) -> None:
        raise BrokenPipeError

    with Supervisor([python("a", SLEEPER)], closed) as supervisor:
        until(lambda: "up" in supervisor.last_words("a"))
        for _ in range(2):
            victim = supervisor.process_id("a")
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            until(lambda last=victim: supervisor.process_id("a") not in (None, last))


def test_a_listener_that_is_stuck_holds_up_nobody() -> None:
    """A stopped terminal: programs are still watched, and the end comes in order."""
    heard, released = threading.Event(), threading.Event()

    def stuck(_name: str, _line: str) -> None:
        heard.set()
        released.wait(60.0)

    polite = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "print('up', flush=True)\n"
        "while True: print('more', flush=True); time.sleep(0.01)"
    )
    try:
        with Supervisor([python("a", polite)], stuck) as supervisor:
            assert heard.wait(60.0)
            supervisor.say("a", "from the main thread")
            until(lambda: "more" in supervisor.last_words("a"))
            pid = supervisor.process_id("a")
        assert not released.is_set()
        assert pid is not None
        assert not _runs(pid)
    finally:
        released.set()


def test_last_words_are_those_of_the_last_life() -> None:
    """What an earlier life said is told once, not five times over."""
    said = Said()
    with Supervisor([python("a", "print('no disk')")], said) as supervisor:
        assert supervisor.wait(60.0)
        assert supervisor.last_words("a") == "no disk\nended with code 0; given up"


def test_a_process_that_nobody_supervises_watches_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Started by hand, a command outlives the shell as any other does."""
    monkeypatch.delenv("TRITOME_SUPERVISOR_PID", raising=False)
    before = threading.active_count()
    end_with_supervisor()
    assert threading.active_count() == before


def test_the_first_signal_interrupts_and_the_second_does_not() -> None:
    """Cleaning up is done in peace."""
    with pytest.raises(KeyboardInterrupt), interrupted_once():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


def test_signals_become_an_event_and_the_old_handlers_come_back() -> None:
    """Ctrl-C and SIGTERM end in order; afterwards Python's own meaning is back."""
    before = signal.getsignal(signal.SIGTERM)
    with ending_on_signals() as ended:
        assert not ended.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.wait(10.0)
        os.kill(os.getpid(), signal.SIGINT)  # a second one interrupts nothing
        time.sleep(0.01)
    assert signal.getsignal(signal.SIGTERM) is before


def _runs(pid: int) -> bool:
    """Alive and no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
