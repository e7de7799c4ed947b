"""`make bench` and `tritome bench`: everything that is measured, in one report.

    python -m perf.bench            some ten minutes; 120 slices of 512 x 512
    python -m perf.bench --full     an hour or more; 300 slices, and all peers
    python -m perf.bench --quick    a smoke test: small volumes, few repetitions, no peers

lung_ct over each road to Triton and the whole way of a study; the road alone; our steps beside
MONAI's own transforms; the peers. `--bundle` and `--volume` add others to the last two,
`--against` compares with an earlier report.

It starts a tritonserver and a gateway of its own on loopback, and stops them. Comes in:
model_repository/. Goes out: `bench.md`, pictures, `bench.json`. Nothing else survives.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from clients.demo.phantom_study import PhantomStudy, write_ct_series
from ensemble_builder.errors import BuilderError
from ensemble_builder.phantoms.thorax import thorax_phantom
from ensemble_builder.server import TritonServer
from perf.against import NoReport, changes, read_measurements
from perf.analyzer import ROADS, Analyzer, AnalyzerFailed, VolumeInput, write_input
from perf.measure import Measurement, describe_machine
from perf.peers.case import Volume
from perf.peers.compare import JSON
from perf.report import Report, Shown
from perf.road import RoadFailed, drive, free_port, gateway
from perf.sections import Found, outside_the_network, read_volume, save_volume, the_peers, the_road
from perf.workers import PeerFailed, same_threads

_REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
LUNG_CT = _REPOSITORY_ROOT / "ensemble_builder" / "pipelines" / "lung_ct"
_MODEL = "lung_ct"
_SEED = 20
_COVERED_MM = (320.0, 400.0, 400.0)

_TROUBLES = (AnalyzerFailed, RoadFailed, BuilderError, PeerFailed, NoReport)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    shape_kji: tuple[int, int, int]
    requests: int
    studies: int
    transports: int
    passes: int
    turns: int
    without: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """A whole chest, whatever the number of voxels."""
        k, j, i = (mm / n for mm, n in zip(_COVERED_MM, self.shape_kji, strict=True))
        return k, j, i

    @property
    def arena_bytes(self) -> int:
        """Two volumes with their masks, and at least what a gateway accepts as an arena."""
        slices, rows, columns = self.shape_kji
        return max(1 << 24, 2 * 3 * slices * rows * columns)


USUAL = Plan(
    (120, 512, 512), requests=5, studies=3, transports=5, passes=3, turns=3, without=(JSON,)
)
FULL = Plan((300, 512, 512), requests=10, studies=5, transports=10, passes=5, turns=5)
QUICK = Plan((24, 96, 96), requests=2, studies=1, transports=2, passes=1, turns=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes it; returns the exit code."""
    options = _parser().parse_args(arguments)
    console = Console()
    same_threads()
    try:
        before = read_measurements(options.against) if options.against else []
        report = measure(
            QUICK if options.quick else FULL if options.full else USUAL,
            model_repository=options.model_repository,
            analyzer=Analyzer.find(options.perf_analyzer),
            console=console,
            bundles=[LUNG_CT, *options.bundle],
            volumes=options.volume,
        )
        report = replace(report, changes=changes(report.measurements, before))
    except _TROUBLES as error:
        console.print(f"[bold red]The bench stopped:[/] {error}", highlight=False, soft_wrap=True)
        return 1
    table, _ = report.write(options.out)
    console.print(Markdown(report.markdown()))
    console.print(f"Written to {table.parent}")
    return 1 if report.failed else 0


def measure(
    plan: Plan,
    *,
    model_repository: Path,
    analyzer: Analyzer,
    console: Console,
    bundles: Sequence[Path],
    volumes: Sequence[Path] = (),
) -> Report:
    """Runs everything once.

    Args:
        plan: How much.
        model_repository: Where lung_ct is served from.
        analyzer: perf_analyzer.
        console: Hears how far it is.
        bundles: For what runs on any bundle.
        volumes: The same; besides the generated chest.

    Raises:
        AnalyzerFailed: perf_analyzer gave no figures.
        RoadFailed: the gateway did not start, or a study got lost.
        BuilderError: there is no tritonserver, or it does not start.
    """
    setting = describe_machine()
    shown: list[Shown] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tritome-bench-") as place:
        folder = Path(place)
        console.print("Painting a chest")
        study, volume = _a_chest(folder, plan)
        console.print("Starting Triton")
        with TritonServer(model_repository=model_repository, log=folder / "triton.log") as server:
            setting |= {
                "Triton": f"{_triton_version(server.http_url)} ({server.origin})",
                "tritome": metadata.version("tritome") if _installed() else "a checkout",
                "volume": " x ".join(map(str, plan.shape_kji)) + " voxels, a generated chest CT",
                "measured": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, one request at a time",
                "note": "study to result holds the gateway's quiet time after the "
                "last instance (completeness.after-release-s, 1 s)",
            }
            found = _over_each_road(server, analyzer, volume, plan, console)
            found += _the_whole_road(server, folder, study, plan, console)
        chest = _as_volume(volume)
        everything = [chest, *map(read_volume, volumes)]
        for what, run in _parts(folder, everything, bundles, plan, console):
            console.print(what)
            try:
                part = run()
            except _TROUBLES as error:
                # The other parts have taken their time too: what they found is kept.
                failed.append(f"{what}: {error}")
                console.print(f"[bold red]{what} failed:[/] {error}", highlight=False)
                continue
            found += part.measurements
            shown += part.shown
            setting |= {f"devices, {name}": words for name, words in part.devices.items()}
    setting["load after"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
    return Report(setting, found, shown, failed=failed)


def _parts(
    folder: Path,
    volumes: Sequence[Volume],
    bundles: Sequence[Path],
    plan: Plan,
    console: Console,
) -> Iterator[tuple[str, Callable[[], Found]]]:
    """What each part is called, and what runs it."""
    yield "The road alone", partial(the_road, plan.shape_kji, plan.transports)
    for volume in volumes:
        path = save_volume(volume, folder)
        for bundle in bundles:
            name = f"{bundle.name} on {volume.name}"
            outside = partial(outside_the_network, bundle, path, plan.passes)
            yield f"{name}: all but the network", outside
            if plan.turns:
                say = partial(console.print, highlight=False)
                peers = partial(the_peers, bundle, volume, plan.turns, plan.without, say)
                yield f"{name}: the peers", peers


def _a_chest(folder: Path, plan: Plan) -> tuple[PhantomStudy, VolumeInput]:
    phantom = thorax_phantom(_SEED, shape_kji=plan.shape_kji, spacing_mm=plan.spacing_mm)
    study = write_ct_series(
        folder / "study",
        hu=phantom.hu,
        labels=phantom.labels,
        affine_lps=phantom.affine_lps,
        seed=_SEED,
    )
    return study, write_input(folder / "input", phantom.hu, phantom.affine_lps)


def _as_volume(written: VolumeInput) -> Volume:
    """The chest that perf_analyzer reads, for the parts that run in Python."""
    shape = written.shape_kji
    image = np.fromfile(written.folder / "IMAGE", dtype="<i2").reshape(shape)
    rescale = np.fromfile(written.folder / "RESCALE", dtype="<f8").reshape(shape[0], 2)
    affine = np.fromfile(written.folder / "AFFINE", dtype="<f8").reshape(4, 4)
    affine = affine.astype(np.float32).astype(np.float64)
    return Volume(f"chest of {shape[0]} slices", image, rescale, affine)


def _over_each_road(
    server: TritonServer, analyzer: Analyzer, volume: VolumeInput, plan: Plan, console: Console
) -> list[Measurement]:
    found = []
    for road in ROADS:
        console.print(f"perf_analyzer over {road.name}: {plan.requests} requests")
        url = server.http_url if road.protocol == "http" else server.grpc_url
        found.append(analyzer.measure(road, _MODEL, url, volume, requests=plan.requests))
    return found


def _the_whole_road(
    server: TritonServer, folder: Path, study: PhantomStudy, plan: Plan, console: Console
) -> list[Measurement]:
    console.print(f"locust sends {plan.studies} studies to a gateway and waits for the results")
    receive_port = free_port()
    with gateway(
        folder / "gateway",
        triton_grpc_url=server.grpc_url,
        receive_port=receive_port,
        arena_bytes=plan.arena_bytes,
    ) as port:
        return drive(
            folder / "gateway",
            study.folder,
            port=port,
            receive_port=receive_port,
            studies=plan.studies,
        )


def _triton_version(http_url: str) -> str:
    # A proxy, where the machine has one, is not for loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{http_url}/v2", timeout=10) as answer:
        return str(json.load(answer)["version"])


def _installed() -> bool:
    try:
        metadata.version("tritome")
    except metadata.PackageNotFoundError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m perf.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a smoke test of a minute or two")
    size.add_argument("--full", action="store_true", help="300 slices, all peers, an hour or more")
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="a further MONAI bundle"
    )
    parser.add_argument(
        "--volume",
        type=Path,
        action="append",
        default=[],
        help="a further volume: a DICOM folder, or an .npz with IMAGE, RESCALE, AFFINE",
    )
    parser.add_argument("--against", type=Path, help="an earlier bench.json, or its folder")
    parser.add_argument(
        "--out",
        type=Path,
        default=_REPOSITORY_ROOT / "perf" / "results" / "tmp",
        help="folder for the table (default: perf/results/tmp, which git ignores)",
    )
    parser.add_argument(
        "--model-repository", type=Path, default=_REPOSITORY_ROOT / "model_repository"
    )
    parser.add_argument(
        "--perf-analyzer",
        type=Path,
        default=_REPOSITORY_ROOT / ".venv-perf",
        help="environment that holds perf_analyzer (default: the one that make bench makes)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
