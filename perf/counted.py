"""How much processor time networks take inside a running tritonserver, counted where they run.

`count_networks` changes copies of generated `_inferer` models so that each call of their network
is counted; nothing in the product knows of it. The count is the whole process's processor time,
all threads, from the call to its answer: a stub does nothing else meanwhile, and runtimes compute
in threads of their own. Where windows are computed while others are stitched, the time of the
thread that stitches is left out. So what a runtime's threads spend waiting for each other counts
as the network's; how long they would take with the cores to themselves is measured beside it.

Each stub keeps its numbers in a small file that is mapped into memory, named after its process;
whoever reads it adds what a call under way has taken so far.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble_builder.runtime.windows import BATCHES_IN_FLIGHT
from perf.procfs import cpu_s

FOLDER = "TRITOME_PERF_COUNTS"
"""Environment variable: where the stubs of a tritonserver keep their counts."""
_LAYOUT = struct.Struct("<qdd")  # calls, seconds of those that ended, process time at the call
_IDLE = -1.0
_MODEL = '''"""A generated model whose network is counted; see perf/counted_inferer.py."""

from perf.counted_inferer import CountedInferer

TritonPythonModel = CountedInferer
'''


class Counter:
    """The numbers of one stub, in a file."""

    @classmethod
    def of_this_process(cls) -> Counter:
        """In the folder that the environment names."""
        return cls(Path(os.environ[FOLDER]) / str(os.getpid()))

    def __init__(self, path: Path) -> None:
        path.write_bytes(_LAYOUT.pack(0, 0.0, _IDLE))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _LAYOUT.size)
        self._calls, self._seconds = 0, 0.0
        self._lock = threading.Lock()
        self._under_way, self._since_s = 0, 0.0

    def counted(self, network: Callable[..., Any]) -> Callable[..., Any]:
        """The same network, whose calls are counted."""
        if hasattr(network, "submit"):
            return _CountedStreams(network, self)

        def call(*args: Any, **kwargs: Any) -> Any:
            began_s = time.process_time()
            self._write(began_s)
            try:
                return network(*args, **kwargs)
            finally:
                self._calls += 1
                self._seconds += time.process_time() - began_s
                self._write(_IDLE)

        return call

    def begin(self, stitching: int) -> None:
        """A window is asked for, by the thread that stitches."""
        with self._lock:
            if self._under_way == 0:
                self._since_s = _beside_s(stitching)
            self._under_way += 1

    def end(self, stitching: int) -> None:
        """It is there."""
        with self._lock:
            now_s = _beside_s(stitching)
            self._seconds += now_s - self._since_s
            self._since_s = now_s
            self._under_way -= 1
            self._calls += 1
            self._write(_IDLE)

    def _write(self, began_s: float) -> None:
        _LAYOUT.pack_into(self._map, 0, self._calls, self._seconds, began_s)


class _CountedStreams:
    """A network that computes several windows at once, each of which is counted."""

    def __init__(self, network: Any, counter: Counter) -> None:
        self._network, self._counter = network, counter
        self.in_flight = getattr(network, "in_flight", BATCHES_IN_FLIGHT)
        self.one_by_one = getattr(network, "one_by_one", False)

    def submit(self, windows: Any) -> Any:
        """As the network's."""
        stitching = threading.get_ident()
        self._counter.begin(stitching)
        future = self._network.submit(windows)
        future.add_done_callback(lambda _: self._counter.end(stitching))
        return future

    def __call__(self, windows: Any) -> Any:
        """The same, awaited."""
        return self.submit(windows).result()


def _beside_s(thread: int) -> float:
    """Processor seconds of this process, without those of a thread."""
    return time.process_time() - time.clock_gettime(time.pthread_getcpuclockid(thread))


def count_networks(model_repository: Path) -> None:
    """Changes the inferers of a model repository that nobody else uses."""
    for model in model_repository.glob("*_inferer/*/model.py"):
        model.write_text(_MODEL, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Count:
    """What a stub's network has taken so far.

    Attributes:
        calls: Those that have ended.
        seconds: Of processor time, with what a call under way has taken.
    """

    calls: int
    seconds: float


def read_count(folder: Path, pid: int) -> Count:
    """Of one stub; nothing where it keeps none."""
    try:
        text = (folder / str(pid)).read_bytes()
    except OSError:
        return Count(0, 0.0)
    calls, seconds, began_s = _LAYOUT.unpack(text)
    if began_s != _IDLE:
        seconds += max(0.0, cpu_s(pid) - began_s)
    return Count(calls, seconds)
