"""Certificates for the tests of DICOM TLS, made by openssl: an authority and whom it has signed.

Comes in: a folder. Goes out: PEM files. Nothing of it is worth keeping.
"""

from __future__ import annotations

import hashlib
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import needs


@dataclass(frozen=True)
class Credentials:
    """A certificate and its key."""

    certificate: Path
    key: Path

    @property
    def sha256(self) -> str:
        """Fingerprint of the certificate."""
        text = self.certificate.read_text(encoding="ascii")
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text)).hexdigest()


@dataclass(frozen=True)
class Authority:
    """Signs certificates."""

    folder: Path
    own: Credentials

    @property
    def certificate(self) -> Path:
        """What others trust it by."""
        return self.own.certificate

    def sign(self, name: str, *, days: int = 2) -> Credentials:
        """A certificate for `name`, which also names localhost and 127.0.0.1.

        Where `days` is negative it has expired.
        """
        made = Credentials(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(
            f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
            encoding="ascii",
        )
        _openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-keyout", str(made.key)),
            *("-out", str(request), "-subj", f"/CN={name}"),
        )
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", str(self.own.certificate)),
            *("-CAkey", str(self.own.key), "-CAcreateserial", "-extfile", str(extensions)),
            *("-out", str(made.certificate)),
            *(("-days", str(days)) if days > 0 else _long_ago()),
        )
        return made


def an_authority(folder: Path, name: str = "tritome tests") -> Authority:
    """A new authority in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    own = Credentials(folder / "authority.pem", folder / "authority.key")
    _openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-keyout", str(own.key), "-out", str(own.certificate), "-subj", f"/CN={name}"),
    )
    return Authority(folder, own)


def with_passphrase(key: Path, passphrase: str) -> Path:
    """The same key, encrypted."""
    locked = key.with_suffix(".locked")
    _openssl(
        *("pkey", "-in", str(key), "-out", str(locked), "-aes256"),
        *("-passout", f"pass:{passphrase}"),
    )
    return locked


def _long_ago() -> tuple[str, ...]:
    said = subprocess.run(
        [needs("openssl", package="openssl"), "x509", "-help"],
        capture_output=True,
        check=False,
        text=True,
    )
    if "-not_before" in said.stdout + said.stderr:
        return ("-not_before", "20200101000000Z", "-not_after", "20200102000000Z")
    return ("-days", "-1")  # older openssl takes that


def _openssl(*words: str) -> None:
    program = needs("openssl", package="openssl")
    subprocess.run([program, *words], check=True, stdin=subprocess.DEVNULL, capture_output=True)
