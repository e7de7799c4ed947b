"""What was measured: a median with its spread, and the machine that it is from."""

from __future__ import annotations

import math
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Measurement:
    """How long one thing took, done again and again.

    Attributes:
        repetitions: How often it was done and counted.
        p25_s: A quarter of the repetitions was at least so fast.
        median_s: Half of them; between the middle two of an even number.
        p90_s: Nine of ten.
        moved_bytes: What crosses between client and server in one repetition; None where
            that is not the point.
    """

    name: str
    repetitions: int
    p25_s: float
    median_s: float
    p90_s: float
    moved_bytes: int | None = None

    @classmethod
    def of(
        cls, name: str, durations_s: Sequence[float], moved_bytes: int | None = None
    ) -> Measurement:
        """From single durations, in seconds.

        Raises:
            ValueError: when there are none.
        """
        if not durations_s:
            msg = f"'{name}' was measured not even once"
            raise ValueError(msg)
        ordered = sorted(durations_s)

        # The nearest rank, as perf_analyzer has it too, so that the rows compare; but for the
        # median, which of two repetitions would be the faster one.
        def percentile(percent: int) -> float:
            return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]

        return cls(
            name,
            len(ordered),
            percentile(25),
            statistics.median(ordered),
            percentile(90),
            moved_bytes,
        )


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> float:
    """Of durations taken in turns: the median over the rounds, so that load counts for both."""
    return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))


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
