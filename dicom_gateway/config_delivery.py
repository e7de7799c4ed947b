"""The parts of gateway.yaml about what leaves: destinations, which results go where, audit.

Ground beside `config`, which puts the parts together.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator

from dicom_gateway.config_base import AETitle, CertificateName, Host, Port, Section
from dicom_gateway.config_web import DimseTls
from dicom_gateway.records import ObjectKind

_LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'pacs'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _kind(value: object) -> object:
    known = [kind.value for kind in ObjectKind]
    if isinstance(value, str) and value not in known:
        msg = f"'{value}' is no kind of object{nearest(value, known)} Known: {', '.join(known)}"
        raise ValueError(msg)
    return value


Kind = Annotated[ObjectKind, BeforeValidator(_kind)]


class DimsePlace(NamedTuple):
    """Where a DICOM peer listens."""

    host_ip: str
    port: int
    ae_title: str


class DestinationTls(DimseTls):
    """DICOM TLS towards a destination; its certificate is always checked."""

    certificates: tuple[CertificateName, ...] = ()
    """Only a peer with one of these is sent to, where given: fingerprints or names."""


class ProofPeer(Section):
    """Who is asked for the proof, where it is another AE than the one that stores."""

    host_ip: Host | None = None
    port: Port | None = None
    ae_title: AETitle


class DicomwebDestination(Section):
    """A peer that is sent to by STOW-RS."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s?#@]+$")]
    """Of its DICOMweb root, such as https://pacs.example/dicom-web."""
    token_file: Path | None = None
    token_environment: str | None = None
    """The bearer token, from a file or an environment variable. The file is read for each
    request: where tokens run out, somebody writes a new one into it."""
    password_file: Path | None = None
    """Or one line `user:password`, for HTTP Basic; a file that only the gateway can read."""
    ca_file: Path | None = None
    """Who signed its certificate, where the system doesn't know."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    """Our own certificate, where it asks for one."""
    plain_http: bool = False
    """True: http:// is meant to be so; the network in between is trusted."""

    @model_validator(mode="after")
    def _is_safe(self) -> DicomwebDestination:
        if sum(one is not None for one in self._proofs) > 1:
            msg = "give one of token-file, token-environment and password-file"
            raise ValueError(msg)
        address = urlsplit(self.url)
        if (
            address.scheme == "http"
            and not self.plain_http
            and (address.hostname or "") not in _LOOPBACK
        ):
            msg = "use https, or set plain-http to true where the network in between is trusted"
            raise ValueError(msg)
        return self

    @property
    def _proofs(self) -> tuple[Path | str | None, ...]:
        return self.token_file, self.token_environment, self.password_file


class Destination(Section):
    """A peer that we send to: by C-STORE (host-ip, port, ae-title) or by STOW-RS (dicomweb)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    host_ip: Host | None = None
    port: Port | None = None
    ae_title: AETitle | None = None
    tls: DestinationTls | None = None
    dicomweb: DicomwebDestination | None = None
    objects: tuple[Kind, ...] | None = None
    """Kinds that it takes; all where not given."""
    associations: Annotated[int, Field(ge=1, le=16)] = 1
    """How many objects are under way to it at once."""
    confirm: Literal["none", "storage-commitment", "query"] = "none"
    """What proves that an object has arrived; without proof a job isn't delivered."""
    confirm_at: ProofPeer | None = None
    """Who is asked, where it is another AE title or port."""
    confirm_first_s: Annotated[float, Field(gt=0)] = 2.0
    """How long after the answer it is asked first; then ever more seldom."""
    confirm_within_s: Annotated[float, Field(gt=0)] = 600.0
    """Not there by then, an accepted object counts as lost and is sent again."""
    confirm_tries: Annotated[int, Field(ge=1)] = 3
    """Lost, or not reported on, as often as this: the job fails."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Destination:
        dimse = (self.host_ip, self.port, self.ae_title)
        if self.dicomweb is None:
            if None in dimse:
                msg = (
                    f"'{self.name}': give host-ip, port and ae-title (C-STORE), or dicomweb "
                    "with its url (STOW-RS)"
                )
                raise ValueError(msg)
        elif any(one is not None for one in (*dimse, self.tls)):
            msg = (
                f"'{self.name}': give either dicomweb or host-ip, port, ae-title and tls, not both"
            )
            raise ValueError(msg)
        elif self.confirm == "storage-commitment" or self.confirm_at is not None:
            msg = f"'{self.name}': by DICOMweb an arrival is proven with 'confirm: query'"
            raise ValueError(msg)
        return self

    @property
    def dimse(self) -> DimsePlace:
        """Where it takes C-STORE; only of a destination without `dicomweb`."""
        assert self.host_ip is not None
        assert self.port is not None
        assert self.ae_title is not None
        return DimsePlace(self.host_ip, self.port, self.ae_title)

    @property
    def proof_place(self) -> DimsePlace:
        """Who is asked for a proof; only of a destination without `dicomweb`."""
        if self.confirm_at is None:
            return self.dimse
        at = self.confirm_at
        return DimsePlace(at.host_ip or self.dimse.host_ip, at.port or self.dimse.port, at.ae_title)

    def takes(self, kind: ObjectKind | None) -> bool:
        """Whether it takes objects of this kind; None is a kind that has no name."""
        return self.objects is None or kind in self.objects

    def __str__(self) -> str:
        """For sentences; without anything secret."""
        if self.dicomweb is not None:
            return f"destination '{self.name}' ({self.dicomweb.url})"
        return f"destination '{self.name}' ({self.ae_title} at {self.host_ip}:{self.port})"


class ScuSettings(Section):
    """The sending side."""

    ae_title: AETitle = "TRITOME"
    destinations: tuple[Destination, ...] = ()
    retry_first_s: Annotated[float, Field(gt=0)] = 2.0
    retry_max_s: Annotated[float, Field(gt=0)] = 300.0
    give_up_after_s: Annotated[float, Field(gt=0)] = 7 * 24 * 3600.0
    cannot_understand_tries: Annotated[int, Field(ge=1)] = 3
    """How often an object is sent that the peer answers with 0xCxxx: some say it when they
    have trouble of their own, and mean it the third time."""


class ResultSettings(Section):
    """Which DICOM objects are made of a pipeline's outputs, and where they go."""

    objects: tuple[Kind, ...] = Field(
        (ObjectKind.SEGMENTATION, ObjectKind.STRUCTURED_REPORT), min_length=1
    )
    """Those that the outputs can't give (contours of a classification) are left out."""
    destinations: Mapping[Kind, tuple[str, ...]] = {}
    """By kind of object, in place of the destinations of the AE title or the rule."""


class SyslogSettings(Section):
    """Where audit messages are sent: syslog over TLS.

    Source: RFC 5424 (message), RFC 5425 (TLS), PS3.15 A.6.
    """

    host: Host
    port: Port = 6514
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    """Our own certificate, where the collector asks for one."""
    check_hostname: bool = True
    retry_max_s: Annotated[float, Field(gt=0)] = 60.0


class AuditSettings(Section):
    """The audit trail of PS3.15 A.5."""

    enabled: bool = True
    folder: Path | None = None
    """`audit` in the store's folder where not given."""
    patient: Literal["digest", "plain", "none"] = "digest"
    """How a message names the patient: a keyed digest, the Patient ID itself, or not at all."""
    limit_bytes: Annotated[int, Field(ge=1 << 20)] = 1 << 30
    """Of the spool; the oldest file goes first, and the trail says so."""
    file_bytes: Annotated[int, Field(ge=1 << 12)] = 16 << 20
    source_id: Annotated[str, Field(min_length=1, max_length=64)] = "tritome"
    """Who we are in the trail."""
    syslog: SyslogSettings | None = None


class Addressee:
    """Which destinations a result goes to.

    Args:
        results: `results` of gateway.yaml.
        destinations: `dicom.scu.destinations`.
    """

    def __init__(
        self, results: Mapping[str, ResultSettings], destinations: Sequence[Destination]
    ) -> None:
        self._results = results
        self._known = {one.name: one for one in destinations}

    def __call__(
        self, pipeline: str, kind: ObjectKind | None, asked: Sequence[str]
    ) -> tuple[str, ...]:
        """Those for this kind of object that take it.

        A name that gateway.yaml doesn't have any more is kept: the caretaker ends its delivery
        with a reason that a person sees.
        """
        said = self._results[pipeline].destinations if pipeline in self._results else {}
        names = said[kind] if kind is not None and kind in said else asked
        return tuple(
            name for name in names if name not in self._known or self._known[name].takes(kind)
        )
