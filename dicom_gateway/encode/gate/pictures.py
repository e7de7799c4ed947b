"""Does a picture show the mask on the slices that it names?

In: a Secondary Capture as it was re-read, mask, source pixels. Out: nothing, or `Misplaced`.
Where a segment is drawn red, green and blue differ, by the colour of that segment; what lies
below must be the source's pixels.

Source: PS3.3 C.7.6.1 (General Image: Source Image Sequence), C.8.6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_gateway.encode.gate.truth import Misplaced, Truth
from dicom_gateway.encode.montage import LEAST_WIDTH, legend_height, montage_of
from dicom_gateway.records import Output

ROUNDING = 1.01
"""How far the difference of two rounded channels may be from what it should be."""

LEAST_CORRELATION = 0.95
"""Of the picture's greys with the source's pixels, where both vary."""


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
    output: Output,
    truth: Truth,
    sources: NDArray[np.float32],
    colours: Sequence[tuple[int, int, int]],
    opacity: float,
) -> None:
    """Holds a picture against mask [K, J, I] and the source's pixels [n, J, I] that it shows."""
    planes = shown_planes(ds, truth)
    first = truth.planes[0]
    place = montage_of(len(planes), first.rows, first.columns)
    rows, columns = int(ds.Rows), int(ds.Columns)
    raw = np.frombuffer(ds.PixelData, dtype=np.uint8)
    if str(ds.PhotometricInterpretation) != "RGB" or raw.size < rows * columns * 3:
        msg = "its pixels are no picture in colour"
        raise Misplaced(msg)
    picture = raw[: rows * columns * 3].reshape(rows, columns, 3).astype(np.float64)
    # A tile that no reference names would change the size, or stand where only paper is.
    blank = montage_of(place.slots, first.rows, first.columns).corners[len(planes) :]
    spare = [picture[t : t + place.tile[0], x : x + place.tile[1]] for t, x in blank]
    below = rows - place.size[0]
    fits = below > 0 if mask is None else below == legend_height(len(output.segments))
    if columns != max(place.size[1], LEAST_WIDTH) or not fits or any(np.ptp(s) for s in spare):
        msg = "it shows more or fewer slices than it names"
        raise Misplaced(msg)
    table = np.zeros((1 << 16, 3))
    for segment, colour in zip(output.segments, colours, strict=True):
        table[segment.label] = colour
    for n, k in enumerate(planes):
        top, left = place.corners[n]
        tile = picture[top : top + place.tile[0], left : left + place.tile[1]]
        # Every shown pixel of the source, at the middle of where it is drawn.
        middle = place.repeated // 2
        tile = tile[middle :: place.repeated, middle :: place.repeated]
        thin = np.s_[:: place.thinned, :: place.thinned]
        labels = np.zeros(tile.shape[:2], int) if mask is None else mask[k][thin]
        if tile.shape[:2] != labels.shape:
            msg = "it has another size than its slices"
            raise Misplaced(msg)
        over = table[labels] * opacity
        stated = np.diff(tile, axis=2)
        if not float(np.abs(stated - np.diff(over, axis=2)).max()) <= ROUNDING:
            msg = f"its tile {n + 1} doesn't show the segments where the mask has them"
            raise Misplaced(msg)
        greys = (tile - over).mean(axis=2) / np.where(labels > 0, 1 - opacity, 1)
        _check_below(greys, sources[n][thin], n)
    _check_shows_enough(mask, planes)


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
