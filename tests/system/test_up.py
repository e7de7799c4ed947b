"""`tritome up` and what a person does beside it: send, infer, look at jobs, stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import psutil
import pytest
import yaml

from clients.demo.phantom_study import PhantomStudy
from clients.demo.reading import read_segmentation, read_source
from clients.nifti import write_nifti
from tests.support.patience import until
from tests.support.peers import Storescp, echoscu, free_port
from tests.support.processes import Running, running
from tests.support.shared_memory import dev_shm_as_before

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Up:
    """A running `tritome up`."""

    config: Path
    scp_port: int
    triton_url: str
    process: Running

    def tritome(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Another `tritome` command beside it."""
        return subprocess.run(
            [sys.executable, "-m", "clients", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
            env={**os.environ, "COLUMNS": "200"},
        )

    def child(self, word: str) -> psutil.Process:
        """The child process whose command line holds `word`."""
        children = psutil.Process(self.process.process.pid).children()
        (found,) = [child for child in children if word in child.cmdline()]
        return found

    def echoes(self) -> bool:
        """Whether the gateway answers C-ECHO."""
        return echoscu("127.0.0.1", self.scp_port, "TRITOME_SEND", "LUNG").exit_code == 0


@pytest.fixture
def up(tmp_path: Path, receiving_pacs: Storescp) -> Iterator[Up]:
    """Server and gateway, ready; stopped by SIGTERM, and nothing may be left."""
    scp, grpc = free_port(), free_port()
    document = {
        "dicom": {
            "scp": {
                "host": "127.0.0.1",
                "port": scp,
                "ae-titles": [
                    {"ae-title": "LUNG", "pipelines": ["lung_ct"], "destinations": ["pacs"]}
                ],
                "sources": [{"ae-title": "TRITOME_SEND"}],
            },
            "scu": {
                "destinations": [
                    {
                        "name": "pacs",
                        "host-ip": receiving_pacs.host,
                        "port": receiving_pacs.port,
                        "ae-title": receiving_pacs.ae_title,
                    }
                ]
            },
        },
        "triton": {"url": f"127.0.0.1:{grpc}"},
        "store": {"folder": "store"},
    }
    config = tmp_path / "gateway.yaml"
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    command: list[str | Path] = [sys.executable, "-m", "clients", "up", "--config", config]
    command += ["--model-repository", ROOT / "model_repository"]
    command += ["--http-port", "0", "--metrics-port", "0"]
    with (
        dev_shm_as_before(prefixes=("tritome_",), mapped_too=False),
        running(
            command,
            log=tmp_path / "up.log",
            environment={"PYTHONPATH": str(ROOT)},
            stop_timeout_s=120,
        ) as process,
    ):
        found = Up(config, scp, f"127.0.0.1:{grpc}", process)
        process.wait_until(
            lambda: "Ctrl-C ends it" in process.output(), that="Triton was ready", timeout_s=300
        )
        process.wait_until(found.echoes, that="the gateway answered", timeout_s=60)
        yield found


def test_a_day_beside_the_server(
    up: Up, chest_study: PhantomStudy, receiving_pacs: Storescp, tmp_path: Path
) -> None:
    """Send, receive, infer by hand with the same voxels, look, lose the gateway, stop."""
    sent = up.tritome("send", chest_study.folder, "--to", f"127.0.0.1:{up.scp_port}")
    assert sent.returncode == 0, sent.stderr
    assert f"{len(chest_study.files)} of {len(chest_study.files)} instances" in sent.stdout
    (delivered,) = receiving_pacs.wait_for_segmentations(1, timeout_s=300)
    source = read_source(chest_study.files, chest_study.series_instance_uid)
    by_gateway = read_segmentation(delivered, source).segments
    assert all(segment.mask.any() for segment in by_gateway)

    by_hand = tmp_path / "seg.dcm"
    inferred = up.tritome(
        "infer", chest_study.folder, "--triton", up.triton_url, "--output", by_hand
    )
    assert inferred.returncode == 0, inferred.stderr
    assert re.search(r"Left lung\s+[\d,]+\.\d", inferred.stdout)
    for ours, theirs in zip(read_segmentation(by_hand, source).segments, by_gateway, strict=True):
        np.testing.assert_array_equal(ours.mask, theirs.mask)

    image, mask = tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz"
    write_nifti(image, source.hu.astype(np.int16), source.affine_lps)
    inferred = up.tritome("infer", image, "--triton", up.triton_url, "--output", mask)
    assert inferred.returncode == 0, inferred.stderr
    labels = np.asarray(nibabel.load(mask).dataobj).transpose(2, 1, 0)
    for label, theirs in zip((1, 2), by_gateway, strict=True):
        np.testing.assert_array_equal(labels == label, theirs.mask)

    until(lambda: "delivered" in up.tritome("jobs", "list", "--config", up.config).stdout)
    victim = up.child("gateway")
    victim.kill()
    up.process.wait_until(
        lambda: "started again in" in up.process.output(), that="it was missed", timeout_s=60
    )
    up.process.wait_until(up.echoes, that="the gateway was back", timeout_s=120)

    children = psutil.Process(up.process.process.pid).children(recursive=True)
    up.process.process.send_signal(signal.SIGTERM)
    assert up.process.process.wait(120) == 0, up.process.output()
    until(lambda: not any(_runs(child) for child in children), timeout_s=30)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
