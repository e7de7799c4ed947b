"""Horizontal bars with their spread, as SVG: no library needed, and a browser shows it anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from perf.measure import Measurement

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP = 860, 26, 330, 90, 44


def bars(title: str, measurements: Sequence[Measurement]) -> str:
    """One bar for each measurement: its median, with a line from the 25th to the 90th percentile.

    Args:
        title: Above the bars.
        measurements: At least one.
    """
    longest = max(one.p90_s for one in measurements) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    height = _TOP + _ROW * len(measurements) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="16" fill="#222222">{escape(title)}</text>',
    ]
    for n, one in enumerate(measurements):
        top = _TOP + _ROW * n
        middle = top + _ROW / 2
        end = _LEFT + one.median_s * scale
        colour = "#2f6f9f" if "tritome" in one.name else "#9aa5ad"
        label = one.name.split(": ", 1)[-1]
        parts += [
            f'<text x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end" fill="#222222">'
            f"{escape(label)}</text>",
            f'<rect x="{_LEFT}" y="{top + 4}" width="{max(1.0, end - _LEFT):.1f}" '
            f'height="{_ROW - 8}" fill="{colour}"/>',
            f'<line x1="{_LEFT + one.p25_s * scale:.1f}" x2="{_LEFT + one.p90_s * scale:.1f}" '
            f'y1="{middle}" y2="{middle}" stroke="#222222"/>',
            f'<text x="{max(end, _LEFT + one.p90_s * scale) + 8:.1f}" y="{middle + 4}" '
            f'fill="#222222">{_duration(one.median_s)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"
