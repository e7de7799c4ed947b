"""Where a tritonserver is on this machine, and how to start that one.

Looked for in this order: `TRITOME_TRITONSERVER`, PATH, where NVIDIA's container keeps it,
and the one inside the nvidia-pytriton wheel.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from ensemble_builder.errors import ServerNotFound

CONTAINER = Path("/opt/tritonserver/bin/tritonserver")
OVERRIDE = "TRITOME_TRITONSERVER"


@dataclass(frozen=True, slots=True)
class FoundServer:
    """A tritonserver and what it needs to run.

    Attributes:
        origin: path, container or wheel.
        flags: Every flag it knows; it is never given another one.
        environment: Variables to add to ours.
        wheel: Root of the wheel's server files, where it comes from one.
    """

    binary: Path
    origin: str
    flags: frozenset[str]
    environment: dict[str, str] = field(default_factory=dict)
    wheel: Path | None = None


def find_tritonserver() -> FoundServer:
    """The first tritonserver that starts.

    Raises:
        ServerNotFound: none is there, or the one there doesn't start; says what to do.
    """
    named = os.environ.get(OVERRIDE)
    on_path = named or shutil.which("tritonserver")
    if on_path:
        return _probe(Path(on_path), "path", {}, None)
    if CONTAINER.is_file():
        return _probe(CONTAINER, "container", {}, None)
    wheel = importlib.util.find_spec("pytriton")
    if wheel is None or wheel.origin is None:
        msg = (
            "no tritonserver on this machine: `pip install tritome[server]` brings one, or run "
            "inside NVIDIA's Triton container, or name one in TRITOME_TRITONSERVER"
        )
        raise ServerNotFound(msg)
    root = Path(wheel.origin).parent / "tritonserver"
    return _probe(root / "bin" / "tritonserver", "wheel", _wheel_environment(root), root)


def _wheel_environment(root: Path) -> dict[str, str]:
    """The wheel's server needs its own libraries, and its stub the interpreter's libpython."""
    libraries = [
        str(root.parent.parent / "nvidia_pytriton.libs"),
        str(sysconfig.get_config_var("LIBDIR") or ""),
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    # The stub takes the first python3 on PATH and ignores PYTHONPATH: ours must come first.
    bin_folder = str(Path(sys.prefix) / "bin")
    return {
        "LD_LIBRARY_PATH": ":".join(part for part in libraries if part),
        "PATH": f"{bin_folder}:{os.environ.get('PATH', os.defpath)}",
    }


def _probe(
    binary: Path, origin: str, environment: dict[str, str], wheel: Path | None
) -> FoundServer:
    try:
        shown = subprocess.run(
            [binary, "--help"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"{binary} doesn't start: {error}"
        raise ServerNotFound(msg) from error
    flags = frozenset(re.findall(r"^\s*(--[a-z][a-z0-9-]*)", shown.stdout + shown.stderr, re.M))
    if "--model-repository" not in flags:
        last = (shown.stderr or shown.stdout).strip().splitlines()[-1:] or ["it says nothing"]
        msg = f"{binary} is no working tritonserver: {last[0]}"
        raise ServerNotFound(msg)
    return FoundServer(binary, origin, flags, environment, wheel)
