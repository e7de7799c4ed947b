"""What objects are made from: decoders, and an arena for their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    """Two decoders for all tests of a module."""
    with DecoderPool(2) as pool:
        yield pool


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    """An arena beside the test's files."""
    folder = tmp_path / "shm"
    folder.mkdir()
    with Arena(64 << 20, folder) as arena:
        yield arena
