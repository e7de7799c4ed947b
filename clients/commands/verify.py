"""`tritome verify`: MONAI in one process beside what Triton serves, figure by figure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from clients.commands.bundles import check_trust
from clients.console import out, warn
from clients.errors import ClientError

if TYPE_CHECKING:
    from ensemble_builder.bundle import Options


def run(
    target: str,
    repository: Path,
    options: Options,
    *,
    image: Path | None,
    runtimes: Sequence[str],
    trust: bool,
) -> bool:
    """Verifies a pipeline of the repository, or a bundle; True where it is equal."""
    from ensemble_builder.verify.run import verify_bundle, verify_served  # noqa: PLC0415

    request = None if image is None else _request(image)
    if (repository / target / "config.pbtxt").is_file():
        with out.status(f"Comparing {target} with MONAI ..."):
            verdict, path = verify_served(repository, target, request)
    else:
        check_trust(target, again=trust)
        with out.status(f"Building, serving and comparing {target} ..."):
            verdict, path = verify_bundle(target, options, runtimes, request), None
    document = json.loads(verdict.to_json())
    _print_stages(document)
    out.print(f"Input: {escape(document['request'])}")
    if path is not None:
        out.print(f"Certificate: {path}")
    out.print(_sentence(document))
    _say_unproven("", document)
    return bool(document["passed"])


def run_all(folder: Path, *, markdown: Path | None, random_weights: int, trust: bool) -> bool:
    """Verifies every bundle of a folder, each in a process of its own.

    Raises:
        ClientError: there is no bundle in the folder, or the table can't be written.
    """
    bundles = sorted(one.parent for one in folder.glob("*/configs") if one.is_dir())
    if not bundles:
        msg = f"{folder} holds no bundle (a folder with configs/ in it)"
        raise ClientError(msg)
    for bundle in bundles:
        check_trust(str(bundle), again=trust)
    verdicts: dict[str, Mapping[str, Any]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=out, transient=True) as progress:
        task = progress.add_task("", total=len(bundles))
        for bundle in bundles:
            progress.update(task, description=bundle.name)
            verdicts[bundle.name] = _in_a_process(bundle, random_weights)
            progress.advance(task)
    rows = [_row(name, verdict) for name, verdict in verdicts.items()]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)
    passed = sum(bool(one.get("passed")) for one in verdicts.values())
    for name, verdict in verdicts.items():
        if "error" in verdict:
            out.print(f"[red]{name}:[/] {escape(str(verdict['error']))}")
        _say_unproven(f"{name}: ", verdict)
    out.print(f"{passed} of {len(verdicts)} are built, served and equal.")
    if markdown is not None:
        _write_markdown(markdown, rows)
    return passed == len(verdicts)


_COLUMNS = ("Bundle", "Input", "Result", "torch", "largest difference", "default runtime")


def _row(name: str, verdict: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in verdict:
        return (name, "", "", "not served", "", "")
    by_runtime = {one["runtime"]: one for one in verdict["runtimes"]}
    exact, usual = by_runtime.get("torch"), by_runtime.get("auto")
    shown = (exact or usual or {"stages": []})["stages"]
    results = [one for one in shown if one["stage"] == "postprocess"]
    shapes = ", ".join(f"{one['tensor']} {_by(one['shape'])}" for one in results)
    x = next((one for one in shown if one["tensor"] == "X"), None)
    return (
        name,
        f"X {_by(x['shape'])}" if x else "",
        shapes,
        _agreement(exact),
        f"{max((one['largest_difference'] for one in exact['stages']), default=0):.1e}"
        if exact
        else "",
        _agreement(usual),
    )


def _agreement(parity: Mapping[str, Any] | None) -> str:
    if parity is None:
        return ""
    results = [one for one in parity["stages"] if one["stage"] == "postprocess"]
    different = sum(one["different"] for one in results)
    elements = sum(one["elements"] for one in results)
    verdict = "" if parity["passed"] else " FAILED"
    if any(one["worst_dice"] is None for one in results):
        largest = max(one["largest_difference"] for one in results)
        return f"off by at most {largest:.1e}{verdict}"
    if not different:
        return f"identical{verdict}"
    return f"{100 * (1 - different / elements):.4f} % of voxels{verdict}"


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _in_a_process(bundle: Path, random_weights: int) -> Mapping[str, Any]:
    """The verdict on one bundle: packages of different bundles have the same names."""
    command = [sys.executable, "-m", "ensemble_builder.verify.run", str(bundle)]
    command += ["--random-weights", str(random_weights)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        words = done.stderr.strip().splitlines()
        return {"error": f"the process ended with {done.returncode}: {' '.join(words[-1:])[:200]}"}
    return dict(found) if isinstance(found, dict) else {"error": "no verdict came back"}


def _print_stages(document: Mapping[str, Any]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("Runtime", "Step", "Tensor", "Shape", "Differ", "At most", "Affine", "Dice"):
        table.add_column(column)
    for parity in document["runtimes"]:
        for one in parity["stages"]:
            affine, dice = one["affine_difference_mm"], one["worst_dice"]
            table.add_row(
                parity["runtime"],
                one["stage"],
                one["tensor"],
                _by(one["shape"]),
                f"{one['different']:,} of {one['elements']:,}",
                f"{one['largest_difference']:.1e}",
                "" if affine is None else f"{affine:.1e} mm",
                "" if dice is None else f"{dice:.6f}",
            )
    out.print(table)


def _sentence(document: Mapping[str, Any]) -> str:
    if document["passed"]:
        return "[green]What is served equals what MONAI computes.[/]"
    failed = [one["runtime"] for one in document["runtimes"] if not one["passed"]]
    return (
        f"[bold red]What is served differs from MONAI[/] with {', '.join(failed)}: "
        "don't use it; the table says in which step it begins."
    )


def _say_unproven(prefix: str, document: Mapping[str, Any]) -> None:
    """Two results with nothing in them are equal, too."""
    if document.get("unproven"):
        warn(
            f"{prefix}this input proves little, as {'; '.join(document['unproven'])}; give an "
            "image that shows something with --input"
        )


def _request(image: Path) -> dict[str, Any]:
    """The tensors of one volume: a folder of DICOM or a NIfTI file."""
    from clients.infer import stored_volume  # noqa: PLC0415

    stored, rescale, affine_lps = stored_volume(image)
    return {"IMAGE": stored, "RESCALE": rescale, "AFFINE": affine_lps}


def _write_markdown(path: Path, rows: Sequence[Sequence[str]]) -> None:
    lines = [
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + " --- |" * len(_COLUMNS),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        msg = f"{path} can't be written ({error.strerror})"
        raise ClientError(msg) from error
    out.print(f"Wrote {path}.")
