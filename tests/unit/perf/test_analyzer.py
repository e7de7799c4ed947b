"""What goes into perf_analyzer and what is read from it; the real one is in the system tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perf.analyzer import ROADS, Analyzer, AnalyzerFailed, read_percentiles, write_input


def test_the_inputs_are_files_in_the_servers_order(tmp_path: Path) -> None:
    """Each tensor lies in a file of its name, in C order, and strings as lines of text."""
    image = np.arange(24, dtype=np.int16).reshape(4, 3, 2).T
    trace = np.array([b'{"a": 1}'], dtype=np.object_)
    request = write_input(
        tmp_path / "input",
        {"IMAGE": image, "TRACE": trace},
        {"MASK": np.zeros((2, 3, 4), np.uint8), "X": np.zeros((1, 5), np.float32)},
    )
    written = np.fromfile(tmp_path / "input" / "IMAGE", "<i2").reshape(2, 3, 4)
    np.testing.assert_array_equal(written, image)
    assert (tmp_path / "input" / "TRACE").read_bytes() == b'{"a": 1}\n'
    assert request.shapes == {"IMAGE": (2, 3, 4), "TRACE": (1,)}
    assert request.moved_bytes == 48 + (4 + 8) + 24 + 20
    assert request.output_bytes == 24


def test_an_empty_volume_is_refused(tmp_path: Path) -> None:
    """Zeros take short cuts and would flatter the figures."""
    with pytest.raises(ValueError, match="IMAGE is the same everywhere"):
        write_input(tmp_path, {"IMAGE": np.zeros((2, 2, 2), np.int16)}, {})


def test_a_string_of_several_lines_is_refused(tmp_path: Path) -> None:
    """perf_analyzer would take each line for a string of its own."""
    with pytest.raises(ValueError, match="TRACE from one line"):
        write_input(tmp_path, {"TRACE": np.array([b"a\nb"], dtype=np.object_)}, {})


def test_the_report_is_read_in_seconds(tmp_path: Path) -> None:
    """perf_analyzer writes microseconds; the columns are found by name."""
    report = tmp_path / "report.csv"
    report.write_text(
        "Concurrency,Inferences/Second,p25 latency,p50 latency,p90 latency,p99 latency\n"
        "1,9.99,37549,47893,67552,174634\n",
        encoding="utf-8",
    )
    assert read_percentiles(report) == (0.037549, 0.047893, 0.067552)


def test_an_empty_report_is_no_measurement(tmp_path: Path) -> None:
    """Where nothing was measured, no figure comes out."""
    (tmp_path / "report.csv").write_text("Concurrency,p25 latency\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no row"):
        read_percentiles(tmp_path / "report.csv")


def test_a_missing_program_says_how_to_get_it(tmp_path: Path) -> None:
    """A person who runs the module by hand learns about make bench."""
    with pytest.raises(AnalyzerFailed, match="'make bench' puts it there"):
        Analyzer.find(tmp_path)


def test_a_closed_port_is_a_failure_with_its_words(tmp_path: Path, repository_root: Path) -> None:
    """perf_analyzer's own reason reaches the person."""
    image = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    request = write_input(tmp_path / "input", {"IMAGE": image}, {"MASK": image})
    analyzer = Analyzer.find(repository_root / ".venv-perf")
    with pytest.raises(AnalyzerFailed, match=r"over HTTP gave no figures:\n\S"):
        analyzer.ask_twice(ROADS[0], "lung_ct", "127.0.0.1:1", request)
