"""Between two sliding windows: does anybody still wait for this request, and may it go on?

In: the lists that gateways on this machine keep in shared memory (`tritome_turns_*`; their
format is in `dicom_gateway/infer/turns.py`). Out: go on, wait, or end. Nothing is kept.

Nothing of a request becomes part of a path: its id and its list's name are only compared. A list
counts while its gateway holds the lock on it; the kernel drops the lock of a killed one. What
can't be read just now proves nothing: the request goes on.

An urgent request that waits for the very instance that a pausing one keeps busy would wait as
long as that pauses. So each step says by an abstract socket, which the kernel takes away with its
process, which request it works on; others pause for an urgent one a few seconds, and longer only
while a step works on it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

PREFIX = "tritome_turns_"
PARAMETER = "tritome_listed"
FOLDER = "TRITOME_TURNS_FOLDER"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - shared memory is what is meant

LARGEST_BYTES = 1 << 20
LOOK_AGAIN_S = 0.02
MOST_PAUSED_S = 120.0
"""A request waits no longer than this in all: urgent ones without end don't stop the others for
good, and nobody's patience with the server runs out."""

MOST_FOR_NOBODY_S = 3.0
"""So long others pause for an urgent request that no step works on: it is between two steps, or it
waits for an instance that one of them keeps busy."""

_AT_ONCE = 4
"""So many steps of one request can say that they work on it: branches of an ensemble."""

_TORN_READS = 20

_NO_LIST = frozenset({errno.ENOENT, errno.ELOOP, errno.EACCES, errno.ENXIO})
"""Gone, a link, another user's, or no file at all: no list of a gateway of ours."""


_Lists: TypeAlias = dict[str, dict[str, str] | None]
"""What the living gateways list: name of the list -> request id -> immediate or other. None where
it can't be read just now: it is being written, or the process has no file descriptor left."""


class Turn:
    """One request's turns; call it between windows.

    Args:
        request: Triton's; asked for its id and parameters, and whether it was cancelled.
        folder: Where gateways keep their lists.
        most_paused_s: After so much waiting in all it goes on beside the urgent ones.
        most_for_nobody_s: And after so much while no step works on any of them.
    """

    _seen: set[str] = set()  # noqa: RUF012 - of this process: names of lists that were seen

    def __init__(
        self,
        request: Any,
        folder: Path | None = None,
        most_paused_s: float = MOST_PAUSED_S,
        most_for_nobody_s: float = MOST_FOR_NOBODY_S,
    ) -> None:
        self._folder = folder or Path(os.environ.get(FOLDER, SHARED_MEMORY))
        self._id = str(request.request_id())
        self._is_cancelled: Callable[[], bool] = request.is_cancelled
        self._list = _list_of(request)
        self._left_s = most_paused_s
        self._most_for_nobody_s = most_for_nobody_s
        self._for_nobody_since_s: float | None = None

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
            if word != "other" or not self._should_wait(lists) or self._left_s <= 0:
                return False
            time.sleep(LOOK_AGAIN_S)
            self._left_s -= LOOK_AGAIN_S

    def _should_wait(self, lists: _Lists) -> bool:
        listed = [pair for one in lists.values() if one is not None for pair in one.items()]
        urgent = [name for name, word in listed if word == "immediate"]
        if not urgent or any(is_at_work(name) for name in urgent):
            self._for_nobody_since_s = None
            return bool(urgent)
        if self._for_nobody_since_s is None:
            self._for_nobody_since_s = time.monotonic()
        return time.monotonic() - self._for_nobody_since_s < self._most_for_nobody_s

    def _word(self, lists: _Lists) -> str:
        for one in lists.values():
            if one is not None and self._id in one:
                return one[self._id]
        if self._list in lists and lists[self._list] is None:
            return "unknown"
        # A list that was never seen is one that we can't see: in another folder, or another
        # user's.
        return "gone" if self._list in Turn._seen else "unknown"

    def _lists(self) -> _Lists:
        found: _Lists = {}
        try:
            paths = [path for path in self._folder.iterdir() if path.name.startswith(PREFIX)]
        except OSError:
            return {self._list: None}
        for path in paths:
            try:
                listed = _read(path)
            except OSError:
                found[path.name] = None
                continue
            if listed is not None:
                found[path.name] = listed
                Turn._seen.add(path.name)
        return found


@contextmanager
def at_work(request: Any) -> Iterator[None]:
    """Says, while it lasts, that a step works on this request: it waits for no instance.

    Where that can't be said, others pause for it a few seconds only.
    """
    with ExitStack() as stack:
        for mark in _marks_of(str(request.request_id())):
            try:
                ours = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                ours.bind(mark)
                break
            except OSError:
                continue  # another step works on it, too
        yield


def is_at_work(request_id: str) -> bool:
    """Whether some step on this machine works on a request just now."""
    for mark in _marks_of(request_id):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asker:
            asker.connect(mark)
            return True
    return False


def _marks_of(request_id: str) -> list[bytes]:
    """Addresses without a file (unix(7): abstract); a digest, for their length."""
    digest = hashlib.sha256(request_id.encode()).hexdigest()
    return [f"\0tritome_at_work_{os.geteuid()}_{digest}_{n}".encode() for n in range(_AT_ONCE)]


def _list_of(request: Any) -> str:
    """The name of the list that a request says it stands in; empty where it says nothing."""
    try:
        parameters = json.loads(request.parameters() or "{}")
    except (ValueError, TypeError):
        return ""
    found = parameters.get(PARAMETER, "") if isinstance(parameters, dict) else ""
    return found if isinstance(found, str) else ""


def _read(path: Path) -> dict[str, str] | None:
    """One list; None where its gateway is gone, or it isn't one.

    Raises:
        OSError: it can't be read just now.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _NO_LIST:
            return None
        raise
    try:
        told = os.fstat(fd)
        if not stat.S_ISREG(told.st_mode) or told.st_uid != os.geteuid() or not _is_held(fd):
            return None
        for _ in range(_TORN_READS):
            listed = _parse(os.pread(fd, LARGEST_BYTES, 0))
            if listed is not None:
                return listed
            time.sleep(0.001)  # it is being written
    finally:
        os.close(fd)
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


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
    if words[2] != f"{zlib.crc32(rest):08x}".encode():
        return None
    lines = [line.split() for line in rest.decode("ascii", errors="replace").splitlines()]
    return {line[0]: line[1] for line in lines if len(line) == 2}
