"""Who may come in over HTTP, how long they may be silent, and what a supervisor is told."""

from __future__ import annotations

import asyncio
import select
import socket
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
import requests
from pydantic import ValidationError

from dicom_gateway.config_web import PacsPeer, WebSettings
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.web.protocol import LimitedHttp
from dicom_gateway.web.server import WebServer
from tests.support.certificates import an_authority
from tests.support.dicom import a_ct_series, an_arrival, as_file_bytes
from tests.support.dicomweb import TOKEN, an_open_web, ask, multipart
from tests.support.patience import until

OTHER = "another-token-that-is-long"


def a_caller(folder: Path, name: str, token: str, **more: object) -> dict[str, object]:
    """One of `web.callers`, known by a token in a file."""
    path = folder / f"{name}.token"
    path.write_text(token + "\n", encoding="ascii")
    return {"calling-ae-title": name, "token-file": str(path), **more}


def bearer(token: str) -> dict[str, str]:
    """The header."""
    return {"Authorization": f"Bearer {token}"}


def test_a_token_names_its_caller_and_its_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a file or the environment; no token, no answer; a token is never logged."""
    monkeypatch.setenv("TRITOME_TEST_TOKEN", OTHER)
    callers = [
        a_caller(tmp_path, "SCANNER", TOKEN, rights=["store"]),
        {"calling-ae-title": "VIEWER", "token-environment": "TRITOME_TEST_TOKEN"},
    ]
    (ds,) = a_ct_series(frames=1)
    body, kind = multipart([as_file_bytes(ds)])
    with an_open_web(tmp_path / "store", callers=callers) as web:
        url = f"{web.url}/studies"
        for headers in ({}, bearer("x" * 20), {"Authorization": f"Basic {TOKEN}"}, bearer("")):
            refused = ask(url, headers=headers)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        assert ask(url, "POST", data=body, headers=kind | bearer(TOKEN)).status_code == 200
        assert ask(url, headers=bearer(TOKEN)).status_code == 403
        assert len(ask(url, headers=bearer(OTHER)).json()) == 1
        kept = web.keeping.index.load_series(str(ds.SeriesInstanceUID), "LUNG")
        assert ask(f"http://127.0.0.1:{web.port}/health").json() == {"status": "ok"}
    assert kept.calling_ae_title == "SCANNER"
    written = capsys.readouterr()
    assert TOKEN not in written.out + written.err
    assert OTHER not in written.out + written.err


def test_an_answer_in_two_pieces_goes_out_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its body doesn't wait until the peer has acknowledged the header."""
    options = []
    made = LimitedHttp.connection_made

    def noting(self: LimitedHttp, transport: asyncio.Transport) -> None:
        accepted = transport.get_extra_info("socket")
        options.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(LimitedHttp, "connection_made", noting)
    with an_open_web(tmp_path) as web:
        assert ask(f"http://127.0.0.1:{web.port}/health").status_code == 200
    assert all(options)
    assert options


def test_an_address_can_be_the_proof_and_several_proofs_must_all_hold(tmp_path: Path) -> None:
    """A token from the wrong place is no token."""
    elsewhere = a_caller(tmp_path, "ELSEWHERE", TOKEN, **{"host-ip": "192.0.2.1"})
    with an_open_web(tmp_path / "one", callers=[elsewhere]) as web:
        assert ask(f"{web.url}/studies", headers=bearer(TOKEN)).status_code == 401
    here = {"calling-ae-title": "HERE", "host-ip": "127.0.0.1"}
    with an_open_web(tmp_path / "two", callers=[elsewhere, here]) as web:
        assert ask(f"{web.url}/studies").status_code == 204


def test_without_callers_only_loopback_names_are_answered(tmp_path: Path) -> None:
    """A page in a browser that leads its own name to 127.0.0.1 gets nothing."""
    with an_open_web(tmp_path) as web:
        assert ask(f"{web.url}/studies", headers={"Host": "evil.example"}).status_code == 401
        assert ask(f"{web.url}/studies", headers={"Host": "localhost:1"}).status_code == 204


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "list who may ask"),
        ({"host": "0.0.0.0", "callers": [{"calling-ae-title": "A", "host-ip": "10.0.0.1"}]}, "tls"),
        ({"callers": [{"calling-ae-title": "A"}]}, "say how it is known"),
    ],
)
def test_settings_that_would_let_everybody_in_are_refused(
    settings: dict[str, object], words: str
) -> None:
    """With a sentence of what is missing."""
    with pytest.raises(ValidationError, match=words):
        WebSettings.model_validate({"enabled": True, **settings})
    with pytest.raises(ValidationError, match="either dimse"):
        PacsPeer.model_validate({"name": "a", "called-ae-title": "A"})


def test_a_token_that_is_missing_or_short_keeps_the_gateway_from_starting(tmp_path: Path) -> None:
    """Rather than a door without a lock."""
    for caller in (
        {"calling-ae-title": "A", "token-file": str(tmp_path / "nowhere")},
        {"calling-ae-title": "A", "token-environment": "TRITOME_NOT_SET"},
        a_caller(tmp_path, "A", "short"),
    ):
        settings = WebSettings.model_validate({"enabled": True, "callers": [caller]})
        with pytest.raises(ConfigurationError, match="token"):
            WebServer(settings, lambda *_: None)  # type: ignore[arg-type,return-value]


def test_silent_peers_shut_nobody_out(tmp_path: Path) -> None:
    """Of too many that say nothing the oldest goes, and all of them after their time."""
    limits = {"max-connections": 8, "request-timeout-s": 1.0}
    with an_open_web(tmp_path, **limits) as web, ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            for _ in range(40)
        ]
        for one in silent[::2]:
            one.sendall(b"GET /health HT")
        assert ask(f"http://127.0.0.1:{web.port}/health").status_code == 200
        for one in silent:
            one.settimeout(30)
            assert _is_closed(one)


def test_silent_peers_shut_nobody_out_of_https_either(tmp_path: Path) -> None:
    """Before the handshake too, of too many the oldest goes."""
    authority = an_authority(tmp_path)
    ours = authority.sign("gateway")
    tls = {"certificate-file": str(ours.certificate), "key-file": str(ours.key)}
    limits = {"max-connections": 8, "request-timeout-s": 60}
    with an_open_web(tmp_path / "store", tls=tls, **limits) as web, ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            for _ in range(40)
        ]
        url = f"https://127.0.0.1:{web.port}/health"
        assert ask(url, verify=str(authority.certificate)).status_code == 200
        for one in silent[:32]:
            one.settimeout(30)
            assert _is_closed(one)


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_body_that_stalls_is_given_up_and_its_series_knows(tmp_path: Path) -> None:
    """Its request ends as a lost connection would."""
    body, headers = multipart([as_file_bytes(ds) for ds in a_ct_series(frames=2)])
    head = (
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: {headers['Content-Type']}\r\n\r\n"
    )
    with (
        an_open_web(tmp_path, **{"idle-timeout-s": 0.5}) as web,
        socket.create_connection(("127.0.0.1", web.port)) as peer,
    ):
        peer.sendall(head.encode() + body[:-100])
        peer.settimeout(30)
        assert b" 408 " in peer.recv(100)
        until(lambda: web.ended)
        assert [in_order for _, in_order in web.ended] == [False]


def test_who_sends_much_still_reads_why_it_is_not_taken(tmp_path: Path) -> None:
    """Most clients read nothing before all is sent; the answer waits for them."""
    body, kind = multipart([bytes(64 << 20)])
    stow = {"max-request-bytes": 1 << 20}
    with an_open_web(
        tmp_path / "store", stow=stow, callers=[a_caller(tmp_path, "SCANNER", TOKEN)]
    ) as web:
        answers = []
        for token in ("x" * 20, TOKEN):
            with closing(HTTPConnection("127.0.0.1", web.port, timeout=60)) as peer:
                peer.request("POST", "/dicom-web/studies", body, kind | bearer(token))
                answers.append(peer.getresponse().status)
    assert answers == [401, 413]


def test_a_peer_that_reads_nothing_keeps_no_connection(tmp_path: Path) -> None:
    """Neither while its answer is under way, nor when the gateway has closed it."""
    (ds,) = a_ct_series(frames=1, rows=2048, columns=4096)
    own = psutil.Process()
    with (
        an_open_web(tmp_path, **{"idle-timeout-s": 0.5}) as web,
        socket.create_connection(("127.0.0.1", web.port)) as peer,
    ):
        web.keeping.store.keep(an_arrival(ds))
        study = f"/dicom-web/studies/{ds.StudyInstanceUID}"
        peer.sendall(f"GET {study} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        until(lambda: select.select([peer], [], [], 0)[0])
        name = peer.getsockname()
        until(lambda: name not in [one.raddr for one in own.net_connections("tcp")])


def test_too_long_a_header_is_400(tmp_path: Path) -> None:
    """And not a memory full of it."""
    with (
        an_open_web(tmp_path, **{"max-header-bytes": 4096}) as web,
        socket.create_connection(("127.0.0.1", web.port)) as peer,
    ):
        peer.settimeout(30)
        peer.sendall(b"GET /health HTTP/1.1\r\nX-Long: " + b"x" * 5000)
        assert b" 400 " in peer.recv(100)


def test_health_says_only_that_something_is_wrong(tmp_path: Path) -> None:
    """503 with the names of the parts."""
    with an_open_web(tmp_path, troubles={"judge": "has died"}) as web:
        answer = ask(f"http://127.0.0.1:{web.port}/health")
    assert answer.status_code == 503
    assert answer.json() == {"status": "not well", "parts": ["judge"]}


def test_health_is_answered_however_busy_the_gateway_is(tmp_path: Path) -> None:
    """A supervisor must not end it for that."""
    request = (
        "POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n"
        "Content-Type: multipart/related; boundary=B\r\nExpect: 100-continue\r\n\r\n"
    )
    with ExitStack() as stack:
        web = stack.enter_context(an_open_web(tmp_path, **{"max-connections": 2}))
        for _ in range(2):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            peer.sendall(request.encode())
            assert b" 100 " in peer.recv(100)
        assert ask(f"{web.url}/studies").status_code == 503
        assert ask(f"http://127.0.0.1:{web.port}/health").status_code == 200


def test_a_busy_port_is_said_with_its_setting(tmp_path: Path) -> None:
    """The operator reads what to change."""
    with an_open_web(tmp_path) as web:
        second = WebServer(
            WebSettings(enabled=True, port=web.port),
            lambda *_: None,  # type: ignore[arg-type,return-value]
        )
        with pytest.raises(ConfigurationError, match=r"web\.port"):
            second.start()


def test_https_with_a_client_certificate_names_the_caller(tmp_path: Path) -> None:
    """The certificate's digest is the proof; a stranger's doesn't even get a connection."""
    (tmp_path / "ca").mkdir()
    (tmp_path / "others").mkdir()
    authority, others = an_authority(tmp_path / "ca"), an_authority(tmp_path / "others")
    ours, known = authority.sign("gateway"), authority.sign("viewer")
    unlisted, stranger = authority.sign("unlisted"), others.sign("stranger")
    settings = {
        "tls": {
            "certificate-file": str(ours.certificate),
            "key-file": str(ours.key),
            "client-ca-file": str(authority.certificate),
        },
        "callers": [{"calling-ae-title": "VIEWER", "certificate-sha256": known.sha256}],
    }
    with an_open_web(tmp_path / "store", **settings) as web:
        url = f"https://127.0.0.1:{web.port}/dicom-web/studies"
        trust = {"verify": str(authority.certificate)}
        answers = [
            ask(url, cert=(str(one.certificate), str(one.key)), **trust).status_code
            for one in (known, unlisted)
        ]
        with pytest.raises(requests.ConnectionError):
            ask(url, cert=(str(stranger.certificate), str(stranger.key)), **trust)
        with pytest.raises(requests.ConnectionError):
            ask(url, **trust)
    assert answers == [204, 401]
