"""The TLS port, with real peers: dcmtk's storescu and pynetdicom, certificates by openssl."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog.testing
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from dicom_gateway.config import ScpSettings
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.receive import Receiver
from dicom_gateway.tls import client_context, server_context
from tests.support.certificates import Authority, Credentials, an_authority, with_passphrase
from tests.support.dicom import a_ct_series, encoded, write_series
from tests.support.gateway import Door, an_open_door
from tests.support.peers import echoscu, storescu
from tests.support.raw_peer import (
    ASSOCIATE_AC,
    P_DATA,
    a_store,
    an_association_request,
    an_echo,
    usual_contexts,
)

T = TypeVar("T")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the hospital's certificates."""
    return an_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Credentials:
    """The gateway's own."""
    return authority.sign("gateway")


@pytest.fixture(scope="module")
def scanner(authority: Authority) -> Credentials:
    """A scanner's."""
    return authority.sign("ct1.radiology")


@contextmanager
def a_tls_door(
    folder: Path, authority: Authority, ours: Credentials, **settings: Any
) -> Iterator[Door]:
    """A plain and a TLS port side by side; the latter wants a certificate."""
    tls = {
        "port": 0,
        "certificate-file": ours.certificate,
        "key-file": ours.key,
        "client-ca-file": authority.certificate,
        **settings.pop("tls", {}),
    }
    with an_open_door(folder, tls=tls, **settings) as door:
        yield door


def dcmtk_tls(authority: Authority, own: Credentials) -> list[str]:
    """Options with which dcmtk's programs call by TLS."""
    files = ["--enable-tls", own.key, own.certificate, "--add-cert-file", authority.certificate]
    return [str(one) for one in files]


@contextmanager
def a_call(
    port: int, context: ssl.SSLContext | None, calling: str = "SENDER"
) -> Iterator[Association]:
    """An association of pynetdicom's, not yet checked for being established."""
    entity = AE(calling)
    entity.add_requested_context(Verification)
    tls_args = None if context is None else (context, "localhost")
    association = entity.associate("127.0.0.1", port, ae_title="LUNG", tls_args=tls_args)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        else:
            association.abort()
        if association.is_alive():
            association.join(10)


def is_let_in(port: int, context: ssl.SSLContext | None, calling: str = "SENDER") -> bool:
    """Whether an association comes about and an echo is answered."""
    with a_call(port, context, calling) as association:
        return association.is_established and association.send_c_echo().get("Status") == 0


def is_turned_away(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether the connection ends in the handshake, or where its outcome shows."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as raw:
        try:
            if context is None:
                raw.sendall(b"\1\0\0\0\0\xff" + b"\0" * 255)
                while raw.recv(64):
                    pass
                return True
            with context.wrap_socket(raw, server_hostname="localhost") as secured:
                return secured.recv(1) == b""
        except (ssl.SSLError, ConnectionError):
            return True


def test_dcmtk_stores_over_tls_beside_a_plain_port(
    tmp_path: Path, authority: Authority, ours: Credentials, scanner: Credentials
) -> None:
    """Every byte as it was, on either port, in the profile of BCP 195."""
    first, second = a_ct_series(3), a_ct_series(2)
    with a_tls_door(tmp_path / "store", authority, ours) as door:
        secret = storescu(
            write_series(tmp_path / "tls", first),
            "localhost",
            door.tls_port,
            called="LUNG",
            options=dcmtk_tls(authority, scanner),
        )
        plain = storescu(
            write_series(tmp_path / "plain", second), "127.0.0.1", door.port, called="LUNG"
        )

        assert (secret.exit_code, plain.exit_code) == (0, 0), secret.output + plain.output
        kept = {i.sop_instance_uid: i.path.read_bytes() for i in door.kept}
        assert len(kept) == 5
        assert all(kept[ds.SOPInstanceUID].endswith(encoded(ds)) for ds in first + second)


def test_who_shows_no_known_certificate_is_turned_away(
    tmp_path: Path, authority: Authority, ours: Credentials, scanner: Credentials
) -> None:
    """None at all, one that a stranger signed, no TLS; others are served on, nothing is kept."""
    stranger = an_authority(tmp_path / "stranger", "somebody else").sign("ct1.radiology")
    with a_tls_door(tmp_path / "store", authority, ours, handshake_timeout_s=60.0) as door:
        port, known = door.tls_port, authority.certificate
        assert is_turned_away(port, client_context(known))
        assert is_turned_away(port, client_context(known, stranger.certificate, stranger.key))
        assert is_turned_away(port, None)
        assert is_let_in(port, client_context(known, scanner.certificate, scanner.key))
        door.wait_until(lambda: bool(door.ended))
        assert len(door.ended) == 1


@pytest.mark.parametrize("by", ["name", "fingerprint"])
def test_a_title_bound_to_a_certificate_is_good_with_that_one_only(
    tmp_path: Path, authority: Authority, ours: Credentials, scanner: Credentials, by: str
) -> None:
    """By a name in it or by its fingerprint; another's certificate and the plain port are not."""
    shown = "CT1.radiology" if by == "name" else f"sha256:{scanner.sha256.upper()}"
    other = authority.sign("mr2.radiology")
    sources = [{"ae-title": "CT1", "certificates": [shown]}, {"ae-title": "MR2"}]
    with a_tls_door(
        tmp_path, authority, ours, sources=sources, reject_unknown_sources=True
    ) as door:
        known = authority.certificate
        as_scanner = client_context(known, scanner.certificate, scanner.key)
        as_other = client_context(known, other.certificate, other.key)
        assert is_let_in(door.tls_port, as_scanner, "CT1")
        assert is_let_in(door.tls_port, as_other, "MR2")
        assert is_let_in(door.port, None, "MR2")
        for port, context in ((door.tls_port, as_other), (door.port, None)):
            with a_call(port, context, "CT1") as association:
                assert association.is_rejected
                answer: Any = association.acceptor.primitive
                assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, 3)


def test_certificates_may_be_left_to_the_titles(
    tmp_path: Path, authority: Authority, ours: Credentials
) -> None:
    """With `optional` a peer without one comes in, under a title that isn't bound."""
    sources = [{"ae-title": "CT1", "certificates": ["ct1.radiology"]}, {"ae-title": "MR2"}]
    with a_tls_door(
        tmp_path,
        authority,
        ours,
        sources=sources,
        tls={"client-certificates": "optional"},
        plain=False,
    ) as door:
        assert door.receiver.port == door.tls_port
        assert is_let_in(door.tls_port, client_context(authority.certificate), "MR2")
        assert not is_let_in(door.tls_port, client_context(authority.certificate), "CT1")


def test_what_bcp_195_forbids_is_not_spoken(
    tmp_path: Path, authority: Authority, ours: Credentials, scanner: Credentials
) -> None:
    """A cipher without authenticated encryption finds no TLS here; one with it does."""
    with a_tls_door(tmp_path, authority, ours) as door:
        for ciphers, spoken in (("ECDHE+AESGCM", True), ("ECDHE-RSA-AES128-SHA256", False)):
            context = client_context(authority.certificate, scanner.certificate, scanner.key)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(ciphers)
            with socket.create_connection(("127.0.0.1", door.tls_port), timeout=30) as raw:
                try:
                    with context.wrap_socket(raw, server_hostname="localhost") as secured:
                        assert secured.version() == "TLSv1.2"
                        said = True
                except ssl.SSLError:
                    said = False
            assert said is spoken


def test_a_silent_tls_peer_holds_up_nobody(
    tmp_path: Path, authority: Authority, ours: Credentials
) -> None:
    """Half a handshake and none at all: the plain port and the TLS port go on."""
    with a_tls_door(tmp_path, authority, ours, handshake_timeout_s=1.0) as door:
        with (
            socket.create_connection(("127.0.0.1", door.tls_port), timeout=30) as silent,
            socket.create_connection(("127.0.0.1", door.tls_port), timeout=30) as halfway,
        ):
            halfway.sendall(b"\x16\x03\x01\x02\x00\x01")
            assert echoscu("127.0.0.1", door.port, called="LUNG").exit_code == 0
            assert silent.recv(1) == b""  # its time is over
            assert halfway.recv(64) in (b"", b"\x15\x03\x01\x00\x02\x02\x32")
        door.wait_until(lambda: not door.receiver.undecided)


def test_a_failed_handshake_is_one_line_in_the_log(
    tmp_path: Path, authority: Authority, ours: Credentials
) -> None:
    """An operator who sets up TLS sees who came and what was wrong."""
    with structlog.testing.capture_logs() as logs, a_tls_door(tmp_path, authority, ours) as door:
        assert is_turned_away(door.tls_port, client_context(authority.certificate))
        door.wait_until(lambda: not door.receiver.undecided)
    (line,) = [one for one in logs if one["event"] == "TLS handshake failed"]
    assert line["host_ip"] == "127.0.0.1"
    assert "CERTIFICATE" in line["reason"]


def test_what_is_wrong_with_a_certificate_is_said_at_the_start(
    tmp_path: Path, authority: Authority, ours: Credentials
) -> None:
    """One sentence for each mistake, before a peer meets it."""
    expired = authority.sign("expired", days=-1)
    (tmp_path / "junk").write_text("no certificate", encoding="ascii")
    wrong: dict[str, tuple[Path, Path, Path | None]] = {
        "can't be read \\(No such file": (tmp_path / "nowhere", ours.key, None),
        "not the one of the certificate": (ours.certificate, expired.key, None),
        "certificate has expired; have it renewed": (expired.certificate, expired.key, None),
        "has a passphrase": (ours.certificate, with_passphrase(ours.key, "abcd"), None),
        "both must be PEM files": (tmp_path / "junk", ours.key, None),
        "must be a PEM file of certificates": (ours.certificate, ours.key, tmp_path / "junk"),
    }
    for sentence, (certificate, key, ca) in wrong.items():
        with pytest.raises(ConfigurationError, match=sentence):
            server_context(certificate, key, ca, client_required=True)


def test_a_door_with_a_bad_certificate_does_not_open(
    tmp_path: Path, authority: Authority, ours: Credentials
) -> None:
    """The gateway doesn't start half: the sentence, and no port is taken."""
    other = authority.sign("other")
    settings = ScpSettings.model_validate(
        {
            "host": "127.0.0.1",
            "port": 0,
            "tls": {"port": 0, "certificate-file": ours.certificate, "key-file": other.key},
            "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
            "reject-unknown-sources": False,
        }
    )
    receiver = Receiver(settings, lambda _arrival: None, lambda _id, _in_order: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigurationError, match="not the one of the certificate"):
        receiver.start()
    assert not receiver.is_alive


def test_an_answer_does_not_wait_for_the_rest_of_a_record(
    tmp_path: Path, authority: Authority, ours: Credentials, scanner: Credentials
) -> None:
    """Half a TLS record lies in the socket while an instance is kept: its answer goes out."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(authority.certificate)
    context.load_cert_chain(scanner.certificate, scanner.key)
    (ds,) = a_ct_series(1, rows=8, columns=8)
    with (
        a_tls_door(tmp_path, authority, ours, idle_timeout_s=20.0) as door,
        socket.create_connection(("127.0.0.1", door.receiver.tls_port), timeout=30.0) as raw,
    ):
        coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(coming, going)

        def hear(ask: Callable[[], T]) -> T:
            while True:
                try:
                    return ask()
                except ssl.SSLWantReadError:
                    raw.sendall(going.read())
                    coming.write(raw.recv(65536))

        hear(tls.do_handshake)
        tls.write(an_association_request(usual_contexts()))
        raw.sendall(going.read())
        assert hear(lambda: tls.read(65536))[0] == ASSOCIATE_AC
        tls.write(a_store(encoded(ds), str(ds.SOPInstanceUID)))
        whole = going.read()
        tls.write(an_echo())
        half = going.read()
        raw.sendall(whole + half[:40])
        began_s = time.monotonic()
        assert hear(lambda: tls.read(65536))[0] == P_DATA
        assert time.monotonic() - began_s < 10.0  # not only when the peer's silence has ended it
        raw.sendall(half[40:])
        assert hear(lambda: tls.read(65536))[0] == P_DATA
        assert len(door.kept) == 1
