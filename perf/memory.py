"""Peak memory of a served pipeline beside MONAI in one process, on the same input.

Both sides run in processes of their own; a sampler adds up the proportional set size (PSS, so
shared memory counts once) of each side's processes, and subtracts nothing: libraries, weights
and shared memory count. `python -m perf.memory BUNDLE DICOM_FOLDER` prints the figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from perf.watch import Watch

SAMPLE_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Side:
    """One side's figures.

    Attributes:
        idle_bytes: All processes together before the request.
        peak_bytes: The largest sum of them at any time.
        seconds: From the request to the answer.
    """

    name: str
    idle_bytes: int
    peak_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Task:
    """What both sides do.

    Attributes:
        scratch: Folder with the request; each side leaves its labels there.
    """

    bundle: Path
    scratch: Path
    overrides: dict[str, Any]
    runtime: str


@dataclass(frozen=True, slots=True)
class Signals:
    """Between a side's process and the one that watches it: multiprocessing's events."""

    ready: Any
    go: Any
    over: Any


class Sampler(Watch):
    """Watches a process and all its children while it is entered."""

    def __init__(self, pid: int) -> None:
        super().__init__(SAMPLE_EVERY_S)
        self._root = psutil.Process(pid)
        self.idle_bytes = self.now()
        self.peak_bytes = self.idle_bytes

    def now(self) -> int:
        """Their PSS at this moment."""
        total = 0
        try:
            family = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return 0
        for process in family:
            try:
                total += int(process.memory_full_info().pss)
            except psutil.Error:
                continue  # it ended meanwhile
        return total

    def look(self) -> None:
        """Takes down what is more than before."""
        self.peak_bytes = max(self.peak_bytes, self.now())


def measure(
    bundle: Path,
    request: dict[str, Any],
    overrides: dict[str, Any],
    runtime: str,
) -> tuple[Side, Side, int]:
    """Runs both sides one after the other.

    Args:
        bundle: Its weights are random (seed 0) where it has none.
        request: The ensemble's inputs.
        overrides: Config ids and what to put there.
        runtime: What computes the served network; MONAI's is always eager torch.

    Returns:
        MONAI's figures, the served pipeline's, and in how many voxels the labels differ.
    """
    with tempfile.TemporaryDirectory() as scratch:
        np.savez(Path(scratch, "request.npz"), **request)
        task = Task(bundle, Path(scratch), overrides, runtime)
        monai = _run("MONAI in one process", _monai, task)
        served = _run(f"served, {runtime}", _served, task)
        expected = np.load(Path(scratch, "monai.npy"))
        different = int(np.count_nonzero(expected != np.load(Path(scratch, "served.npy"))))
    return monai, served, different


def _run(name: str, side: Callable[[Task, Signals], None], task: Task) -> Side:
    context = multiprocessing.get_context("spawn")
    signals = Signals(context.Event(), context.Event(), context.Event())
    process = context.Process(target=side, args=(task, signals))
    process.start()
    assert process.pid is not None
    while not signals.ready.wait(1.0):
        if not process.is_alive():
            msg = f"{name}: it ended before it was ready"
            raise RuntimeError(msg)
    with Sampler(process.pid) as sampler:
        started = time.perf_counter()
        signals.go.set()
        while not signals.over.wait(1.0) and process.is_alive():
            pass
        seconds = time.perf_counter() - started
    process.join()
    if process.exitcode != 0:
        msg = f"{name}: it failed, see above"
        raise RuntimeError(msg)
    return Side(name, sampler.idle_bytes, sampler.peak_bytes, seconds)


def _monai(task: Task, signals: Signals) -> None:
    from ensemble_builder.verify import Source, monai_stages  # noqa: PLC0415 - in the child

    source = Source.of(_read(task, "torch"))
    request = dict(np.load(task.scratch / "request.npz"))
    signals.ready.set()
    signals.go.wait()
    outputs = monai_stages(source, request).outputs
    signals.over.set()
    np.save(task.scratch / "monai.npy", next(iter(outputs.values())))


def _served(task: Task, signals: Signals) -> None:
    from ensemble_builder.plan import plan  # noqa: PLC0415 - in the child
    from ensemble_builder.repository import write  # noqa: PLC0415
    from ensemble_builder.server import TritonServer  # noqa: PLC0415
    from ensemble_builder.verify.triton import ask  # noqa: PLC0415

    found = _read(task, task.runtime)
    list(write(plan(found), task.scratch / "repository"))
    request = dict(np.load(task.scratch / "request.npz"))
    log = task.scratch / "triton.log"
    try:
        with TritonServer(task.scratch / "repository", log=log, watch=False) as server:
            signals.ready.set()
            signals.go.wait()
            outputs = ask(server.grpc_url, found.name, request)
            signals.over.set()
    except BaseException:
        print(log.read_text(errors="replace")[-4000:])
        raise
    np.save(task.scratch / "served.npy", next(iter(outputs.values())))


def _read(task: Task, runtime: str) -> Any:
    from ensemble_builder.bundle import Options, read_bundle  # noqa: PLC0415 - in the child

    options = Options(random_weights=0, runtime=runtime, overrides=task.overrides)
    return read_bundle(task.bundle, options)


def main() -> None:
    """Prints both sides' figures and their ratio."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dicom", type=Path, help="a folder with one series")
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--set", action="append", default=[], metavar="ID=JSON")
    chosen = parser.parse_args()
    from clients.infer import stored_volume  # noqa: PLC0415 - not in the children

    image, rescale, affine = stored_volume(chosen.dicom)
    request = {"IMAGE": image, "RESCALE": rescale, "AFFINE": affine}
    pairs = [one.split("=", 1) for one in chosen.set]
    overrides = {name: json.loads(value) for name, value in pairs}
    monai, served, different = measure(chosen.bundle, request, overrides, chosen.runtime)
    for side in (monai, served):
        print(
            f"{side.name}: peak {side.peak_bytes / 2**20:,.0f} MiB "
            f"(idle {side.idle_bytes / 2**20:,.0f}), {side.seconds:,.0f} s"
        )
    print(f"{served.peak_bytes / monai.peak_bytes:.0%} of MONAI's peak, {different} voxels differ")


if __name__ == "__main__":
    main()
