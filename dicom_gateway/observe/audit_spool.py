"""The audit trail on the disk: append-only files, synced, rotated, bounded.

In: messages. Out: the same messages in order, for whoever ships them. A message is on the disk
when `append` returns; a power cut takes none. Several processes of one gateway may append: each
message is one line, written under a lock. Survives a crash: everything; half a line at the end
of a file, which only a power cut can leave, is skipped.

The folder is bounded: past the limit the oldest file goes, and if its messages had not been
shipped, that is counted and said in the trail itself.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dicom_gateway.errors import ConfigurationError, Retryable


class SpoolUnwritable(Retryable):
    """The disk doesn't take an audit message."""

    code = "audit_unwritable"


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """How far the trail has been shipped: file number, and bytes of that file."""

    number: int = 0
    offset: int = 0


class AuditSpool:
    """The files of one trail.

    Args:
        folder: Made with mode 0700 where it isn't there.
        file_bytes: A new file begins at about this size.
        limit_bytes: Of all files.

    Raises:
        ConfigurationError: the folder can't be used.
    """

    def __init__(self, folder: Path, *, file_bytes: int, limit_bytes: int) -> None:
        self._folder = folder
        self._file_bytes = min(file_bytes, max(limit_bytes // 4, 1))
        self._limit_bytes = limit_bytes
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            msg = f"the audit trail can't be kept in {folder} ({error.strerror})"
            raise ConfigurationError(msg) from error

    def append(self, message: bytes) -> int:
        """Makes one message durable.

        Returns:
            How many messages that had not been shipped had to go for it; usually 0.

        Raises:
            SpoolUnwritable: the disk doesn't take it.
        """
        assert b"\n" not in message
        try:
            with self._locked():
                return self._append(message + b"\n")
        except OSError as error:
            msg = f"the audit trail in {self._folder} can't be written ({error.strerror})"
            raise SpoolUnwritable(msg) from error

    def unshipped(self, after: Mark, limit: int = 100) -> list[tuple[Mark, bytes]]:
        """The next messages after a mark, each with the mark behind it."""
        found: list[tuple[Mark, bytes]] = []
        for number, path in self._files():
            if number < after.number:
                continue
            offset = after.offset if number == after.number else 0
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    for line in file:
                        if not line.endswith(b"\n"):
                            break  # being written
                        offset += len(line)
                        if line.startswith(b"<"):
                            found.append((Mark(number, offset), line[:-1]))
                        if len(found) >= limit:
                            return found
            except FileNotFoundError:
                continue  # it had to go just now
        return found

    def shipped(self) -> Mark:
        """How far the trail has been shipped."""
        try:
            said = json.loads((self._folder / "shipped").read_text(encoding="ascii"))
            return Mark(int(said["file"]), int(said["offset"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Mark()  # from the beginning: twice is better than never

    def mark_shipped(self, mark: Mark) -> None:
        """Everything up to here has been shipped; survives a crash."""
        path = self._folder / "shipped"
        beside = path.with_name("shipped.part")
        with _private(beside, os.O_TRUNC) as file:
            os.write(file, json.dumps({"file": mark.number, "offset": mark.offset}).encode())
            os.fsync(file)
        beside.replace(path)

    def _append(self, line: bytes) -> int:
        files = self._files()
        number, size_bytes = (files[-1][0], files[-1][1].stat().st_size) if files else (0, 0)
        is_new = not files or size_bytes + len(line) > self._file_bytes
        if is_new:
            number, size_bytes = number + 1, 0
        path = self._folder / f"audit-{number:08d}.xmll"
        with _private(path, os.O_APPEND) as file:
            if size_bytes and os.pread(file, 1, size_bytes - 1) != b"\n":
                # A power cut had left half a line, of a message that nobody was promised.
                size_bytes = path.read_bytes().rfind(b"\n") + 1
                os.ftruncate(file, size_bytes)
            written = os.write(file, line)
            if written != len(line):
                os.ftruncate(file, size_bytes)
                raise OSError(28, "no space left on device")
            os.fsync(file)
        if not is_new:
            return 0
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return self._make_room()

    def _make_room(self) -> int:
        """Removes the oldest files past the limit; gives how many messages were lost by that."""
        files = self._files()
        sizes = [path.stat().st_size for _, path in files]
        mark = self.shipped()
        lost = 0
        # Room for the file that has just begun, too.
        while len(files) > 1 and sum(sizes) + self._file_bytes > self._limit_bytes:
            number, path = files.pop(0)
            sizes.pop(0)
            if number >= mark.number:
                with path.open("rb") as file:
                    file.seek(mark.offset if number == mark.number else 0)
                    lost += sum(line.startswith(b"<") for line in file)
            path.unlink()
        return lost

    def _files(self) -> list[tuple[int, Path]]:
        found = []
        for path in self._folder.glob("audit-*.xmll"):
            number = path.stem.removeprefix("audit-")
            if number.isdigit():
                found.append((int(number), path))
        return sorted(found)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with _private(self._folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextmanager
def _private(path: Path, flags: int = 0) -> Iterator[int]:
    """A file that only the gateway can read, open for reading and writing."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    try:
        yield file
    finally:
        os.close(file)
