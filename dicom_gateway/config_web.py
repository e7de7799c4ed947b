"""The parts of gateway.yaml about HTTP: our own web side, and the PACS to fetch from.

Ground beside `config`, which puts the parts together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dicom_gateway.config_base import AETitle, Host, IPAddress, Port, Section


class WebCaller(Section):
    """Somebody who may ask over HTTP: how they are known, and what they may do.

    Where several proofs are given, all of them must hold.
    """

    calling_ae_title: AETitle
    """Under this name their objects count as sent; for routing as with C-STORE."""
    token_file: Path | None = None
    """Holds the bearer token; a file that only the gateway can read."""
    token_environment: str | None = None
    """Or the environment variable that has it."""
    certificate_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the client's TLS certificate in DER, in small letters."""
    host_ip: IPAddress | None = None
    rights: tuple[Literal["store", "read", "metrics"], ...] = ("store", "read")
    """`store` and `read` objects; `metrics` reads /metrics, and nothing of a patient."""

    @model_validator(mode="after")
    def _is_known_by_something(self) -> WebCaller:
        if self.token_file and self.token_environment:
            msg = "give token-file or token-environment, not both"
            raise ValueError(msg)
        proofs = (self.token_file, self.token_environment, self.certificate_sha256, self.host_ip)
        if not any(proofs):
            msg = "say how it is known: token-file, token-environment, certificate-sha256, host-ip"
            raise ValueError(msg)
        return self


class WebTls(Section):
    """HTTPS."""

    certificate_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    """Client certificates signed by these are asked for."""
    client_certificates: Literal["optional", "required"] = "required"
    """Where `client-ca-file` is given."""


class StowSettings(Section):
    """Limits of STOW-RS."""

    max_requests: Annotated[int, Field(ge=1)] = 8
    """At the same time; further ones are answered with 503."""
    max_request_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024**3
    max_part_bytes: Annotated[int, Field(ge=1024)] = 2 * 1024**3
    part_memory_bytes: Annotated[int, Field(ge=4096)] = 4 * 1024**2
    """What of one part is held in memory; the rest goes to the store's disk."""


class WebSettings(Section):
    """The HTTP side: DICOMweb, health and metrics. Off unless it is enabled."""

    enabled: bool = False
    host: Host = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """0 lets the system choose (for tests)."""
    called_ae_title: AETitle | None = None
    """Whom /dicom-web/studies stores to; the first of dicom.scp.ae-titles where not given."""
    calling_ae_title: AETitle = "DICOMWEB"
    """Who asks, where no callers are listed (on loopback only)."""
    public_url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+[^/\s?#]$")] | None = None
    """How others reach us, for the links in answers; else as each request names us."""
    callers: tuple[WebCaller, ...] = ()
    tls: WebTls | None = None
    plain_http: bool = False
    """True: TLS ends at a proxy in front of us, or the network is trusted."""
    max_connections: Annotated[int, Field(ge=1)] = 64
    max_header_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024
    request_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """From the connection to a complete request header."""
    idle_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Without a byte in either direction while a request is under way."""
    stow: StowSettings = StowSettings()

    @model_validator(mode="after")
    def _is_safe(self) -> WebSettings:
        if not self.enabled or self.host in {"127.0.0.1", "::1", "localhost"}:
            return self
        if not self.callers:
            msg = f"others can reach {self.host}: list who may ask under web.callers"
            raise ValueError(msg)
        if self.tls is None and not self.plain_http:
            msg = (
                f"others can reach {self.host}: give web.tls, or set plain-http to true where a "
                "proxy in front of the gateway ends TLS"
            )
            raise ValueError(msg)
        return self


class DimseTls(Section):
    """DICOM TLS, where we call."""

    ca_file: Path | None = None
    """Who signed the peer's certificate, where the system doesn't know."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    """Our own certificate, where it asks for one."""
    check_hostname: bool = True
    """Whether its certificate must name the host that we call."""


class DimsePeer(Section):
    """A PACS that is asked by C-FIND and C-MOVE."""

    host_ip: Host
    port: Port
    ae_title: AETitle
    tls: DimseTls | None = None


class DicomwebPeer(Section):
    """A PACS that is asked by QIDO-RS and WADO-RS."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")]
    """Of its DICOMweb root, such as https://pacs.example/dicom-web."""
    token_file: Path | None = None
    token_environment: str | None = None
    """The bearer token, from a file or an environment variable."""
    ca_file: Path | None = None
    """Who signed its certificate, where the system doesn't know."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    """Our own certificate, where it asks for one."""
    ae_title: AETitle = "DICOMWEB"
    """Under this name its objects count as sent."""


class PacsPeer(Section):
    """A PACS to fetch from: `tritome fetch --from NAME`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    called_ae_title: AETitle
    """Which of our AE titles what is fetched goes to; with C-MOVE the move destination."""
    dimse: DimsePeer | None = None
    dicomweb: DicomwebPeer | None = None
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Patience with each answer."""

    @model_validator(mode="after")
    def _is_asked_in_one_way(self) -> PacsPeer:
        if (self.dimse is None) == (self.dicomweb is None):
            msg = "give either dimse (C-FIND and C-MOVE) or dicomweb (QIDO-RS and WADO-RS)"
            raise ValueError(msg)
        return self
