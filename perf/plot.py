"""Points and lines over one axis, as SVG: no library needed, and a browser shows it anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 860, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 250, 44, 54
_COLOURS = ("#2f6f9f", "#c0504d", "#4f8f4f", "#8064a2", "#d08a2f", "#4bacc6", "#7f7f7f", "#a0522d")
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Curve:
    """One thing that is drawn.

    Attributes:
        joined: By a line from point to point; otherwise dots.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    joined: bool = True


def plot(title: str, x_name: str, y_name: str, curves: Sequence[Curve]) -> str:
    """A picture; both axes begin at 0.

    Args:
        title: Above it.
        x_name: With its unit.
        y_name: With its unit.
        curves: At least one, with at least one point.
    """
    right = max((max(curve.x) for curve in curves), default=1.0) or 1.0
    top = 1.08 * max((max(curve.y) for curve in curves), default=1.0) or 1.0
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + wide * x / right, _TOP + high * (1 - y / top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="16" fill="#222222">{escape(title)}</text>',
        f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 12}" text-anchor="middle" fill="#222222">'
        f"{escape(x_name)}</text>",
        f'<text x="{_LEFT}" y="{_TOP - 6}" fill="#222222">{escape(y_name)}</text>',
    ]
    for n in range(_TICKS + 1):
        x, y = right * n / _TICKS, top * n / _TICKS
        across, up = at(x, y)
        parts += [
            f'<line x1="{_LEFT}" x2="{_LEFT + wide}" y1="{up:.1f}" y2="{up:.1f}" '
            'stroke="#e0e0e0"/>',
            f'<text x="{_LEFT - 6}" y="{up + 4:.1f}" text-anchor="end" fill="#555555">'
            f"{y:.4g}</text>",
            f'<text x="{across:.1f}" y="{_TOP + high + 18}" text-anchor="middle" '
            f'fill="#555555">{x:.4g}</text>',
        ]
    for n, curve in enumerate(curves):
        colour = _COLOURS[n % len(_COLOURS)]
        points = [at(x, y) for x, y in zip(curve.x, curve.y, strict=True)]
        if curve.joined:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
        else:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points
            ]
        height = _TOP + 16 * n + 10
        parts += [
            f'<rect x="{_LEFT + wide + 16}" y="{height - 9}" width="10" height="10" '
            f'fill="{colour}"/>',
            f'<text x="{_LEFT + wide + 32}" y="{height}" fill="#222222">'
            f"{escape(curve.name)}</text>",
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
