"""Receive, where a data set stays while it comes: in memory, a large one on the store's disk.

In: its bytes, piece by piece. Out: its whole content. Nothing survives a crash: the files
have no name, so the system removes them with the process that wrote them.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

IN_MEMORY_BYTES = 1 << 20
"""A CT or MR instance; all that 25 associations send at once stays below 64 MB."""
_LOOK_EVERY_BYTES = 16 << 20
_PATIENCE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Spool:
    """Where large data sets go, and what must stay free there.

    Attributes:
        folder: Inside the store; made if it isn't there.
        min_free_bytes: As `store.min-free-bytes`.
    """

    folder: Path
    min_free_bytes: int = 0


class Incoming:
    """One data set while it comes.

    Args:
        spool: None keeps all of it in memory.
        limit_bytes: Once it is longer its bytes are dropped while they come.

    Attributes:
        too_large: It was longer than the limit.
        no_room: The disk is full, or was about to pass its watermark.
    """

    def __init__(self, spool: Spool | None, limit_bytes: int) -> None:
        self._spool = spool
        self._limit_bytes = limit_bytes
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None
        self._looked_at_bytes = 0
        self.size_bytes = 0
        self.too_large = False
        self.no_room = False

    @property
    def is_endless(self) -> bool:
        """So far over the limit that nobody waits any more for the end of it."""
        return self.size_bytes > 2 * self._limit_bytes + _PATIENCE_BYTES

    def write(self, piece: memoryview) -> None:
        """Takes the next bytes; never fails, what went wrong is in the attributes."""
        self.size_bytes += len(piece)
        if self.too_large or self.no_room:
            return
        if self.size_bytes > self._limit_bytes:
            self.too_large = True
            self.close()
            return
        if self._spool is None or self.size_bytes <= IN_MEMORY_BYTES:
            self._memory += piece
            return
        try:
            self._write_to(self._opened(self._spool), piece)
        except OSError:
            self.no_room = True
        if self.no_room:
            self.close()

    def content(self) -> bytearray | mmap.mmap:
        """All of it, when the last piece has come; a large one is gone after `close`."""
        if self._file is None:
            return self._memory
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def close(self) -> None:
        """Lets go of memory and disk."""
        self._memory = bytearray()
        if self._map is not None:
            with suppress(BufferError):  # somebody still looks at it; it goes with them
                self._map.close()
            self._map = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self, spool: Spool) -> IO[bytes]:
        if self._file is None:
            spool.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=spool.folder, buffering=0)  # noqa: SIM115 - `close` closes it
            self._write_to(self._file, memoryview(self._memory))
            self._memory = bytearray()
        return self._file

    def _write_to(self, file: IO[bytes], piece: memoryview) -> None:
        assert self._spool is not None
        if self.size_bytes - self._looked_at_bytes >= _LOOK_EVERY_BYTES:
            self._looked_at_bytes = self.size_bytes
            disk = os.statvfs(self._spool.folder)
            if disk.f_bavail * disk.f_frsize < self._spool.min_free_bytes:
                self.no_room = True
                return
        rest = piece
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]
