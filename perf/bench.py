"""`make bench`: lung_ct over each road to Triton, then the whole way of a study; one table.

    python -m perf.bench            minutes; 120 slices of 512 x 512
    python -m perf.bench --quick    a smoke test: small volumes, few repetitions

It starts a tritonserver and a gateway of its own on loopback, and stops them. Comes in:
model_repository/. Goes out: `bench.md` and `bench.json`. Nothing else survives.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from clients.demo.phantom_study import PhantomStudy, write_ct_series
from ensemble_builder.errors import BuilderError
from ensemble_builder.phantoms.thorax import thorax_phantom
from ensemble_builder.server import TritonServer
from perf.analyzer import ROADS, Analyzer, AnalyzerFailed, VolumeInput, write_input
from perf.measure import Measurement, describe_machine
from perf.report import Report
from perf.road import RoadFailed, drive, free_port, gateway

_REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
_MODEL = "lung_ct"
_SEED = 20
_COVERED_MM = (320.0, 400.0, 400.0)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    shape_kji: tuple[int, int, int]
    requests: int
    studies: int

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


FULL = Plan(shape_kji=(120, 512, 512), requests=10, studies=5)
QUICK = Plan(shape_kji=(24, 96, 96), requests=2, studies=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes it; returns the exit code."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        report = measure(
            QUICK if options.quick else FULL,
            model_repository=options.model_repository,
            analyzer=Analyzer.find(options.perf_analyzer),
            console=console,
        )
    except (AnalyzerFailed, RoadFailed, BuilderError) as error:
        console.print(f"[bold red]The bench stopped:[/] {error}", highlight=False, soft_wrap=True)
        return 1
    table, _ = report.write(options.out)
    console.print(Markdown(report.markdown()))
    console.print(f"Written to {table.parent}")
    return 0


def measure(plan: Plan, *, model_repository: Path, analyzer: Analyzer, console: Console) -> Report:
    """Runs everything once.

    Raises:
        AnalyzerFailed: perf_analyzer gave no figures.
        RoadFailed: the gateway did not start, or a study got lost.
        BuilderError: there is no tritonserver, or it does not start.
    """
    setting = describe_machine()
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
    return Report(setting, found)


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
    parser.add_argument("--quick", action="store_true", help="a smoke test of a minute")
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
