"""A witness for /dev/shm: what was there before must be all that is there after.

Triton, its Python stubs and the gateway's arena all live there, and a killed process
leaves its part behind. Comes in: nothing. Goes out: names of what is new.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DEV_SHM = Path("/dev/shm")


def dev_shm() -> frozenset[str]:
    """The names in /dev/shm now."""
    return frozenset(path.name for path in DEV_SHM.iterdir())


@contextmanager
def dev_shm_as_before(
    *, prefixes: tuple[str, ...] = ("",), settle_s: float = 5.0, mapped_too: bool = True
) -> Iterator[frozenset[str]]:
    """Fails when the block leaves something new in /dev/shm; gives what was there before.

    Args:
        prefixes: Only names that begin so count; other programs of the machine may use
            the place at the same time.
        settle_s: A process that was just stopped gets this long to clean up.
        mapped_too: False lets what a living process maps or has open stay: another server of the
            machine, started meanwhile. The test must then look for living processes itself.
    """
    before = dev_shm()
    yield before
    deadline_s = time.monotonic() + settle_s
    while left := sorted(name for name in dev_shm() - before if name.startswith(prefixes)):
        if not mapped_too and not (set(left) - _mapped()):
            return
        if time.monotonic() > deadline_s:
            msg = f"left behind in /dev/shm: {', '.join(left)}"
            raise AssertionError(msg)
        time.sleep(0.1)


def _mapped() -> set[str]:
    """The names in /dev/shm that a living process maps or has open."""
    names: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
            names |= {line.rpartition("/")[2] for line in lines if f" {DEV_SHM}/" in line}
            opened = (str(fd.readlink()) for fd in maps.with_name("fd").iterdir())
            names |= {name.rpartition("/")[2] for name in opened if name.startswith(f"{DEV_SHM}/")}
    return names
