"""All peers and our ensemble on one volume, in turns; the labels first, then the clock.

In: a bundle and a volume. Out: seconds per study of everyone, and in how many voxels their
labels differ from MONAI's. Everyone's first study warms up and isn't counted, but for the
process per study, which has no second one.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_builder.server import TritonServer
from perf.measure import Measurement
from perf.peers.bundle_run import cold, serve_warm, write_nifti
from perf.peers.case import NETWORK_MODEL, TUTORIAL_MODEL, Case, Volume
from perf.peers.client_windows import serve_client
from perf.shared_memory import SharedMemoryClient
from perf.workers import PeerFailed, told, worker

OURS, OURS_TORCH = "tritome", "tritome (torch)"
WARM, COLD = "bundle_run warm", "bundle_run cold"
TUTORIAL = "tutorial"
BINARY, JSON = "client_windows binary", "client_windows JSON"
_RUNTIMES = {OURS: "auto", OURS_TORCH: "torch"}
_WORDS = {"openvino": "OpenVINO", "torch": "torch by default"}

Runner = Callable[[], tuple[float, NDArray[Any]]]


@dataclass
class Comparison:
    """What was found for one bundle and one volume.

    Attributes:
        seconds: Who -> each counted study.
        different: Who -> voxels whose label differs from that of bundle_run warm.
        load: The machine's load average before each turn.
        devices: Who -> where it computes.
        loaded: The runtime that our default really is here.
    """

    bundle: str
    volume: str
    voxels: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    different: dict[str, int] = field(default_factory=dict)
    load: list[float] = field(default_factory=list)
    devices: dict[str, str] = field(default_factory=dict)
    loaded: str = ""

    def name(self, who: str) -> str:
        """For the report: our default by the runtime that was really loaded."""
        return f"{OURS} ({_WORDS.get(self.loaded, self.loaded)})" if who == OURS else who

    def measurements(self) -> Iterator[Measurement]:
        """One for each who."""
        for who, seconds in self.seconds.items():
            yield Measurement.of(f"{self.bundle}, {self.volume}: {self.name(who)}", seconds)

    def ratio(self, who: str, ours: str = OURS) -> float:
        """Median of who's seconds to ours, turn by turn, so that load counts for both."""
        pairs = zip(self.seconds[who], self.seconds[ours], strict=False)
        return float(np.median([theirs / mine for theirs, mine in pairs]))


def compare(
    bundle: Path,
    volume: Volume,
    *,
    turns: int,
    without: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Runs everyone.

    Args:
        bundle: A MONAI bundle; random weights of seed 0 where it has none.
        volume: One volume.
        turns: How often everyone is counted.
        without: Who doesn't take part.
        say: Hears how far it is.

    Raises:
        PeerFailed: a peer gave no labels.
        BuilderError: the bundle can't be built or served.
    """
    with tempfile.TemporaryDirectory(prefix="tritome-peers-") as place, contextlib.ExitStack() as s:
        scratch = Path(place)
        case = Case.prepare(bundle, scratch / "bundle")
        repository = case.repository(scratch, [_RUNTIMES[one] for one in (OURS, OURS_TORCH)])
        server = s.enter_context(TritonServer(repository, log=scratch / "triton.log", watch=False))
        size_bytes = volume.image.size * 8 + (1 << 20)  # the tutorial's: float in, float out
        client = s.enter_context(SharedMemoryClient(server.grpc_url, size_bytes))
        runners: dict[str, Runner] = {}
        # One device for all: the one that Triton has given to the same network.
        gpu = client.computes_on_gpu(NETWORK_MODEL)
        device = "cuda:0" if gpu else "cpu"
        for who, runtime in _RUNTIMES.items():
            runners[who] = _ours(client, case.served_as(runtime), volume)
        runners[TUTORIAL] = _tutorial(client, volume)
        runners[WARM] = _in(s.enter_context(worker(serve_warm, case, device)), volume)
        for who in (BINARY, JSON):
            if who not in without:
                pipe = s.enter_context(worker(serve_client, case, server.http_url, who == BINARY))
                runners[who] = _in(pipe, volume)
        image = write_nifti(volume, scratch / "image.nii")
        runners[COLD] = lambda: cold(case, image, scratch, device)
        found = Comparison(case.name, volume.name, volume.image.size)
        found.loaded = _loaded(scratch / "triton.log", case.served_as(_RUNTIMES[OURS]))
        found.devices = dict.fromkeys(runners, "GPU" if gpu else "CPU")
        for who in (BINARY, JSON):
            if gpu and who in runners:
                found.devices[who] = "network on the GPU, the rest on the client's CPU"
        chosen = {who: run for who, run in runners.items() if who not in without}
        _take_turns(chosen, found, turns, say)
    return found


def _loaded(log: Path, model: str) -> str:
    """The runtime that our ensemble's own words name.

    Raises:
        PeerFailed: they aren't there.
    """
    words = log.read_text(encoding="utf-8", errors="replace")
    found = re.search(rf"\b{re.escape(model)}\w*: (\w+) (?:f32|bf16|f16)\b", words)
    if found is None:
        msg = f"Triton's log doesn't say what computes {model}"
        raise PeerFailed(msg)
    return found[1]


def _take_turns(
    runners: dict[str, Runner], found: Comparison, turns: int, say: Callable[[str], None]
) -> None:
    expected = runners[WARM]()[1]
    for who, run in runners.items():
        if who != COLD:  # no study warms up for the next one there
            found.different[who] = int(np.count_nonzero(run()[1] != expected))
    for _ in range(turns):
        found.load.append(os.getloadavg()[0])
        for who, run in runners.items():
            seconds, labels = run()
            say(f"{found.bundle}, {found.volume}: {who} took {seconds:.2f} s")
            found.seconds.setdefault(who, []).append(seconds)
            different = int(np.count_nonzero(labels != expected))
            found.different[who] = max(found.different.get(who, 0), different)


def _ours(client: SharedMemoryClient, model: str, volume: Volume) -> Runner:
    def run() -> tuple[float, NDArray[Any]]:
        started = time.perf_counter()
        mask = client.ask(model, volume.request(), "MASK", np.uint8, volume.image.shape)
        return time.perf_counter() - started, np.array(mask)

    return run


def _tutorial(client: SharedMemoryClient, volume: Volume) -> Runner:
    request: dict[str, NDArray[Any]] = {
        "VOLUME": volume.hounsfield(),
        "AFFINE": volume.affine_lps,
    }

    def run() -> tuple[float, NDArray[Any]]:
        started = time.perf_counter()
        mask = client.ask(TUTORIAL_MODEL, request, "MASK", np.float32, volume.image.shape)
        return time.perf_counter() - started, np.array(mask)

    return run


def _in(pipe: Any, volume: Volume) -> Runner:
    """A peer in a process of its own; the pipe's time isn't counted."""
    told(pipe)  # ready

    def run() -> tuple[float, NDArray[Any]]:
        pipe.send(volume)
        seconds, labels = told(pipe)
        return seconds, labels

    return run
