"""An ensemble as a picture: one box per model, one arrow per tensor, SVG.

Reads the ensemble's own config, so it draws whatever Triton will run: one bundle or a
pipeline of several. Boxes of one rank (which can run at the same time) stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

BOX_WIDTH, BOX_HEIGHT = 210, 58
GAP_X, GAP_Y = 50, 92
MARGIN = 30
_COLOURS = {"request": "#e8f1fb", "answer": "#e7f6ec", "model": "#ffffff"}
_STYLE = (
    "text{font-family:ui-sans-serif,system-ui,sans-serif;fill:#1d2733}"
    ".name{font-size:13px;font-weight:600}.small{font-size:11px;fill:#5b6a7a}"
    "rect{stroke:#8ba0b6;rx:8}path{stroke:#5f7d9c;stroke-width:1.4;fill:none}"
)


@dataclass(frozen=True, slots=True)
class _Box:
    name: str
    kind: str
    reads: Mapping[str, str]
    writes: Mapping[str, str]


def draw(ensemble: pb.ModelConfig, steps: Mapping[str, pb.ModelConfig], subtitle: str = "") -> str:
    """An SVG of an ensemble.

    Args:
        ensemble: Its config.
        steps: Config of each model it runs, for datatypes and dims; those missing go without.
        subtitle: Below the name.
    """
    boxes = _boxes(ensemble)
    ranks = _ranks(boxes)
    rows = [[b for b in boxes if ranks[b.name] == r] for r in range(max(ranks.values()) + 1)]
    widest = max(len(row) for row in rows)
    width = 2 * MARGIN + widest * BOX_WIDTH + (widest - 1) * GAP_X
    width = max(width, 560)
    places = {}
    for rank, row in enumerate(rows):
        row_width = len(row) * BOX_WIDTH + (len(row) - 1) * GAP_X
        for at, box in enumerate(row):
            x = (width - row_width) / 2 + at * (BOX_WIDTH + GAP_X)
            places[box.name] = (x, MARGIN + 44 + rank * (BOX_HEIGHT + GAP_Y))
    height = MARGIN * 2 + 44 + len(rows) * BOX_HEIGHT + (len(rows) - 1) * GAP_Y
    kinds = _kinds(ensemble, steps)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img">',
        f"<title>{escape(ensemble.name)}</title><style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#5f7d9c"/></marker>'
        '</defs><rect width="100%" height="100%" style="fill:#fbfcfe;stroke:none"/>',
        f'<text class="name" x="{MARGIN}" y="{MARGIN}">{escape(ensemble.name)}</text>',
        f'<text class="small" x="{MARGIN}" y="{MARGIN + 17}">{escape(subtitle)}</text>',
        *_arrows(boxes, places, kinds),
        *(_drawn(box, *places[box.name]) for box in boxes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def read_config(text: str) -> pb.ModelConfig:
    """A config.pbtxt as the message."""
    return text_format.Parse(text, pb.ModelConfig())


def _boxes(ensemble: pb.ModelConfig) -> list[_Box]:
    request = {one.name: one.name for one in ensemble.input}
    answer = {one.name: one.name for one in ensemble.output}
    return [
        _Box("request", "request", {}, request),
        *(
            _Box(step.model_name, "model", dict(step.input_map), dict(step.output_map))
            for step in ensemble.ensemble_scheduling.step
        ),
        _Box("answer", "answer", answer, {}),
    ]


def _ranks(boxes: Sequence[_Box]) -> dict[str, int]:
    """Longest way from the request, so that every arrow points down."""
    made_by = {edge: box.name for box in boxes for edge in box.writes.values()}
    ranks = {box.name: 0 for box in boxes}
    for _ in boxes:
        for box in boxes:
            before = [ranks[made_by[e]] for e in box.reads.values() if made_by.get(e)]
            if before:
                ranks[box.name] = max(before) + 1
    return ranks


def _kinds(ensemble: pb.ModelConfig, steps: Mapping[str, pb.ModelConfig]) -> dict[str, str]:
    """Edge -> its datatype and dims, as written."""
    found = {one.name: _kind(one) for one in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        config = steps.get(step.model_name)
        described = {one.name: _kind(one) for one in config.output} if config else {}
        for tensor, edge in step.output_map.items():
            found[edge] = described.get(tensor, "")
    return found


def _kind(one: pb.ModelInput | pb.ModelOutput) -> str:
    datatype = pb.DataType.Name(one.data_type).removeprefix("TYPE_")
    return f"{datatype} [{', '.join('·' if n == -1 else str(n) for n in one.dims)}]"


def _arrows(
    boxes: Sequence[_Box], places: Mapping[str, tuple[float, float]], kinds: Mapping[str, str]
) -> list[str]:
    made_by = {edge: box for box in boxes for edge in box.writes.values()}
    found = []
    for target in boxes:
        sources: dict[str, list[str]] = {}
        for edge in dict.fromkeys(target.reads.values()):
            if edge in made_by:
                sources.setdefault(made_by[edge].name, []).append(edge)
        for at, (source, names) in enumerate(sources.items()):
            x1, y1 = places[source][0] + BOX_WIDTH / 2, places[source][1] + BOX_HEIGHT
            spread = (at - (len(sources) - 1) / 2) * 26
            x2, y2 = places[target.name][0] + BOX_WIDTH / 2 + spread, places[target.name][1]
            far = y2 - y1 > GAP_Y + 1
            bend = (BOX_WIDTH * 0.72 if far else 0) * (1 if x2 >= x1 else -1)
            found.append(
                f'<path d="M{x1:.0f} {y1:.0f} C{x1 + bend:.0f} {y1 + GAP_Y * 0.6:.0f} '
                f'{x2 + bend:.0f} {y2 - GAP_Y * 0.6:.0f} {x2:.0f} {y2 - 2:.0f}" '
                'marker-end="url(#tip)"/>'
            )
            found += _labels(names, kinds, (x1 + x2) / 2 + 0.75 * bend, (y1 + y2) / 2)
    return found


def _labels(names: Sequence[str], kinds: Mapping[str, str], x: float, y: float) -> list[str]:
    lines = [f"{name} {kinds.get(name, '')}".strip() for name in names]
    shown = lines[:4] + ([f"and {len(lines) - 4} more"] if len(lines) > 4 else [])
    top = y - (len(shown) - 1) * 6.5
    return [
        f'<text class="small" x="{x + 6:.0f}" y="{top + 13 * at:.0f}">{escape(line)}</text>'
        for at, line in enumerate(shown)
    ]


def _drawn(box: _Box, x: float, y: float) -> str:
    title = {"request": "request", "answer": "answer"}.get(box.kind, box.name)
    note = {"request": "from the gateway or a client", "answer": "to the caller"}.get(
        box.kind, "Triton model"
    )
    return (
        f'<g><rect x="{x:.0f}" y="{y:.0f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" '
        f'style="fill:{_COLOURS[box.kind]}"/>'
        f'<text class="name" x="{x + BOX_WIDTH / 2:.0f}" y="{y + 25:.0f}" '
        f'text-anchor="middle">{escape(title[-30:])}</text>'
        f'<text class="small" x="{x + BOX_WIDTH / 2:.0f}" y="{y + 43:.0f}" '
        f'text-anchor="middle">{note}</text></g>'
    )
