"""The locust file, run by locust, against a scripted peer in the gateway's place."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage

from perf.road import CALLED_AE_TITLE, CALLING_AE_TITLE, RoadFailed, drive
from tests.support.dicom import a_ct_series, write_series
from tests.support.peers import free_port


class _Peer:
    """Takes studies; sends the last instance of each back as its result, if it is told to."""

    def __init__(self, receive_port: int, *, answers: bool) -> None:
        self.receive_port = receive_port
        self.answers = answers
        self.studies: list[str] = []
        self.port = 0

    def keep(self, event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        event.assoc.last = dataset
        return 0x0000

    def released(self, event: evt.Event) -> None:
        dataset = event.assoc.last
        self.studies.append(str(dataset.StudyInstanceUID))
        if self.answers:
            threading.Thread(target=self.send, args=(dataset,)).start()

    def send(self, dataset: Dataset) -> None:
        ae = AE(CALLED_AE_TITLE)
        ae.add_requested_context(CTImageStorage, dataset.file_meta.TransferSyntaxUID)
        association = ae.associate("127.0.0.1", self.receive_port, ae_title=CALLING_AE_TITLE)
        assert association.is_established
        association.send_c_store(dataset)
        association.release()


@contextmanager
def _a_gateway(receive_port: int, *, answers: bool = True) -> Iterator[_Peer]:
    peer = _Peer(receive_port, answers=answers)
    ae = AE(CALLED_AE_TITLE)
    ae.add_supported_context(CTImageStorage)
    ae.require_called_aet = True
    handlers = [(evt.EVT_C_STORE, peer.keep), (evt.EVT_RELEASED, peer.released)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    peer.port = server.server_address[1]
    try:
        yield peer
    finally:
        server.shutdown()


def test_each_study_is_new_and_waited_for(tmp_path: Path) -> None:
    """Three studies go out one after the other; the first one only warms up."""
    write_series(tmp_path / "study", a_ct_series(frames=3))
    receive_port = free_port()
    with _a_gateway(receive_port) as peer:
        sent, answered = drive(
            tmp_path, tmp_path / "study", port=peer.port, receive_port=receive_port, studies=2
        )
    assert len(set(peer.studies)) == 3
    assert (sent.name, sent.repetitions) == ("C-STORE, study sent", 2)
    assert (answered.name, answered.repetitions) == ("C-STORE, study to result", 2)
    assert answered.median_s > sent.median_s > 0


def test_a_gateway_that_knows_another_title_is_named_as_the_reason(tmp_path: Path) -> None:
    """The person learns which two names must be in gateway.yaml."""
    write_series(tmp_path / "study", a_ct_series(frames=3))
    receive_port = free_port()
    ae = AE("SOMEBODY")
    ae.add_supported_context(CTImageStorage)
    ae.require_called_aet = True
    server = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        with pytest.raises(RoadFailed, match=r"gateway\.yaml"):
            drive(
                tmp_path,
                tmp_path / "study",
                port=server.server_address[1],
                receive_port=receive_port,
                studies=1,
            )
    finally:
        server.shutdown()


def test_a_result_that_does_not_come_is_a_failure(tmp_path: Path, repository_root: Path) -> None:
    """A study that gets lost ends the run with an exit code that a script sees."""
    write_series(tmp_path / "study", a_ct_series(frames=3))
    receive_port = free_port()
    locust = [sys.executable, "-m", "locust", "-f", str(repository_root / "perf/locustfile.py")]
    with _a_gateway(receive_port, answers=False) as peer:
        answer = subprocess.run(
            [
                *locust,
                *("--headless", "--only-summary", "--users", "1", "--exit-code-on-error", "1"),
                *("--host", f"127.0.0.1:{peer.port}", "--study", str(tmp_path / "study")),
                *("--studies", "1", "--receive-port", str(receive_port)),
                *("--result-timeout", "0.5"),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=repository_root,
        )
    assert answer.returncode == 1
    assert "no result within 0.5 s" in answer.stdout + answer.stderr
