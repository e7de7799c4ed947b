"""Between two sliding windows: does anybody still wait for this request, and may it go on?

In: the lists that gateways on this machine keep in shared memory (`tritome_turns_*`; their
format is in `dicom_gateway/infer/turns.py`). Out: go on, wait, or end. Nothing is kept.

Nothing of a request becomes part of a path: its id and its list's name are only compared. A list
counts while its gateway holds the lock on it; the kernel drops the lock of a killed one.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

PREFIX = "tritome_turns_"
PARAMETER = "tritome_listed"
FOLDER = "TRITOME_TURNS_FOLDER"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - shared memory is what is meant

LARGEST_BYTES = 1 << 20
LOOK_AGAIN_S = 0.02
MOST_PAUSED_S = 120.0
"""A request waits no longer than this in all: urgent ones without end don't stop the others for
good, and nobody's patience with the server runs out."""

_TORN_READS = 20


class Turn:
    """One request's turns; call it between windows.

    Args:
        request: Triton's; asked for its id and parameters, and whether it was cancelled.
        folder: Where gateways keep their lists.
        most_paused_s: After so much waiting in all it goes on beside the urgent ones.
    """

    _seen: set[str] = set()  # noqa: RUF012 - of this process: names of lists that were seen

    def __init__(
        self, request: Any, folder: Path | None = None, most_paused_s: float = MOST_PAUSED_S
    ) -> None:
        self._folder = folder or Path(os.environ.get(FOLDER, SHARED_MEMORY))
        self._id = str(request.request_id())
        self._is_cancelled: Callable[[], bool] = request.is_cancelled
        self._list = _list_of(request)
        self._left_s = most_paused_s

    def unwanted(self) -> bool:
        """Whether nobody waits for the result any more; never waits itself."""
        if self._is_cancelled():
            return True
        return bool(self._list) and self._word(self._lists()) == "gone"

    def __call__(self) -> bool:
        """Waits while more urgent requests are under way; True where nobody waits for this one."""
        while True:
            if self._is_cancelled():
                return True
            if not self._list:
                return False
            lists = self._lists()
            word = self._word(lists)
            if word == "gone":
                return True
            urgent = any("immediate" in one.values() for one in lists)
            if word != "other" or not urgent or self._left_s <= 0:
                return False
            time.sleep(LOOK_AGAIN_S)
            self._left_s -= LOOK_AGAIN_S

    def _word(self, lists: list[dict[str, str]]) -> str:
        for one in lists:
            if self._id in one:
                return one[self._id]
        # A list that was never seen is one that we can't see: in another folder, or another
        # user's.
        return "gone" if self._list in Turn._seen else "unknown"

    def _lists(self) -> list[dict[str, str]]:
        """What the living gateways list: request id -> immediate or other."""
        found = []
        try:
            paths = [path for path in self._folder.iterdir() if path.name.startswith(PREFIX)]
        except OSError:
            paths = []
        for path in paths:
            listed = _read(path)
            if listed is not None:
                found.append(listed)
                Turn._seen.add(path.name)
        return found


def _list_of(request: Any) -> str:
    """The name of the list that a request says it stands in; empty where it says nothing."""
    try:
        parameters = json.loads(request.parameters() or "{}")
    except (ValueError, TypeError):
        return ""
    found = parameters.get(PARAMETER, "") if isinstance(parameters, dict) else ""
    return found if isinstance(found, str) else ""


def _read(path: Path) -> dict[str, str] | None:
    """One list; None where its gateway is gone, or it isn't one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        told = os.fstat(fd)
        if not stat.S_ISREG(told.st_mode) or told.st_uid != os.geteuid() or not _is_held(fd):
            return None
        for _ in range(_TORN_READS):
            listed = _parse(os.pread(fd, LARGEST_BYTES, 0))
            if listed is not None:
                return listed
            time.sleep(0.001)  # it is being written
        return None
    except OSError:
        return None
    finally:
        os.close(fd)


def _is_held(fd: int) -> bool:
    """Whether somebody holds the lock; closing the file gives ours back."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _parse(text: bytes) -> dict[str, str] | None:
    head, _, rest = text.partition(b"\n")
    words = head.split()
    if len(words) != 3 or words[:2] != [b"tritome-turns", b"1"]:
        return None
    # What is beyond the last newline belongs to a longer list that is being shortened.
    if words[2] != f"{zlib.crc32(rest):08x}".encode():
        return None
    lines = [line.split() for line in rest.decode("ascii", errors="replace").splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2}
