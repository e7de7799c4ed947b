"""Which repositories this runtime serves."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.recipe import Recipe
from ensemble_builder.version import BUILDER_VERSION, compatible


def test_the_builder_s_version_is_the_distribution_s(repository_root: Path) -> None:
    """Two places name the version; they agree."""
    project = tomllib.loads((repository_root / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == BUILDER_VERSION


@pytest.mark.parametrize(
    ("built_with", "running", "expected"),
    [
        ("0.1.0", "0.1.9", True),
        ("0.1.0", "0.2.0", False),
        ("1.2.0", "1.9.3", True),
        ("1.2.0", "2.0.0", False),
    ],
)
def test_an_era_is_the_first_number_that_counts(
    built_with: str, running: str, expected: bool
) -> None:
    """Before 1.0 the second number decides, after it the first."""
    assert compatible(built_with, running) is expected


def test_a_repository_of_another_era_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """The message says to build again."""
    (tmp_path / "recipe.json").write_text('{"builder_version": "9.0.0"}', encoding="utf-8")
    with pytest.raises(BundleError, match=r"built by tritome 9\.0\.0 .*tritome build"):
        Recipe.load(tmp_path)
