"""`tritome store` on a real store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from pydicom import Dataset
from typer.testing import CliRunner

from clients.cli import app
from dicom_gateway.database import open_database, series, transaction
from dicom_gateway.store import InstanceStore
from dicom_gateway.store.lock import alone_on
from tests.support.dicom import CANARY, a_ct_series, an_arrival


@dataclass
class AStore:
    """A gateway's settings and what it has kept, with nobody running it."""

    config: Path
    folder: Path

    @property
    def index(self) -> Path:
        """The SQLite file."""
        return self.folder / "index.sqlite"

    @contextmanager
    def engine(self) -> Iterator[sa.Engine]:
        """The index, opened."""
        engine = open_database(f"sqlite:///{self.index}")
        try:
            yield engine
        finally:
            engine.dispose()

    def keep(self, *frames: Dataset) -> None:
        """Keeps them."""
        with self.engine() as engine:
            store = InstanceStore(self.folder, engine, 0)
            for ds in frames:
                store.keep(an_arrival(ds))

    def files(self) -> list[Path]:
        """All kept files."""
        return sorted(self.folder.rglob("*.dcm"))

    def set(self, **store: Any) -> None:
        """Changes the section `store` of the settings."""
        settings = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        settings["store"] |= store
        self.config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def tritome(self, *arguments: str) -> tuple[int, str]:
        """Exit code and what a person reads."""
        runner = CliRunner(env={"COLUMNS": "200"})
        result = runner.invoke(app, ["store", *arguments, "--config", str(self.config)])
        said = result.output
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            said += str(result.exception)
        return result.exit_code, " ".join(said.split())


@pytest.fixture
def store(tmp_path: Path) -> AStore:
    """With settings that only name the folder."""
    config = tmp_path / "gateway.yaml"
    titles = [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}]
    settings = {
        "dicom": {"scp": {"ae-titles": titles, "reject-unknown-sources": False}},
        "store": {"folder": "data"},
    }
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return AStore(config, tmp_path / "data")


def test_a_sound_store_is_said_to_be_sound(store: AStore) -> None:
    """Exit code 0, with the numbers."""
    store.keep(*a_ct_series(3))

    code, said = store.tritome("check")

    assert code == 0
    assert "3 instances in the index" in said
    assert "They agree." in said


def test_a_damaged_file_is_named_with_what_to_do(store: AStore) -> None:
    """Exit code 1; rebuild sets it apart; sending again mends it."""
    frames = a_ct_series(2)
    store.keep(*frames)
    victim = store.files()[0]
    victim.write_bytes(victim.read_bytes()[:-2])

    code, said = store.tritome("check")
    assert code == 1
    assert victim.name in said.replace(" ", "")
    assert "tritome store rebuild" in said

    code, said = store.tritome("rebuild")
    assert code == 0
    assert "its bytes have changed" in said
    store.keep(*frames)
    assert store.tritome("check")[0] == 0


def test_a_lost_index_is_made_again(store: AStore) -> None:
    """The message of `check` leads there."""
    store.keep(*a_ct_series(3))
    for path in store.folder.glob("index.sqlite*"):
        path.unlink()

    code, said = store.tritome("check")
    assert (code, "tritome store rebuild" in said) == (1, True)
    code, said = store.tritome("rebuild")
    assert code == 0
    assert "3 were new to it. 1 series will be judged" in said
    assert store.tritome("check")[0] == 0


def test_a_damaged_index_is_kept_beside_the_new_one(store: AStore) -> None:
    """Nothing is thrown away that somebody may want to look into."""
    store.keep(*a_ct_series(3))
    for path in store.folder.glob("index.sqlite-*"):
        path.unlink()
    store.index.write_bytes(b"this is no database" * 400)

    code, said = store.tritome("rebuild")

    assert code == 0
    assert "3 were new to it" in said
    (aside,) = store.folder.glob("index.sqlite.damaged-*")
    assert aside.read_bytes().startswith(b"this is no database")
    assert store.tritome("check")[0] == 0


def test_the_index_is_not_mended_under_a_running_gateway(store: AStore) -> None:
    """It says what to do first."""
    store.keep(*a_ct_series(1))
    with alone_on(store.folder):
        code, said = store.tritome("rebuild")

    assert code == 1
    assert "a gateway runs on" in said
    assert "stop it first" in said


def test_conflicts_are_listed_without_a_patient(store: AStore) -> None:
    """Both files, who sent the one that isn't used, and what to do."""
    (ds,) = a_ct_series(1)
    store.keep(ds)
    assert "No two objects" in store.tritome("conflicts")[1]
    ds.PatientName = f"{CANARY}^OTHER"
    store.keep(ds)

    code, said = store.tritome("conflicts")

    assert code == 0
    assert f"{ds.SOPInstanceUID} of series {ds.SeriesInstanceUID}" in said
    assert "SENDER -> LUNG" in said
    assert "send the right one again" in said
    assert CANARY not in said


def test_without_a_policy_nothing_is_purged(store: AStore) -> None:
    """It says which setting to write."""
    store.keep(*a_ct_series(1))

    code, said = store.tritome("purge")

    assert code == 1
    assert "delivered-after-days" in said


def test_a_dry_run_says_what_would_go_and_removes_nothing(store: AStore) -> None:
    """Then the same for real."""
    store.keep(*a_ct_series(2))
    with store.engine() as engine, transaction(engine) as connection:
        connection.execute(
            series.update().values(
                state="ignored", last_arrival_at_s=series.c.last_arrival_at_s - 3 * 86400
            )
        )
    store.set(retention={"ignored-after-days": 2})

    code, said = store.tritome("purge", "--dry-run")
    assert code == 0
    assert "ignored" in said
    assert "Nothing was removed" in said
    assert len(store.files()) == 2

    code, said = store.tritome("purge")
    assert code == 0
    assert "Removed 2 instances and 0 results" in said
    assert store.files() == []
    assert store.tritome("purge")[1] == "Nothing is due."


def test_a_store_that_never_was_is_named(store: AStore) -> None:
    """No empty one is made by looking at it."""
    code, said = store.tritome("check")

    assert code == 1
    assert "there is no store yet" in said
    assert not store.folder.exists()
