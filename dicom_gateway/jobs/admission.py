"""Which jobs may compute at the same time: as many as the machine's memory holds, by prediction.

In: what a job will need, from the contract's bytes per voxel. Out: leave to go on, in the order
of asking, immediate jobs first. Nothing is kept: who died needs no memory any more.

Beside another job, one that can wait enters only where as much as the larger of them needs stays
free: an immediate one needn't wait for their end. It may take all.

A large study waits for its neighbours instead of killing them, and they for it. One that needs
more than the gateway may use at once runs alone; one that the machine could never hold is refused.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dicom_gateway.errors import TritonUnavailable, VolumeTooLarge

SHARE = 0.75
"""Of the machine's memory: the rest is for the system, idle models and the gateway itself."""

_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # version 2, version 1


class Admission:
    """One gateway process's memory; safe to use from several threads.

    Args:
        limit_bytes: What all jobs together may need; a job alone may need more.
        machine_bytes: What no job may need more than.
        what: What there is so much of, for a person who reads why a job waits.
        setting: Of gateway.yaml, which says how much.
    """

    def __init__(
        self,
        limit_bytes: int,
        machine_bytes: int,
        *,
        what: str = "memory",
        setting: str = "jobs.memory-bytes",
    ) -> None:
        self._what = what
        self._setting = setting
        self._limit_bytes = limit_bytes
        self._machine_bytes = machine_bytes
        self._changed = threading.Condition()
        self._inside: list[int] = []
        self._line: list[object] = []
        self._urgent = 0  # so many at its head can't wait

    @property
    def limit_bytes(self) -> int:
        """What all jobs together may need."""
        return self._limit_bytes

    @property
    def inside_bytes(self) -> int:
        """What those that have entered need, by prediction."""
        with self._changed:
            return sum(self._inside)

    @property
    def waiting(self) -> int:
        """How many jobs stand in line."""
        with self._changed:
            return len(self._line)

    def check(self, wanted_bytes: int, what: str) -> None:
        """Whether the machine could ever hold it.

        Raises:
            VolumeTooLarge: with the figures.
        """
        if wanted_bytes > self._machine_bytes:
            msg = (
                f"{what} needs about {_gib(wanted_bytes)} of memory by its pipeline's contract, "
                f"and this machine has {_gib(self._machine_bytes)}; send it to a larger one, or "
                "say in jobs.memory-bytes of gateway.yaml that there is more, then 'tritome jobs "
                "retry'"
            )
            raise VolumeTooLarge(msg)

    @contextmanager
    def enter(
        self,
        wanted_bytes: int,
        *,
        first: bool = False,
        stop: threading.Event | None = None,
        waits: Callable[[str], None] = lambda _why: None,
    ) -> Iterator[None]:
        """Holds memory while the block lasts; waits for it where others have it.

        Args:
            wanted_bytes: Checked by `check`.
            first: Goes to the head of the line, behind those who went there before.
            stop: Ends the wait when set.
            waits: Called once, with the reason, where it has to wait.

        Raises:
            TritonUnavailable: `stop` was set while it waited.
        """
        me = object()
        with self._changed:
            self._line.insert(self._urgent if first else len(self._line), me)
            self._urgent += first
            try:
                if not self._may_enter(me, wanted_bytes, first=first):
                    waits(self._reason(wanted_bytes, first=first))
                while not self._may_enter(me, wanted_bytes, first=first):
                    if stop is not None and stop.is_set():
                        msg = f"the job was stopped while it waited for {self._what}"
                        raise TritonUnavailable(msg)
                    self._changed.wait(0.1)
                self._inside.append(wanted_bytes)
            finally:
                self._line.remove(me)
                self._urgent -= first
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside.remove(wanted_bytes)
                self._changed.notify_all()

    def _may_enter(self, me: object, wanted_bytes: int, *, first: bool) -> bool:
        # In order: small ones that slip past would let a large one wait for ever.
        if self._line[0] is not me:
            return False
        if not self._inside:
            return True
        kept = 0 if first else max(wanted_bytes, *self._inside)
        return sum(self._inside) + wanted_bytes + kept <= self._limit_bytes

    def _reason(self, wanted_bytes: int, *, first: bool) -> str:
        kept = "" if first else ", and some stays free for a study that can't wait"
        return (
            f"it needs about {_gib(wanted_bytes)} of {self._what}, and {len(self._inside)} other "
            f"job(s) use {_gib(sum(self._inside))} of the {_gib(self._limit_bytes)} there are for "
            f"all ({self._setting}){kept}"
        )


def admission(memory_bytes: int | None, arena_bytes: int) -> Admission:
    """By the settings, else by the machine.

    Args:
        memory_bytes: `jobs.memory-bytes`; None takes a share of the machine's.
        arena_bytes: Of shared memory, which is taken already.
    """
    if memory_bytes is not None:
        return Admission(memory_bytes, memory_bytes)
    machine = machine_bytes()
    return Admission(max(0, int(SHARE * machine) - arena_bytes), machine)


def machine_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> int:
    """Memory that this process could have: the machine's, or its container's where that is less.

    Source: proc(5) `/proc/meminfo`; the kernel's cgroup-v2 `memory.max`.
    """
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    limits = [int(found.group(1)) * 1024]
    for name in _LIMITS:
        try:
            text = (cgroup / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():  # "max" where there is none
            limits.append(int(text))
    return min(limits)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f} GiB"
