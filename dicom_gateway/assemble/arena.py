"""The shared memory that Triton reads in place.

Stage: before `assemble` and until `infer` has copied the outputs. In: sizes in bytes. Out:
spans of one POSIX shared-memory file, named by offset. What survives a crash: the file,
without its lock; `remove_leftovers` knows it by that and takes it away at the next start.

The file is filled with real pages at the start (`posix_fallocate`) and is never truncated:
a store into a page that /dev/shm can't provide, or that was cut off, is a SIGBUS, and that
kills tritonserver, not only us.

Nothing is zeroed. The file can be read by its owner alone (0600), it has no patient
attribute in its name, whoever is lent a span writes all of it before anyone reads it (a
volume is complete or its span is given back; Triton writes all of an output), and the kernel
clears the pages of an unlinked file before it gives them to anybody else.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dicom_gateway.errors import ArenaFull, ConfigurationError, VolumeTooLarge
from dicom_gateway.records import ArenaSpan

PREFIX = "tritome_arena_"
"""How the file names of all arenas begin."""

ALIGNMENT_BYTES = 4096
"""Spans start on a page, so that a decoder can map its piece alone."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - shared memory is what is meant
"""Where Linux keeps POSIX shared memory (shm_overview(7))."""


class Arena:
    """One shared-memory file, handed out in spans; safe to use from several threads.

    Args:
        size_bytes: Size of the whole; rounded up to pages.
        folder: Where POSIX shared memory lives; only tests say another.
        setting: What says the size in gateway.yaml, for those who must change it.

    Raises:
        ConfigurationError: (shared_memory_full) when `folder` hasn't that much room,
            (shared_memory_unusable) when no file can be made there.
    """

    def __init__(
        self,
        size_bytes: int,
        folder: Path = SHARED_MEMORY,
        *,
        setting: str = "triton.arena-bytes",
    ) -> None:
        self.size_bytes = _whole_pages(size_bytes)
        self._folder = folder
        self._mutex = threading.Lock()
        self._lent: dict[int, ArenaSpan] = {}  # offset -> span
        self._closed = False
        self.name, self._fd = _create(folder, self.size_bytes, setting)
        self._map: mmap.mmap | None = mmap.mmap(self._fd, self.size_bytes)

    @property
    def path(self) -> Path:
        """The file; a decoder opens it by this path."""
        return self._folder / self.name

    @property
    def key(self) -> str:
        """The name for shm_open(3), as Triton's SystemSharedMemoryRegister wants it."""
        return f"/{self.name}"

    @property
    def free_bytes(self) -> int:
        """What is not lent just now, in however many pieces."""
        with self._mutex:
            return self.size_bytes - sum(_whole_pages(s.size_bytes) for s in self._lent.values())

    def allocate(self, size_bytes: int) -> ArenaSpan:
        """Lends the first gap that is large enough.

        Raises:
            VolumeTooLarge: when it would not fit even into the empty arena.
            ArenaFull: when others hold the room just now.
        """
        if size_bytes < 1:
            msg = f"a span has at least 1 byte, not {size_bytes}"
            raise ValueError(msg)
        wanted = _whole_pages(size_bytes)
        if wanted > self.size_bytes:
            msg = (
                f"this needs {_mib(size_bytes)} of shared memory and the arena has "
                f"{_mib(self.size_bytes)} in all; set triton.arena-bytes in gateway.yaml to at "
                f"least {wanted} (better twice that: the outputs go there too)"
            )
            raise VolumeTooLarge(msg)
        with self._mutex:
            start = 0
            for offset in sorted(self._lent):
                if offset - start >= wanted:
                    break
                start = offset + _whole_pages(self._lent[offset].size_bytes)
            if start + wanted > self.size_bytes:
                msg = (
                    f"{_mib(size_bytes)} of shared memory are needed, and {len(self._lent)} "
                    f"other span(s) fill the arena of {_mib(self.size_bytes)}; this passes when "
                    "they are done. If it happens often, raise triton.arena-bytes or lower "
                    "jobs.workers in gateway.yaml"
                )
                raise ArenaFull(msg)
            span = ArenaSpan(region=self.name, offset_bytes=start, size_bytes=size_bytes)
            self._lent[start] = span
        return span

    def free(self, span: ArenaSpan) -> None:
        """Takes a span back; it must be the very object that `allocate` gave.

        Raises:
            ValueError: when it isn't lent (any more): freeing it would pull the memory
                away from whoever has it now.
        """
        with self._mutex:
            if self._lent.get(span.offset_bytes) is not span:
                msg = f"the span at {span.offset_bytes} is not lent; was it freed twice?"
                raise ValueError(msg)
            del self._lent[span.offset_bytes]

    @contextmanager
    def borrow(self, size_bytes: int) -> Iterator[ArenaSpan]:
        """`allocate`, and `free` at the end of the block."""
        span = self.allocate(size_bytes)
        try:
            yield span
        finally:
            self.free(span)

    def view(self, span: ArenaSpan, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """The memory of a span as an array, in place.

        Keep no view longer than its span: the memory will be somebody else's.

        Raises:
            ValueError: when the array would reach beyond the span, or the arena is closed.
        """
        if self._map is None:
            msg = "the arena is closed"
            raise ValueError(msg)
        wanted = np.dtype(dtype).itemsize * math.prod(map(int, shape))
        if wanted > span.size_bytes:
            msg = f"an array of {wanted} bytes doesn't fit into a span of {span.size_bytes}"
            raise ValueError(msg)
        return np.ndarray(shape, dtype=dtype, buffer=self._map, offset=span.offset_bytes)

    def close(self) -> None:
        """Unlinks the file. Unregister it with Triton first; views stay valid until dropped."""
        if self._closed:
            return
        self._closed = True
        with suppress(FileNotFoundError):
            self.path.unlink()
        # The mapping is dropped, never closed: numpy keeps no lock on it, so closing would
        # pull it away from under a view that somebody still holds. It goes with the last.
        self._map = None
        os.close(self._fd)

    def __enter__(self) -> Arena:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def remove_leftovers(folder: Path = SHARED_MEMORY) -> tuple[str, ...]:
    """Unlinks the arenas of killed workers and returns their names.

    A live arena is locked by its owner for as long as that lives; the kernel drops the lock
    of a killed one. The caller unregisters the names with Triton, which would otherwise go
    on serving the old memory under them.
    """
    removed = []
    for path in sorted(folder.glob(f"{PREFIX}*")):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # gone in the meantime, or another user's
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its owner lives
        else:
            with suppress(OSError):  # gone in the meantime, or another user's that we may open
                path.unlink()
                removed.append(path.name)
        finally:
            os.close(fd)
    return tuple(removed)


def _create(folder: Path, size_bytes: int, setting: str) -> tuple[str, int]:
    while True:
        name = f"{PREFIX}{secrets.token_hex(8)}"
        path = folder / name
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            msg = f"no shared memory can be made in {folder}: {error.strerror}"
            raise ConfigurationError(msg, code="shared_memory_unusable") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Between open and flock another worker may have taken it for a leftover.
            if not path.exists() or path.stat().st_ino != os.fstat(fd).st_ino:
                os.close(fd)
                continue
            _fill(fd, size_bytes, folder, setting)
        except BaseException:
            os.close(fd)
            with suppress(FileNotFoundError):
                path.unlink()
            raise
        return name, fd


def _fill(fd: int, size_bytes: int, folder: Path, setting: str) -> None:
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    try:
        if size_bytes > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        msg = (
            f"{folder} has {_mib(free)} free and the arena wants {_mib(size_bytes)} "
            f"({error.strerror}); give it more (docker: --shm-size, compose: shm_size) or lower "
            f"{setting} in gateway.yaml"
        )
        raise ConfigurationError(msg, code="shared_memory_full") from error


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
