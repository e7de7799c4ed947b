"""gateway.yaml -> frozen settings; every limit is named with its unit.

The shape follows Clara Deploy's `dicom-server-config.yaml` (scp port, ae-titles, sources
with reject-unknown-sources, scu destinations), so that a site that has one can carry it
over. Keys are kebab-case; unknown keys are refused with file, place and the nearest name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from dicom_gateway.errors import ConfigurationError
from dicom_gateway.records import Priority

LOG_STYLE = "TRITOME_LOG"
"""Environment variable: `console` for lines that people read, where stderr is no terminal."""


def _ae_title(value: str) -> str:
    # PS3.5 6.2: at most 16 characters of the default repertoire without backslash and
    # control characters, leading and trailing spaces not significant, never all spaces.
    if not re.fullmatch(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?", value):
        msg = "an AE title has 1 to 16 printable ASCII characters, no backslash, no outer spaces"
        raise ValueError(msg)
    return value


def _ip_address(value: str) -> str:
    try:
        return str(ip_address(value))
    except ValueError as error:
        msg = "write an IP address such as 10.0.0.5, not a host name"
        raise ValueError(msg) from error


AETitle = Annotated[str, AfterValidator(_ae_title)]
IPAddress = Annotated[str, AfterValidator(_ip_address)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """A part of gateway.yaml: frozen, kebab-case, nothing extra."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )


class Source(Section):
    """A peer that may send to us."""

    ae_title: AETitle
    host_ip: IPAddress | None = None
    """Only from this address, where given."""


class AcceptedTitle(Section):
    """One called AE title: which pipelines its studies go through, and where results go."""

    ae_title: AETitle
    pipelines: tuple[str, ...] = Field(min_length=1)
    destinations: tuple[str, ...] = ()
    priority: Priority = Priority.NORMAL


class ScpSettings(Section):
    """The receiving side."""

    host: str = "0.0.0.0"  # noqa: S104 - a PACS must reach it
    port: Annotated[int, Field(ge=0, le=65535)] = 11112
    """0 lets the system choose (for tests)."""
    ae_titles: tuple[AcceptedTitle, ...] = Field(min_length=1)
    reject_unknown_sources: bool = True
    sources: tuple[Source, ...] = ()
    max_associations: Annotated[int, Field(ge=1)] = 25
    max_pdu_bytes: Annotated[int, Field(ge=4096)] = 131072
    idle_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    max_instance_bytes: Annotated[int, Field(ge=1024)] = 2 * 1024**3


class Destination(Section):
    """A peer that we send to."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    host_ip: str
    port: Port
    ae_title: AETitle


class ScuSettings(Section):
    """The sending side."""

    ae_title: AETitle = "TRITOME"
    destinations: tuple[Destination, ...] = ()
    retry_first_s: Annotated[float, Field(gt=0)] = 2.0
    retry_max_s: Annotated[float, Field(gt=0)] = 300.0
    give_up_after_s: Annotated[float, Field(gt=0)] = 7 * 24 * 3600.0


class DicomSettings(Section):
    """Both DICOM sides."""

    scp: ScpSettings
    scu: ScuSettings = ScuSettings()


class TritonSettings(Section):
    """The Triton beside this gateway; they share /dev/shm."""

    url: str = "127.0.0.1:8001"
    """gRPC host:port."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    arena_bytes: Annotated[int, Field(ge=1 << 20)] = 1 << 30
    """Shared memory for volumes and masks, fully allocated at start."""


class StoreSettings(Section):
    """Where instances, results and the index are kept."""

    folder: Path = Path("var/gateway")
    database_url: str | None = None
    """SQLAlchemy URL; SQLite in `folder` where not given."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    """Below this, C-STORE is answered with 0xA700."""


class CompletenessSettings(Section):
    """When a series counts as complete; evidence first, the timer only last."""

    after_release_s: Annotated[float, Field(ge=0)] = 1.0
    """Quiet time when the association has ended and the positions have no gap."""
    quiet_s: Annotated[float, Field(gt=0)] = 15.0
    """Quiet time while the association is still open, positions without a gap."""
    give_up_s: Annotated[float, Field(gt=0)] = 30.0
    """Quiet time after which a series with evidence of missing slices is judged as it is."""


class JobSettings(Section):
    """How jobs are claimed and tried again."""

    workers: Annotated[int, Field(ge=1)] = 1
    lease_s: Annotated[float, Field(gt=1)] = 30.0
    retry_first_s: Annotated[float, Field(gt=0)] = 1.0
    retry_max_s: Annotated[float, Field(gt=0)] = 60.0
    decoders: Annotated[int, Field(ge=0)] = 0
    """Child processes that decode pixels; 0 means one per core."""


class GatewaySettings(Section):
    """The whole of gateway.yaml."""

    dicom: DicomSettings
    triton: TritonSettings = TritonSettings()
    store: StoreSettings = StoreSettings()
    completeness: CompletenessSettings = CompletenessSettings()
    jobs: JobSettings = JobSettings()

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
                    near = difflib.get_close_matches(name, known, n=1)
                    hint = f"; did you mean '{near[0]}'?" if near else ""
                    msg = (
                        f"dicom.scp.ae-titles: '{title.ae_title}' sends to '{name}', which is "
                        f"not among dicom.scu.destinations{hint}"
                    )
                    raise ValueError(msg)
        if self.dicom.scp.reject_unknown_sources and not self.dicom.scp.sources:
            msg = (
                "dicom.scp: reject-unknown-sources is true but no source is listed, so nobody "
                "could send; list the peers under sources, or set it to false"
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
        ConfigurationError: with one line per mistake: file, place, what to write instead.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "; 'tritome init' writes one" if isinstance(error, FileNotFoundError) else ""
        msg = f"{path}: can't be read ({error.strerror}){hint}"
        raise ConfigurationError(msg) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"{path}: no valid YAML: {_where_yaml_breaks(error)}"
        raise ConfigurationError(msg) from error
    if not isinstance(raw, dict):
        msg = f"{path}: holds no settings; 'tritome init' writes an example to begin with"
        raise ConfigurationError(msg)
    try:
        settings = GatewaySettings.model_validate(raw)
    except ValidationError as error:
        lines = "\n".join(f"{path}: {line}" for line in _explain(error))
        raise ConfigurationError(lines) from error
    if not settings.store.folder.is_absolute():
        folder = path.resolve().parent / settings.store.folder
        store = settings.store.model_copy(update={"folder": folder})
        settings = settings.model_copy(update={"store": store})
    return settings


def _where_yaml_breaks(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    # What YAML was reading began earlier than where it noticed; the mistake is between them.
    last = error.problem_mark.line + 1
    first = last if error.context_mark is None else error.context_mark.line + 1
    lines = f"line {last}" if first == last else f"lines {first} to {last}"
    return f"{lines}: {error.problem or error.context}"


def _explain(error: ValidationError) -> Iterator[str]:
    places = [problem["loc"] for problem in error.errors()]
    for problem in error.errors():
        loc = problem["loc"]
        if problem["type"] == "too_short" and any(p[: len(loc)] == loc != p for p in places):
            continue  # it only lacks the entry that the other line complains of
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            key = str(problem["loc"][-1])
            # Known elsewhere, not here: the nearest other one is meant.
            others = sorted(_all_keys(GatewaySettings) - {key})
            near = difflib.get_close_matches(key, others, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            yield f"{place}: unknown key{hint}"
        elif problem["type"] == "too_short":
            yield f"{place}: list at least one"
        else:
            said = problem["msg"].removeprefix("Value error, ")
            yield f"{place}: {said}" if place else said


def _all_keys(section: type[BaseModel]) -> set[str]:
    keys: set[str] = set()
    pending: list[Any] = [section]
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, info in kind.model_fields.items():
                keys.add(info.alias or name)
                pending.append(info.annotation)
        else:
            pending.extend(getattr(kind, "__args__", ()))
    return keys
