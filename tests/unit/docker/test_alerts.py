"""The alert rules, and what the manual says of the metrics: they name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_gateway.config_web import WebSettings
from tests.support.metrics import every_name

_NAME = re.compile(r"\b(?:tritome|process|python)_[a-z_]+")
_DURATION = re.compile(r"\d+[smhd]")


@pytest.fixture(scope="module")
def rules(repository_root: Path) -> list[dict[str, Any]]:
    """Of docker/alerts.yml."""
    text = (repository_root / "docker" / "alerts.yml").read_text(encoding="utf-8")
    (group,) = yaml.safe_load(text)["groups"]
    return list(group["rules"])


def _section(repository_root: Path) -> str:
    text = (repository_root / "docs" / "operation.md").read_text(encoding="utf-8")
    return text.partition("## Metrics")[2].partition("\n## ")[0]


def test_every_rule_names_metrics_that_there_are_and_says_what_to_do(
    rules: list[dict[str, Any]],
) -> None:
    """A rule on a metric that nobody gives never fires, and nobody would notice."""
    known = every_name()
    for rule in rules:
        named = _NAME.findall(rule["expr"])
        assert named, rule["alert"]
        assert set(named) <= known, rule["alert"]
        assert _DURATION.fullmatch(rule.get("for", "1m"))
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}


def test_the_manual_has_every_alert_and_every_metric_of_ours(
    rules: list[dict[str, Any]], repository_root: Path
) -> None:
    """And none that there isn't."""
    section = _section(repository_root)
    assert re.findall(r"`(Tritome[A-Za-z]+)`", section) == [rule["alert"] for rule in rules]
    suffixes = ("_bucket", "_count", "_sum")
    ours = {
        name for name in every_name() if name.startswith("tritome_") and not name.endswith(suffixes)
    }
    assert set(re.findall(r"`(tritome_[a-z_]+)`", section)) == ours


def test_the_settings_of_the_manual_are_taken(repository_root: Path) -> None:
    """Its YAML is YAML, and the caller in it one that the gateway knows."""
    ours, theirs = re.findall(r"```yaml\n(.*?)```", _section(repository_root), re.DOTALL)
    web = WebSettings.model_validate(yaml.safe_load(ours)["web"])
    assert web.callers[0].rights == ("metrics",)
    (scrape,) = yaml.safe_load(theirs)["scrape_configs"]
    assert scrape["authorization"]["credentials_file"] == str(web.callers[0].token_file)
