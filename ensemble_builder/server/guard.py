"""Ends a tritonserver whose supervisor is gone, however it went (`kill -9` too).

Started beside each server as a script of its own, standard library only. It waits on its
stdin: a line means that all is in order, end of file that the supervisor died. (The kernel's
parent-death signal would be simpler, but tritonserver takes it back at start.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

PATIENCE_S = 20.0


def main(server_pid: int, shm_prefix: str, scratch: str) -> None:
    """Waits, and clears up when it must: the process group, its shared memory, its files."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.stdin.readline():
        return
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server_pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(0.1)
            os.killpg(server_pid, 0)
        os.killpg(server_pid, signal.SIGKILL)
    for region in Path("/dev/shm").glob(f"{shm_prefix}*"):  # noqa: S108 - the backend's place
        region.unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
