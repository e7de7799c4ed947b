"""Does a picture show the mask on the slices that it names, and say what it shows?

In: a Secondary Capture as it was re-read, mask or scores, source pixels. Out: nothing, or
`Misplaced`. Where a segment is drawn red, green and blue differ, by the colour that the legend
gives that segment; what lies below must be the source's pixels.

Source: PS3.3 C.7.6.1 (General Image: Source Image Sequence), C.8.6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_gateway.encode.gate.lettering import (
    EDGE,
    LINE,
    LINES,
    Colour,
    Layout,
    Line,
    check_orientation,
    check_surroundings,
    layout_of,
    swatch,
)
from dicom_gateway.encode.gate.truth import Misplaced, Truth
from dicom_gateway.records import Output, Segment

OPACITY = 0.4
"""Of a colour over the grey."""

ROUNDING = 1.01
"""How far the difference of two rounded channels may be from what it should be."""

LEAST_CORRELATION = 0.95
"""Of the picture's greys with the source's pixels, where both vary."""

LEAST_CHROMA = 60
"""Of a colour that can be told from a grey; a contract's colour with less may be replaced."""

RELATIVE_TOLERANCE = 1e-5
"""How far a volume may be from its true value before it is rounded."""

ASPECT_TOLERANCE = 0.011


def shown_planes(ds: Dataset, truth: Truth) -> list[int]:
    """The planes that a picture says it shows, in the order of its tiles."""
    planes = [truth.plane_of(one) for one in ds.SourceImageSequence]
    if not planes or planes != sorted(set(planes)):
        msg = "it shows its slices twice, or in another order than they lie"
        raise Misplaced(msg)
    return planes


def check_picture(  # noqa: PLR0917 - what is shown, and what must be
    ds: Dataset,
    mask: NDArray[Any] | None,
    scores: NDArray[np.float32] | None,
    output: Output,
    truth: Truth,
    sources: NDArray[np.float32],
) -> None:
    """Holds a picture against mask [K, J, I] or scores [n] and what lies below [n, J, I]."""
    planes = shown_planes(ds, truth)
    first = truth.planes[0]
    layout = layout_of(len(planes), first.rows, first.columns)
    lines = _legend(mask, scores, output, truth)
    picture = _pixels(ds)
    height = layout.bottom + LINE * len(lines) + 2 * EDGE
    if picture.shape[:2] != (height, layout.across):
        msg = "it shows more or fewer slices, or says more or less, than it should"
        raise Misplaced(msg)
    colours = _colours(picture, layout, output) if mask is not None else []
    named = [
        Line(colour, line.name, line.values)
        for colour, line in zip([*colours[:LINES], *[None] * len(lines)], lines, strict=False)
    ]
    letters = check_orientation(ds, truth)
    _check_aspect(ds, truth)
    check_surroundings(picture, layout, planes, truth, letters, named)
    seen: dict[int, NDArray[np.float64]] = {}
    for n, k in enumerate(planes):
        labels = np.zeros((first.rows, first.columns), int) if mask is None else mask[k]
        _check_tile(picture, layout, n, labels, sources[n], output, colours, seen)
    _check_shows_enough(mask, planes)


def _pixels(ds: Dataset) -> NDArray[np.float64]:
    rows, columns = int(ds.Rows), int(ds.Columns)
    raw = np.frombuffer(ds.PixelData, dtype=np.uint8)
    if str(ds.PhotometricInterpretation) != "RGB" or raw.size < rows * columns * 3:
        msg = "its pixels are no picture in colour"
        raise Misplaced(msg)
    return raw[: rows * columns * 3].reshape(rows, columns, 3).astype(np.float64)


def _legend(
    mask: NDArray[Any] | None, scores: NDArray[np.float32] | None, output: Output, truth: Truth
) -> list[Line]:
    """What must stand below, without the colours."""
    lines = []
    if mask is not None:
        heights = truth.heights_mm()
        area_mm2 = float(np.linalg.norm(np.cross(truth.planes[0].along_i, truth.planes[0].along_j)))
        for segment in output.segments:
            values = [""]
            if heights is not None:
                counts = np.array([np.count_nonzero(labels == segment.label) for labels in mask])
                true_ml = float(counts @ heights) * area_mm2 / 1000.0
                near = (true_ml * (1 + off * RELATIVE_TOLERANCE) for off in (0, -1, 1))
                values = [f"{one:,.1f} mL" for one in near]
            lines.append(Line(None, _one_line(segment.name), tuple(dict.fromkeys(values))))
    elif scores is not None:
        names = [one.name for one in output.classes]
        names = names or [f"score {n}" for n in range(1, len(scores) + 1)]
        for name, score in zip(names, scores, strict=True):
            lines.append(Line(None, _one_line(name), (f"{float(score):.3f}",)))
    if len(lines) > LINES:
        lines = [*lines[:LINES], Line(None, f"and {len(lines) - LINES} more")]
    return lines


def _one_line(name: str) -> str:
    return " ".join(name.replace("\\", "/").split())[:64].strip()


def _colours(picture: NDArray[np.float64], layout: Layout, output: Output) -> list[Colour | None]:
    """Of each segment: what the legend shows, which must be the contract's where it has one.

    None for those that the legend has no room for and the contract no colour.
    """
    colours: list[Colour | None] = []
    for n, segment in enumerate(output.segments):
        shown = swatch(picture, layout, n) if n < LINES else None
        stated = _stated(segment)
        if shown is not None and (
            max(shown) - min(shown) < LEAST_CHROMA or stated not in {None, shown}
        ):
            msg = f"its legend gives segment {n + 1} another colour than the contract"
            raise Misplaced(msg)
        colours.append(shown or stated)
    return colours


def _stated(segment: Segment) -> Colour | None:
    colour = segment.colour_rgb
    return colour if colour and max(colour) - min(colour) >= LEAST_CHROMA else None


def _check_aspect(ds: Dataset, truth: Truth) -> None:
    """A viewer draws pixels as high as this says: otherwise shapes are wrong."""
    plane = truth.planes[0]
    true = float(np.linalg.norm(plane.along_j) / np.linalg.norm(plane.along_i))
    high, wide = (float(one) for one in ds.get("PixelAspectRatio") or (1, 1))
    if not abs(high / wide - true) <= ASPECT_TOLERANCE * max(1.0, true):
        msg = "its pixels have another shape than the source's"
        raise Misplaced(msg)


def _check_tile(  # noqa: PLR0917 - one slice, and what lies on it
    picture: NDArray[np.float64],
    layout: Layout,
    n: int,
    labels: NDArray[Any],
    source: NDArray[np.float32],
    output: Output,
    colours: Sequence[Colour | None],
    seen: dict[int, NDArray[np.float64]],
) -> None:
    """Every shown pixel of the source, at the middle of where it is drawn."""
    (top, left), middle = layout.corners[n], layout.zoom // 2
    tile = picture[top : top + layout.height, left : left + layout.width]
    tile = tile[middle :: layout.zoom, middle :: layout.zoom]
    thin = np.s_[:: layout.every, :: layout.every]
    labels = labels[thin]
    if tile.shape[:2] != labels.shape:
        msg = "it has another size than its slices"
        raise Misplaced(msg)
    table = np.zeros((1 << 16, 3))
    unknown = np.zeros(labels.shape, bool)
    stated = np.diff(tile, axis=2)
    wrong = f"its tile {n + 1} doesn't show the segments where the mask has them"
    for segment, colour in zip(output.segments, colours, strict=bool(colours)):
        if colour is not None:
            table[segment.label] = colour
        elif (here := labels == segment.label).any():
            # A colour that is said nowhere: the same all over, and none that could be a grey.
            unknown |= here
            usual = seen.setdefault(segment.label, stated[here][0])
            if (
                float(np.abs(stated[here] - usual).max()) > 2 * ROUNDING
                or float(np.abs(usual).max()) < LEAST_CHROMA * OPACITY / 2 - ROUNDING
            ):
                raise Misplaced(wrong)
    over = table[labels] * OPACITY
    if not float(np.abs(stated - np.diff(over, axis=2))[~unknown].max(initial=0)) <= ROUNDING:
        raise Misplaced(wrong)
    greys = (tile - over).mean(axis=2) / np.where(labels > 0, 1 - OPACITY, 1)
    _check_below(greys[~unknown], source[thin][~unknown], n)


def _check_below(greys: NDArray[np.float64], source: NDArray[np.float32], n: int) -> None:
    """Between black and white, greys rise with the source's values and with nothing else."""
    middle = (greys > 2) & (greys < 253)
    if np.count_nonzero(middle) < 32:
        return
    one, other = greys[middle], source[middle].astype(np.float64)
    if one.std() < 2 or other.std() == 0:
        return
    if not float(np.corrcoef(one, other)[0, 1]) >= LEAST_CORRELATION:
        msg = f"its tile {n + 1} doesn't show the image that it names"
        raise Misplaced(msg)


def _check_shows_enough(mask: NDArray[Any] | None, planes: Sequence[int]) -> None:
    """What was found at all can be seen."""
    if mask is not None and mask.any() and not any(mask[k].any() for k in planes):
        msg = "it shows no slice on which anything was found"
        raise Misplaced(msg)
