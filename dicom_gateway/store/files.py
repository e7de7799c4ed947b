"""Keep, step 2: bytes onto the disk, so that they are still there after a power cut.

In: bytes and a place inside the store. Out: nothing but the promise that the file has that
content for good. Survives a crash: every file whose `write` has returned; what a crash left
half-written is called `*.part` and is removed by the next start.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from dicom_gateway.errors import ConfigurationError, OutOfResources
from dicom_gateway.store.space import Watermark

INCOMING = "incoming"

UNFINISHED_IN = (INCOMING, "results", "contracts")
"""Folders of the store in which a killed process leaves `*.part` files."""

Buffer: TypeAlias = bytes | bytearray | mmap.mmap

_CHUNK_BYTES = 8 << 20


class DurableFolder:
    """Writes files that appear whole or not at all.

    Args:
        folder: Made if it isn't there.
        min_free_bytes: What a write must leave free on the file system.
        resume_free_bytes: Once it didn't, so much must be free before one is taken again.

    Raises:
        ConfigurationError: the folder can't be made.
    """

    def __init__(
        self, folder: Path, min_free_bytes: int, resume_free_bytes: int | None = None
    ) -> None:
        self.folder = folder.resolve()
        self._watermark = Watermark(self.folder, min_free_bytes, resume_free_bytes)
        # Folders whose own entry this process has synced; one look-up for each file
        # instead of one sync.
        self._durable: set[Path] = set()
        self._lock = threading.Lock()
        try:
            new = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            for place in reversed(new):
                sync_folder(place.parent)
            self._make_durable(self.folder / INCOMING)
        except OSError as error:
            msg = f"store.folder: {self.folder} can't be made or read ({error.strerror})"
            raise ConfigurationError(msg) from error

    def clean(self) -> int:
        """Removes what earlier processes left half-written; call it before receiving."""
        leftovers = unfinished(self.folder)
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return len(leftovers)

    def write(
        self, relative: Path, pieces: Sequence[Buffer], *, reserved: bool = False
    ) -> os.stat_result:
        """Writes the pieces one after the other; returns when they are durable.

        What is there under that name is replaced at once and as a whole. Order: file
        synced, renamed, folder synced.

        Args:
            relative: Inside the folder.
            pieces: The content.
            reserved: May use what the watermark holds back: a few bytes about what is
                there already.

        Returns:
            The file as it was when it was made; for `take_back`.

        Raises:
            OutOfResources: the disk is full, past its watermark or not writable. Nothing
                partial is left.
        """
        target = self.folder / relative
        with full_disk_refused():
            if not reserved:
                self._watermark.require(sum(len(piece) for piece in pieces))
            self._make_durable(target.parent)
            made = self._write_beside_and_rename(target, pieces)
            sync_folder(target.parent)
        return made

    def sync(self, relative: Path) -> None:
        """Makes an existing file's name durable: who renamed it may have died before that.

        Raises:
            OutOfResources: the disk doesn't take it.
        """
        with full_disk_refused():
            self._make_durable((self.folder / relative).parent)
            sync_folder((self.folder / relative).parent)

    def take_back(self, relative: Path, made: os.stat_result) -> bool:
        """Removes a file that this process has just made and that got no row in the index.

        Somebody else may count on it meanwhile: whoever finds a file and wants to use it
        holds it by `reusing`, which changes its time.

        Args:
            relative: Inside the folder.
            made: The file as it was when it was made.

        Returns:
            False where it stays: it is somebody else's by now, or can't be locked.
        """
        target = self.folder / relative
        try:
            with _locked(target.parent, fcntl.LOCK_EX):
                found = target.stat()
                if (found.st_ino, found.st_mtime_ns) != (made.st_ino, made.st_mtime_ns):
                    return False
                target.unlink()
        except OSError:
            return False  # a file without a row does no harm
        return True

    @contextmanager
    def reusing(self, relative: Path) -> Iterator[bool]:
        """While it lasts, no other process takes this file back; False where there is none."""
        target = self.folder / relative
        if not target.exists():  # nearly always, and cheaper than a lock
            yield False
            return
        with ExitStack() as held:
            # Where it can't be locked, nobody can take it back either.
            with suppress(OSError):
                held.enter_context(_locked(target.parent, fcntl.LOCK_SH))
            try:
                os.utime(target)
            except OSError:
                yield False
            else:
                yield True

    def _write_beside_and_rename(self, target: Path, pieces: Sequence[Buffer]) -> os.stat_result:
        beside = self.folder / INCOMING / f"{uuid.uuid4().hex}.part"
        try:
            # 0600: the file holds a patient.
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                for piece in pieces:
                    # Each view is let go: a mapped file can't be closed under one.
                    with memoryview(piece) as whole:
                        written = 0
                        while written < len(whole):
                            with whole[written : written + _CHUNK_BYTES] as rest:
                                written += os.write(fd, rest)
                            _let_go(piece)
                os.fsync(fd)
                made = os.fstat(fd)
            finally:
                os.close(fd)
            beside.rename(target)
        except OSError:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        return made

    def _make_durable(self, folder: Path) -> None:
        """Makes a folder below ours, its entry in its parent synced, so for each parent."""
        if folder == self.folder or folder in self._durable:
            return
        self._make_durable(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)
        with self._lock:
            self._durable.add(folder)


def unfinished(folder: Path) -> list[Path]:
    """What killed processes left half-written in a store."""
    return [leftover for name in UNFINISHED_IN for leftover in (folder / name).glob("*.part")]


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable.

    Raises:
        OSError: the disk doesn't take it.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def full_disk_refused() -> Iterator[None]:
    """Maps what the file system says to the error tree."""
    try:
        yield
    except OSError as error:
        msg = f"the store can't be written ({error.strerror or type(error).__name__})"
        raise OutOfResources(msg) from error


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Holds a folder against other threads and processes; freed by the kernel at a crash.

    Raises:
        OSError: it can't be locked (not every network file system can).
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        try:
            yield
        finally:
            # Not left to the close: a child forked meanwhile would go on holding it.
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def digest_of(content: Buffer) -> str:
    """SHA-256 in hexadecimal; of a mapped file never more than a piece is in memory."""
    digest = hashlib.sha256()
    with memoryview(content) as whole:
        for start in range(0, len(whole), _CHUNK_BYTES):
            with whole[start : start + _CHUNK_BYTES] as chunk:
                digest.update(chunk)
            _let_go(content)
    return digest.hexdigest()


def _let_go(piece: Buffer) -> None:
    """What was read of a mapped file needn't stay: it would count as this process's memory."""
    if isinstance(piece, mmap.mmap):
        piece.madvise(mmap.MADV_DONTNEED)
