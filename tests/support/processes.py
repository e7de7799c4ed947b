"""Starting real programs for a test, and being sure that they are gone after it.

Comes in: a command line. Goes out: a running process whose output is kept in a file, so
that a failing test can show it. Survives a crash: nothing; every process is stopped when
its `with` block ends.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

# Debian keeps Orthanc and ip where only root's PATH looks.
_ALSO_LOOK_IN = ("/usr/sbin", "/sbin", "/usr/local/sbin")


class MissingPeer(AssertionError):
    """A program that the tests need is not on this machine: a failure, never a skip."""


class PeerFailed(AssertionError):
    """A peer ended, or did not do what it was asked, where the test counts on it."""


def needs(program: str, *, package: str) -> str:
    """The path of `program`.

    Raises:
        MissingPeer: naming the Debian or Ubuntu package that has it.
    """
    # pynetdicom installs a storescp, storescu and echoscu of its own into every environment
    # that has it; the peers of the tests are dcmtk's.
    on_path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    places = [place for place in on_path if not Path(place, "..", "pyvenv.cfg").exists()]
    places += _ALSO_LOOK_IN
    found = shutil.which(program, path=os.pathsep.join(places))
    if found is None:
        msg = (
            f"the test needs '{program}', which is not on this machine; "
            f"'make peers' installs it (Debian and Ubuntu: apt-get install {package})"
        )
        raise MissingPeer(msg)
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Running:
    """A started program and the file its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        """Everything it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_until(
        self, condition: Callable[[], object], *, that: str, timeout_s: float = 30.0
    ) -> None:
        """Returns when `condition` is true.

        Raises:
            PeerFailed: when the program ends first or the time is over, with its output.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            code = self.process.poll()
            if code is not None:
                msg = f"{self.name} ended with {code} before {that}:\n{self.output()}"
                raise PeerFailed(msg)
            if time.monotonic() > deadline_s:
                msg = f"{self.name}: waited {timeout_s:g} s until {that}:\n{self.output()}"
                raise PeerFailed(msg)
            time.sleep(0.05)


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    stop_timeout_s: float = 15.0,
) -> Iterator[Running]:
    """Runs `command` while the block lasts; SIGTERM at its end, SIGKILL if that is ignored.

    What it says on stdout and stderr goes to the file `log`; `environment` is added to
    this process's own.
    """
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield Running(Path(command[0]).name, process, log)
    finally:
        process.terminate()
        try:
            process.wait(stop_timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def stub_of(server_pid: int, model: str) -> psutil.Process:
    """The living process of one model of a tritonserver; one of them, where it has several."""
    found = stubs_of(server_pid, model)
    if not found:
        msg = f"the server has no stub of {model}"
        raise PeerFailed(msg)
    return found[0]


def stubs_of(server_pid: int, model: str) -> list[psutil.Process]:
    """The living processes of one model of a tritonserver, one for each instance."""
    found = []
    for process in psutil.Process(server_pid).children(recursive=True):
        with suppress(psutil.Error):  # a killed stub stays a zombie: the server doesn't reap it
            if f"/{model}/" in " ".join(process.cmdline()):
                found.append(process)
    return found
