"""Files that appear whole or not at all, and who may take one back."""

from __future__ import annotations

import mmap
from pathlib import Path

from dicom_gateway.store.files import DurableFolder

PLACE = Path("instances", "ab", "abc.dcm")


def test_a_file_that_nobody_counts_on_can_be_taken_back(tmp_path: Path) -> None:
    """Its maker removes it, and nothing of it is left."""
    folder = DurableFolder(tmp_path, 0)
    made = folder.write(PLACE, (b"content",))

    assert folder.take_back(PLACE, made)
    assert not (tmp_path / PLACE).exists()


def test_a_file_that_somebody_has_found_stays(tmp_path: Path) -> None:
    """Whoever has reused it since may have been acknowledged with it."""
    folder = DurableFolder(tmp_path, 0)
    made = folder.write(PLACE, (b"content",))
    with folder.reusing(PLACE) as there:
        assert there

    assert not folder.take_back(PLACE, made)
    assert (tmp_path / PLACE).read_bytes() == b"content"


def test_a_file_that_somebody_has_written_again_stays(tmp_path: Path) -> None:
    """It is theirs by now."""
    folder = DurableFolder(tmp_path, 0)
    made = folder.write(PLACE, (b"content",))
    folder.write(PLACE, (b"content",))

    assert not folder.take_back(PLACE, made)
    assert (tmp_path / PLACE).exists()


def test_there_is_nothing_to_reuse_where_nothing_is(tmp_path: Path) -> None:
    """Neither without the file nor without its folder."""
    folder = DurableFolder(tmp_path, 0)
    with folder.reusing(PLACE) as there:
        assert not there


def test_what_is_mapped_into_memory_is_written_and_can_be_closed(tmp_path: Path) -> None:
    """A large object is a mapped file; no view of it is held after the write."""
    source = tmp_path / "source"
    source.write_bytes(b"x" * 100_000)
    folder = DurableFolder(tmp_path / "store", 0)
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        folder.write(PLACE, (b"head", mapped))

    assert (tmp_path / "store" / PLACE).read_bytes() == b"head" + b"x" * 100_000
