"""A report against an earlier one."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.against import NoReport, changes, read_measurements
from perf.measure import Measurement
from perf.report import Report, Shown


def a_measurement(name: str, *seconds: float) -> Measurement:
    """From single durations."""
    return Measurement.of(name, seconds)


@pytest.mark.parametrize(
    ("now", "before", "verdict"),
    [
        ((1.0, 1.1, 1.2), (2.0, 2.1, 2.2), "faster"),
        ((2.0, 2.1, 2.2), (1.0, 1.1, 1.2), "slower"),
        ((1.0, 1.5, 3.0), (1.0, 1.4, 2.9), "within noise"),
        ((1.0, 1.01, 1.02), (1.03, 1.04, 1.05), "within noise"),
        ((1.0,), (5.0,), "within noise"),
    ],
)
def test_a_change_must_be_more_than_the_spread(
    now: tuple[float, ...], before: tuple[float, ...], verdict: str
) -> None:
    """Medians outside each other's spread, more than a twentieth apart, of three runs or more."""
    (found,) = changes([a_measurement("a", *now)], [a_measurement("a", *before)])
    assert found.verdict == verdict


def test_only_names_that_both_have_are_compared() -> None:
    """What is new, or gone, is no change."""
    assert changes([a_measurement("new", 1.0)], [a_measurement("old", 1.0)]) == []


def test_a_report_can_be_read_again(tmp_path: Path) -> None:
    """By its folder and by its file."""
    measured = [a_measurement("one: a", 1.0, 2.0), a_measurement("one: b", 3.0)]
    _, document = Report({}, measured).write(tmp_path)
    assert read_measurements(tmp_path) == read_measurements(document) == measured


@pytest.mark.parametrize("content", [None, "no JSON", "{}", '{"measurements": [{"a": 1}]}'])
def test_something_else_is_no_report(tmp_path: Path, content: str | None) -> None:
    """One sentence says what the file should have been."""
    path = tmp_path / "bench.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(NoReport, match="--against"):
        read_measurements(path)


def test_groups_get_a_picture_and_figures_a_verdict(tmp_path: Path) -> None:
    """Measurements named alike stand in one SVG; what should be shown says whether it is."""
    measured = [a_measurement("roads, 4 x 4: <HTTP>", 2.0), a_measurement("roads, 4 x 4: b", 1.0)]
    shown = (
        Shown("times faster", 3.0, 4.0, n=3),
        Shown("share of memory", 0.2, 0.33, at_most=True),
    )
    table, _ = Report({}, measured, shown).write(tmp_path)
    text = table.read_text(encoding="utf-8")
    assert "| times faster | 3 | 3.00 | >= 4 | no |" in text
    assert "| share of memory |  | 0.20 | <= 0.33 | yes |" in text
    assert "![roads, 4 x 4](roads-4-x-4.svg)" in text
    picture = (tmp_path / "roads-4-x-4.svg").read_text(encoding="utf-8")
    assert "&lt;HTTP&gt;" in picture
    assert picture.count("<line") == 2
