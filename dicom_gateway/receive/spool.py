"""Receive, one part of a multipart body while it comes: in memory, a long one on the disk.

In: its bytes, piece by piece: a PS3.10 file. Out: what its file meta information says, and its
data set. Nothing survives a crash: the files have no name, so the system removes them.
"""

from __future__ import annotations

import mmap
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from dicom_gateway.errors import NotADataSet, OutOfResources, Refused
from dicom_gateway.receive.part10 import FileMeta, read_file_meta


class PartSpool:
    """One part.

    Args:
        folder: The store's folder for what is half there.
        memory_bytes: So much of it stays in memory.
        limit_bytes: Once it is longer it is dropped while it comes.

    Attributes:
        meta: What it is, once enough of it has come.
        refusal: Why it can't be taken; `encoded_dataset` raises it.
    """

    def __init__(self, folder: Path, memory_bytes: int, limit_bytes: int) -> None:
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._limit_bytes = limit_bytes
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None
        self._size_bytes = 0
        self.meta: FileMeta | None = None
        self.refusal: Refused | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Takes the next bytes; what goes wrong is raised by `encoded_dataset`."""
        self._size_bytes += len(data)
        if self.refusal is not None:
            return
        if self._size_bytes > self._limit_bytes:
            msg = f"it is larger than {self._limit_bytes} bytes"
            self._refuse(OutOfResources(msg, code="too_large"))
            return
        if self._file is None:
            self._memory += data
            self._read_meta(is_all=False)
        try:
            if self._file is not None:
                self._file.write(data)
            elif self.meta is not None and len(self._memory) > self._memory_bytes:
                # Only the data set: a mapping can't begin in the middle of a page.
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
                self._file.write(memoryview(self._memory)[self.meta.size_bytes :])
                self._memory = bytearray()
        except OSError as error:
            msg = f"the store can't be written ({error.strerror})"
            self._refuse(OutOfResources(msg))

    def encoded_dataset(self) -> bytes | mmap.mmap:
        """The data set, without preamble and file meta information; gone after `close`.

        Raises:
            Refused: it can't be taken.
        """
        if self.refusal is None and self.meta is None:
            self._read_meta(is_all=True)
        if self.refusal is not None:
            raise self.refusal
        assert self.meta is not None
        if self._file is None:
            return bytes(self._memory[self.meta.size_bytes :])
        try:
            self._file.flush()
            if not self._file.tell():
                return b""
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            msg = f"the store can't be written ({error.strerror})"
            raise OutOfResources(msg) from error
        return self._map

    def close(self) -> None:
        """Lets go of memory and disk."""
        self._memory = bytearray()
        if self._map is not None:
            with suppress(BufferError):
                self._map.close()
            self._map = None
        if self._file is not None:
            # What the disk didn't take is written once more, and fails once more.
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _read_meta(self, *, is_all: bool) -> None:
        if self.meta is not None:
            return
        try:
            self.meta = read_file_meta(self._memory, is_all=is_all)
        except NotADataSet as refusal:
            self._refuse(refusal)

    def _refuse(self, refusal: Refused) -> None:
        self.refusal = refusal
        self.close()
