"""What every test may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ensemble_builder.server import TritonServer

_REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The folder of the checkout."""
    return _REPOSITORY_ROOT


@pytest.fixture(scope="session")
def triton_server(
    repository_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """One real tritonserver with the checked-in model repository, shared by all tests.

    A test that kills or changes its server starts one of its own.
    """
    from ensemble_builder.server import TritonServer  # noqa: PLC0415 - pulls in torch's world

    log = tmp_path_factory.mktemp("triton") / "triton.log"
    with TritonServer(repository_root / "model_repository", log=log) as server:
        yield server
