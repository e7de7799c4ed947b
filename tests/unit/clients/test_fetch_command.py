"""`tritome fetch`: what a person is told before anything is asked of a PACS."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from clients.commands.fetch import gateway_runs, run
from clients.errors import ClientError
from tests.support.dicom import CANARY

SETTINGS = """
dicom:
  scp:
    ae-titles: [{ae-title: LUNG, pipelines: [lung_ct]}]
    reject-unknown-sources: false
store: {folder: data}
pacs:
  - name: archive
    called-ae-title: LUNG
    dicomweb: {url: "http://127.0.0.1:1/dicom-web"}
"""


def say(folder: Path, peer: str = "archive", **wish: object) -> str:
    """The red sentence."""
    config = folder / "gateway.yaml"
    config.write_text(SETTINGS, encoding="utf-8")
    asked = {"study": None, "accession": None, "query": [], "series": [], "called": None} | wish
    with pytest.raises(ClientError) as error:
        run(config, peer, **asked)  # type: ignore[arg-type]
    return str(error.value)


def test_each_mistake_is_said_with_what_to_write(tmp_path: Path) -> None:
    """And a value that was typed is never repeated: it may be a patient's."""
    assert "did you mean 'archive'" in say(tmp_path, "archiv", study="1.2")
    assert "there is archive" in say(tmp_path, "zzz", study="1.2")
    assert "say what to fetch" in say(tmp_path)
    assert "say what to fetch" in say(tmp_path, query=["PatientName=*"])
    assert "--study takes a UID" in say(tmp_path, study=CANARY)
    assert "--series takes a UID" in say(tmp_path, study="1.2", series=["../x"])
    assert "Keyword=Value" in say(tmp_path, query=[f"Patient={CANARY}"])
    assert "Keyword=Value" in say(tmp_path, query=["PatientID"])
    assert CANARY not in say(tmp_path, query=[f"Patient={CANARY}"])
    assert "'HEAD' is none of our AE titles" in say(tmp_path, study="1.2", called="HEAD")


def test_without_a_gateway_the_way_to_start_one_is_said(tmp_path: Path) -> None:
    """Only the gateway writes the store; its lock says whether it runs."""
    assert "tritome up" in say(tmp_path, study="1.2")
    lock = tmp_path / "data" / "gateway.lock"
    lock.parent.mkdir()
    with lock.open("a") as held:
        assert not gateway_runs(tmp_path / "data")
        fcntl.flock(held, fcntl.LOCK_EX)
        assert gateway_runs(tmp_path / "data")
