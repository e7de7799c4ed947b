"""Keep, step 2: bytes onto the disk, so that they are still there after a power cut.

In: bytes and a place inside the store. Out: nothing but the promise that the file has that
content for good. Survives a crash: every file whose `write` has returned; what a crash left
half-written is called `*.part` and is removed by the next start.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

from dicom_gateway.errors import ConfigurationError, OutOfResources

INCOMING = "incoming"

UNFINISHED_IN = (INCOMING, "results", "contracts")
"""Folders of the store in which a killed process leaves `*.part` files."""


class DurableFolder:
    """Writes files that appear whole or not at all.

    Args:
        folder: Made if it isn't there.
        min_free_bytes: What a write must leave free on the file system.

    Raises:
        ConfigurationError: the folder can't be made.
    """

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        self.folder = folder.resolve()
        self._min_free_bytes = min_free_bytes
        # Folders whose own entry this process has synced; one look-up for each file
        # instead of one sync.
        self._durable: set[Path] = set()
        self._lock = threading.Lock()
        try:
            new = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            for place in reversed(new):
                _sync_folder(place.parent)
            self._make_durable(self.folder / INCOMING)
        except OSError as error:
            msg = f"store.folder: {self.folder} can't be made or read ({error.strerror})"
            raise ConfigurationError(msg) from error

    def clean(self) -> int:
        """Removes what earlier processes left half-written; call it before receiving."""
        leftovers = [
            leftover for name in UNFINISHED_IN for leftover in (self.folder / name).glob("*.part")
        ]
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return len(leftovers)

    def write(self, relative: Path, pieces: Sequence[bytes]) -> None:
        """Writes the pieces one after the other; returns when they are durable.

        A file that is already there with the same length is left as it is: names are
        digests of content. Order: file synced, renamed, folder synced.

        Raises:
            OutOfResources: the disk is full, past its watermark or not writable. Nothing
                partial is left.
        """
        target = self.folder / relative
        size_bytes = sum(len(piece) for piece in pieces)
        try:
            if not _has_size(target, size_bytes):
                self._require_space(size_bytes)
                self._make_durable(target.parent)
                self._write_beside_and_rename(target, pieces)
            else:
                self._make_durable(target.parent)
            # Also for a file that was there: the one who renamed it may not have come
            # as far as this line.
            _sync_folder(target.parent)
        except OSError as error:
            msg = f"the store can't be written ({error.strerror or type(error).__name__})"
            raise OutOfResources(msg) from error

    def _require_space(self, size_bytes: int) -> None:
        disk = os.statvfs(self.folder)
        free_bytes = disk.f_bavail * disk.f_frsize
        if free_bytes - size_bytes < self._min_free_bytes:
            msg = (
                f"the store has {free_bytes >> 20} MiB free, of which "
                f"{self._min_free_bytes >> 20} MiB are held back (store.min-free-bytes); "
                "free some space"
            )
            raise OutOfResources(msg)

    def _write_beside_and_rename(self, target: Path, pieces: Sequence[bytes]) -> None:
        beside = self.folder / INCOMING / f"{uuid.uuid4().hex}.part"
        try:
            # 0600: the file holds a patient.
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                for piece in pieces:
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[os.write(fd, rest) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            beside.rename(target)
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def _make_durable(self, folder: Path) -> None:
        """Makes a folder below ours, its entry in its parent synced, so for each parent."""
        if folder == self.folder or folder in self._durable:
            return
        self._make_durable(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(folder.parent)
        with self._lock:
            self._durable.add(folder)


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
