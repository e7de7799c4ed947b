"""DICOM TLS: contexts by the profile of BCP 195, checked before anything depends on them.

Ground for whoever listens or calls by TLS. In: files of certificates and keys. Out: contexts
of Python's ssl, and what a peer's certificate says. Nothing is kept.

Source: PS3.15 B.12 (BCP 195 RFC 8996, 9325 TLS Secure Transport Connection Profile).
"""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dicom_gateway.errors import ConfigurationError

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM"
"""Of TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325 4.2)."""


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A client certificate that a known authority has signed.

    Attributes:
        sha256: Hex digest of the certificate in DER, in small letters.
        names: Its common names and DNS names, in small letters.
    """

    sha256: str
    names: frozenset[str]

    def is_called(self, name: str) -> bool:
        """Whether a fingerprint or a name from the settings means this certificate."""
        return name == self.sha256 or name.lower() in self.names


def server_context(
    certificate_file: Path, key_file: Path, client_ca_file: Path | None, *, client_required: bool
) -> ssl.SSLContext:
    """Makes the context of a TLS port and tries it: a handshake with itself, in memory.

    Args:
        certificate_file: PEM: ours first, then those between it and its root.
        key_file: PEM, without a passphrase.
        client_ca_file: PEM of those who sign client certificates; None asks for none.
        client_required: Whether a client without a certificate is turned away.

    Raises:
        ConfigurationError: a file is missing or wrong, the key is another certificate's, or
            the certificate is not valid now; one sentence says which and what to do.
    """
    context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    _load_own(context, certificate_file, key_file)
    _try_out(certificate_file, key_file)
    if client_ca_file is not None:
        _load_authorities(context, client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
    return context


def client_context(
    ca_file: Path | None = None,
    certificate_file: Path | None = None,
    key_file: Path | None = None,
    *,
    check_hostname: bool = True,
) -> ssl.SSLContext:
    """Makes the context with which we call a peer; its certificate is always checked.

    Args:
        ca_file: PEM of those who sign the peer's certificate; the system's where not given.
        certificate_file: Ours, where the peer asks for one.
        key_file: Its key; in `certificate_file` where not given.
        check_hostname: Whether the peer's certificate must name the host that we call.

    Raises:
        ConfigurationError: a file is missing or wrong.
    """
    context = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname = check_hostname
    if ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_authorities(context, ca_file)
    if certificate_file is not None:
        _load_own(context, certificate_file, key_file or certificate_file)
    return context


def peer_certificate(connection: ssl.SSLSocket) -> PeerCertificate | None:
    """Who the peer has proven to be; None where it showed no certificate, or none was asked for."""
    encoded = connection.getpeercert(binary_form=True)
    said = connection.getpeercert()
    if not encoded or not said:
        return None
    # Python's own types are too wide here: (((key, value),), ...) and ((kind, value), ...).
    subject: Any = said.get("subject", ())
    alternatives: Any = said.get("subjectAltName", ())
    names = {value for name in subject for key, value in name if key == "commonName"}
    names |= {value for kind, value in alternatives if kind == "DNS"}
    return PeerCertificate(hashlib.sha256(encoded).hexdigest(), frozenset(map(str.lower, names)))


def _strict(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996: nothing older
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def _load_own(context: ssl.SSLContext, certificate_file: Path, key_file: Path) -> None:
    for path, what in ((certificate_file, "certificate"), (key_file, "key")):
        _require_readable(path, f"the TLS {what}")
    try:
        # Without the callback OpenSSL would ask for a passphrase at the terminal.
        context.load_cert_chain(certificate_file, key_file, password=_no_passphrase)
    except _PassphraseWanted:
        msg = (
            f"the TLS key {key_file} has a passphrase; write it without one, readable by the "
            "gateway only: openssl pkey -in OLD -out NEW"
        )
        raise ConfigurationError(msg) from None
    except ssl.SSLError as error:
        if "KEY_VALUES_MISMATCH" in (error.reason or ""):
            msg = f"the TLS key {key_file} is not the one of the certificate {certificate_file}"
        else:
            reason = (error.reason or "not PEM").replace("_", " ").lower()
            msg = (
                f"the TLS certificate {certificate_file} with the key {key_file} can't be used: "
                f"{reason}; both must be PEM files, RSA of 2048 bits or more, or ECDSA"
            )
        raise ConfigurationError(msg) from error


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    _require_readable(path, "the TLS authorities")
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        msg = f"the TLS authorities in {path} can't be used: it must be a PEM file of certificates"
        raise ConfigurationError(msg) from error
    # A peer's own certificate may be listed as its own authority.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _require_readable(path: Path, what: str) -> None:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        msg = f"{what} {path} can't be read ({error.strerror})"
        raise ConfigurationError(msg) from error


class _PassphraseWanted(Exception):
    """The key is encrypted."""


def _no_passphrase() -> str:
    raise _PassphraseWanted


def _try_out(certificate_file: Path, key_file: Path) -> None:
    """Shakes hands with itself: what a peer would refuse is said now and not to the peer."""
    ours = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    ours.load_cert_chain(certificate_file, key_file)
    peer = _strict(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    peer.check_hostname = False
    _load_authorities(peer, certificate_file)  # trusted by itself: its dates and use are checked
    to_peer, to_us = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = peer.wrap_bio(to_peer, to_us)
    server = ours.wrap_bio(to_us, to_peer, server_side=True)
    waiting = [client, server]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)
        except ssl.SSLCertVerificationError as error:
            msg = (
                f"peers would refuse the TLS certificate {certificate_file}: "
                f"{error.verify_message}; have it renewed"
            )
            raise ConfigurationError(msg) from error
        except ssl.SSLError as error:
            msg = f"TLS with the certificate {certificate_file} doesn't work: {error.reason}"
            raise ConfigurationError(msg) from error
