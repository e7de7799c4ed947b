"""`tritome doctor`: what is missing on this machine, and what to do about it.

In: this machine. Out: one line per finding, ok, warn or missing. Starts nothing and
changes nothing; tritonserver alone is run once, with --help.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rich.table import Table
from rich.text import Text

from clients.console import out
from dicom_gateway.config_base import Section
from dicom_gateway.errors import GatewayError
from ensemble_builder.errors import BuilderError
from ensemble_builder.version import BUILDER_VERSION, compatible

_GIB = 1024**3
_PACKAGES = {
    "": ("highdicom", "nibabel", "numpy", "pydicom", "pynetdicom", "tritonclient"),
    "builder": ("monai", "openvino", "scipy", "torch"),
    "server": ("pytriton",),
}
_DISTRIBUTIONS = {"pytriton": "nvidia-pytriton"}


class State(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    """Something works less well, or one command doesn't work."""
    MISSING = "missing"
    """The demo can't run without it."""


_COLOURS = {State.OK: "green", State.WARN: "yellow", State.MISSING: "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    what: str
    state: State
    detail: str
    remedy: str = ""


def run(config: Path, model_repository: Path) -> bool:
    """Prints all findings; True when the demo can run."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "What", "Found", "What to do"):
        table.add_column(column, overflow="fold")
    able = True
    for finding in examine(config, model_repository):
        table.add_row(
            Text(finding.state.value, _COLOURS[finding.state]),
            Text(finding.what),
            Text(finding.detail),
            Text(finding.remedy),
        )
        able = able and finding.state is not State.MISSING
    out.print(table)
    out.print(
        "The demo can run here: [bold]tritome demo[/]"
        if able
        else "[bold red]The demo can't run here yet:[/] see the lines marked missing."
    )
    return able


def examine(config: Path, model_repository: Path) -> Iterator[Finding]:
    """All findings, in the order of what a new machine needs first."""
    yield python()
    for extra, modules in _PACKAGES.items():
        yield packages(extra, modules)
    yield tritonserver()
    yield libpython()
    yield shared_memory()
    yield graphics()
    yield processors()
    yield disk(Path.cwd())
    yield ports((("Triton", 8000), ("Triton", 8001), ("Triton", 8002), ("gateway", 11112)))
    yield repository(model_repository)
    yield from settings(config)
    yield dcmtk()


def python() -> Finding:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Finding("Python", State.OK, version)
    return Finding("Python", State.MISSING, version, "use Python 3.11 or 3.12")


def packages(extra: str, modules: Iterable[str]) -> Finding:
    """The packages that an extra of tritome brings."""
    what = f"packages [{extra}]" if extra else "packages"
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    target = f"'tritome[{extra}]'" if extra else "tritome"
    if absent:
        # A server may come from PATH or a container, so its wheel alone is no condition.
        state = State.WARN if extra == "server" else State.MISSING
        return Finding(what, state, f"without {', '.join(absent)}", f"pip install {target}")
    return Finding(what, State.OK, ", ".join(_versions(modules)))


def tritonserver() -> Finding:
    """A server that starts."""
    from ensemble_builder.server.find import find_tritonserver  # noqa: PLC0415

    try:
        found = find_tritonserver()
    except BuilderError as error:
        return Finding("tritonserver", State.MISSING, "none that starts", str(error))
    return Finding("tritonserver", State.OK, f"from the {found.origin}: {found.binary}")


def libpython() -> Finding:
    """The shared interpreter library, which the wheel's stub links to."""
    folder = Path(str(sysconfig.get_config_var("LIBDIR") or ""))
    name = str(sysconfig.get_config_var("INSTSONAME") or "")
    if ".so" in name and (folder / name).is_file():
        return Finding("libpython", State.OK, str(folder / name))
    return Finding(
        "libpython",
        State.WARN if shutil.which("tritonserver") else State.MISSING,
        "this Python has no shared library",
        "the wheel's tritonserver needs one: take Debian's libpython3.11, or a Python built "
        "with --enable-shared",
    )


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:  # noqa: S108
    """Room for the arena and for Triton's own regions."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return Finding(
            "shared memory", State.MISSING, f"{folder} is not there", f"mount a tmpfs at {folder}"
        )
    detail = f"{free / _GIB:.1f} GiB free in {folder}"
    remedy = f"give it 4 GiB: mount -o remount,size=4g {folder}, or docker run --shm-size=4g"
    if free < 1.5 * _GIB:
        return Finding("shared memory", State.MISSING, detail, remedy)
    if free < 3 * _GIB:
        return Finding("shared memory", State.WARN, detail, remedy)
    return Finding("shared memory", State.OK, detail)


def graphics() -> Finding:
    """A GPU is faster, and no condition."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("GPU", State.OK, "none seen; networks run on the CPU")
    try:
        asked = subprocess.run(
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        asked = None
    names = asked.stdout.strip().splitlines() if asked and asked.returncode == 0 else []
    if names:
        return Finding("GPU", State.OK, "; ".join(names))
    return Finding(
        "GPU", State.WARN, "nvidia-smi is there and sees none", "check the driver: run nvidia-smi"
    )


def processors() -> Finding:
    """Cores of this machine that we may use."""
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        return Finding("CPU cores", State.WARN, str(cores), "two or more are faster")
    return Finding("CPU cores", State.OK, str(cores))


def disk(folder: Path) -> Finding:
    """Room for received studies."""
    free = shutil.disk_usage(folder).free
    detail = f"{free / _GIB:.0f} GiB free here"
    if free < 1.5 * _GIB:
        return Finding("disk", State.MISSING, detail, "free some: the gateway keeps 1 GiB spare")
    if free < 10 * _GIB:
        return Finding("disk", State.WARN, detail, "a chest CT takes 50 to 300 MB")
    return Finding("disk", State.OK, detail)


def ports(wanted: Iterable[tuple[str, int]]) -> Finding:
    """The usual ports; the demo takes free ones."""
    taken: list[str] = []
    free: list[str] = []
    for who, port in wanted:
        (taken if _listened_on(port) else free).append(f"{port} ({who})")
    if taken:
        return Finding(
            "ports",
            State.WARN,
            f"in use: {', '.join(taken)}",
            "fine if that is tritome itself; else choose others in gateway.yaml",
        )
    return Finding("ports", State.OK, f"free: {', '.join(free)}")


def repository(folder: Path) -> Finding:
    """The models to serve, and whether this version can serve them."""
    configs = sorted(folder.glob("*/config.pbtxt"))
    if not configs:
        return Finding(
            "model repository",
            State.WARN,
            f"no models in {folder}",
            f"tritome build lung_ct --output {folder} (the demo builds its own)",
        )
    try:
        pipelines = list(_pipelines(configs))
    except (OSError, ValueError) as error:
        return Finding(
            "model repository", State.MISSING, str(error), "write it again with tritome build"
        )
    old = [name for name, version in pipelines if not compatible(version)]
    if old or not pipelines:
        return Finding(
            "model repository",
            State.MISSING,
            f"built by another version: {', '.join(old)}" if old else "no pipeline's ensemble",
            f"build again with this one ({BUILDER_VERSION}): tritome build lung_ct",
        )
    names = ", ".join(f"{name} (builder {version})" for name, version in pipelines)
    return Finding("model repository", State.OK, names)


def settings(config: Path) -> Iterator[Finding]:
    """gateway.yaml, where there is one, and what it names outside it."""
    from dicom_gateway.config import load_settings  # noqa: PLC0415

    if not config.exists():
        yield Finding("gateway.yaml", State.WARN, f"no {config}", "tritome init writes one")
        return
    try:
        found = load_settings(config)
    except GatewayError as error:
        yield Finding("gateway.yaml", State.WARN, str(error), "correct it; tritome up reads it")
        return
    titles = ", ".join(title.ae_title for title in found.dicom.scp.ae_titles)
    yield Finding("gateway.yaml", State.OK, f"answers to {titles}")
    yield from secrets(found)
    yield index(found.database_url)


def secrets(section: Section, place: str = "") -> Iterator[Finding]:
    """Files and variables that gateway.yaml names and that aren't there for this user."""
    for name in type(section).model_fields:
        value, key = getattr(section, name), f"{place}{name.replace('_', '-')}"
        if isinstance(value, Section):
            yield from secrets(value, f"{key}.")
        elif isinstance(value, tuple):
            for number, one in enumerate(value):
                if isinstance(one, Section):
                    yield from secrets(one, f"{key}[{number}].")
        elif name.endswith("_file") and value is not None and not os.access(value, os.R_OK):
            remedy = "put it there, readable for whoever runs the gateway, or correct gateway.yaml"
            yield Finding(key, State.WARN, f"can't read {value}", remedy)
        elif name.endswith("_environment") and value is not None and not os.environ.get(value):
            remedy = "set it where the gateway is started (it may be set there already)"
            yield Finding(key, State.WARN, f"{value} isn't set here", remedy)


def index(url: str) -> Finding:
    """The database server, where there is one."""
    from dicom_gateway.database import require_server  # noqa: PLC0415

    if url.startswith("sqlite"):
        return Finding("index", State.OK, "a file in store.folder")
    try:
        require_server(url)
    except GatewayError as error:
        reason, _, remedy = str(error).rpartition("; ")
        return Finding("index", State.WARN, reason or str(error), remedy)
    return Finding("index", State.OK, "PostgreSQL answers")


def dcmtk() -> Finding:
    """A second opinion on DICOM; only the tests need it."""
    # Not storescu: pynetdicom installs one of that name into our environment.
    if shutil.which("dcmdump"):
        return Finding("dcmtk", State.OK, str(shutil.which("dcmdump")))
    return Finding(
        "dcmtk", State.WARN, "not here; only the tests use it", "apt-get install dcmtk dicom3tools"
    )


def _versions(modules: Iterable[str]) -> Iterator[str]:
    for name in modules:
        try:
            version = importlib.metadata.version(_DISTRIBUTIONS.get(name, name))
        except importlib.metadata.PackageNotFoundError:
            version = "?"
        yield f"{name} {version}"


def _listened_on(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _pipelines(configs: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """(pipeline, builder's version) of each ensemble that carries a contract."""
    import json  # noqa: PLC0415

    from google.protobuf import text_format  # noqa: PLC0415
    from tritonclient.grpc.model_config_pb2 import ModelConfig  # noqa: PLC0415

    for path in configs:
        model = ModelConfig()
        try:
            text_format.Parse(path.read_text(encoding="utf-8"), model)
        except text_format.ParseError as error:
            msg = f"{path} is no model configuration"
            raise ValueError(msg) from error
        if "contract" in model.parameters:
            contract = json.loads(model.parameters["contract"].string_value)
            yield str(contract.get("pipeline")), str(contract.get("builder_version", "0"))
