"""Which parts a bench runs, and what a failing one leaves of the others."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from perf import bench
from perf.measure import Measurement
from perf.parts import PARTS, for_each, once
from perf.sections import Found
from perf.stage import QUICK, Plan, Stage

_PLAN = Plan((4, 16, 16), rounds=1, instances=1, rows=1)


def a_stage(folder: Path, *bundles: Path) -> Stage:
    """With a chest so small that painting it takes no time."""
    return Stage(_PLAN, folder, folder, folder, bundles, say=lambda _: None)


def _measured(stage: Stage) -> Found:
    stage.notes["noted"] = "yes"
    return Found([Measurement.of("a: one", [1.0])], [], {"a": "on the CPU"}, {"a line": "<svg/>"})


def _missing(_: Stage) -> Found:
    msg = "Orthanc is missing"
    raise RuntimeError(msg)


def test_a_part_that_fails_is_named_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is that failed: an hour's figures outlive it."""
    monkeypatch.setitem(PARTS, "missing", once("beside a peer", _missing))
    monkeypatch.setitem(PARTS, "measured", once("something", _measured))
    first, report = bench.measure(a_stage(tmp_path), ["missing", "measured"])
    assert (first.failed, first.measurements) == (report.failed, [])
    assert report.failed == ["missing: beside a peer: Orthanc is missing"]
    assert [one.name for one in report.measurements] == ["a: one"]
    assert report.setting["noted"] == "yes"
    assert report.setting["devices, a"] == "on the CPU"


def test_a_part_for_each_bundle_and_volume_has_a_piece_for_each(tmp_path: Path) -> None:
    """One bundle that fails leaves the others of its part."""
    stage = a_stage(tmp_path, Path("a"), Path("b"))
    pieces = list(for_each("the peers", lambda *_: Found([], []))(stage))
    assert [words for words, _ in pieces] == [
        "a on chest of 4 slices: the peers",
        "b on chest of 4 slices: the peers",
    ]
    assert stage.notes["chest"] == "4 x 16 x 16 voxels, generated"
    assert len(list(stage.study.iterdir())) == 4


def test_the_generated_chest_can_be_left_out(tmp_path: Path) -> None:
    """Then nothing is painted either."""
    stage = replace(a_stage(tmp_path, Path("a")), without_chest=True)
    assert list(for_each("the peers", lambda *_: Found([], []))(stage)) == []
    assert list(stage.studies()) == []
    assert "chest" not in stage.notes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_measured_is_written_before_the_next_piece(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    """An evening that is broken off isn't lost, and what a piece has started is ended."""
    ended = []

    def breaks_off(_: Stage) -> Found:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            ended.append("the server")
        raise AssertionError

    monkeypatch.setitem(PARTS, "models", once("something", _measured))
    monkeypatch.setitem(PARTS, "peers", once("something long", breaks_off))
    arguments = ["--quick", "--only", "models", "--only", "peers", "--out", str(tmp_path)]
    assert bench.main(arguments) == 130
    assert ended == ["the server"]
    assert "Stopped. What was measured until now is in" in capsys.readouterr().out
    document = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in document["measurements"]] == ["a: one"]


def test_a_bench_without_anything_to_measure_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No table without a line that looks like a success."""
    arguments = ["--only", "peers", "--no-chest", "--out", str(tmp_path)]
    assert bench.main(arguments) == 1
    assert "nothing was measured" in capsys.readouterr().out


def test_one_part_can_be_chosen_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--only` runs it, whatever the size leaves out, and the report says so."""
    monkeypatch.setitem(PARTS, "peers", once("something", _measured))
    arguments = ["--quick", "--only", "peers", "--out", str(tmp_path)]
    assert bench.main(arguments) == 0
    document = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert document["setting"]["measured"].endswith("UTC: peers")
    assert [one["name"] for one in document["measurements"]] == ["a: one"]
    assert "![a line](a-line.svg)" in (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert (tmp_path / "a-line.svg").read_text(encoding="utf-8") == "<svg/>"


def test_an_unknown_part_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A misspelt name doesn't measure nothing."""
    with pytest.raises(SystemExit):
        bench.main(["--only", "intaek"])
    assert "intake" in capsys.readouterr().err


def test_sizes_leave_out_only_parts_that_exist() -> None:
    """A part that was renamed isn't left out any more without anybody noticing."""
    assert set(QUICK.left_out) <= set(PARTS)


def test_something_else_than_a_report_stops_the_bench_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody waits for an hour to learn of a wrong path."""
    assert bench.main(["--against", str(tmp_path / "nothing.json")]) == 1
    assert "--against" in capsys.readouterr().out
