"""Where engines for this machine alone are kept."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ensemble_builder.runtime.networks import engine_cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("TRITOME_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_engine_is_kept_whole_and_found_again(folder):
    """In a folder that nobody else may enter; nothing half-written stays."""
    assert engine_cache.cached("abc") is None
    engine_cache.keep("abc", b"engine")
    assert engine_cache.cached("abc") == b"engine"
    assert [one.name for one in folder.iterdir()] == ["abc.engine"]
    assert folder.stat().st_mode & 0o077 == 0


def test_the_digest_tells_everything_apart_that_an_engine_is_made_from():
    """Network, version, GPU, window and batch; equal parts give an equal name."""
    made = ("10.16", "H200", (9, 0), (1, 1, 96, 96, 96), 4)
    name = engine_cache.digest(b"network", *made)
    assert name == engine_cache.digest(b"network", *made)
    others = {engine_cache.digest(b"network", *made[:n], "x", *made[n + 1 :]) for n in range(5)}
    assert len({name, engine_cache.digest(b"another", *made), *others}) == 7


def test_a_folder_that_others_may_write_to_is_not_used(folder, caplog):
    """An engine is code."""
    folder.mkdir()
    folder.chmod(0o777)
    engine_cache.keep("abc", b"engine")
    assert list(folder.iterdir()) == []
    assert engine_cache.cached("abc") is None
    assert "others may write to the cache folder" in caplog.text


def test_without_a_folder_engines_are_built_anew(tmp_path, monkeypatch, caplog):
    """And the log says why."""
    caplog.set_level(logging.WARNING)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TRITOME_CACHE", str(tmp_path / "file" / "cache"))
    engine_cache.keep("abc", b"engine")
    assert engine_cache.cached("abc") is None
    assert "engines are built anew at each load, there is no cache folder" in caplog.text
