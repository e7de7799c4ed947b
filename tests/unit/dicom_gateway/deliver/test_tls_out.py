"""C-STORE by TLS: dcmtk's storescp as the peer, certificates by openssl."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dicom_gateway.config_delivery import Destination, DestinationTls
from dicom_gateway.deliver.cstore import CStore
from dicom_gateway.errors import ConfigurationError, DestinationUnreachable
from tests.support.certificates import Authority, an_authority
from tests.support.dicom import a_ct_series, write_series
from tests.support.peers import Storescp, storescp

# pynetdicom drops the socket of a connection that failed instead of closing it; CPython
# closes it on the spot, and says so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*TellingSocket:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the hospital's certificates."""
    return an_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One DICOM file, standing for a result."""
    (path,) = write_series(tmp_path / "results", a_ct_series(frames=1))
    return path


@contextmanager
def a_tls_pacs(folder: Path, authority: Authority, *, wants_ours: bool) -> Iterator[Storescp]:
    """Storescp +tls with a certificate for localhost and 127.0.0.1."""
    own = authority.sign("pacs")
    files = ["--enable-tls", own.key, own.certificate, "--add-cert-file", authority.certificate]
    verify = "--require-peer-cert" if wants_ours else "--ignore-peer-cert"
    with storescp(folder, "PACS", options=[*map(str, files), verify]) as peer:
        yield peer


def send(path: Path, peer: Storescp, **tls: Any) -> str:
    """One file over an association of its own."""
    place = Destination(
        name="pacs",
        host_ip="127.0.0.1",
        port=peer.port,
        ae_title="PACS",
        tls=DestinationTls.model_validate(tls),
    )
    sender = CStore(place, "TRITOME")
    try:
        return sender.send(path)
    finally:
        sender.close()


def test_both_sides_show_their_certificates(file: Path, authority: Authority, tmp_path: Path):
    """Mutual TLS; the bytes arrive as they are."""
    ours = authority.sign("gateway")
    with a_tls_pacs(tmp_path / "received", authority, wants_ours=True) as peer:
        note = send(
            file,
            peer,
            ca_file=authority.certificate,
            certificate_file=ours.certificate,
            key_file=ours.key,
            certificates=["pacs"],
        )
        (received,) = peer.wait_for(1)

    assert note == "accepted"
    assert received.read_bytes()[-2000:] == file.read_bytes()[-2000:]


def test_a_peer_that_wants_our_certificate_and_gets_none_is_named(
    file: Path, authority: Authority, tmp_path: Path
):
    """Nothing is sent, and it is tried again."""
    with (
        a_tls_pacs(tmp_path / "received", authority, wants_ours=True) as peer,
        pytest.raises(DestinationUnreachable),
    ):
        send(file, peer, ca_file=authority.certificate)

    assert peer.received() == []


def test_a_certificate_of_somebody_else_is_sent_nothing(
    file: Path, authority: Authority, tmp_path: Path
):
    """Signed by a stranger; or by ours, for another peer than the one meant."""
    stranger = an_authority(tmp_path / "stranger", "somebody else")
    with a_tls_pacs(tmp_path / "received", authority, wants_ours=False) as peer:
        with pytest.raises(DestinationUnreachable, match="certificate isn't accepted") as untrusted:
            send(file, peer, ca_file=stranger.certificate)
        with pytest.raises(DestinationUnreachable, match="another certificate") as unbound:
            send(file, peer, ca_file=authority.certificate, certificates=["archive"])
        assert send(file, peer, ca_file=authority.certificate) == "accepted"
        peer.wait_for(1)

    assert untrusted.value.is_lasting
    assert unbound.value.is_lasting
    assert len(peer.received()) == 1


def test_a_peer_that_speaks_no_tls_is_named(file: Path, authority: Authority, tmp_path: Path):
    """The plain port was written into gateway.yaml."""
    with (
        storescp(tmp_path / "received", "PACS") as peer,
        pytest.raises(DestinationUnreachable, match="TLS did not come about"),
    ):
        send(file, peer, ca_file=authority.certificate)


def test_a_certificate_that_is_not_there_is_said_at_once(tmp_path: Path):
    """Before the first result is made."""
    place = Destination(
        name="pacs",
        host_ip="127.0.0.1",
        port=104,
        ae_title="PACS",
        tls=DestinationTls(ca_file=tmp_path / "gone.pem"),
    )
    with pytest.raises(ConfigurationError, match=r"gone\.pem"):
        CStore(place, "TRITOME")
