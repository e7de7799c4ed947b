"""What was measured: durations with their median and spread, and the machine they are from."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Measurement:
    """The durations of one thing done again and again.

    Attributes:
        durations_s: One for each repetition, at least one.
        moved_bytes: What crosses between client and server in one repetition; None where
            that is not the point.
    """

    name: str
    durations_s: tuple[float, ...]
    moved_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.durations_s:
            msg = f"'{self.name}' was measured not even once"
            raise ValueError(msg)

    @property
    def median_s(self) -> float:
        """Half of the repetitions were faster."""
        return statistics.median(self.durations_s)

    @property
    def quartiles_s(self) -> tuple[float, float]:
        """The middle half of the repetitions lies between these."""
        if len(self.durations_s) == 1:
            return self.durations_s[0], self.durations_s[0]
        first, _, third = statistics.quantiles(self.durations_s, n=4, method="inclusive")
        return first, third

    @property
    def range_s(self) -> tuple[float, float]:
        """The fastest and the slowest."""
        return min(self.durations_s), max(self.durations_s)


def describe_machine() -> dict[str, str]:
    """The machine in words, without its name: figures mean nothing without it."""
    memory = psutil.virtual_memory()
    return {
        "processor": f"{_processor()}, {os.cpu_count()} logical cores",
        "memory": f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} GiB free",
        "shared memory": f"{shutil.disk_usage('/dev/shm').total / 2**30:.1f} GiB",  # noqa: S108
        "GPU": _gpu(),
        "system": f"{platform.system()} {platform.release()}, {platform.libc_ver()[1]} libc",
        "Python": platform.python_version(),
        "load before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none"
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    names = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    return "; ".join(names) if answer.returncode == 0 and names else "none"
