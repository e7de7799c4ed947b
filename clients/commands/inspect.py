"""`tritome inspect` and `tritome graph`: the plan before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from clients.commands.bundles import check_trust
from clients.console import out, warn
from clients.errors import ClientError

if TYPE_CHECKING:
    from ensemble_builder.bundle import Bundle, Options
    from ensemble_builder.contract import ClassRow


def run(bundle: str, options: Options, *, trust: bool) -> None:
    """Prints what a bundle takes, does and gives."""
    from ensemble_builder.bundle import find_bundle, read_bundle  # noqa: PLC0415
    from ensemble_builder.explain import edges, peak_bytes, transforms  # noqa: PLC0415
    from ensemble_builder.memory import example_shape  # noqa: PLC0415
    from ensemble_builder.pipeline import find_pipeline  # noqa: PLC0415

    check_trust(bundle, again=trust)
    pipeline = find_pipeline(bundle)
    if pipeline is not None:
        _print_pipeline(pipeline, options)
        return
    with out.status(f"Reading {bundle} ..."):
        found = read_bundle(find_bundle(bundle), options)
        rows, tensors = transforms(found), edges(found)
    _print_head(found)
    steps = _table("Step", "Transform", "Options", "Device")
    for row in rows:
        style = "dim" if row.step == "left out" else None
        steps.add_row(row.step, row.transform, escape(row.options), row.device, style=style)
    out.print(steps)
    size = "x".join(map(str, reversed(example_shape(found))))
    between = _table("Tensor", "Datatype", "Dims", "From", "To", f"At {size}")
    for edge in tensors:
        between.add_row(
            edge.tensor.name,
            edge.tensor.datatype,
            escape(str(list(edge.tensor.dims))),
            edge.source,
            ", ".join(edge.targets),
            "" if edge.example_bytes is None else _size(edge.example_bytes),
        )
    out.print(between)
    _print_results(found)
    out.print(f"Expected working memory for {size}: about {_size(peak_bytes(found))}")
    for note in found.notes:
        warn(note)


def _print_pipeline(path: Path, options: Options) -> None:
    """Each call of a pipeline of several models, and its common segment table."""
    from ensemble_builder.pipeline import read_pipeline  # noqa: PLC0415

    with out.status(f"Reading {path.name} ..."):
        file, bundles, wired = read_pipeline(path, options)
    out.print(f"[bold]{file.spec.pipeline}[/] {escape(file.spec.description)}")
    out.print(f"Networks: {', '.join(f'{node} ({b.name})' for node, b in bundles.items())}")
    calls = _table("Model", "Takes", "Gives")
    for call in wired.calls:
        gives = [f"{edge} {t.datatype} {list(t.dims)}" for t, edge in call.outputs]
        takes = ", ".join(edge for _, edge in call.inputs)
        calls.add_row(call.model, escape(takes), escape("\n".join(gives)))
    out.print(calls)
    segments = _table("Label", "Segment", "Type")
    for row in wired.segments:
        modifier = f", {row.type_modifier.meaning}" if row.type_modifier else ""
        segments.add_row(str(row.label), escape(row.name), escape(row.type.meaning + modifier))
    out.print(segments)


def draw(target: str, output: Path, repository: Path, options: Options, *, trust: bool) -> None:
    """Writes the SVG of a pipeline in the repository, or of a bundle's plan.

    Raises:
        ClientError: the file can't be written.
    """
    from ensemble_builder.drawing import draw as drawn  # noqa: PLC0415
    from ensemble_builder.drawing import read_config  # noqa: PLC0415

    built = repository / target / "config.pbtxt"
    if built.is_file():
        texts = {
            path.parent.name: path.read_text(encoding="utf-8")
            for path in repository.glob("*/config.pbtxt")
        }
        name = target
    else:
        from ensemble_builder.build import planned  # noqa: PLC0415

        check_trust(target, again=trust)
        with out.status(f"Reading {target} ..."):
            models = planned(target, options)
        texts = {one.name: bytes(one.files["config.pbtxt"]).decode() for one in models}
        name = models[-1].name
    configs = {key: read_config(text) for key, text in texts.items()}
    steps = len(configs[name].ensemble_scheduling.step)
    picture = drawn(configs[name], configs, f"Triton ensemble of {steps} models")
    try:
        output.write_text(picture, encoding="utf-8")
    except OSError as error:
        msg = f"{output} can't be written ({error.strerror})"
        raise ClientError(msg) from error
    out.print(f"Wrote {output}; open it in a browser.")


def _print_head(found: Bundle) -> None:
    kinds = {
        "volume": "one volume",
        "channels": "co-registered volumes",
        "gray": "a 2-D image",
        "rgb": "a photograph",
        "points": "points (clicks)",
        "value": "a number",
    }
    out.print(f"[bold]{found.name}[/] {escape(found.version)}  {escape(found.description)}")
    for one in found.recipe.inputs:
        names = ", ".join(found.channels.get(one.key, ()))
        count = f"{one.channels} " if one.layout == "channels" else ""
        detail = f" ({names})" if names and one.channels > 1 else ""
        modality = f" {found.modality}" if one.is_image and found.modality else ""
        out.print(f"takes '{one.key}': {count}{kinds[one.layout]}{modality}{escape(detail)}")
    out.print()


def _print_results(found: Bundle) -> None:
    for one in found.recipe.outputs:
        where = "on the input's grid" if one.on_input_grid else "on a grid of its own"
        if one.kind == "scores":
            out.print(
                f"gives {one.tensor}: scores of {escape(', '.join(map(_name, found.classes)))}"
            )
            continue
        names = [f"{row.label} {row.name}" for row in found.segments]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        out.print(f"gives {one.tensor}: {one.kind} {where}: {escape(shown)}")


def _name(one: str | ClassRow) -> str:
    return one if isinstance(one, str) else one.name


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _size(size_bytes: int) -> str:
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
