"""What processes use, as the kernel counts it in /proc: memory, processor time, threads, files.

In: process ids. Out: numbers; a process that has ended meanwhile counts as nothing.

Memory is anonymous memory and the process's share of mapped files (libraries). Shared memory is
left out here: it lies in /dev/shm once, however many processes map it, and is counted there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from perf.watch import Watch

_PROC = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - shared memory is what is meant
_CPU_CLOCK = 2
"""Of the clock ids that the kernel gives each process: its processor time, in all threads."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_BLOCK_BYTES = 512

Roles = Mapping[str, Sequence[int]]
"""What processes are for, and their ids."""


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    with contextlib.suppress(psutil.Error):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def kib_of(text: str, name: str) -> int:
    """One line of /proc/PID/status or smaps_rollup, such as `RssAnon:     1234 kB`; 0 without."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    return 0


def anonymous_bytes(pids: Iterable[int]) -> int:
    """Memory that is theirs alone: heaps, stacks, what they computed."""
    return 1024 * sum(kib_of(_read(pid, "status"), "RssAnon") for pid in pids)


def file_share_bytes(pids: Iterable[int]) -> int:
    """Their share of mapped files: one that two processes map counts half for each.

    The kernel walks through their pages for it, so don't ask many times a second.
    """
    return 1024 * sum(kib_of(_read(pid, "smaps_rollup"), "Pss_File") for pid in pids)


def threads(pids: Iterable[int]) -> int:
    """How many threads they have together."""
    return sum(kib_of(_read(pid, "status"), "Threads") for pid in pids)


def open_files(pids: Iterable[int]) -> int:
    """How many descriptors they hold: files, sockets, pipes."""
    held = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            held += sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())
    return held


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, all its threads, to the nanosecond.

    Source: clock_getcpuclockid(3), which makes the clock's id of the process's like this.
    """
    with contextlib.suppress(OSError):
        return time.clock_gettime((~pid << 3) | _CPU_CLOCK)
    return 0.0


def machine_cpu_s(stat: str | None = None) -> tuple[float, float]:
    """Seconds that all cores together were busy, and idle, since the machine started.

    Source: proc(5) `/proc/stat`: user nice system idle iowait irq softirq steal guest ...;
    guests are in user already.
    """
    text = (_PROC / "stat").read_text(encoding="ascii") if stat is None else stat
    ticks = [int(word) for word in text.splitlines()[0].split()[1:]]
    idle = ticks[3] + ticks[4]
    return (sum(ticks[:8]) - idle) / _TICKS_PER_S, idle / _TICKS_PER_S


def shared_memory_of(pids: Iterable[int], prefixes: Sequence[str] = ()) -> dict[str, int]:
    """Files in /dev/shm that they map or that begin with a prefix: bytes that each takes."""
    found = {path for prefix in prefixes for path in SHARED_MEMORY.glob(f"{prefix}*")}
    for pid in pids:
        for line in _read(pid, "maps").splitlines():
            _, marker, name = line.partition(f"{SHARED_MEMORY}/")
            if marker:
                found.add(SHARED_MEMORY / name.removesuffix(" (deleted)"))
    sizes = {}
    for path in found:
        with contextlib.suppress(OSError):
            sizes[path.name] = path.stat().st_blocks * _BLOCK_BYTES
    return sizes


def files_below(folder: Path) -> int:
    """How many files a folder holds, at any depth."""
    return sum(len(names) for _, _, names in os.walk(folder))


class MemoryWatch(Watch):
    """The most anonymous memory of each role, and of all shared memory, while it is entered.

    Args:
        roles: Asked again every second, as processes come and go.
        shared: Prefixes of names in /dev/shm.
    """

    EVERY_S = 0.05
    _ROLES_EVERY = 20

    def __init__(self, roles: Callable[[], Roles], shared: Sequence[str] = ()) -> None:
        super().__init__(self.EVERY_S)
        self._roles = roles
        self._shared = shared
        self._known: Roles = {}
        self._turn = 0
        self.peaks: dict[str, int] = {}
        """Bytes by role."""
        self.peak_sum: dict[str, int] = {}
        """By first word of the role (gateway, server): the most that all had at one time."""

    def look(self) -> None:
        """Takes down what is more than before."""
        if self._turn % self._ROLES_EVERY == 0:
            self._known = self._roles()
        self._turn += 1
        sums: dict[str, int] = {}
        for role, pids in self._known.items():
            now = anonymous_bytes(pids)
            self.peaks[role] = max(self.peaks.get(role, 0), now)
            side = role.partition(" ")[0]
            sums[side] = sums.get(side, 0) + now
        sums["server"] = sums.get("server", 0) + sum(shared_memory_of((), self._shared).values())
        for side, size in sums.items():
            self.peak_sum[side] = max(self.peak_sum.get(side, 0), size)


def _read(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / name).read_text(encoding="utf-8", errors="replace")
    return ""
