"""A STOW-RS and QIDO-RS peer that answers what a test tells it to.

Comes in: answers, credentials, a certificate. Goes out: a listening HTTP server that remembers
what it was sent. Survives a crash: nothing.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydicom import dcmread

from tests.support.certificates import Credentials

Answer = tuple[int, dict[str, Any] | bytes | None]
"""HTTP status and DICOM JSON, or a body as it is."""


def failed(reason: int) -> dict[str, Any]:
    """A store response in which the object failed."""
    return {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}


def stored(warning: int | None = None, uid: str | None = None) -> dict[str, Any]:
    """A store response in which the object was stored: the one that came, or another one."""
    item = {} if warning is None else {"00081196": {"vr": "US", "Value": [warning]}}
    if uid is not None:
        item["00081155"] = {"vr": "UI", "Value": [uid]}  # type: ignore[dict-item]
    return {"00081199": {"vr": "SQ", "Value": [item]}}


@dataclass
class WebPacs:
    """What the peer answers next, and what it has seen.

    Attributes:
        answers: In order; the last one is repeated.
        objects: The DICOM files that were sent, whatever was answered.
        kept: SOP Instance UIDs that a query finds.
        loses: How many of the next stored objects it doesn't have afterwards.
        authorization: Of each request.
    """

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    objects: list[bytes] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    loses: int = 0
    authorization: list[str] = field(default_factory=list)


@contextmanager
def a_web_pacs(
    answers: Sequence[Answer] = ((200, stored()),), *, tls: Credentials | None = None
) -> Iterator[WebPacs]:
    """Listens on loopback while the block lasts."""
    pacs = WebPacs(answers=list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            pacs.authorization.append(self.headers.get("Authorization", ""))
            header = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            whole = message_from_bytes(header + body, policy=policy.HTTP)
            for part in whole.iter_parts():
                content = part.get_payload(decode=True)
                assert isinstance(content, bytes)
                pacs.objects.append(content)
            status, told = pacs.answers.pop(0) if len(pacs.answers) > 1 else pacs.answers[0]
            if status in (200, 202) and isinstance(told, dict) and "00081198" not in told:
                uid = str(dcmread(BytesIO(pacs.objects[-1])).SOPInstanceUID)
                (item,) = told["00081199"]["Value"]
                named = {"00081155": {"vr": "UI", "Value": [uid]}} | item
                told = {"00081199": {"vr": "SQ", "Value": [named]}}
                if pacs.loses > 0:
                    pacs.loses -= 1
                else:
                    pacs.kept.add(uid)
            self._answer(status, told)

        def do_GET(self) -> None:
            pacs.authorization.append(self.headers.get("Authorization", ""))
            uid = parse_qs(urlsplit(self.path).query)["SOPInstanceUID"][0]
            found = [{"00080018": {"vr": "UI", "Value": [uid]}}] if uid in pacs.kept else []
            self._answer(200, found)

        def _answer(self, status: int, told: Any) -> None:
            content = told if isinstance(told, bytes) else json.dumps(told).encode()
            content = b"" if told is None else content
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if tls is None else "https"
    pacs.url = f"{scheme}://127.0.0.1:{server.server_address[1]}/dicom-web"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield pacs
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
