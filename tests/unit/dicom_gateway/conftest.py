"""An index of each kind, empty for each test of jobs and deliver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from dicom_gateway.jobs import JobQueue
from tests.support.databases import a_postgresql, an_empty_index


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """One private PostgreSQL for these tests."""
    with a_postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """An empty index, once of each kind."""
    url = f"sqlite:///{tmp_path}/index.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    with an_empty_index(url) as opened:
        yield opened


@pytest.fixture
def queue(engine: sa.Engine, tmp_path: Path) -> JobQueue:
    """A queue on it."""
    return JobQueue(engine, tmp_path)
