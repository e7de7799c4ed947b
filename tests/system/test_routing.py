"""Rules with a whole gateway: the thinnest of a study, a STAT sender, and what explains it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from dicom_gateway.records import JobState, Priority
from tests.support.dicom import CANARY, CORONAL, a_ct_series, write_series
from tests.support.patience import until
from tests.support.road import a_gateway
from tests.support.small_triton import SmallTriton, a_repository

pytestmark = pytest.mark.system

ROUTING = {
    "priorities": [{"priority": "immediate", "calling": "ER_*"}],
    "rules": [
        {
            "name": "thinnest-axial",
            "called": "AI",
            "where": [{"plane": "axial"}, {"tag": "BodyPartExamined", "matches": "(?i)chest"}],
            "choose": "thinnest",
            "pipelines": ["lung_ct"],
            "priority": "low",
        }
    ],
}
DICOM = {
    "scp": {
        "host": "127.0.0.1",
        "port": 0,
        "ae-titles": [{"ae-title": "AI"}],
        "reject-unknown-sources": False,
    }
}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallTriton]:
    """A small server whose pipeline answers to the name lung_ct."""
    repository = a_repository(tmp_path_factory.mktemp("models"), "lung_ct")
    with SmallTriton(tmp_path_factory.mktemp("triton"), repository) as server:
        yield server


def test_a_study_goes_by_the_rules_and_explain_says_the_same(
    triton: SmallTriton, tmp_path: Path
) -> None:
    """Of three series the thinnest axial one makes a job; the others say why not."""
    study = generate_uid()
    series = {
        "thick": a_ct_series(6, study_instance_uid=study, spacing_mm=5.0),
        "thin": a_ct_series(6, study_instance_uid=study, spacing_mm=1.0),
        "upright": a_ct_series(6, study_instance_uid=study, spacing_mm=0.5, orientation=CORONAL),
    }
    uids = {name: str(frames[0].SeriesInstanceUID) for name, frames in series.items()}
    files = [
        path
        for name, frames in series.items()
        for path in write_series(tmp_path / "study" / name, frames)
    ]
    with a_gateway(
        tmp_path / "gateway", triton=triton.url, dicom=DICOM, routing=ROUTING
    ) as gateway:
        assert gateway.send(files, calling="ER_CT", called="AI").exit_code == 0
        (job,) = gateway.wait_for_jobs(1)
        until(lambda: set(gateway.ignored()) == {uids["thick"], uids["upright"]})
        ignored = gateway.ignored()
        config = str(gateway.folder / "gateway.yaml")
        command = [sys.executable, "-m", "clients", "route", "explain", str(tmp_path / "study")]
        options = ["--config", config, "--called", "AI", "--calling", "ER_CT"]
        explained = subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env={"COLUMNS": "250"},
        ).stdout
        log = gateway.log()

    assert (job.state, job.series_instance_uid) == (JobState.DELIVERED, uids["thin"])
    assert (job.rule, job.priority) == ("thinnest-axial", Priority.IMMEDIATE)
    assert ignored[uids["thick"]].startswith(
        f"rule thinnest-axial: series {uids['thin']} is thinner"
    )
    assert ignored[uids["upright"]].startswith(
        "no pipeline of AE title AI wants this series; rule thinnest-axial asks that plane is axial"
    )
    assert f"it takes series {uids['thin']}" in explained
    assert "priority immediate" in explained
    assert CANARY not in explained + log
