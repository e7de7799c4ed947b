"""Keep, before a byte is written: is there room left, with hysteresis.

In: how many bytes are to come. Out: nothing, or `OutOfResources`, so that the sender hears
0xA700 while results and the index still have their reserve. Nothing is kept: after a start
the file system is looked at again.

Two marks: below `min_free_bytes` intake closes, and it opens again at `resume_free_bytes`,
so that a disk at its limit is not opened and closed with every object.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from dicom_gateway.errors import OutOfResources
from dicom_gateway.observe.logging import get_logger

MIN_FREE_FILES = 256
"""So many files must still fit: a file system that runs out of inodes is as full."""
RESUME_SHARE = 0.1
"""Without a mark of its own, intake opens again at this share above `min_free_bytes`."""
_LOOK_EVERY_S = 0.5
_TRUST_BYTES = 64 * 1024 * 1024
"""Others write to the disk too, so near the mark every object looks for itself."""


@dataclass(frozen=True, slots=True)
class Free:
    """What a file system has left for us."""

    free_bytes: int
    free_files: int | None
    """None where it counts no files (btrfs, some network file systems)."""


class Watermark:
    """Says whether something may still be taken in; safe for several threads.

    Args:
        folder: On the file system that is watched.
        min_free_bytes: What intake leaves free.
        resume_free_bytes: Where intake opens again; 10 % above where not given.
    """

    def __init__(
        self, folder: Path, min_free_bytes: int, resume_free_bytes: int | None = None
    ) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._resume_free_bytes = (
            int(min_free_bytes * (1 + RESUME_SHARE))
            if resume_free_bytes is None
            else max(resume_free_bytes, min_free_bytes)
        )
        self._lock = threading.Lock()
        self._left_bytes = 0
        self._looked_at_s = float("-inf")
        self._closed = False
        self._log = get_logger(room="store")

    @property
    def is_closed(self) -> bool:
        """True between the two marks on the way up."""
        return self._closed

    def require(self, size_bytes: int) -> None:
        """Returns where so much may be written.

        Raises:
            OutOfResources: the file system is below its mark, or would be after it.
            OSError: it can't be asked.
        """
        with self._lock:
            left_bytes = self._left_bytes - size_bytes - self._min_free_bytes
            fresh = time.monotonic() - self._looked_at_s < _LOOK_EVERY_S
            if self._closed or not fresh or left_bytes < _TRUST_BYTES:
                free = free_of(self._folder)
                self._look(free, size_bytes)
            self._left_bytes -= size_bytes

    def _look(self, free: Free, size_bytes: int) -> None:
        self._left_bytes = free.free_bytes
        self._looked_at_s = time.monotonic()
        mark_bytes = self._resume_free_bytes if self._closed else self._min_free_bytes
        no_files = free.free_files is not None and free.free_files < MIN_FREE_FILES
        if free.free_bytes - size_bytes >= mark_bytes and not no_files:
            if self._closed:
                self._closed = False
                self._log.info("intake_open_again", free_mib=free.free_bytes >> 20)
            return
        # An object that is too large for a disk with room says nothing about smaller ones.
        if not self._closed and (no_files or free.free_bytes < self._resume_free_bytes):
            self._closed = True
            self._log.error(
                "intake_closed: the store's file system is nearly full; every new instance is "
                "answered with 0xA700 until there is room",
                free_mib=free.free_bytes >> 20,
                min_free_mib=self._min_free_bytes >> 20,
                resume_free_mib=self._resume_free_bytes >> 20,
                free_files=free.free_files,
            )
        if no_files:
            msg = (
                f"the store's file system has room for only {free.free_files} more files; "
                "free some inodes"
            )
            raise OutOfResources(msg)
        if not mark_bytes:
            msg = "the store's file system is full; free some space"
            raise OutOfResources(msg)
        msg = (
            f"the store has {free.free_bytes >> 20} MiB free, of which "
            f"{mark_bytes >> 20} MiB are held back (store.min-free-bytes, "
            "store.resume-free-bytes); free some space"
        )
        raise OutOfResources(msg)


def free_of(folder: Path) -> Free:
    """What the file system of `folder` has left for somebody who is not root.

    Raises:
        OSError: it can't be asked.
    """
    disk = os.statvfs(folder)
    return Free(disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else None)
