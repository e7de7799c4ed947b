"""What goes into perf_analyzer and what is read from it; the real one is in the system tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from perf.analyzer import ROADS, Analyzer, AnalyzerFailed, durations, write_input


def test_the_inputs_are_the_contracts_tensors(tmp_path: Path) -> None:
    """IMAGE, RESCALE and AFFINE lie in files of their names, in C order."""
    hu = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)
    affine_lps = np.diag([0.5, 0.75, 2.0, 1.0])
    volume = write_input(tmp_path / "input", hu, affine_lps)

    image = np.fromfile(tmp_path / "input" / "IMAGE", "<i2").reshape(volume.shape_kji)
    np.testing.assert_array_equal(image, hu)
    rescale = np.fromfile(tmp_path / "input" / "RESCALE", "<f8").reshape(2, 2)
    np.testing.assert_array_equal(rescale, [[1, 0], [1, 0]])
    affine = np.fromfile(tmp_path / "input" / "AFFINE", "<f8").reshape(4, 4)
    np.testing.assert_array_equal(affine, affine_lps)
    assert volume.moved_bytes == 24 * 3


def test_an_empty_volume_is_refused(tmp_path: Path) -> None:
    """Zeros take short cuts and would flatter the figures."""
    with pytest.raises(ValueError, match="same everywhere"):
        write_input(tmp_path, np.zeros((2, 2, 2), np.int16), np.eye(4))


def test_durations_come_in_the_order_of_sending(tmp_path: Path) -> None:
    """The first one is the request that warms up, whatever order the export has."""
    requests = [
        {"timestamp": 5_000_000_000, "response_timestamps": [5_250_000_000]},
        {"timestamp": 1_000_000_000, "response_timestamps": [3_000_000_000]},
        {"timestamp": 9_000_000_000, "response_timestamps": []},
    ]
    export = tmp_path / "export.json"
    export.write_text(json.dumps({"experiments": [{"requests": requests}]}), encoding="utf-8")
    assert list(durations(export)) == [2.0, 0.25]


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
