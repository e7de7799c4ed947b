"""`make bench` in small: the real perf_analyzer, locust, tritonserver and gateway."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


CHEST = "chest of 24 slices"
ROWS = {
    "models": [
        f"perf_analyzer, lung_ct, {CHEST}: the ensemble over HTTP",
        f"perf_analyzer, lung_ct, {CHEST}: the ensemble over gRPC",
        f"perf_analyzer, lung_ct, {CHEST}: the ensemble over gRPC + shared memory",
        f"perf_analyzer, lung_ct, {CHEST}: lung_ct_preprocess over gRPC + shared memory",
        f"perf_analyzer, lung_ct, {CHEST}: lung_ct_inferer over gRPC + shared memory",
        f"perf_analyzer, lung_ct, {CHEST}: lung_ct_postprocess over gRPC + shared memory",
    ],
    "studies": [
        f"locust, {CHEST}: C-STORE, study sent",
        f"locust, {CHEST}: C-STORE, study to result",
        f"locust, {CHEST}: API, health",
        f"locust, {CHEST}: API, QIDO-RS, series of a study",
        f"locust, {CHEST}: API, QIDO-RS, its instances",
        f"locust, {CHEST}: API, WADO-RS, an instance",
        f"locust, {CHEST}: STOW-RS, study sent",
        f"locust, {CHEST}: STOW-RS, study to result",
    ],
    "transport": [
        "transport, 24 x 96 x 96: shared memory",
        "transport, 24 x 96 x 96: gRPC",
        "transport, 24 x 96 x 96: HTTP",
    ],
    "intake": [
        f"intake, 8 instances of 512 x 512, {associations}: {receiver}"
        for associations in ("1 association", "4 associations")
        for receiver in ("tritome", "several", "Orthanc", "dcmtk storescp (no sync)")
    ],
    "handover": [
        f"handover, {CHEST}: {syntax}{pace}, {what}"
        for syntax in ("uncompressed", "RLE", "JPEG-LS", "JPEG 2000")
        for pace in ("", ", 20 a second")
        for what in ("decoding alone", "tritome's last arrival to request")
    ],
    "seg": [
        "SEG, 24 x 96 x 96, 5 segments: tritome, encoding and writing",
        "SEG, 24 x 96 x 96, 5 segments: highdicom, encoding and writing",
        "SEG, 24 x 96 x 96, 5 segments: tritome, with sources read, synced and through the "
        "geometry gate",
    ],
    "queue": [
        "queue, sqlite: enqueue to start when idle",
        "queue, sqlite: claim, empty table",
        "queue, sqlite: claim, 500 rows waiting",
        "queue, sqlite: claim, 500 rows finished",
        "queue, sqlite: claim, 500 rows waiting for their next try",
    ],
    "outside": [
        f"lung_ct, {CHEST}: MONAI's own transforms",
        f"lung_ct, {CHEST}: tritome's runtime",
    ],
}
"""What each part of a quick bench measures, in order."""


def test_a_quick_bench_measures_every_part(tmp_path: Path, repository_root: Path) -> None:
    """One report comes out with the models, the way of whole studies, and the rooms' peers."""
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
    # Our second gateway has as many processes as it can use cores.
    names = [re.sub(r"tritome, \d processes", "several", name) for name in found]
    assert names == [name for part in ROWS.values() for name in part]
    labels = [one for one in document["shown"] if "other labels" in one["what"]]
    assert [one["found"] for one in labels] == [0.0]
    assert all(one["median_s"] > 0 for one in found.values())
    assert f"| locust, {CHEST}: C-STORE, study to result | 1 |" in (
        tmp_path / "bench.md"
    ).read_text(encoding="utf-8")
