"""The locust file, run by locust, against a scripted peer in the gateway's place."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
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
        self.stored: list[tuple[str, int]] = []
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


class _Web(BaseHTTPRequestHandler):
    """Takes studies by STOW-RS as the peer does by C-STORE; knows whatever it is asked for."""

    protocol_version = "HTTP/1.1"
    peer: _Peer
    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """A question."""
        self.asked.append(self.path)
        self._answer()

    def do_POST(self) -> None:
        """A study, in chunks."""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        boundary = b"--" + self.headers["Content-Type"].rpartition("boundary=")[2].encode()
        parts = [one.partition(b"\r\n\r\n")[2] for one in body.split(boundary)[1:-1]]
        dataset = pydicom.dcmread(io.BytesIO(parts[-1]))
        self.peer.stored.append((str(dataset.StudyInstanceUID), len(parts)))
        self._answer()
        threading.Thread(target=self.peer.send, args=(dataset,)).start()

    def _answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_with_a_web_side_studies_go_both_ways_and_the_api_is_asked(tmp_path: Path) -> None:
    """By C-STORE and by STOW-RS in turns, and after each one what the gateway holds of it."""
    write_series(tmp_path / "study", a_ct_series(frames=3))
    receive_port = free_port()
    with _a_gateway(receive_port) as peer:
        handler = type("Handler", (_Web,), {"peer": peer, "asked": []})
        web = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=web.serve_forever).start()
        try:
            found = drive(
                tmp_path,
                tmp_path / "study",
                port=peer.port,
                receive_port=receive_port,
                studies=1,
                web_port=web.server_port,
            )
        finally:
            web.shutdown()
            web.server_close()
    assert len(peer.studies) == len(peer.stored) == 2
    assert {count for _, count in peer.stored} == {3}
    assert {one.name: one.repetitions for one in found} == {
        "C-STORE, study sent": 1,
        "C-STORE, study to result": 1,
        "STOW-RS, study sent": 1,
        "STOW-RS, study to result": 1,
        "API, health": 19,
        "API, QIDO-RS, series of a study": 19,
        "API, QIDO-RS, its instances": 19,
        "API, WADO-RS, an instance": 19,
    }
    last = f"/dicom-web/{CALLED_AE_TITLE}/studies/{peer.stored[-1][0]}/series"
    assert handler.asked.count(last) == 5
    assert handler.asked.count("/health") == 20


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
