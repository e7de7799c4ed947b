"""`make bench` and `tritome bench`: everything that is measured, in one report.

    python -m perf.bench                  some twenty minutes; 120 slices of 512 x 512
    python -m perf.bench --full           hours; 300 slices, and all peers
    python -m perf.bench --quick          a smoke test: small volumes, one round, no peers
    python -m perf.bench --only intake    one part; may be given again

`perf/parts.py` has the parts. `--bundle` and `--volume` add others to those that run on any;
`--no-chest` leaves only those volumes. `--against` compares with an earlier report. A part that
fails is named in the report, and the others are written all the same. The report is written
after each piece, so what was measured is there if the rest is broken off.

It starts servers and gateways of its own on loopback, and stops them. Comes in:
model_repository/. Goes out: `bench.md`, pictures, `bench.json`. Nothing else survives.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from clients.errors import ClientError
from clients.supervise import interrupted_once
from dicom_gateway.errors import GatewayError
from perf.against import NoReport, changes, read_measurements
from perf.measure import Measurement, describe_machine
from perf.parts import PARTS
from perf.report import Report, Shown
from perf.stage import FULL, QUICK, USUAL, Stage, read_volume
from perf.workers import same_threads

_REPOSITORY_ROOT = Path(__file__).resolve().parent.parent
LUNG_CT = _REPOSITORY_ROOT / "ensemble_builder" / "pipelines" / "lung_ct"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table, writes it; returns the exit code."""
    options = _parser().parse_args(arguments)
    console = Console()
    try:
        with interrupted_once():  # so that no server or gateway stays behind
            return _run(options, console)
    except KeyboardInterrupt:
        console.print(f"Stopped. What was measured until now is in {options.out}")
        return 130


def _run(options: argparse.Namespace, console: Console) -> int:
    same_threads()
    try:
        before = read_measurements(options.against) if options.against else []
        volumes = [read_volume(source) for source in options.volume]
    except (NoReport, ClientError, GatewayError, OSError) as error:
        console.print(f"[bold red]The bench stopped:[/] {error}", highlight=False, soft_wrap=True)
        return 1
    plan = QUICK if options.quick else FULL if options.full else USUAL
    if options.rounds:
        plan = replace(plan, rounds=options.rounds)
    chosen = options.only or [name for name in PARTS if name not in plan.left_out]
    with tempfile.TemporaryDirectory(prefix="tritome-bench-") as place:
        stage = Stage(
            plan,
            Path(place),
            options.model_repository,
            options.perf_analyzer,
            [LUNG_CT, *options.bundle],
            volumes,
            [source for source in options.volume if source.is_dir()],
            options.database_url,
            partial(console.print, highlight=False, markup=False),
            without_chest=options.no_chest,
        )
        report = Report({}, [], [], failed=["nothing was measured"])
        for until_now in measure(stage, [name for name in PARTS if name in chosen]):
            report = replace(until_now, changes=changes(until_now.measurements, before))
            report.write(options.out)
    console.print(Markdown(report.markdown()))
    console.print(f"Written to {options.out}")
    return 1 if report.failed else 0


def measure(stage: Stage, parts: Sequence[str]) -> Iterator[Report]:
    """Runs parts one after the other.

    Args:
        stage: Where.
        parts: Names of `PARTS`.

    Yields:
        After each piece, the report of all until then.
    """
    setting = describe_machine() | {
        "tritome": metadata.version("tritome") if _installed() else "a checkout",
        "measured": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {', '.join(parts)}",
    }
    found: list[Measurement] = []
    shown: list[Shown] = []
    failed: list[str] = []
    drawn: dict[str, str] = {}
    for name in parts:
        for words, run in PARTS[name](stage):
            stage.say(f"{name}: {words}")
            try:
                piece = run()
            except Exception as error:  # noqa: BLE001 - the edge of a part
                # The other parts have taken their time too: what they found is kept.
                failed.append(f"{name}: {words}: {str(error) or type(error).__name__}")
                stage.say(f"{traceback.format_exc()}\n{failed[-1]}")
            else:
                found += piece.measurements
                shown += piece.shown
                drawn |= piece.pictures
                setting |= {f"devices, {who}": where for who, where in piece.devices.items()}
            setting |= stage.notes
            setting["load after"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
            yield Report(dict(setting), [*found], [*shown], failed=[*failed], drawn=dict(drawn))


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
    size.add_argument("--quick", action="store_true", help="a smoke test of some minutes")
    size.add_argument("--full", action="store_true", help="300 slices, all peers: hours")
    parser.add_argument(
        "--only", action="append", choices=tuple(PARTS), help="this part; may be given again"
    )
    parser.add_argument("--rounds", type=int, help="how often each side is counted")
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
    parser.add_argument(
        "--no-chest",
        action="store_true",
        help="parts that run on any volume: only on those of --volume",
    )
    parser.add_argument(
        "--database-url",
        action="append",
        default=[],
        help="for the queue, beside an SQLite file of its own: a database that is EMPTIED",
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
