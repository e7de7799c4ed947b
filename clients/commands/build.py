"""`tritome build`: shows what the builder writes, model by model, and what should be known of it.

A bundle may give what a client of its own can use and the gateway can't; that is said here, and
not by the first study's failure.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from clients.commands.bundles import check_trust
from clients.console import out, warn

if TYPE_CHECKING:
    from ensemble_builder.bundle import Options


def run(bundle: str, output: Path, options: Options, *, trust: bool, replace: bool) -> None:
    """Builds and prints a table of the models."""
    from ensemble_builder.build import build  # noqa: PLC0415 - imports torch and MONAI

    check_trust(bundle, again=trust)
    started = time.monotonic()
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("Model", "Version", "Files", "Size", ""):
        table.add_column(column)
    names: list[str] = []
    notes: list[str] = []
    with out.status(f"Reading {bundle} ...") as status:
        for model, changed in build(bundle, output, options, replace=replace, tell=notes.append):
            status.update(f"Wrote {model.name} ...")
            names.append(model.name)
            versions = [int(p.name) for p in (output / model.name).glob("*") if p.name.isdigit()]
            newest = output / model.name / str(max(versions))
            files = [path for path in newest.rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            table.add_row(
                model.name,
                newest.name,
                str(len(files)),
                f"{size / 1024:,.0f} KiB",
                "written" if changed else "[dim]as before[/]",
            )
    out.print(table)
    out.print(f"{output} is ready after {time.monotonic() - started:.1f} s.")
    for note in notes:
        warn(note)
    pipeline = names[-1]
    refusal = _gateways_refusal(pipeline, newest / "contract.json")
    if refusal:
        warn(f"The gateway can't use it yet: {refusal}")
    else:
        out.print(f"Name it in gateway.yaml: [bold]pipelines: \\[{pipeline}][/]")
    out.print(f"Prove it equal to MONAI: [bold]tritome verify {pipeline} -m {output}[/]")
    out.print(f"Serve it: [bold]tritome triton --model-repository {output}[/]")


def _gateways_refusal(pipeline: str, contract: Path) -> str:
    """What the gateway would say of every study for this pipeline; "" where it can serve it."""
    from dicom_gateway.errors import ContractMismatch  # noqa: PLC0415
    from dicom_gateway.infer import read_contract, slots_of  # noqa: PLC0415
    from dicom_gateway.infer.request import usable_outputs  # noqa: PLC0415

    try:
        found = read_contract(contract.read_text(encoding="utf-8"), pipeline)
        slots_of(found)
        usable_outputs(found)
    except ContractMismatch as error:
        return str(error)
    return ""
