"""`tritome deliveries` on a real index."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from clients.commands.deliveries import run
from clients.errors import ClientError
from dicom_gateway.config import load_settings
from dicom_gateway.deliver import Entries
from dicom_gateway.errors import DestinationRefused
from dicom_gateway.jobs import JobQueue
from tests.support.dicom import CANARY
from tests.support.gateway import a_store
from tests.support.jobs import a_finished_job


def a_config(folder: Path) -> Path:
    """A gateway that sends to `pacs`."""
    settings = {
        "dicom": {
            "scp": {
                "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
                "reject-unknown-sources": False,
            },
            "scu": {
                "destinations": [
                    {"name": "pacs", "host-ip": "127.0.0.1", "port": 104, "ae-title": "PACS"}
                ]
            },
        },
        "store": {"folder": "data"},
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_what_waits_and_why_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Per destination, also one that gateway.yaml doesn't have; with the reason of what failed."""
    config = a_config(tmp_path)
    with a_store(tmp_path / "data") as keeping:
        folder = keeping.folder
        queue = JobQueue(keeping.engine, folder)
        job, _ = a_finished_job(queue, keeping.engine, folder, "pacs", "gone")
        entries = Entries(keeping.engine, folder, load_settings(config).dicom.scu)
        delivery = entries.claim("pacs")
        assert delivery is not None
        entries.not_delivered(delivery, DestinationRefused("it refused 0x0122"))

    run(config, 50)

    said = " ".join(capsys.readouterr().out.split())
    assert "gone (not in gateway.yaml)" in said
    assert job.job_id[:8] in said
    assert "0x0122" in said
    assert CANARY not in said


def test_nothing_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A good day; and a gateway that never ran has no index to look into."""
    config = a_config(tmp_path)
    with pytest.raises(ClientError, match="no index yet"):
        run(config, 50)
    with a_store(tmp_path / "data"):
        pass

    run(config, 50)

    assert "every result has arrived" in capsys.readouterr().out
