"""The table that comes out of a bench."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from perf.measure import Measurement
from perf.report import Report

_REPORT = Report(
    {"volume": "4 x 4 x 4"},
    (
        Measurement("lung_ct", 3, 1.0, 1.5, 2.0, moved_bytes=3_000_000),
        Measurement("study sent", 1, 0.25, 0.25, 0.25),
        Measurement("health", 1, 0.0021, 0.00312, 0.012),
    ),
)


def test_the_table_has_one_row_for_each_measurement() -> None:
    """Median, spread and bytes stand in the row of what was measured."""
    rows = _REPORT.markdown().splitlines()[2:5]
    assert rows == [
        "| lung_ct | 3 | 1,500 | 1,000 | 2,000 | 3.0 |",
        "| study sent | 1 | 250 | 250 | 250 |  |",
        "| health | 1 | 3.12 | 2.10 | 12 |  |",
    ]


def test_the_setting_stands_below_the_table() -> None:
    """Nobody reads the figures without what they were measured on."""
    assert _REPORT.markdown().endswith("\n\n- volume: 4 x 4 x 4\n")


def test_both_forms_are_written_and_say_the_same(tmp_path: Path) -> None:
    """The JSON has the same figures in seconds."""
    table, document = _REPORT.write(tmp_path / "new" / "folder")
    assert table.read_text(encoding="utf-8") == _REPORT.markdown()
    found = json.loads(document.read_text(encoding="utf-8"))["measurements"][0]
    assert (found["name"], found["repetitions"], found["median_s"]) == ("lung_ct", 3, 1.5)


def test_a_part_that_failed_is_named_beside_the_others() -> None:
    """What the others found isn't thrown away, and nobody takes the report for a whole one."""
    report = replace(_REPORT, failed=["spleen: the peers: no labels"])
    assert "- **failed**: spleen: the peers: no labels\n" in report.markdown()
    assert "| study sent | 1 |" in report.markdown()
    assert json.loads(report.json())["failed"] == ["spleen: the peers: no labels"]
