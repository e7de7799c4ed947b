"""Asking a PACS: what each of its answers, and each of its silences, is called."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from dicom_gateway.config_web import PacsPeer
from dicom_gateway.errors import GatewayError, PeerRefused, PeerUnavailable
from dicom_gateway.receive import pacs_dimse
from dicom_gateway.receive.pacs_dicomweb import DicomwebPacs
from dicom_gateway.receive.pacs_dimse import DimsePacs
from dicom_gateway.receive.retrieve import RemoteSeries, Retrieved
from dicom_gateway.receive.stow import BodyIntake, BodyLimits
from tests.support.dicom import CANARY, a_ct_series, an_arrival, as_file_bytes
from tests.support.dicomweb import an_open_web, multipart
from tests.support.gateway import a_store
from tests.support.peers import free_port

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
LIMITS = BodyLimits(1 << 26, 1 << 26, 1 << 16)
ONE = RemoteSeries("1.2", "1.2.3", 2)
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(autouse=True)
def _dropped_sockets() -> Iterator[None]:
    """Sockets of refused connections, which pynetdicom drops without closing them."""
    yield
    gc.collect()


# DICOMweb ------------------------------------------------------------------------------


def a_web_peer(url: str, folder: Path, keep: Any, ended: list[bool]) -> DicomwebPacs:
    """A client of the PACS at `url`."""
    peer = PacsPeer.model_validate(
        {"name": "cloud", "called-ae-title": "LUNG", "dicomweb": {"url": url}, "timeout-s": 5}
    )
    intake = BodyIntake(folder, keep, lambda _, in_order: ended.append(in_order))
    return DicomwebPacs(peer, "token", intake, LIMITS)


@contextmanager
def a_scripted_web(answer: Callable[[str], Answer]) -> Iterator[str]:
    """An HTTP server that answers so to each path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_study_goes_from_one_store_into_another(tmp_path: Path) -> None:
    """Our own web side as the PACS; also where it gives its answers in pages."""
    series = a_ct_series(frames=3)
    with an_open_web(tmp_path / "there") as there, a_store(tmp_path / "here") as here:
        for ds in series:
            there.keeping.store.keep(an_arrival(ds))
        ended: list[bool] = []
        seen: list[tuple[int, int]] = []
        client = a_web_peer(f"{there.url}/", here.folder / "incoming", here.store.keep, ended)
        (one,) = client.find({"PatientID": f"{CANARY}*"}, [])
        assert one.instances == len(series)
        assert client.find({"PatientID": f"{CANARY}*"}, ["1.9"]) == []
        assert client.find({"StudyInstanceUID": one.study_instance_uid, "Modality": "MR"}, []) == []

        def note(completed: int, failed: int) -> bool:
            seen.append((completed, failed))
            return True

        assert client.retrieve(one, "LUNG", note) == Retrieved(3, 0)
        kept = here.index.load_series(one.series_instance_uid, "LUNG")
        client.close()
    assert len(kept.instances) == 3
    assert seen[-1] == (3, 0)
    assert ended == [True]


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, PeerRefused, "doesn't let us in"),
        (302, PeerRefused, "check its url"),
        (400, PeerRefused, "check its url"),
        (503, PeerUnavailable, "can't answer just now"),
        (200, PeerRefused, "no JSON"),
    ],
)
def test_each_http_status_has_a_name(
    tmp_path: Path, status: int, error: type[GatewayError], words: str
) -> None:
    """And what the peer says itself isn't repeated: it may quote the query."""
    with a_scripted_web(lambda _: (status, {"Location": "/"}, CANARY.encode())) as url:
        client = a_web_peer(url, tmp_path, None, [])
        with pytest.raises(error, match=words) as raised:
            client.find({"PatientName": CANARY}, [])
        client.close()
    assert CANARY not in str(raised.value)


def test_a_peer_that_is_away_or_silent_is_unavailable(tmp_path: Path) -> None:
    """Nobody listens there; or somebody who says nothing."""
    client = a_web_peer(f"http://127.0.0.1:{free_port()}", tmp_path, None, [])
    with pytest.raises(PeerUnavailable, match="can't be reached"):
        client.find({"PatientID": "1"}, [])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        peer = PacsPeer.model_validate(
            {"name": "c", "called-ae-title": "A", "dicomweb": {"url": url}, "timeout-s": 0.3}
        )
        quiet = DicomwebPacs(peer, None, client._intake, LIMITS)
        with pytest.raises(PeerUnavailable, match=r"no answer within 0\.3 s"):
            quiet.find({"PatientID": "1"}, [])
        quiet.close()
    client.close()


def test_bodies_that_cannot_be_taken_are_said_so(tmp_path: Path) -> None:
    """Cut off, of another kind, or gone; what came whole before is kept."""
    series = a_ct_series(frames=2, study_instance_uid="1.2", series_instance_uid="1.2.3")
    body, headers = multipart([as_file_bytes(ds) for ds in series])
    answers: dict[str, Answer] = {
        "can't be taken: the body ended": (200, headers, body[:-100]),
        "can't be reached": (200, headers | {"Content-Length": "999999999"}, body),
        "another form": (200, {"Content-Type": "application/zip"}, b"PK"),
    }
    for words, answer in answers.items():
        with a_scripted_web(lambda _, answer=answer: answer) as url, a_store(tmp_path) as here:  # type: ignore[misc]
            client = a_web_peer(url, here.folder / "incoming", here.store.keep, [])
            with pytest.raises(GatewayError, match=words):
                client.retrieve(ONE, "LUNG", lambda *_: True)
            client.close()
    with a_scripted_web(lambda _: (404, {}, b"")) as url:
        gone = a_web_peer(url, tmp_path, None, []).retrieve(ONE, "LUNG", lambda *_: True)
    assert (gone.completed, gone.failed) == (0, 2)
    assert "has the series no more" in gone.trouble


# DIMSE ---------------------------------------------------------------------------------


def a_dimse_peer(port: int, timeout_s: float = 5.0, host_ip: str = "127.0.0.1") -> DimsePacs:
    """A client of the PACS at that port."""
    peer = PacsPeer.model_validate(
        {
            "name": "archive",
            "called-ae-title": "LUNG",
            "dimse": {"host-ip": host_ip, "port": port, "ae-title": "ARCHIVE"},
            "timeout-s": timeout_s,
        }
    )
    return DimsePacs(peer, "TRITOME")


@contextmanager
def a_scripted_dimse(
    find: Callable[[Dataset], Iterator[Any]] | None = None,
    move: Callable[[Dataset], Iterator[Any]] | None = None,
    *,
    title: str = "ARCHIVE",
    contexts: tuple[str, ...] = (
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelMove,
    ),
) -> Iterator[int]:
    """A PACS that answers so; gives its port."""
    entity = AE(title)
    entity.require_called_aet = True
    for context in contexts:
        entity.add_supported_context(context)
    handlers = []
    if find is not None:
        handlers.append((evt.EVT_C_FIND, lambda event: find(event.identifier)))
    if move is not None:
        handlers.append((evt.EVT_C_MOVE, lambda event: move(event.identifier)))
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def test_series_without_a_stated_count_are_counted(tmp_path: Path) -> None:
    """Keys go to their level; a PACS may leave optional return keys empty."""
    asked: list[tuple[str, str, str]] = []

    def find(query: Dataset) -> Iterator[Any]:
        level = str(query.QueryRetrieveLevel)
        asked.append((level, str(query.get("PatientID", "-")), str(query.get("Modality", "-"))))
        for number in range(3 if level == "IMAGE" else 1):
            found = Dataset()
            found.QueryRetrieveLevel = level
            found.StudyInstanceUID, found.SeriesInstanceUID = "1.2", "1.2.3"
            if level == "IMAGE":
                found.SOPInstanceUID = f"1.2.3.{number}"
            yield 0xFF00, found

    with a_scripted_dimse(find) as port:
        client = a_dimse_peer(port)
        found = client.find({"PatientID": "Müller", "Modality": "CT"}, [])
        client.close()
    assert found == [RemoteSeries("1.2", "1.2.3", 3)]
    assert asked == [("STUDY", "Müller", "-"), ("SERIES", "-", "CT"), ("IMAGE", "-", "-")]


def test_a_refused_search_and_a_refused_association_are_said_so() -> None:
    """With what to look at."""

    def find(_: Dataset) -> Iterator[Any]:
        yield 0xA900, None

    with a_scripted_dimse(find) as port:
        client = a_dimse_peer(port)
        with pytest.raises(PeerRefused, match="0xA900; it may not know one of the keys"):
            client.find({"PatientID": "1"}, [])
        client.close()
    with a_scripted_dimse(title="OTHER") as port, pytest.raises(PeerRefused, match="must know our"):
        a_dimse_peer(port).find({"PatientID": "1"}, [])
    with (
        a_scripted_dimse(contexts=(Verification,)) as port,
        pytest.raises(PeerRefused, match="offers no C-FIND"),
    ):
        a_dimse_peer(port).find({"PatientID": "1"}, [])
    with pytest.raises(PeerUnavailable, match="can't be reached"):
        a_dimse_peer(free_port()).find({"PatientID": "1"}, [])
    with pytest.raises(PeerUnavailable, match="check host-ip"):
        a_dimse_peer(104, host_ip="pacs.invalid").find({"PatientID": "1"}, [])


@pytest.mark.parametrize("level", ["STUDY", "SERIES"])
def test_a_search_that_finds_too_much_is_refused_and_never_cut_off(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """Nobody would know which studies are not fetched."""
    monkeypatch.setattr(pacs_dimse, "_RESULTS_LIMIT", 4)

    def find(query: Dataset) -> Iterator[Any]:
        asked = str(query.QueryRetrieveLevel)
        for number in range(count if asked == level else 1):
            found = Dataset()
            found.QueryRetrieveLevel = asked
            found.StudyInstanceUID = f"1.2.{number}"
            found.SeriesInstanceUID = f"1.2.3.{number}"
            found.NumberOfSeriesRelatedInstances = "7"
            yield 0xFF00, found

    for count in (4, 5):
        with a_scripted_dimse(find) as port:
            client = a_dimse_peer(port)
            if count == 4:
                assert len(client.find({"PatientID": "1"}, [])) == count
            else:
                with pytest.raises(PeerRefused, match=f"more than 4 on {level.lower()} level"):
                    client.find({"PatientID": "1"}, [])
            client.close()


def test_an_unknown_destination_is_named() -> None:
    """PS3.4 C.4.2.1.5: 0xA801; sub-operations are counted in `tests/system/test_fetch.py`."""

    def unknown(_: Dataset) -> Iterator[Any]:
        yield None, None

    with a_scripted_dimse(move=unknown) as port:
        client = a_dimse_peer(port)
        ended = client.retrieve(ONE, "LUNG", lambda *_: True)
        client.close()
    assert ended.completed == 0
    assert "doesn't know where 'LUNG' is (0xA801)" in ended.trouble
