"""What the models inside Triton see of our requests: who still waits, and who can't wait.

In: the requests under way. Out: a file in shared memory that the models read between two
sliding windows; Triton itself can neither stop nor pause a step of an ensemble. A request that
is not listed any more is wanted by nobody and ends; while an immediate one is listed, the
others pause. Survives a crash: the file, without its lock, which says the same: nobody waits.

The file: `tritome_turns_<16 hex>` in /dev/shm, 0600, locked (flock) while its gateway lives.
`tritome-turns 1 <CRC-32 of the rest, 8 hex>`, then for each request `<request id> immediate`
or `<request id> other`, one line each. Its reader is `ensemble_builder/runtime/turns.py`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from dicom_gateway.errors import TritonUnavailable
from dicom_gateway.observe.logging import get_logger

PREFIX = "tritome_turns_"
"""How the names of all such files begin."""

PARAMETER = "tritome_listed"
"""Of a request: in which list it stands, so that a model that doesn't find it there knows that
nobody waits. Models compare the name with those of the lists that they see, no more."""

FOLDER = "TRITOME_TURNS_FOLDER"
"""Environment variable: another folder, for tests; the models must have it, too."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - shared memory is what is meant

_REQUEST_ID = re.compile(r"[0-9A-Za-z._-]{1,128}")


class Turns:
    """The list of one gateway process; safe to use from several threads.

    Where the file can't be made, everything works without it: nothing is listed, so nobody
    pauses, and what is cancelled ends at the next step. That is logged once.

    Args:
        folder: Where the file goes; shared memory where not given.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(os.environ.get(FOLDER, SHARED_MEMORY))
        self._mutex = threading.Lock()
        self._listed: dict[str, bool] = {}  # request id -> immediate
        self._longest = 0
        self._fd: int | None = None
        self._path: Path | None = None
        try:
            self._path, self._fd = _create(self._folder)
            self._write()
        except OSError as error:
            self.close()
            self._path = None
            get_logger(room="infer").warning(
                "no_preemption",
                reason=f"{self._folder} can't be used ({error.strerror}): a running job is not "
                "paused for an immediate one, and not cancelled between its windows",
            )

    @property
    def works(self) -> bool:
        """Whether the models can see anything."""
        return self._fd is not None

    @property
    def name(self) -> str:
        """Of the list."""
        return "" if self._path is None else self._path.name

    @contextmanager
    def listed(self, request_id: str, *, immediate: bool) -> Iterator[None]:
        """Lists a request while somebody waits for it."""
        if not _REQUEST_ID.fullmatch(request_id):
            msg = "a request id here has only letters, digits, '.', '_' and '-'"
            raise ValueError(msg)
        with self._mutex:
            self._listed[request_id] = immediate
            self._tell()
        try:
            yield
        finally:
            self.drop(request_id)

    def drop(self, request_id: str) -> None:
        """Nobody waits for it any more: it ends before its next window."""
        with self._mutex:
            if self._listed.pop(request_id, None) is not None:
                self._tell()

    def close(self) -> None:
        """Takes the file away."""
        with self._mutex:
            if self._fd is not None and self._path is not None:
                with suppress(OSError):
                    self._path.unlink()
                os.close(self._fd)
            self._fd = None

    def _tell(self) -> None:
        """Writes the list; a job is never lost because the models can't be told of it."""
        try:
            self._write()
        except OSError as error:
            get_logger(room="infer").warning(
                "turns_not_written",
                reason=f"{self._folder} doesn't take the list of requests ({error.strerror}); "
                "until it does, nobody pauses and nothing is cancelled between windows",
            )

    def _write(self) -> None:
        if self._fd is None:
            return
        words = {True: "immediate", False: "other"}
        lines = "".join(f"{one} {words[urgent]}\n" for one, urgent in self._listed.items())
        # Never shorter than before, in one write: a list that is cut off after it was written
        # is torn for whoever looks in between.
        self._longest = max(self._longest, len(lines))
        lines = lines.ljust(self._longest, "\n")
        text = f"tritome-turns 1 {zlib.crc32(lines.encode()):08x}\n{lines}".encode()
        if os.pwrite(self._fd, text, 0) < len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Lanes:
    """Keeps a lane free for immediate requests; safe to use from several threads.

    A model's instance is busy until its request ends, paused or not. So there are always fewer
    other requests under way at a model than it has instances, from whichever pipelines: they may
    share their models.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._others: dict[str, int] = {}
        self._line: list[frozenset[str]] = []

    @contextmanager
    def enter(self, most: Mapping[str, int], stop: threading.Event | None = None) -> Iterator[None]:
        """Waits until at each model fewer than so many requests are inside; nothing never waits.

        Args:
            most: By model. All are entered at the same moment, so that nobody keeps one lane
                while it waits for another.
            stop: Ends the wait when set.

        Raises:
            TritonUnavailable: `stop` was set while it waited.
        """
        me = frozenset(most)
        with self._changed:
            self._line.append(me)
            try:
                while not self._may_enter(me, most):
                    if stop is not None and stop.is_set():
                        msg = "the job was stopped before its request was sent"
                        raise TritonUnavailable(msg)
                    self._changed.wait(0.1)
            finally:
                del self._line[self._place(me)]
                self._changed.notify_all()
            for model in most:
                self._others[model] = self._others.get(model, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                for model in most:
                    self._others[model] -= 1
                self._changed.notify_all()

    def _may_enter(self, me: frozenset[str], most: Mapping[str, int]) -> bool:
        # In order at each model: who needs several would otherwise wait for ever.
        if any(me & earlier for earlier in self._line[: self._place(me)]):
            return False
        return all(self._others.get(model, 0) < count for model, count in most.items())

    def _place(self, me: frozenset[str]) -> int:
        return next(n for n, one in enumerate(self._line) if one is me)


def remove_turns(folder: Path | None = None) -> tuple[str, ...]:
    """Unlinks the lists of killed gateways and returns their names."""
    removed = []
    for path in sorted((folder or Path(os.environ.get(FOLDER, SHARED_MEMORY))).glob(f"{PREFIX}*")):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # gone in the meantime, or another user's
        try:
            if _locked(fd):
                with suppress(OSError):  # gone in the meantime, or another user's
                    path.unlink()
                    removed.append(path.name)
        finally:
            os.close(fd)
    return tuple(removed)


def _locked(fd: int) -> bool:
    """Takes the lock; False where a living gateway has it."""
    for _ in range(20):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.005)  # a model may be looking, which takes a moment
        else:
            return True
    return False


def _create(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / f"{PREFIX}{secrets.token_hex(8)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # Between open and flock another gateway may have taken it for a leftover.
        if _locked(fd) and path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
            return path, fd
        os.close(fd)
