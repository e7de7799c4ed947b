"""Memory that a step keeps between requests, measured in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_CODE = """
import resource, sys, time
import numpy as np
from ensemble_builder.runtime import heap
from ensemble_builder.runtime.heap import KeptMemory

heap.MOST_KEPT_BYTES = int(sys.argv[2])

def faults():
    def work():
        return np.ones(64 << 20, dtype=np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with memory:
        work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

memory = KeptMemory(kept_s=float(sys.argv[1]))
first = faults()
kept = resident_mib()
second = faults()
limit = time.monotonic() + float(sys.argv[3])
while kept - resident_mib() <= 48 and time.monotonic() < limit:
    time.sleep(0.05)
print(first, second, kept, resident_mib())
"""


def _run(kept_s: float, most_bytes: int = 512 << 20, wait_s: float = 0) -> list[int]:
    found = subprocess.run(
        [sys.executable, "-c", _CODE, str(kept_s), str(most_bytes), str(wait_s)],
        capture_output=True,
        text=True,
        check=True,
        env={"NUMPY_MADVISE_HUGEPAGE": "0", "PATH": ""},
    )
    return [int(word) for word in found.stdout.split()]


pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="what it asks for is the GNU C library's"
)


def test_the_next_request_finds_its_memory_there():
    """Nothing is zeroed by the system again."""
    first, second, _, _ = _run(kept_s=60)
    assert first > (64 << 20) / 4096 / 2
    assert second < first / 10


def test_an_idle_step_gives_it_back():
    """After the time that it is kept for."""
    _, _, kept, later = _run(kept_s=0.2, wait_s=30)
    assert kept - later > 48


def test_what_is_unusually_much_goes_back_soon():
    """However long the rest is kept."""
    _, _, kept, later = _run(kept_s=60, most_bytes=32 << 20, wait_s=30)
    assert kept - later > 48
