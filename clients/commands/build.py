"""`tritome build`: shows what the builder writes, model by model."""

from __future__ import annotations

import time
from pathlib import Path

from rich.table import Table

from clients.console import out


def run(bundle: str, output: Path, runtime: str) -> None:
    """Builds and prints a table of the models."""
    from ensemble_builder.build import build  # noqa: PLC0415 - imports torch and MONAI

    started = time.monotonic()
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("Model", "Files", "Size", ""):
        table.add_column(column)
    names: list[str] = []
    with out.status(f"Reading {bundle} ...") as status:
        for model, changed in build(bundle, output, runtime):
            status.update(f"Wrote {model.name} ...")
            names.append(model.name)
            files = [path for path in (output / model.name).rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            table.add_row(
                model.name,
                str(len(files)),
                f"{size / 1024:,.0f} KiB",
                "written" if changed else "[dim]as before[/]",
            )
    out.print(table)
    out.print(f"{output} is ready after {time.monotonic() - started:.1f} s.")
    pipeline = min(names, key=len)  # the steps add an ending to their ensemble's name
    out.print(f"Name it in gateway.yaml: [bold]pipelines: \\[{pipeline}][/]")
    out.print(f"Serve it: [bold]tritome triton --model-repository {output}[/]")
