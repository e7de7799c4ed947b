"""What goes into perf_analyzer and what is read from it; the real one is in the system tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from perf.analyzer import ROADS, Analyzer, AnalyzerFailed, read_percentiles, write_input


def test_the_inputs_are_the_contracts_tensors(tmp_path: Path) -> None:
    """IMAGE, RESCALE and AFFINE lie in files of their names, in C order."""
    hu = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    affine_lps = np.diag([0.5, 0.75, 2.0, 1.0])
    volume = write_input(tmp_path / "input", hu, affine_lps)

    image = np.fromfile(tmp_path / "input" / "IMAGE", "<i2").reshape(volume.shape_kji)
    np.testing.assert_array_equal(image, hu + 1024)
    rescale = np.fromfile(tmp_path / "input" / "RESCALE", "<f8").reshape(2, 2)
    np.testing.assert_array_equal(rescale, [[1, -1024], [1, -1024]])
    affine = np.fromfile(tmp_path / "input" / "AFFINE", "<f8").reshape(4, 4)
    np.testing.assert_array_equal(affine, affine_lps)
    assert volume.moved_bytes == 24 * 3


def test_an_empty_volume_is_refused(tmp_path: Path) -> None:
    """Zeros take short cuts and would flatter the figures."""
    with pytest.raises(ValueError, match="same everywhere"):
        write_input(tmp_path, np.zeros((2, 2, 2), np.int16), np.eye(4))


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
    hu = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    volume = write_input(tmp_path / "input", hu, np.eye(4))
    analyzer = Analyzer.find(repository_root / ".venv-perf")
    with pytest.raises(AnalyzerFailed, match=r"over HTTP gave no figures:\n\S"):
        analyzer.measure(ROADS[0], "lung_ct", "127.0.0.1:1", volume, requests=1)
