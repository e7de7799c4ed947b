"""What the tests of the whole road share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.demo.phantom_study import PhantomStudy, write_phantom_study
from tests.support.peers import Orthanc, Storescp, orthanc, storescp


@pytest.fixture(scope="session")
def chest_study(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudy:
    """A whole phantom chest on a coarse grid: quick to send, lungs all the same."""
    folder = tmp_path_factory.mktemp("chest")
    return write_phantom_study(
        folder, seed=31, shape_kji=(40, 160, 160), spacing_mm=(8.0, 2.4, 2.4)
    )


@pytest.fixture
def receiving_pacs(tmp_path: Path) -> Iterator[Storescp]:
    """Dcmtk's storescp, keeping every reception."""
    with storescp(tmp_path / "received", "PACS") as peer:
        yield peer


@pytest.fixture(scope="session")
def orthanc_pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A real Orthanc."""
    with orthanc(tmp_path_factory.mktemp("orthanc")) as peer:
        yield peer
