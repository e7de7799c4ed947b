"""Where the slices of a montage lie in the picture. Pure.

In: how many slices of what size. Out: size and places of the tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LARGEST_TILE = 512
"""A larger slice is thinned to every second, third, ... pixel."""

SMALLEST_TILE = 256
"""A smaller one is drawn with larger pixels."""

MARGIN = 22
"""Round each tile, for its letters."""

HEAD = 40
"""Above all tiles, for the title."""

MOST_TILES = 9

LEAST_WIDTH = 560
"""So that title and legend fit beside a single small tile."""

LINE = 26
MOST_LINES = 24
"""Of the legend; what is more is counted in one line."""


@dataclass(frozen=True, slots=True)
class Montage:
    """The tiles of a picture.

    Attributes:
        thinned: Every so many pixels of a slice are shown,
        repeated: each of them so many times.
        tile: (height, width) of a slice in the picture.
        corners: (top, left) of each.
        size: (height, width) of head and tiles; a legend may follow below.
    """

    thinned: int
    repeated: int
    tile: tuple[int, int]
    corners: tuple[tuple[int, int], ...]
    size: tuple[int, int]
    slots: int = 0
    """Places for tiles, of which the last may stay empty."""


def legend_height(lines: int) -> int:
    """Below the tiles."""
    return LINE * (min(lines, MOST_LINES) + (lines > MOST_LINES)) + 2 * MARGIN


def montage_of(count: int, rows: int, columns: int) -> Montage:
    """Tiles for `count` slices of [rows, columns], row by row, as square as it gets."""
    longest = max(rows, columns)
    thinned = max(1, math.ceil(longest / LARGEST_TILE))
    repeated = max(1, SMALLEST_TILE // longest)
    height = math.ceil(rows / thinned) * repeated
    width = math.ceil(columns / thinned) * repeated
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    step_down, step_across = height + 2 * MARGIN, width + 2 * MARGIN
    corners = tuple(
        (HEAD + n // across * step_down + MARGIN, n % across * step_across + MARGIN)
        for n in range(count)
    )
    size = (HEAD + down * step_down, across * step_across)
    return Montage(thinned, repeated, (height, width), corners, size, across * down)
