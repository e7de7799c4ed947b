"""DICOMweb for the tests: a gateway with its web side open, an Orthanc with its plugin.

Comes in: a folder. Goes out: a running peer and its URL, as seen from this machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset

from dicom_gateway.config_web import WebSettings
from dicom_gateway.receive.stow import BodyIntake, BodyLimits
from dicom_gateway.records import Arrival, Instance
from dicom_gateway.web import Catalogue, WebServer, build_application, dicomweb, health
from dicom_gateway.web import metrics as metrics_page
from tests.support.dicom import as_file_bytes
from tests.support.gateway import Keeping, a_store
from tests.support.orthanc import Orthanc, orthanc
from tests.support.processes import MissingPeer
from tests.support.road import GatewayProcess, a_gateway

TOKEN = "a-token-that-only-the-tests-know"
METRICS = b"tritome_triton_up 1.0\n"
"""What /metrics says."""
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_NO_TRITON = "127.0.0.1:1"


@dataclass(frozen=True)
class OpenWeb:
    """A web side in this process, on a store of its own.

    Attributes:
        ended: (association id, in order) of each body that brought something.
    """

    url: str
    port: int
    keeping: Keeping
    catalogue: Catalogue
    ended: list[tuple[str, bool]]


@contextmanager
def an_open_web(
    folder: Path,
    *,
    keep: Callable[[Arrival], Instance] | None = None,
    troubles: Mapping[str, str] | None = None,
    titles: Sequence[str] = ("LUNG", "HEAD"),
    database_url: str | None = None,
    **settings: Any,
) -> Iterator[OpenWeb]:
    """Answers HTTP for LUNG and HEAD on loopback while the block lasts.

    Args:
        folder: Of the store.
        keep: In place of the store's own.
        troubles: What /health shall say.
        titles: Called AE titles, the default one first.
        database_url: Of an empty index; SQLite where not given.
        **settings: Of `WebSettings`.
    """
    web = WebSettings(enabled=True, port=0, **settings)
    with a_store(folder, url=database_url) as keeping:
        ended: list[tuple[str, bool]] = []

        def note_the_end(association_id: str, in_order: bool) -> None:
            keeping.index.association_ended(association_id, in_order=in_order)
            ended.append((association_id, in_order))

        intake = BodyIntake(keeping.folder / "incoming", keep or keeping.store.keep, note_the_end)
        limits = BodyLimits(
            web.stow.max_request_bytes, web.stow.max_part_bytes, web.stow.part_memory_bytes
        )
        catalogue = Catalogue(keeping.engine, keeping.folder)
        application = build_application(
            health.routes(lambda: troubles or {}),
            metrics_page.routes(lambda: METRICS),
            dicomweb.routes(web, catalogue, partial(intake.open, limits=limits), titles),
        )
        server = WebServer(web, application)
        server.start()
        try:
            url = f"http://127.0.0.1:{server.port}"
            yield OpenWeb(f"{url}/dicom-web", server.port, keeping, catalogue, ended)
        finally:
            server.stop()


def ask(url: str, method: str = "GET", **more: Any) -> requests.Response:
    """One request, past any proxy of this machine."""
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, timeout=60, **more)


@contextmanager
def a_web_gateway(
    folder: Path, *, web: Mapping[str, Any] | None = None, **sections: Any
) -> Iterator[tuple[GatewayProcess, str]]:
    """A gateway process without Triton, and the URL of its DICOMweb root on loopback."""
    settings = {"enabled": True, "port": 0, **(web or {})}
    with a_gateway(folder, triton=_NO_TRITON, web=settings, **sections) as gateway:
        yield gateway, f"http://127.0.0.1:{web_port(gateway)}/dicom-web"


def web_port(gateway: GatewayProcess) -> int:
    """Where it answers HTTP."""
    ready = json.loads((gateway.folder / "ready.json").read_text(encoding="ascii"))
    return int(ready["web_port"])


@contextmanager
def a_dicomweb_orthanc(
    folder: Path,
    *,
    servers: Mapping[str, Mapping[str, Any]] | None = None,
    known: Mapping[str, tuple[str, str, int]] | None = None,
) -> Iterator[tuple[Orthanc, str]]:
    """An Orthanc with its DICOMweb plugin, and the URL of its DICOMweb root."""
    if not _PLUGIN.exists():
        msg = "the test needs Orthanc's DICOMweb plugin; 'make peers' installs orthanc-dicomweb"
        raise MissingPeer(msg)
    settings = {
        "Plugins": [str(_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Servers": dict(servers or {})},
    }
    with orthanc(folder, known=known, settings=settings) as peer:
        yield peer, f"http://{peer.host}:{peer.http_port}/dicom-web"


def a_client(url: str, token: str | None = None) -> DICOMwebClient:
    """dicomweb-client, for a peer on this machine."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    client = DICOMwebClient(url, headers=headers)
    client._session.trust_env = False  # a proxy must not be asked for our own peers
    return client


def as_read(datasets: Iterable[Dataset]) -> list[Dataset]:
    """The data sets as somebody has them who read them from files."""
    return [pydicom.dcmread(BytesIO(as_file_bytes(ds))) for ds in datasets]


def multipart(
    parts: Sequence[bytes], *, boundary: str = "BOUNDARY", kind: str = "application/dicom"
) -> tuple[bytes, dict[str, str]]:
    """A multipart/related body and its header."""
    body = b"".join(
        f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode() + part + b"\r\n" for part in parts
    )
    content_type = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return body + f"--{boundary}--\r\n".encode(), {"Content-Type": content_type}
