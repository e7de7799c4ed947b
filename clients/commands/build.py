"""`tritome build`: shows what the builder writes, model by model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from clients.commands.bundles import check_trust
from clients.console import out

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
    with out.status(f"Reading {bundle} ...") as status:
        for model, changed in build(bundle, output, options, replace=replace):
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
    pipeline = names[-1]
    out.print(f"Name it in gateway.yaml: [bold]pipelines: \\[{pipeline}][/]")
    out.print(f"Prove it equal to MONAI: [bold]tritome verify {pipeline} -m {output}[/]")
    out.print(f"Serve it: [bold]tritome triton --model-repository {output}[/]")
