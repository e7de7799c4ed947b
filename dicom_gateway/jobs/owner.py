"""Who holds a lease, and is that process still alive?

In: nothing, or the name that another process wrote into a lease. Out: a name for this
process, or whether the named one is certainly dead. Nothing is kept: the kernel knows.

A name is host:boot:pid-namespace:pid:start-time. The start time (clock ticks since boot)
guards against a process id that was given to another process; boot and namespace guard
against comparing numbers that mean different things.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

_DEAD_STATES = frozenset("ZXx")  # zombie, dead: nobody will run there again


def this_process() -> str:
    """The name under which this process leases jobs (at most 120 characters).

    Source: proc(5): `/proc/pid/stat`, `/proc/sys/kernel/random/boot_id`, `/proc/pid/ns/pid`.
    """
    pid = os.getpid()
    return f"{_place()}{pid}:{_start_ticks(pid)}"


def is_certainly_dead(owner: str) -> bool:
    """True only if `owner` ran in our process namespace since our boot and is gone.

    False for every other host, container or boot: there the lease's time decides.
    """
    place = _place()
    if not owner.startswith(place):
        return False
    pid, _, started = owner.removeprefix(place).partition(":")
    if not (pid.isdigit() and started.isdigit()):
        return False
    return _start_ticks(int(pid)) != int(started)


def _place() -> str:
    host = socket.gethostname().replace(":", "_")[:40]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    return f"{host}:{boot}:{namespace}:"


def _start_ticks(pid: int) -> int | None:
    """Field 22 of the stat line, or None where no such process runs any more."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and may contain anything.
    state, *rest = line.rpartition(")")[2].split()
    return None if state in _DEAD_STATES else int(rest[18])
