"""Attempts at one object don't meet in one file."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest

from dicom_gateway.encode.keeping import keep
from dicom_gateway.errors import Retryable
from dicom_gateway.store.files import unfinished


def test_two_attempts_in_one_process_write_files_of_their_own(tmp_path: Path) -> None:
    """A worker that lost its lease may still be writing; the next start finds what it left."""
    path = tmp_path / "results" / "1.2.3.dcm"
    found: list[Path] = []

    def first(file: BinaryIO) -> None:
        file.write(b"first")
        keep(path, lambda file: _then(file, second), lambda _: None)
        file.write(b" attempt")

    def _then(file: BinaryIO, write: bytes) -> None:
        found.extend(unfinished(tmp_path))
        file.write(write)

    second = b"second attempt"
    keep(path, first, found.append)
    assert len(set(found)) == 2
    assert path.read_bytes() == b"first attempt"
    assert unfinished(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_tried_again(tmp_path: Path) -> None:
    """As where the disk is full: the job waits for room, it doesn't fail."""
    (tmp_path / "results").touch()

    with pytest.raises(Retryable, match="the result can't be written"):
        keep(tmp_path / "results" / "1.2.3.dcm", lambda _: None, lambda _: None)
