"""What grows with a study, and what must not grow with their number.

    python -m perf.growth              latency and memory of 50 to 600 slices; 200 small studies
    python -m perf.growth --quick      a smoke test

Latency is from the acknowledgement of a study's last instance to the arrival of its result at
the destination, through a real gateway and tritonserver (`perf/sizes.py`). The gateway's memory
is what its processes hold for themselves: anonymous memory and their share of libraries. Shared
memory is none of it, since there the one volume lies that a study is allowed; what is left must
fit into 300 MB and, as the claim allows it, one volume. After many studies (`perf/endurance.py`)
the memory of each process, descriptors, threads, shared memory and temporary files must stand
still: a line through the samples after the warm-up has, with a confidence of 95 %, a slope
below an allowance.

Goes out: `bench.md`, pictures, `bench.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.demo.phantom_study import write_phantom_study
from clients.supervise import interrupted_once
from ensemble_builder.memory import STEP_BYTES
from perf.endurance import MEMORY, Endurance, endure
from perf.fit import bend, line
from perf.measure import Measurement, describe_machine
from perf.plot import Curve, plot
from perf.report import Report, Shown
from perf.sections import Found
from perf.site import site
from perf.sizes import COVERED_MM, Say, Sizes, measure_sizes, write_chests
from perf.stage import only_lung_ct
from perf.workers import same_threads

_REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
_PIPELINE, _TITLE = "lung_ct", "GROWTH"
_STEPS = 3
"""Preprocessing, network, postprocessing."""

GATEWAY_BYTES = 300 * 10**6
"""Beside one volume."""
MEMORY_ALLOWANCE_MB = 10.0
"""In a hundred studies, for each process: less than a line of them in the index costs."""
COUNT_ALLOWANCE = 1.0
"""In a hundred studies, of descriptors, threads, processes and files."""
LEAST_R_SQUARED = 0.95
LARGEST_BEND = 1.25
LARGEST_RESIDUAL = 0.15


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        slices: Of the studies whose time and memory are taken.
        size: Their rows and columns.
        rounds: How often each is timed.
        studies: How many small ones follow each other.
        warm_up: Not counted, of them.
        small_kji: Their shapes, in turn.
    """

    slices: tuple[int, ...] = (50, 100, 200, 300, 450, 600)
    size: int = 512
    rounds: int = 3
    studies: int = 200
    warm_up: int = 40
    small_kji: tuple[tuple[int, int, int], ...] = ((40, 128, 128), (24, 192, 192), (64, 96, 96))


QUICK = Plan((20, 40, 60), 128, 1, 12, 4)


def growth_of_studies(plan: Plan, model_repository: Path, say: Say = lambda _what: None) -> Found:
    """Runs all of it, on a tritonserver and a gateway of its own.

    Args:
        plan: How much.
        model_repository: Where lung_ct is served from.
        say: Hears how far it is.

    Raises:
        RoadFailed: the gateway did not start, or a result did not come.
        BuilderError: there is no tritonserver, or it does not start.
    """
    same_threads()
    measurements: list[Measurement] = []
    shown: list[Shown] = []
    notes: dict[str, str] = {}
    pictures: dict[str, str] = {}
    if plan.slices:
        sizes = _sizes(plan, model_repository, say)
        measurements += measurements_of(sizes)
        shown += what_sizes_show(sizes, contract_bytes_per_voxel(model_repository))
        notes |= notes_on(sizes)
        pictures |= pictures_of(sizes)
    if plan.studies:
        endurance = _endurance(plan, model_repository, say)
        shown += what_endurance_shows(endurance)
        notes |= notes_on_endurance(endurance)
        pictures |= pictures_of_endurance(endurance)
    return Found(measurements, shown, notes, pictures)


def _sizes(plan: Plan, model_repository: Path, say: Say) -> Sizes:
    with tempfile.TemporaryDirectory(prefix="tritome-growth-") as place:
        folder = Path(place)
        chests = write_chests(folder / "chests", plan.slices, plan.size, say)
        # Room for two volumes with their masks: what is measured is one study, not waiting.
        arena_bytes = max(1 << 24, 2 * 3 * max(plan.slices) * plan.size**2)
        models = only_lung_ct(model_repository, folder / "models")
        with site(folder / "site", models, {_TITLE: _PIPELINE}, arena_bytes=arena_bytes) as running:
            return measure_sizes(
                running,
                _TITLE,
                chests,
                size=plan.size,
                scratch=folder,
                rounds=plan.rounds,
                say=say,
            )


def _endurance(plan: Plan, model_repository: Path, say: Say) -> Endurance:
    with tempfile.TemporaryDirectory(prefix="tritome-growth-") as place:
        folder = Path(place)
        sources = []
        for number, shape in enumerate(plan.small_kji):
            say(f"painting a small chest of {' x '.join(map(str, shape))}")
            k, j, i = (mm / n for mm, n in zip(COVERED_MM, shape, strict=True))
            write_phantom_study(
                folder / f"small-{number}", seed=number, shape_kji=shape, spacing_mm=(k, j, i)
            )
            sources.append(folder / f"small-{number}")
        models = only_lung_ct(model_repository, folder / "models")
        with site(folder / "site", models, {_TITLE: _PIPELINE}) as running:
            return endure(
                running,
                _TITLE,
                sources,
                scratch=folder,
                studies=plan.studies,
                warm_up=plan.warm_up,
                say=say,
            )


def contract_bytes_per_voxel(model_repository: Path) -> float:
    """What the pipeline's contract promises to need at most."""
    written = sorted((model_repository / _PIPELINE).glob("*/contract.json"))
    return float(json.loads(written[-1].read_text(encoding="utf-8"))["peak_bytes_per_voxel"])


def measurements_of(sizes: Sizes) -> list[Measurement]:
    """A row for each number of slices."""
    return [
        Measurement.of(f"last instance to result: {count} slices, tritome", found)
        for count, found in sizes.seconds.items()
        if found
    ]


def what_sizes_show(sizes: Sizes, contract_bytes: float) -> list[Shown]:
    """The claims on time and memory."""
    shown = []
    x, y = _points(sizes)
    n = len(y) // max(1, len(sizes.seconds))
    if y:
        medians = [statistics.median(found) for found in sizes.seconds.values()]
        through = line(list(sizes.seconds), medians)
        name = "latency over slices"
        shown += [
            Shown(
                f"{name}: R^2 of a straight line, all rounds",
                line(x, y).r_squared,
                LEAST_R_SQUARED,
                n=n,
            ),
            Shown(
                f"{name}: largest distance of a median from the line, as a share",
                through.largest_share,
                LARGEST_RESIDUAL,
                at_most=True,
                n=n,
            ),
        ]
        bent = bend(x, y)
        if bent is not None:
            words = f"{name}: slope of the larger half over the whole slope"
            shown.append(Shown(words, bent, LARGEST_BEND, at_most=True, n=n))
    for count, memory in sizes.memory.items():
        beside = memory.gateway_bytes / 1e6
        allowed = (sizes.volume_bytes(count) + GATEWAY_BYTES) / 1e6
        shown.append(
            Shown(
                f"gateway, {count} slices: MB at most, beside one volume + 300 MB",
                beside,
                allowed,
                at_most=True,
                n=1,
            )
        )
    for count, memory in sizes.memory.items():
        grows = contract_bytes * sizes.voxels(count)
        shown.append(
            Shown(
                f"server, {count} slices: MB above idle, beside the contract's {contract_bytes:g} "
                f"bytes for each voxel and {STEP_BYTES / 1e6:g} MB for each of {_STEPS} steps",
                memory.server_bytes / 1e6,
                (grows + _STEPS * STEP_BYTES) / 1e6,
                at_most=True,
                n=1,
            )
        )
    return shown


def notes_on(sizes: Sizes) -> dict[str, str]:
    """The line, and where the memory is."""
    notes = {}
    if any(sizes.seconds.values()):
        through = line(list(sizes.seconds), [statistics.median(s) for s in sizes.seconds.values()])
        distances = ", ".join(
            f"{count}: {left * 1000:+.0f} ms"
            for count, left in zip(sizes.seconds, through.residuals, strict=True)
        )
        notes["latency over slices"] = (
            f"{through.intercept:.2f} s + {through.slope * 1000:.2f} ms for each slice; "
            f"medians less the line: {distances}"
        )
    largest = max(sizes.memory, default=0)
    if largest:
        held = ", ".join(
            f"{role} {size / 1e6:,.0f} MB" for role, size in sizes.memory[largest].by_role.items()
        )
        notes[f"memory of {largest} slices"] = (
            f"most anonymous memory of each role: {held}; one volume is "
            f"{sizes.volume_bytes(largest) / 1e6:,.0f} MB"
        )
        notes["memory the server keeps"] = (
            f"{sizes.server_kept_bytes / 1e6:,.0f} MB above what it held before the first study"
        )
        shared = ", ".join(
            f"{name.rpartition('_')[0]} {size / 1e6:,.0f} MB" for name, size in sizes.shared.items()
        )
        notes["shared memory of the gateway"] = shared
    return notes


def what_endurance_shows(endurance: Endurance) -> list[Shown]:
    """Nothing grows: the slope's upper bound for a hundred studies, for each quantity."""
    shown = []
    counted = len(endurance.samples) - endurance.warm_up
    for name in endurance.names():
        found = endurance.growth(name)
        is_memory = name.startswith(MEMORY)
        unit, allowed = ("MB", MEMORY_ALLOWANCE_MB) if is_memory else ("more", COUNT_ALLOWANCE)
        words = f"{name}: {unit} in 100 studies at most ({found.early:,.4g} -> {found.late:,.4g})"
        shown.append(Shown(words, 100 * found.upper, allowed, at_most=True, n=counted))
    return shown


def notes_on_endurance(endurance: Endurance) -> dict[str, str]:
    """Each quantity after 20 studies, at the end of the warm-up, and after all."""
    last = len(endurance.samples)
    at = sorted({min(20, last), min(endurance.warm_up, last), last})
    return {
        f"after {count} studies": ", ".join(
            f"{name} {value:,.4g}" for name, value in endurance.samples[count - 1].items()
        )
        for count in at
    }


def pictures_of(sizes: Sizes) -> dict[str, str]:
    """Latency over slices, and memory."""
    pictures = {}
    x, y = _points(sizes)
    if y:
        through = line(x, y)
        ends = [0.0, max(x)]
        curves = [
            Curve("a study", x, y, joined=False),
            Curve(f"line, R^2 {through.r_squared:.3f}", ends, [through.at(one) for one in ends]),
        ]
        title = "From the last instance's acknowledgement to the result"
        pictures["growth-latency"] = plot(title, "slices", "s", curves)
    if sizes.memory:
        counts = list(sizes.memory)
        curves = [
            Curve("gateway", counts, [one.gateway_bytes / 1e6 for one in sizes.memory.values()]),
            Curve(
                "one volume + 300 MB",
                counts,
                [(sizes.volume_bytes(one) + GATEWAY_BYTES) / 1e6 for one in counts],
            ),
            Curve(
                "server above idle",
                counts,
                [one.server_bytes / 1e6 for one in sizes.memory.values()],
            ),
        ]
        pictures["growth-memory"] = plot("Most memory during a study", "slices", "MB", curves)
    return pictures


def pictures_of_endurance(endurance: Endurance) -> dict[str, str]:
    """Each memory, and each count, over the studies."""
    studies = list(range(1, len(endurance.samples) + 1))

    def curves(wanted: bool) -> list[Curve]:
        names = [name for name in endurance.names() if name.startswith(MEMORY) == wanted]
        return [
            Curve(name.removeprefix(f"{MEMORY}: "), studies, endurance.values(name))
            for name in names
        ]

    return {
        "growth-studies-memory": plot(
            "Memory after each study", "studies", "MB", curves(wanted=True)
        ),
        "growth-studies-counts": plot(
            "Descriptors, threads, processes and files after each study",
            "studies",
            "how many",
            curves(wanted=False),
        ),
    }


def _points(sizes: Sizes) -> tuple[list[float], list[float]]:
    pairs = [(count, one) for count, found in sizes.seconds.items() for one in found]
    return [float(count) for count, _ in pairs], [one for _, one in pairs]


@interrupted_once()  # so that no server or gateway stays behind
def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, writes; 1 where a claim doesn't hold."""
    parser = argparse.ArgumentParser(prog="python -m perf.growth", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--slices", help="numbers of slices, with commas; 0 leaves them out")
    parser.add_argument("--size", type=int, help="rows and columns (512)")
    parser.add_argument("--rounds", type=int, help="how often each is timed (3)")
    parser.add_argument("--studies", type=int, help="small ones in a row (200); 0 leaves them out")
    parser.add_argument("--warm-up", type=int, help="not counted, of them (40)")
    parser.add_argument(
        "--model-repository", type=Path, default=_REPOSITORY_ROOT / "model_repository"
    )
    parser.add_argument("--out", type=Path, help="folder for bench.md, pictures, bench.json")
    chosen = parser.parse_args(arguments)
    given = {
        name: value
        for name in ("size", "rounds", "studies", "warm_up")
        if (value := getattr(chosen, name)) is not None
    }
    if chosen.slices is not None:
        counts = tuple(int(one) for one in chosen.slices.split(","))
        given["slices"] = tuple(one for one in counts if one > 0)
    plan = dataclasses.replace(QUICK if chosen.quick else Plan(), **given)
    setting = describe_machine()

    def say(what: str) -> None:
        print(what, flush=True)

    found = growth_of_studies(plan, chosen.model_repository, say)
    report = Report(setting | found.devices, found.measurements, found.shown, drawn=found.pictures)
    print(report.markdown())
    if chosen.out is not None:
        report.write(chosen.out)
    return 0 if all(one.holds for one in found.shown) else 1


if __name__ == "__main__":
    sys.exit(main())
