"""`make bench` in small: the real perf_analyzer, locust, tritonserver and gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_a_quick_bench_measures_each_road_and_the_whole_way(
    tmp_path: Path, repository_root: Path
) -> None:
    """One table comes out with every road to Triton and the way of a whole study."""
    python = Path(sys.executable)
    answer = subprocess.run(
        [python, "-m", "perf.bench", "--quick", "--out", tmp_path],
        cwd=repository_root,
        # As make bench does it: Triton's stubs take the first python3 on PATH.
        env={**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout
    document = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    found = {one["name"]: one for one in document["measurements"]}
    assert list(found)[:5] == [
        "lung_ct over HTTP",
        "lung_ct over gRPC",
        "lung_ct over gRPC + shared memory",
        "study sent",
        "study to result",
    ]
    assert list(found)[5:] == [
        "transport, 24 x 96 x 96: shared memory",
        "transport, 24 x 96 x 96: gRPC",
        "transport, 24 x 96 x 96: HTTP",
        "lung_ct, chest of 24 slices: MONAI's own transforms",
        "lung_ct, chest of 24 slices: tritome's runtime",
    ]
    labels = [one for one in document["shown"] if "other labels" in one["what"]]
    assert [one["found"] for one in labels] == [0.0]
    assert all(one["median_s"] > 0 for one in found.values())
    assert "| study to result | 1 |" in (tmp_path / "bench.md").read_text(encoding="utf-8")
