"""gateway.yaml -> frozen settings; every limit is named with its unit.

The shape follows Clara Deploy's `dicom-server-config.yaml` (scp port, ae-titles, sources
with reject-unknown-sources, scu destinations), so that a site that has one can carry it
over. Keys are kebab-case; unknown keys are refused with file, place and the nearest name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from dicom_gateway.config_base import (
    UID,
    AETitle,
    CertificateName,
    Host,
    HostAndPort,
    IPAddress,
    Port,
    Section,
)
from dicom_gateway.config_delivery import (
    AuditSettings,
    ResultSettings,
    ScuSettings,
    nearest,
)
from dicom_gateway.config_errors import explain, slips, where_yaml_breaks
from dicom_gateway.config_routing import RoutingSettings, names_title
from dicom_gateway.config_web import PacsPeer, WebSettings
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.records import Priority

LOG_LEVEL = "TRITOME_LOG_LEVEL"
"""Environment variable: `debug` says more; patients stay out of the log all the same."""
LOG_STYLE = "TRITOME_LOG"
"""Environment variable: `console` for lines that people read, where stderr is no terminal."""


class Source(Section):
    """A peer that may send to us."""

    ae_title: AETitle
    host_ip: IPAddress | None = None
    """Only from this address, where given."""
    certificates: tuple[CertificateName, ...] = ()
    """Only by DICOM TLS and with one of these certificates, where given."""
    port: Port | None = None
    """Where it listens; storage commitment is reported there, at `host-ip`."""
    tls: bool = False
    """Its port speaks DICOM TLS."""


class AcceptedTitle(Section):
    """One called AE title: which pipelines its studies go through, and where results go."""

    ae_title: AETitle
    pipelines: tuple[str, ...] = Field((), min_length=1)
    """The short form of a rule that takes every series; left out where rules decide."""
    destinations: tuple[str, ...] = ()
    priority: Priority = Priority.NORMAL


class ScpTls(Section):
    """DICOM TLS on a port of its own, by the profile of BCP 195.

    Source: PS3.15 B.12 (TLS 1.2 or newer, ciphers with forward secrecy).
    """

    port: Annotated[int, Field(ge=0, le=65535)] = 2762
    """The registered port (PS3.8 9.1.1); 0 lets the system choose (for tests)."""
    certificate_file: Path
    """PEM: ours first, then those between it and its root."""
    key_file: Path
    """PEM, without a passphrase; a file that only the gateway can read."""
    client_ca_file: Path | None = None
    """PEM: client certificates must be signed by one of these."""
    client_certificates: Literal["optional", "required"] = "required"
    """Where `client-ca-file` is given."""


class ScpSettings(Section):
    """The receiving side."""

    host: Host = "0.0.0.0"  # noqa: S104 - a PACS must reach it
    port: Annotated[int, Field(ge=0, le=65535)] = 11112
    """0 lets the system choose (for tests)."""
    plain: bool = True
    """False where only the TLS port shall be open."""
    tls: ScpTls | None = None
    ae_titles: tuple[AcceptedTitle, ...] = Field(min_length=1)
    reject_unknown_sources: bool = True
    sources: tuple[Source, ...] = ()
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """How many receive on the port at the same time; one keeps about one core busy."""
    max_pending_connections: Annotated[int, Field(ge=1)] = 64
    """Connections of which it is not known yet what they want; the oldest gives way."""
    max_pending_per_address: Annotated[int, Field(ge=1)] = 32
    max_associations: Annotated[int, Field(ge=1)] = 25
    max_associations_per_ae_title: Annotated[int, Field(ge=1)] | None = None
    """Of one calling AE title; as many as there may be in all where not given."""
    max_associations_per_address: Annotated[int, Field(ge=1)] | None = None
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=16 * 1024**2)] = 131072
    max_instance_bytes: Annotated[int, Field(ge=1024)] = 2 * 1024**3
    handshake_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    """From the connection to the complete association request, TLS included."""
    idle_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    private_sop_classes: Literal["all"] | tuple[UID, ...] = "all"
    """Which private classes are stored beside the standard's."""
    storage_commitment: bool = True

    @model_validator(mode="after")
    def _tls_fits_together(self) -> ScpSettings:
        if not self.plain and self.tls is None:
            msg = "plain is false and there is no tls section, so nothing would be listened on"
            raise ValueError(msg)
        if self.tls is None or self.tls.client_ca_file is None:
            for source in self.sources:
                if source.certificates:
                    msg = (
                        f"sources: '{source.ae_title}' is bound to certificates, which needs tls "
                        "with a client-ca-file to check them by"
                    )
                    raise ValueError(msg)
        for source in self.sources:
            if source.port is not None and source.host_ip is None:
                msg = f"sources: '{source.ae_title}' has a port but no host-ip to find it at"
                raise ValueError(msg)
        return self


class DicomSettings(Section):
    """Both DICOM sides."""

    scp: ScpSettings
    scu: ScuSettings = ScuSettings()


class TritonSettings(Section):
    """The Triton beside this gateway; they share /dev/shm."""

    url: HostAndPort = "127.0.0.1:8001"
    """Of its gRPC."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    arena_bytes: Annotated[int, Field(ge=1 << 20)] = 1 << 30
    """Shared memory for volumes and masks, fully allocated at start."""


class RetentionSettings(Section):
    """What is removed by itself, and when. Nothing is, unless it says so here.

    The days count from the last that happened to the whole study: an instance came, a job
    ended, a result was delivered. While any job of a study has not ended, all of it stays.
    """

    delivered_after_days: Annotated[float, Field(gt=0)] | None = None
    """Series whose results are all delivered, with their results and jobs."""
    ignored_after_days: Annotated[float, Field(gt=0)] | None = None
    """Series that no pipeline wanted."""
    failed_after_days: Annotated[float, Field(gt=0)] | None = None
    """Series with a job that failed or was cancelled, with what the job has made."""
    conflicts_after_days: Annotated[float, Field(gt=0)] | None = None
    """Instances that were set apart: other bytes under a SOP Instance UID in use."""

    @property
    def is_off(self) -> bool:
        """True where everything is kept for good."""
        return not any(self.model_dump().values())


def _database_url(value: str) -> str:
    import sqlalchemy as sa  # noqa: PLC0415 - most have none

    msg = "write postgresql+psycopg://user@host/database, or sqlite:/// and a path from the root"
    try:
        url = sa.make_url(value)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise ValueError(msg) from error
    if url.drivername == "sqlite" and Path(url.database or "").is_absolute():
        return value
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise ValueError(msg)
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


DatabaseURL = Annotated[str, AfterValidator(_database_url)]


class StoreSettings(Section):
    """Where instances, results and the index are kept."""

    folder: Path = Path("var/gateway")
    database_url: DatabaseURL | None = None
    """SQLAlchemy URL; SQLite in `folder` where not given."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    """Below this, C-STORE is answered with 0xA700: the rest is for results and the index."""
    resume_free_bytes: Annotated[int, Field(ge=0)] | None = None
    """Once it was refused, so much must be free again; 10 % more where not given."""
    retention: RetentionSettings = RetentionSettings()

    @model_validator(mode="after")
    def _marks_fit(self) -> StoreSettings:
        if self.resume_free_bytes is not None and self.resume_free_bytes < self.min_free_bytes:
            msg = "resume-free-bytes must not be less than min-free-bytes"
            raise ValueError(msg)
        return self


class CompletenessSettings(Section):
    """When a series counts as complete; evidence first, the timer only last."""

    after_release_s: Annotated[float, Field(ge=0)] = 1.0
    """Quiet time when the association has ended and the positions have no gap."""
    quiet_s: Annotated[float, Field(gt=0)] = 15.0
    """Quiet time while the association is still open, positions without a gap."""
    give_up_s: Annotated[float, Field(gt=0)] = 30.0
    """Quiet time after which a series with evidence of missing slices is judged as it is."""
    study_quiet_s: Annotated[float, Field(gt=0)] = 30.0
    """Quiet time of a whole study after which its largest or thinnest series is chosen, where
    nothing says how many series there are."""


class JobSettings(Section):
    """How jobs are claimed and tried again."""

    workers: Annotated[int, Field(ge=1)] = 1
    lease_s: Annotated[float, Field(gt=1)] = 30.0
    retry_first_s: Annotated[float, Field(gt=0)] = 1.0
    retry_max_s: Annotated[float, Field(gt=0)] = 60.0
    decoders: Annotated[int, Field(ge=0)] = 0
    """Child processes that decode pixels; 0 means one per core."""
    memory_bytes: Annotated[int, Field(ge=1 << 20)] | None = None
    """What all running jobs together may need, as their contracts predict it; one that needs more
    is refused. Three quarters of the machine's, or the container's, where not given."""
    ahead_bytes: Annotated[int, Field(ge=0)] = 256 << 20
    """Shared memory for images that are decoded while the rest of their series still comes;
    0 lets the decoding wait for the job."""


def _ways(value: object) -> object:
    said = [value] if isinstance(value, str) else value
    return [way for way in said if way != "refuse"] if isinstance(said, list) else said


WaysWithIrregular = Annotated[tuple[Literal["resample", "split"], ...], BeforeValidator(_ways)]
"""`refuse`, `resample`, `split`, or a list of the last two."""


class AssemblySettings(Section):
    """What may be done to a series that is not one regular volume."""

    irregular: Mapping[str, WaysWithIrregular] = {}
    """By pipeline. It can only narrow what the pipeline's own contract allows; where that
    says nothing, this alone decides, and without an entry such a series is refused."""
    max_gap_mm: Annotated[float, Field(gt=0)] = 10.0
    """A wider gap between two slices is never filled by resampling."""
    max_tilt_degrees: Annotated[float, Field(gt=0, le=45)] = 35.0
    """A stack that leans by more isn't straightened."""


class GatewaySettings(Section):
    """The whole of gateway.yaml."""

    dicom: DicomSettings
    triton: TritonSettings = TritonSettings()
    store: StoreSettings = StoreSettings()
    completeness: CompletenessSettings = CompletenessSettings()
    assembly: AssemblySettings = AssemblySettings()
    jobs: JobSettings = JobSettings()
    results: Mapping[str, ResultSettings] = {}
    """By pipeline; one that isn't named has the defaults."""
    audit: AuditSettings = AuditSettings()
    routing: RoutingSettings = RoutingSettings()
    web: WebSettings = WebSettings()
    pacs: tuple[PacsPeer, ...] = ()

    @model_validator(mode="after")
    def _names_fit_together(self) -> GatewaySettings:
        known = [d.name for d in self.dicom.scu.destinations]
        if len(set(known)) != len(known):
            msg = "dicom.scu.destinations: two destinations have the same name"
            raise ValueError(msg)
        titles = [t.ae_title for t in self.dicom.scp.ae_titles]
        if len(set(titles)) != len(titles):
            msg = "dicom.scp.ae-titles: the same AE title is listed twice"
            raise ValueError(msg)
        for title in self.dicom.scp.ae_titles:
            for name in title.destinations:
                if name not in known:
                    msg = (
                        f"dicom.scp.ae-titles: '{title.ae_title}' sends to '{name}', which is "
                        f"not among dicom.scu.destinations{nearest(name, known)}"
                    )
                    raise ValueError(msg)
        if self.dicom.scp.reject_unknown_sources and not self.dicom.scp.sources:
            msg = (
                "dicom.scp: reject-unknown-sources is true but no source is listed, so nobody "
                "could send; list the peers under sources, or set it to false"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _rules_lead_somewhere(self) -> GatewaySettings:
        known = [destination.name for destination in self.dicom.scu.destinations]
        titles = [title.ae_title for title in self.dicom.scp.ae_titles]
        for number, rule in enumerate(self.routing.rules):
            place = f"routing.rules.{number}"
            for name in rule.destinations or ():
                if name not in known:
                    msg = (
                        f"{place}.destinations: '{name}' is not among "
                        f"dicom.scu.destinations{nearest(name, known)}"
                    )
                    raise ValueError(msg)
            if not any(names_title(rule.called, title) for title in titles):
                msg = (
                    f"{place}.called: no AE title in dicom.scp.ae-titles is meant by "
                    f"{', '.join(rule.called)}, so the rule would never be asked"
                )
                raise ValueError(msg)
        for number, title in enumerate(self.dicom.scp.ae_titles):
            rules = (
                rule for rule in self.routing.rules if names_title(rule.called, title.ae_title)
            )
            if not title.pipelines and not any(rules):
                msg = (
                    f"dicom.scp.ae-titles.{number}: '{title.ae_title}' leads nowhere; list its "
                    "pipelines, or write a rule for it under routing.rules"
                )
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _results_have_takers(self) -> GatewaySettings:
        known = {one.name: one for one in self.dicom.scu.destinations}
        asked = [title.pipelines for title in self.dicom.scp.ae_titles]
        asked += [rule.pipelines for rule in self.routing.rules]
        pipelines = sorted({name for names in asked for name in names})
        for pipeline, settings in self.results.items():
            if pipeline not in pipelines:
                msg = (
                    f"results: no AE title and no rule leads to a pipeline '{pipeline}'"
                    f"{nearest(pipeline, pipelines)}"
                )
                raise ValueError(msg)
            for kind, names in settings.destinations.items():
                place = f"results.{pipeline}.destinations.{kind.value}"
                if kind not in settings.objects:
                    msg = f"{place}: no such object is made; add it to results.{pipeline}.objects"
                    raise ValueError(msg)
                for name in names:
                    if name not in known:
                        msg = (
                            f"{place}: '{name}' is not among "
                            f"dicom.scu.destinations{nearest(name, list(known))}"
                        )
                        raise ValueError(msg)
                    if not known[name].takes(kind):
                        msg = (
                            f"{place}: '{name}' doesn't take this kind; add it to its objects "
                            "under dicom.scu.destinations"
                        )
                        raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _peers_fit(self) -> GatewaySettings:
        titles = {title.ae_title for title in self.dicom.scp.ae_titles}
        if len({peer.name for peer in self.pacs}) != len(self.pacs):
            msg = "pacs: two peers have the same name"
            raise ValueError(msg)
        wanted = [(f"pacs '{peer.name}'", peer.called_ae_title) for peer in self.pacs]
        for place, title in [*wanted, ("web", self.web.called_ae_title)]:
            if title is not None and title not in titles:
                msg = f"{place}: called-ae-title '{title}' is not among dicom.scp.ae-titles"
                raise ValueError(msg)
        sources = {source.ae_title for source in self.dicom.scp.sources}
        for peer in self.pacs:
            if not self.dicom.scp.reject_unknown_sources or peer.dimse is None:
                continue
            if peer.dimse.ae_title not in sources:
                msg = (
                    f"pacs '{peer.name}': what it sends on C-MOVE would be refused; list "
                    f"'{peer.dimse.ae_title}' under dicom.scp.sources"
                )
                raise ValueError(msg)
        return self

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the index."""
        return self.store.database_url or f"sqlite:///{self.store.folder.resolve()}/index.sqlite"


def load_settings(path: Path) -> GatewaySettings:
    """Reads gateway.yaml.

    Relative folders in it are relative to the file, so that the gateway does the same
    wherever it is started from.

    Raises:
        ConfigurationError: with one line per mistake: file, line, key, what to write instead.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
        slipped = "\n".join(f"{path}: {line}" for line in slips(text))
    except OSError as error:
        hint = "; 'tritome init' writes one" if isinstance(error, FileNotFoundError) else ""
        msg = f"{path}: can't be read ({error.strerror}){hint}"
        raise ConfigurationError(msg) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{path}: no valid YAML: {where_yaml_breaks(error)}"
        raise ConfigurationError(msg) from error
    if not isinstance(raw, dict):
        msg = f"{path}: holds no settings; 'tritome init' writes an example to begin with"
        raise ConfigurationError(msg)
    if slipped:
        raise ConfigurationError(slipped)
    try:
        settings = GatewaySettings.model_validate(raw)
    except ValidationError as error:
        lines = "\n".join(f"{path}: {line}" for line in explain(error, text, GatewaySettings))
        raise ConfigurationError(lines) from error
    if not settings.store.folder.is_absolute():
        folder = path.resolve().parent / settings.store.folder
        store = settings.store.model_copy(update={"folder": folder})
        settings = settings.model_copy(update={"store": store})
    parent = path.resolve().parent
    return settings.model_copy(
        update={
            "audit": _files_beside(settings.audit, parent),
            "dicom": _files_beside(settings.dicom, parent),
            "web": _files_beside(settings.web, parent),
            "pacs": _files_beside(settings.pacs, parent),
        }
    )


def _files_beside(value: Any, parent: Path) -> Any:
    """The same settings, relative paths in them made relative to `parent`."""
    if isinstance(value, Path):
        return parent / value
    if isinstance(value, tuple):
        return tuple(_files_beside(one, parent) for one in value)
    if isinstance(value, Section):
        fields = type(value).model_fields
        return value.model_copy(
            update={name: _files_beside(getattr(value, name), parent) for name in fields}
        )
    return value
