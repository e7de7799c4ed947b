"""What must stand around the slices of a picture: letters, numbers, legend.

In: the truth, and what the legend must say. Out: the surroundings drawn a second time, to be
held against those of the picture, pixel by pixel. Shares nothing with the code that draws the
pictures but the library and its font: sizes and places are stated here once more, and the
patient's directions come from the source files alone.

Source: PS3.3 C.7.6.1.1.1 (Patient Orientation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset

from dicom_gateway.encode.gate.truth import Misplaced, Points, Truth

TITLE = 40
"""Rows at the top for the title, which says nothing of the patient and isn't looked at."""

EDGE, LINE, LINES, NARROWEST = 22, 26, 24, 560
_PAPER, _INK, _FAINT = (16, 16, 16), (235, 235, 235), (160, 160, 160)
_AXES = (("R", "L"), ("A", "P"), ("F", "H"))
_LEAST_PART, _ROUNDING = 0.1, 1e-3

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the slices lie.

    Attributes:
        every: Every so many pixels of a slice are shown,
        zoom: each of them so many times.
        height: Of a slice in the picture.
        width: The same.
        corners: (top, left) of each.
        bottom: Where the legend begins.
        across: Columns of the picture.
    """

    every: int
    zoom: int
    height: int
    width: int
    corners: tuple[tuple[int, int], ...]
    bottom: int
    across: int


@dataclass(frozen=True, slots=True)
class Line:
    """One of the legend: a colour, a name, and what its value may be rounded to."""

    colour: Colour | None
    name: str
    values: tuple[str, ...] = ("",)


def layout_of(count: int, rows: int, columns: int) -> Layout:
    """Slices of at most 512 pixels, small ones enlarged towards 256, in rows of equal length."""
    longest = max(rows, columns)
    every, zoom = -(-longest // 512), max(1, 256 // longest)
    height, width = len(range(0, rows, every)) * zoom, len(range(0, columns, every)) * zoom
    in_row = next(n for n in range(1, count + 1) if n * n >= count)
    high, wide = height + 2 * EDGE, width + 2 * EDGE
    corners = tuple(
        (TITLE + EDGE + high * (n // in_row), EDGE + wide * (n % in_row)) for n in range(count)
    )
    bottom = TITLE + high * -(-count // in_row)
    return Layout(every, zoom, height, width, corners, bottom, max(NARROWEST, wide * in_row))


def check_orientation(ds: Dataset, truth: Truth) -> tuple[str, str]:
    """Patient Orientation is that of the source files.

    Returns:
        Letters to the right of a slice and below it; empty where it lies nowhere.
    """
    stated = [str(one) for one in ds.PatientOrientation or ("", "")]
    plane = truth.planes[0]
    if not truth.placed:
        if any(stated):
            msg = "it states directions, and its source has none"
            raise Misplaced(msg)
        return "", ""
    if len(stated) != 2 or not all(
        _points(letters, along)
        for letters, along in zip(stated, (plane.along_i, plane.along_j), strict=True)
    ):
        msg = "its Patient Orientation is not the source's"
        raise Misplaced(msg)
    return stated[0][0], stated[1][0]


def _points(letters: str, along: Points) -> bool:
    """Every direction that counts, the strongest first; equal ones in any order."""
    parts = along / np.linalg.norm(along)
    found = []
    for letter in letters:
        axis = next((n for n, pair in enumerate(_AXES) if letter in pair), None)
        if axis is None or (parts[axis] > 0) != (letter == _AXES[axis][1]):
            return False
        found.append(axis)
    sizes = [abs(float(parts[axis])) for axis in found]
    missing = [abs(float(parts[axis])) for axis in range(3) if axis not in found]
    return (
        len(set(found)) == len(found) > 0
        and all(size > _LEAST_PART - _ROUNDING for size in sizes)
        and all(size < _LEAST_PART + _ROUNDING for size in missing)
        and all(one > other - _ROUNDING for one, other in pairwise(sizes))
    )


def check_surroundings(  # noqa: PLR0917 - all that can be seen
    picture: NDArray[np.float64],
    layout: Layout,
    planes: Sequence[int],
    truth: Truth,
    letters: tuple[str, str],
    lines: Sequence[Line],
) -> None:
    """Everything but the title and the slices is as it must be."""
    texts = [line.values[0] for line in lines]
    wrong = _differences(
        picture, layout, _drawn(picture, layout, planes, truth, letters, lines, texts)
    )
    for n, line in enumerate(lines if wrong else ()):
        for value in line.values[1:]:
            other = [*texts[:n], value, *texts[n + 1 :]]
            image = _drawn(picture, layout, planes, truth, letters, lines, other)
            found = _differences(picture, layout, image)
            if found < wrong:
                wrong, texts = found, other
    if wrong:
        msg = "its letters, numbers or legend are not those of what it shows"
        raise Misplaced(msg)


def _differences(picture: NDArray[np.float64], layout: Layout, image: NDArray[np.uint8]) -> int:
    differs = (picture != image).any(axis=2)
    differs[:TITLE] = False
    for top, left in layout.corners:
        differs[top : top + layout.height, left : left + layout.width] = False
    return int(np.count_nonzero(differs))


def _drawn(  # noqa: PLR0917 - all that can be seen
    picture: NDArray[np.float64],
    layout: Layout,
    planes: Sequence[int],
    truth: Truth,
    letters: tuple[str, str],
    lines: Sequence[Line],
    texts: Sequence[str],
) -> NDArray[np.uint8]:
    image = Image.new("RGB", (picture.shape[1], picture.shape[0]), _PAPER)
    draw = ImageDraw.Draw(image)
    large, small = ImageFont.load_default(17), ImageFont.load_default(14)
    opposite = dict(_AXES) | {positive: negative for negative, positive in _AXES}
    for k, (top, left) in zip(planes, layout.corners, strict=True):
        if letters[0]:
            y, x, half = top + layout.height // 2, left + layout.width // 2, EDGE // 2
            for at, letter in (
                ((left - half, y), opposite[letters[0]]),
                ((left + layout.width + half, y), letters[0]),
                ((x, top - half), opposite[letters[1]]),
                ((x, top + layout.height + half), letters[1]),
            ):
                draw.text(at, letter, fill=_INK, font=small, anchor="mm")
        number = f"{k + 1} of {len(truth.planes)}"
        draw.text((left, top - 18), number, fill=_FAINT, font=small)
    for n, (line, text) in enumerate(zip(lines, texts, strict=True)):
        y = layout.bottom + EDGE // 2 + n * LINE
        if line.colour is not None:
            draw.rectangle((EDGE, y, EDGE + 18, y + 18), fill=line.colour)
        draw.text((EDGE + 30, y), line.name, fill=_INK, font=large)
        at = (picture.shape[1] - EDGE - 10, y)
        draw.text(at, text, fill=_INK, font=large, anchor="ra")
    return np.array(image)


def swatch(picture: NDArray[np.float64], layout: Layout, n: int) -> Colour:
    """The colour that the legend shows in its line n."""
    red, green, blue = picture[layout.bottom + EDGE // 2 + n * LINE + 9, EDGE + 9]
    return int(red), int(green), int(blue)
