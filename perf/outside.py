"""Everything but the network: our steps beside MONAI's own transforms, time and peak memory.

In: a bundle and a volume. Two processes hold the same network in the same runtime; they take
turns on the same volume, and the network's own time is taken off both. Out: seconds for each
stage, the peak of resident memory above what the process held before, and whether the labels
are the same. `python -m perf.outside BUNDLE VOLUME` prints it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from perf.measure import Measurement
from perf.workers import same_threads, told, worker

STAGES = ("preprocess", "stitch", "postprocess")
"""`stitch` is the sliding window without the network's own time."""


@dataclass(frozen=True, slots=True)
class Side:
    """Who computes, and how.

    Attributes:
        name: For the report.
        ours: Our runtime; otherwise MONAI's own transforms and inferer.
        overrides: Config ids of the bundle and what to put there.
    """

    name: str
    ours: bool
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pass:
    """One volume through one side.

    Attributes:
        stages_s: Seconds of each of `STAGES`.
        cpu_s: Processor seconds of all threads, without the network's: what other work on the
            machine changes least.
        network_s: The network's own.
        peak_bytes: Most resident memory above what the process held before.
        labels: sha256 of the label map.
    """

    stages_s: dict[str, float]
    cpu_s: float
    network_s: float
    peak_bytes: int
    labels: str

    @property
    def outside_s(self) -> float:
        """Everything but the network."""
        return sum(self.stages_s.values())


@dataclass(frozen=True, slots=True)
class Outside:
    """What was found for one bundle and one volume.

    Attributes:
        passes: Side's name -> its passes, in turns.
    """

    bundle: str
    volume: str
    runtime: str
    passes: dict[str, list[Pass]]

    def measurements(self) -> Iterator[Measurement]:
        """One for each side."""
        for name, passes in self.passes.items():
            seconds = [one.outside_s for one in passes]
            yield Measurement.of(f"{self.bundle}, {self.volume}: {name}", seconds)

    def median_s(self, side: str, stage: str | None = None) -> float:
        """Of a side's whole, or of one of its stages."""
        return statistics.median(
            one.outside_s if stage is None else one.stages_s[stage] for one in self.passes[side]
        )

    def cpu_s(self, side: str) -> float:
        """Median of a side's processor seconds."""
        return statistics.median(one.cpu_s for one in self.passes[side])

    def peak_bytes(self, side: str) -> int:
        """The largest of a side's passes."""
        return max(one.peak_bytes for one in self.passes[side])

    def equal(self) -> bool:
        """True where every pass of every side gave the same labels."""
        return len({one.labels for passes in self.passes.values() for one in passes}) == 1


def measure(
    bundle: Path,
    volume: Path,
    sides: Sequence[Side],
    *,
    repetitions: int,
    runtime: str = "openvino",
) -> Outside:
    """Lets the sides take turns.

    Args:
        bundle: A MONAI bundle; its weights are random (seed 0) where it has none.
        volume: An .npz with IMAGE, RESCALE, AFFINE.
        sides: Who takes part.
        repetitions: Passes that count; one more before them warms up.
        runtime: What computes the network, on all sides.

    Raises:
        PeerFailed: a side's process ended.
    """
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(worker(_serve, bundle, volume, runtime, side)) for side in sides
        ]
        for one in workers:
            told(one)  # ready
        passes: dict[str, list[Pass]] = {side.name: [] for side in sides}
        for turn in range(repetitions + 1):
            for side, pipe in zip(sides, workers, strict=True):
                pipe.send("go")
                found = told(pipe)
                if turn:
                    passes[side.name].append(found)
    return Outside(bundle.name, volume.stem, runtime, passes)


def _serve(pipe: Connection, bundle: Path, volume: Path, runtime: str, side: Side) -> None:
    one = _OneSide(bundle, runtime, side)
    request = dict(np.load(volume))
    pipe.send("ready")
    while pipe.recv() == "go":
        pipe.send(one.run(request))


class Clocked:
    """A network that says how long it took."""

    def __init__(self, network: Callable[..., Any]) -> None:
        self._network = network
        self.forget()

    def forget(self) -> None:
        """Starts anew."""
        self.seconds = self.cpu_s = 0.0

    def __call__(self, windows: Any) -> Any:
        """One batch of windows."""
        started, cpu_s = time.perf_counter(), time.process_time()
        found = self._network(windows)
        self.seconds += time.perf_counter() - started
        self.cpu_s += time.process_time() - cpu_s
        return found


class _OneSide:
    """One side in this process."""

    def __init__(self, bundle: Path, runtime: str, side: Side) -> None:
        import torch  # noqa: PLC0415 - in the child

        from ensemble_builder.bundle import Options, read_bundle  # noqa: PLC0415
        from ensemble_builder.runtime.fusion import split  # noqa: PLC0415
        from ensemble_builder.runtime.networks import load_network  # noqa: PLC0415

        self._ours = side.ours
        options = Options(random_weights=0, overrides=side.overrides, runtime=runtime)
        read = read_bundle(bundle, options)
        self._recipe = read.recipe
        config = read.recipe.open(read.folder, torch.device("cpu"))
        self._before, self._after = config.preprocessing(), config.postprocessing()
        self._inferer = config.inferer()
        self._network = Clocked(load_network(config, read.recipe, read.folder, torch.device("cpu")))
        self._reduce = None
        if side.ours and read.recipe.y_channels:
            parts = split(self._after, read.recipe.pred_key, read.recipe.y_channels)
            self._reduce, self._after = parts.reduce, parts.rest

    def run(self, request: dict[str, Any]) -> Pass:
        """One volume."""
        import torch  # noqa: PLC0415

        gc.collect()
        self._network.forget()
        before = _status_bytes("VmRSS")
        # A reader's float image is MONAI's beginning: it lies in its memory, but making it is
        # in neither its clock nor its peak.
        images = [] if self._ours else [self._read(request)]
        _forget_peak()
        cpu_s = time.process_time()
        with torch.inference_mode() if self._ours else torch.no_grad():
            if self._ours:
                stages_s, labels = self._compute_ours(request)
            else:
                stages_s, labels = self._monais(images)
        cpu_s = time.process_time() - cpu_s - self._network.cpu_s
        peak = _status_bytes("VmHWM") - before
        stages_s["stitch"] -= self._network.seconds
        digest = hashlib.sha256(np.ascontiguousarray(labels).data).hexdigest()
        return Pass(stages_s, cpu_s, self._network.seconds, peak, digest)

    def _compute_ours(self, request: dict[str, Any]) -> tuple[dict[str, float], Any]:
        """What the three models do, without Triton between them."""
        import torch  # noqa: PLC0415

        from ensemble_builder.runtime.forward import preprocess  # noqa: PLC0415
        from ensemble_builder.runtime.fusion import run  # noqa: PLC0415
        from ensemble_builder.runtime.loading import input_affine, network_input  # noqa: PLC0415
        from ensemble_builder.runtime.placing import InputGrid  # noqa: PLC0415
        from ensemble_builder.runtime.results import result  # noqa: PLC0415
        from ensemble_builder.runtime.state import (  # noqa: PLC0415
            decode_state,
            dictionary_of,
            encode_state,
            state_of,
        )
        from ensemble_builder.runtime.windows import sliding_window  # noqa: PLC0415

        recipe, clock = self._recipe, _Clock()

        def tensor(name: str, _: torch.device) -> torch.Tensor:
            return torch.from_numpy(request[name])

        done, shape = preprocess(self._before, recipe.inputs, tensor, torch.device("cpu"))
        x = network_input(recipe.network_key, done).as_subclass(torch.Tensor).contiguous()
        grid = InputGrid(shape, input_affine(recipe.inputs, tensor))
        text = encode_state(state_of(done, grid))
        del done
        clock.lap("preprocess")
        y = sliding_window(self._inferer, x[None], self._network, self._reduce)[0]
        del x
        clock.lap("stitch")
        state = decode_state(text)
        rest = dictionary_of(recipe.network_key, recipe.pred_key, state, y, {})
        found = run(self._after, rest, recipe.pred_key)
        output = recipe.outputs[0]
        labels = result(found[output.key], output, state.grid).numpy()
        clock.lap("postprocess")
        return clock.laps_s, labels

    def _read(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the bundle's readers would give."""
        from ensemble_builder.verify.monai import stored_as_read  # noqa: PLC0415

        return {one.key: stored_as_read(one, request) for one in self._recipe.inputs}

    def _monais(self, images: list[dict[str, Any]]) -> tuple[dict[str, float], Any]:
        """What SupervisedEvaluator does, without collating; takes the image out of the list."""
        import torch  # noqa: PLC0415

        from ensemble_builder.verify.monai import stated  # noqa: PLC0415

        recipe, clock = self._recipe, _Clock()
        data = self._before(images.pop())
        clock.lap("preprocess")
        y = self._inferer(data[recipe.network_key][None].float(), self._network)[0]
        clock.lap("stitch")
        data[recipe.pred_key] = y
        del y
        data = self._after(data)
        output = recipe.outputs[0]
        plain = torch.as_tensor(data[output.key]).as_subclass(torch.Tensor).numpy()
        labels = stated(plain, output)
        clock.lap("postprocess")
        return clock.laps_s, labels


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps_s: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps_s[name] = now - self._last
        self._last = now


def _forget_peak() -> None:
    """Starts VmHWM anew.

    Source: proc(5): 5 written to /proc/self/clear_refs resets the peak to the current size.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    msg = f"/proc/self/status has no {name}"
    raise RuntimeError(msg)


SIDES = (Side("MONAI's own transforms", ours=False), Side("tritome's runtime", ours=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line for each side and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m perf.outside", description=main.__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("volume", type=Path, help="an .npz with IMAGE, RESCALE, AFFINE")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--only", choices=("monai", "ours"))
    parser.add_argument("--json", type=Path, help="also writes every pass there")
    chosen = parser.parse_args(arguments)
    same_threads()
    sides = [s for s in SIDES if chosen.only in (None, "ours" if s.ours else "monai")]
    found = measure(
        chosen.bundle,
        chosen.volume,
        sides,
        repetitions=chosen.repetitions,
        runtime=chosen.runtime,
    )
    for side in sides:
        stages = ", ".join(f"{s} {found.median_s(side.name, s):.2f}" for s in STAGES)
        network_s = statistics.median(one.network_s for one in found.passes[side.name])
        print(
            f"{side.name}: {found.median_s(side.name):.2f} s ({stages}; "
            f"processor {found.cpu_s(side.name):.2f} s), "
            f"network {network_s:.2f} s, peak {found.peak_bytes(side.name) / 2**20:,.0f} MiB"
        )
    if len(sides) > 1:
        monai, ours = (side.name for side in sides)
        print(
            f"{found.median_s(monai) / found.median_s(ours):.1f} times less time "
            f"(processor {found.cpu_s(monai) / found.cpu_s(ours):.1f} times), "
            f"{found.peak_bytes(ours) / max(found.peak_bytes(monai), 1):.0%} of the memory, "
            f"labels {'equal' if found.equal() else 'DIFFERENT'}"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(found), indent=1) + "\n", encoding="utf-8")
    return 0 if found.equal() else 1


if __name__ == "__main__":
    sys.exit(main())
