"""A disk that is really full: a program runs with a small tmpfs in place of one of its folders.

Comes in: a folder and a size. Goes out: the beginning of a command line that mounts a tmpfs
there, in a mount namespace of its own, so that nobody else sees it and it goes with the
program. As root by `unshare --mount`; as anybody else in a user namespace, where the machine
allows it (Ubuntu 24.04 and some containers don't: there the test says so and is skipped, and
its twin, in which the kernel is made to answer ENOSPC, always runs).
"""

from __future__ import annotations

import os
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest

from tests.support.processes import needs

_MOUNT = 'mount -t tmpfs -o size="$1",mode=0777 tritome "$2" && shift 2 && exec "$@"'


def on_a_small_disk(folder: Path, size_bytes: int) -> tuple[str, ...]:
    """What goes before a command so that it sees `folder` as a disk of that size.

    Skips the test where neither root nor a user namespace may mount.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return (*_namespace(), "sh", "-c", _MOUNT, "sh", str(size_bytes), str(folder))


@lru_cache(maxsize=1)
def _namespace() -> tuple[str, ...]:
    unshare = needs("unshare", package="util-linux")
    ways = [(unshare, "--mount", "--propagation", "private")] if os.geteuid() == 0 else []
    ways.append((unshare, "--user", "--map-root-user", "--mount", "--propagation", "private"))
    for way in ways:
        probe = subprocess.run(
            [*way, "mount", "-t", "tmpfs", "tritome", "/mnt"], check=False, capture_output=True
        )
        if probe.returncode == 0:
            return way
    pytest.skip("this machine lets nobody mount a small disk; the twin of this test always runs")
