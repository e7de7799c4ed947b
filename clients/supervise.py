"""Keeps a few programs running together, and leaves nothing behind when they end.

In: command lines. Out: one stream of lines, each with its program's name. A program that
dies is started again after a pause that doubles; one that can't stay up ends them all.
Nothing is kept here: what must survive a crash, the programs keep themselves.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from clients.errors import ClientError

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory
LEFT_BEHIND = ("tritome_stub_",)
"""How the names begin of what a killed `tritome triton` leaves in /dev/shm."""

_MARK = "TRITOME_SUPERVISED"
_SUPERVISOR = "TRITOME_SUPERVISOR_PID"
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 30.0
"""A program that ran this long has started well; its next death is a first one again."""
_LAST_WORDS = 40
_UNHEARD = 10_000
"""Lines kept for a listener that is slow, such as a stopped terminal; then the oldest go."""
_FAREWELL_S = 2.0
"""How long the end waits for the listener to take the last lines."""
_KILL_S = 5.0
_YOUNG_S = 2.0
"""A region younger than this may be another server's, made and not yet mapped."""
_ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Program:
    """One program to keep running."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class Supervisor:
    """Runs programs while its context lasts.

    Args:
        programs: Started together.
        on_line: Called with (program, line) for everything they say and for what the
            supervisor does with them, always from the same thread. It may block, or fail with
            OSError because nobody listens any more: the programs are kept running all the same.
        stop_timeout_s: How long a program may take to end before it is killed.
        too_many_deaths: In a row, each soon after its start; then it is given up.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        on_line: Callable[[str, str], None],
        *,
        stop_timeout_s: float = 45.0,
        too_many_deaths: int = 5,
    ) -> None:
        self._programs = tuple(programs)
        self._on_line = on_line
        self._stop_timeout_s = stop_timeout_s
        self._too_many_deaths = too_many_deaths
        self._mark = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._gave_up: str | None = None
        self._ended = threading.Event()
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._words: dict[str, deque[str]] = {p.name: deque(maxlen=_LAST_WORDS) for p in programs}
        self._threads: list[threading.Thread] = []
        self._news = threading.Condition()
        self._unheard: deque[tuple[str, str]] = deque(maxlen=_UNHEARD)
        self._silent = False
        self._voice = threading.Thread(target=self._speak, name="voice", daemon=True)
        self._shm_before: frozenset[str] = frozenset()

    def __enter__(self) -> Supervisor:
        self._shm_before = _shared_memory_names()
        self._voice.start()
        for program in self._programs:
            thread = threading.Thread(
                target=self._keep, args=(program,), name=f"keep {program.name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        deadline = time.monotonic() + self._stop_timeout_s
        with self._lock:
            running = list(self._running.values())
        for process in running:
            with suppress(ProcessLookupError):
                process.terminate()
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        for program in self._programs:
            self._end_leftovers(program)
        for thread in self._threads:
            thread.join(5.0)
        sweep_shared_memory(self._shm_before)
        with self._news:
            self._silent = True
            self._news.notify()
        self._voice.join(_FAREWELL_S)

    def say(self, name: str, line: str) -> None:
        """Puts a line into the stream; never waits for whoever reads it."""
        with self._news:
            self._unheard.append((name, line))
            self._news.notify()

    def wait(self, timeout_s: float) -> bool:
        """Returns True when a program could not be kept running, False after `timeout_s`."""
        return self._ended.wait(timeout_s)

    def require_running(self) -> None:
        """Does nothing while all is well.

        Raises:
            ClientError: a program dies again and again; with its last words.
        """
        if self._gave_up is not None:
            raise ClientError(
                f"{self._gave_up} ended {self._too_many_deaths} times in a row. Its last words:\n"
                + self.last_words(self._gave_up)
            )

    def last_words(self, name: str, lines: int = _LAST_WORDS) -> str:
        """The newest lines of one program."""
        with self._lock:
            return "\n".join(list(self._words[name])[-lines:])

    def process_id(self, name: str) -> int | None:
        """Of the program itself, while it runs."""
        with self._lock:
            process = self._running.get(name)
        return process.pid if process is not None else None

    def _keep(self, program: Program) -> None:
        deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            ended = self._run(program)
            self._end_leftovers(program)
            if self._stopping.is_set():
                return
            deaths = 1 if time.monotonic() - started > _STEADY_S else deaths + 1
            if deaths >= self._too_many_deaths:
                self._say(program.name, f"{ended}; given up")
                self._gave_up = program.name
                self._ended.set()
                return
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (deaths - 1))
            self._say(program.name, f"{ended}; started again in {pause_s:g} s")
            self._stopping.wait(pause_s)

    def _run(self, program: Program) -> str:
        """Starts it, waits for its end, and says how it ended."""
        environment = {**os.environ, **program.environment, _MARK: self._mark_of(program)}
        environment[_SUPERVISOR] = str(os.getpid())
        environment["PYTHONUNBUFFERED"] = "1"
        try:
            with self._lock:
                if self._stopping.is_set():
                    return "not started"
                self._words[program.name].clear()  # those of an earlier life, told already
                # Its own session: Ctrl-C reaches only us, and we end the programs in order.
                process = subprocess.Popen(
                    program.command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    env=environment,
                    start_new_session=True,
                )
                self._running[program.name] = process
        except OSError as error:
            return f"{program.command[0]} can't be started ({error.strerror})"
        assert process.stdout is not None
        reader = threading.Thread(
            target=self._relay, args=(program.name, process.stdout), daemon=True
        )
        reader.start()
        code = process.wait()
        # A child that outlives the program may hold the pipe open; it is ended next, and
        # what it still says is not waited for.
        reader.join(1.0)
        with self._lock:
            del self._running[program.name]
        return f"ended with code {code}"

    def _relay(self, name: str, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                self._say(name, line.rstrip("\n"))

    def _say(self, name: str, line: str) -> None:
        with self._lock:
            self._words[name].append(line)
        self.say(name, line)

    def _speak(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._unheard or self._silent)
                if not self._unheard:
                    return
                name, line = self._unheard.popleft()
            # No lock is held here: this may take as long as a stopped terminal stays stopped.
            with suppress(OSError):
                self._on_line(name, line)

    def _mark_of(self, program: Program) -> str:
        return f"{self._mark}:{program.name}"

    def _end_leftovers(self, program: Program) -> None:
        """Kills what a dead program left running: a stub, a tritonserver.

        They are known by a mark in their environment, which children inherit wherever
        they are re-parented to.
        """
        left = _processes_marked(self._mark_of(program))
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        deadline = time.monotonic() + _KILL_S
        while any(_runs(process) for process in left) and time.monotonic() < deadline:
            time.sleep(0.01)


@contextmanager
def ending_on_signals() -> Iterator[threading.Event]:
    """Turns Ctrl-C and SIGTERM into an event while the block lasts.

    A second Ctrl-C doesn't interrupt the cleaning up.
    """
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in _ENDING}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Turns the first Ctrl-C or SIGTERM into KeyboardInterrupt, and ignores the others.

    For a command that waits inside a library: the cleaning up that follows the first
    signal is not interrupted by the second.
    """

    def interrupt(*_: object) -> None:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_supervisor(every_s: float = 1.0) -> None:
    """Makes a supervised process end itself, in order, when its supervisor is killed.

    Does nothing in a process that no supervisor started.
    """
    if _SUPERVISOR not in os.environ:
        return
    # Told by the supervisor: our parent may be another already, if it was killed meanwhile.
    supervisor = int(os.environ[_SUPERVISOR])

    def watch() -> None:
        while os.getppid() == supervisor:
            time.sleep(every_s)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end with supervisor", daemon=True).start()


def sweep_shared_memory(before: frozenset[str]) -> tuple[str, ...]:
    """Removes what our kind left in /dev/shm since `before`, unless somebody still maps it.

    Returns:
        The removed names.
    """
    candidates = {name for name in _shared_memory_names() - before if name.startswith(LEFT_BEHIND)}
    if candidates:
        candidates -= _mapped_names()
    removed: list[str] = []
    for name in sorted(candidates):
        path = SHARED_MEMORY / name
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _YOUNG_S:
                path.unlink()
                removed.append(name)
    # A living gateway locks its arena, so only those of dead ones go.
    from dicom_gateway.assemble.arena import remove_leftovers  # noqa: PLC0415
    from dicom_gateway.infer.turns import remove_turns  # noqa: PLC0415

    return (*removed, *remove_leftovers(SHARED_MEMORY), *remove_turns(SHARED_MEMORY))


def _shared_memory_names() -> frozenset[str]:
    try:
        return frozenset(path.name for path in SHARED_MEMORY.iterdir())
    except OSError:
        return frozenset()


def _mapped_names() -> set[str]:
    names: set[str] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                _, found, name = line.partition(f" {SHARED_MEMORY}/")
                if found:
                    names.add(name.removesuffix(" (deleted)"))
    return names


def _processes_marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        # Another user's process can't be read, and is not ours; zombies have no environment.
        with suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == mark:
                found.append(process)
    return found


def _runs(process: psutil.Process) -> bool:
    # Whoever adopted an orphan may be slow to bury it; a zombie holds nothing any more.
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
