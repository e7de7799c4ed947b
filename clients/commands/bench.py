"""`tritome bench`: the benchmarks, in a process of their own.

They lie above the clients (`perf` uses `clients`), so they are called, not imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> int:
    """Runs `python -m perf.bench`; gives its exit code."""
    # Triton's stubs take the first python3 on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    command = [sys.executable, "-m", "perf.bench", *arguments]
    return subprocess.run(command, env={**os.environ, "PATH": path}, check=False).returncode
