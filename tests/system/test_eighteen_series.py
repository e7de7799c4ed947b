"""The real series in the shared folder through the network door: the right verdict for each.

A pipeline that allows resampling and splitting writes down what reaches Triton; what is
regular must be the golden volume, voxel by voxel, at the golden's place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from dicom_gateway.records import Job, JobState, ObjectKind
from tests.support.dicom import SAGITTAL, a_ct_series, an_enhanced_series, write_series
from tests.support.patience import until
from tests.support.recording_triton import Recording, a_recording_pipeline, recordings
from tests.support.road import GatewayProcess, a_gateway
from tests.support.series import REAL_SERIES, joined
from tests.support.small_triton import SmallTriton

pytestmark = pytest.mark.system

EXPECTED = {
    "v01": "one volume",
    "v02": "one volume",
    "v03": "resampled",
    "v04": "resampled",
    "v06": "resampled",
    "v07": "refused: duplicate_positions",
    "v08": "2 volumes",
    "v09": "10 volumes",
    "v10": "one volume",
    "v11": "one volume",
    "v12": "2 volumes",
    "v13": "refused: no_geometry",
    "v14": "one volume",
    "v15": "not wanted",
    "v16": "not wanted",
    "v17": "refused: unsupported_object",
    "v18": "one volume",
    "v19": "refused: too_few_slices",
}
"""What must become of each, where a pipeline allows what can be allowed."""


@dataclass(frozen=True)
class Bench:
    """A gateway with pipelines that allow, and others that don't."""

    gateway: GatewayProcess
    records: Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """AE title ALL allows everything, STRICT nothing."""
    folder = tmp_path_factory.mktemp("eighteen")
    repository, records = folder / "repository", folder / "records"
    for modality in ("CT", "MR"):
        name = modality.lower()
        a_recording_pipeline(repository, records, f"all_{name}", modality=modality)
        a_recording_pipeline(
            repository, records, f"strict_{name}", modality=modality, irregular=None
        )
    titles = [
        {"ae-title": "ALL", "pipelines": ["all_ct", "all_mr"]},
        {"ae-title": "STRICT", "pipelines": ["strict_ct", "strict_mr"]},
    ]
    scp = {
        "host": "127.0.0.1",
        "port": 0,
        "ae-titles": titles,
        "sources": [{"ae-title": "SCANNER"}],
    }
    (folder / "triton").mkdir()
    with (
        SmallTriton(folder / "triton", repository) as triton,
        a_gateway(folder / "gateway", triton=triton.url, dicom={"scp": scp}) as gateway,
    ):
        yield Bench(gateway, records)


def test_each_real_series_gets_the_right_verdict(bench: Bench) -> None:
    """18 of 18, in a table; what is regular equals its golden in every voxel and place."""
    folders = sorted(REAL_SERIES.glob("v*_*"))
    if not folders:
        pytest.skip("the real series are not on this machine; generated ones are tested always")
    names: dict[str, str] = {}
    goldens: dict[str, list[dict[str, Any]]] = {}
    for folder in folders:
        golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        for volume in golden["volumes"]:
            names[volume["series_uid"]] = folder.name[:3]
            goldens.setdefault(folder.name[:3], []).append(volume)
        # One file is cut off in the middle: storescu itself won't send it (test_pixel_file.py).
        files = sorted(
            path
            for path in (folder / "dicom").rglob("*")
            if path.is_file() and "too_short" not in path.name
        )
        sent = bench.gateway.send(files, called="ALL")
        assert sent.exit_code == 0, sent.output
    until(lambda: _decided(bench.gateway, names) >= set(EXPECTED), timeout_s=240)
    jobs = {names[job.series_instance_uid]: job for job in bench.gateway.jobs()}
    found = {name: _verdict(bench, jobs.get(name)) for name in EXPECTED}
    print(_table(bench, jobs, found))
    assert found == EXPECTED
    for name in EXPECTED:
        if found[name] in ("one volume", "2 volumes", "10 volumes"):
            _equals_golden(recordings(bench.records, jobs[name].job_id), goldens[name])
    for folder in folders:
        if EXPECTED[folder.name[:3]] == "resampled":
            (volume,) = recordings(bench.records, jobs[folder.name[:3]].job_id)
            step = volume.affine_lps[:3, 2]
            normal = np.cross(volume.affine_lps[:3, 0], volume.affine_lps[:3, 1])
            assert np.linalg.norm(np.cross(step, normal)) < 1e-6 * np.linalg.norm(normal)


GENERATED: dict[str, tuple[dict[str, Any], str, str]] = {
    # what it is: how it is made, verdict where all is allowed, verdict where nothing is
    "regular": ({}, "one volume", "one volume"),
    "oblique": (
        {"orientation": (0.96, 0.28, 0.0, -0.28, 0.96, 0.0)},
        "one volume",
        "one volume",
    ),
    "missing slice": ({"gap_at": 4}, "resampled", "refused: missing_slices"),
    "wide gap": (
        {"gap_at": (3, 4, 5, 6, 7)},
        "refused: missing_slices",
        "refused: missing_slices",
    ),
    "tilted": ({"tilt_degrees": 14.0}, "resampled", "refused: gantry_tilt"),
    "turned images at one place": (
        {"two_orientations": True},
        "refused: duplicate_positions",
        "refused: several_orientations",
    ),
    "axial and sagittal": (
        {"and_sagittal": True},
        "2 volumes",
        "refused: several_orientations",
    ),
    "one duplicate": (
        {"duplicate_at": 3},
        "refused: duplicate_positions",
        "refused: duplicate_positions",
    ),
    "one slice": ({"frames": 1}, "refused: too_few_slices", "refused: too_few_slices"),
}


def test_generated_series_get_the_right_verdict_where_all_and_where_nothing_is_allowed(
    bench: Bench, tmp_path: Path
) -> None:
    """The same data goes through, is resampled, is split, or is refused: the contract decides."""
    before = {job.job_id for job in bench.gateway.jobs()}
    wanted: dict[tuple[str, str], str] = {}
    for name, (how, allowed, refused) in GENERATED.items():
        for title, verdict in (("ALL", allowed), ("STRICT", refused)):
            series = _series(**how)
            wanted[str(series[0].SeriesInstanceUID), title] = verdict
            files = write_series(tmp_path / f"{name} {title}", series)
            assert bench.gateway.send(files, called=title).exit_code == 0
    for times, verdict in ((1, "one volume"), (3, "3 volumes")):
        enhanced = an_enhanced_series(frames=8, times=times)
        wanted[str(enhanced.SeriesInstanceUID), "ALL"] = verdict
        files = write_series(tmp_path / f"enhanced {times}", [enhanced])
        assert bench.gateway.send(files, called="ALL").exit_code == 0
    jobs = bench.gateway.wait_for_jobs(len(before) + len(wanted))
    found = {
        (job.series_instance_uid, job.called_ae_title): _verdict(bench, job)
        for job in jobs
        if job.job_id not in before
    }
    assert found == wanted


def _series(*, and_sagittal: bool = False, **how: Any) -> list[pydicom.Dataset]:
    series = a_ct_series(**{"frames": 10} | how)
    if and_sagittal:
        series = joined(series, a_ct_series(6, orientation=SAGITTAL))
    return series


def _decided(gateway: GatewayProcess, names: dict[str, str]) -> set[str]:
    """The series of which something has become."""
    ended = (JobState.DELIVERED, JobState.FAILED)
    done = {names.get(job.series_instance_uid, "") for job in gateway.jobs() if job.state in ended}
    return done | {names[uid] for uid in gateway.ignored() if uid in names}


def _verdict(bench: Bench, job: Job | None) -> str:
    if job is None:
        return "not wanted"
    if job.state is JobState.FAILED:
        return f"refused: {job.failure_code}"
    volumes = recordings(bench.records, job.job_id)
    results = bench.gateway.results(job, ObjectKind.SEGMENTATION)
    assert len(results) == len(volumes), bench.gateway.story(job)
    if len(volumes) > 1:
        return f"{len(volumes)} volumes"
    resampled = any("resampled" in line for line in bench.gateway.story(job))
    return "resampled" if resampled else "one volume"


def _equals_golden(volumes: list[Recording], goldens: list[dict[str, Any]]) -> None:
    """Digest and place; of several volumes in one golden, one after the other."""
    if len(goldens) == len(volumes):
        assert {one.sha256 for one in volumes} == {golden["sha256"] for golden in goldens}
        by_digest = {golden["sha256"]: golden for golden in goldens}
        for one in volumes:
            expected = by_digest[one.sha256]["affine_LPS"]
            np.testing.assert_allclose(one.affine_lps, expected, rtol=0, atol=1e-4)
        return
    (golden,) = goldens
    digest = hashlib.sha256()
    for one in volumes:
        assert one.values is not None
        digest.update(one.values.astype("<f4").tobytes())
        np.testing.assert_allclose(one.affine_lps, golden["affine_LPS"], rtol=0, atol=1e-4)
    assert digest.hexdigest() == golden["sha256"]


def _table(bench: Bench, jobs: dict[str, Job], found: dict[str, str]) -> str:
    lines = ["", f"{'series':8}{'verdict':32}{'expected':32}what was said"]
    ignored = bench.gateway.ignored()
    for name, verdict in found.items():
        job = jobs.get(name)
        if job is None:
            series = next(iter(sorted(REAL_SERIES.glob(f"{name}_*/dicom/*"))))
            uid = str(pydicom.dcmread(series, stop_before_pixels=True).SeriesInstanceUID)
            said = ignored.get(uid, "")
        elif job.state is JobState.FAILED:
            said = job.failure_reason or ""
        else:
            story = bench.gateway.story(job)
            said = " | ".join(line for line in story if line.startswith("assembled"))
        lines.append(f"{name:8}{verdict:32}{EXPECTED[name]:32}{said[:400]}")
    right = sum(found[name] == EXPECTED[name] for name in EXPECTED)
    return "\n".join([*lines, f"{right} of {len(EXPECTED)} right"])
