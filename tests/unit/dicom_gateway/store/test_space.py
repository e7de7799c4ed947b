"""The watermark: closed below one mark, open again above another."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing

from dicom_gateway.errors import OutOfResources
from dicom_gateway.store import space
from dicom_gateway.store.space import Free, Watermark, free_of

MIB = 1 << 20


class Disk:
    """A file system whose size a test says, and that counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free_mib: int) -> None:
        self.free_mib = free_mib
        self.free_files: int | None = 1_000_000
        self.looks = 0
        monkeypatch.setattr(space, "free_of", self._ask)

    def _ask(self, _folder: Path) -> Free:
        self.looks += 1
        return Free(self.free_mib * MIB, self.free_files)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """1000 MiB free."""
    return Disk(monkeypatch, 1000)


def is_open(mark: Watermark, size_bytes: int = MIB) -> bool:
    """Whether an object of a MiB is taken."""
    try:
        mark.require(size_bytes)
    except OutOfResources:
        return False
    return True


def test_a_closed_door_opens_at_the_second_mark_only(disk: Disk, tmp_path: Path) -> None:
    """Between the marks it stays what it was, and each change is one line of the log."""
    mark = Watermark(tmp_path, 100 * MIB, 200 * MIB)
    with structlog.testing.capture_logs() as logs:
        was_open = []
        for disk.free_mib in (1000, 150, 99, 150, 199, 300, 150):
            mark._looked_at_s = float("-inf")  # half a second later
            was_open.append(is_open(mark))

    assert was_open == [True, True, False, False, False, True, True]
    assert [log["event"].partition(":")[0] for log in logs] == [
        "intake_closed",
        "intake_open_again",
    ]


def test_the_second_mark_lies_a_tenth_above_where_it_is_not_given(
    disk: Disk, tmp_path: Path
) -> None:
    """A disk at its limit is not opened and closed with every object."""
    mark = Watermark(tmp_path, 100 * MIB)
    disk.free_mib = 100
    assert not is_open(mark)
    disk.free_mib = 105
    assert not is_open(mark)
    disk.free_mib = 112
    assert is_open(mark)


def test_one_object_too_large_does_not_close_the_door(disk: Disk, tmp_path: Path) -> None:
    """Smaller ones still fit into a disk with room."""
    mark = Watermark(tmp_path, 100 * MIB)
    assert not is_open(mark, 950 * MIB)
    assert not mark.is_closed
    assert is_open(mark)


def test_a_roomy_disk_is_not_asked_for_every_object(disk: Disk, tmp_path: Path) -> None:
    """Near the mark it is, and what was taken in between is counted."""
    mark = Watermark(tmp_path, 100 * MIB)
    for _ in range(500):
        assert is_open(mark, 1)
    assert disk.looks < 20
    before = disk.looks
    for _ in range(840):
        is_open(mark)
    assert disk.looks > before


def test_a_file_system_without_inodes_is_full(disk: Disk, tmp_path: Path) -> None:
    """Its bytes don't help; one that doesn't count files is never full of them."""
    mark = Watermark(tmp_path, 0)
    disk.free_files = 3
    with pytest.raises(OutOfResources, match="inodes"):
        mark.require(1)
    disk.free_files = None
    assert is_open(mark)


def test_a_real_file_system_tells_what_it_has(tmp_path: Path) -> None:
    """In bytes, for somebody who isn't root."""
    assert free_of(tmp_path).free_bytes > 0
