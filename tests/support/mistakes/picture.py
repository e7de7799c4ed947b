"""Mistakes in a Secondary Capture of slices with a legend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from tests.support.mistakes.anything import Mistake
from tests.support.series import LEFT_LUNG, RIGHT_LUNG


def picture_mirrored(ds: Dataset) -> None:
    """The whole of it."""
    _redrawn(ds, lambda picture: picture[:, ::-1])


def picture_a_pixel_on(ds: Dataset) -> None:
    """The tiles aren't where they should be."""
    _redrawn(ds, lambda picture: np.roll(picture, 11, axis=1))


def picture_upside_down(ds: Dataset) -> None:
    """The whole of it."""
    _redrawn(ds, lambda picture: picture[::-1])


def colours_exchanged(ds: Dataset) -> None:
    """Red for blue."""
    _redrawn(ds, lambda picture: picture[..., ::-1])


def no_overlay(ds: Dataset) -> None:
    """Only greys."""
    _redrawn(ds, lambda picture: np.repeat(picture[..., :1], 3, axis=2))


def _redrawn(ds: Dataset, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
    shape = int(ds.Rows), int(ds.Columns), 3
    raw = np.frombuffer(ds.PixelData, np.uint8)[: np.prod(shape)].reshape(shape)
    data = np.ascontiguousarray(change(raw)).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)


def _exchanged(ds: Dataset, one: tuple[slice, slice], other: tuple[slice, slice]) -> None:
    """Two parts of a picture of the same size."""

    def change(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = picture.copy()
        out[one], out[other] = picture[other], picture[one]
        assert (out != picture).any()
        return out

    _redrawn(ds, change)


def _line(ds: Dataset, n: int) -> slice:
    """Rows of line n of a legend of two, which stands at the bottom."""
    top = int(ds.Rows) - 96 + 11 + 26 * n
    return slice(top, top + 26)


EVERYTHING = slice(None)


def legend_lines_exchanged(ds: Dataset) -> None:
    """Colours, names and volumes: each line in itself is right, but for its place."""
    _exchanged(ds, (_line(ds, 0), EVERYTHING), (_line(ds, 1), EVERYTHING))


def legend_names_exchanged(ds: Dataset) -> None:
    """The left lung's colour beside the right lung's name."""
    _exchanged(ds, (_line(ds, 0), slice(50, 200)), (_line(ds, 1), slice(50, 200)))


def legend_volumes_exchanged(ds: Dataset) -> None:
    """The left lung's millilitres beside the right lung's name."""
    _exchanged(ds, (_line(ds, 0), slice(300, None)), (_line(ds, 1), slice(300, None)))


def legend_colours_exchanged(ds: Dataset) -> None:
    """What is red in the slices is called by the other's name."""
    _exchanged(ds, (_line(ds, 0), slice(0, 50)), (_line(ds, 1), slice(0, 50)))


def all_colours_exchanged(ds: Dataset) -> None:
    """In slices and legend alike, so that only the contract tells: left is red there."""
    both = np.array([LEFT_LUNG.colour_rgb, RIGHT_LUNG.colour_rgb], float)

    def change(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = picture.astype(float)
        for rgb, other in (both, both[::-1]):
            over = np.abs(np.diff(picture.astype(float)) - 0.4 * np.diff(rgb)).max(axis=2) <= 1
            out[over] += 0.4 * (other - rgb)
            out[(picture == rgb).all(axis=2)] = other
        return np.clip(np.rint(out), 0, 255).astype(np.uint8)

    _redrawn(ds, change)


def letters_exchanged(ds: Dataset) -> None:
    """R for L beside the first slice."""
    high, wide = 23 * 8, 31 * 8  # the slices of this test, enlarged
    rows = slice(62 + high // 2 - 10, 62 + high // 2 + 10)
    _exchanged(ds, (rows, slice(0, 22)), (rows, slice(22 + wide, 44 + wide)))


def letter_lost(ds: Dataset) -> None:
    """Nothing says where left is."""

    def change(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = picture.copy()
        out[62:200, :22] = 16
        return out

    _redrawn(ds, change)


def directions_turned(ds: Dataset) -> None:
    """Patient Orientation for that of the other side."""
    opposite = str.maketrans("LRAPFH", "RLPAHF")
    ds.PatientOrientation = [str(one).translate(opposite) for one in ds.PatientOrientation]


def directions_exchanged(ds: Dataset) -> None:
    """Rows for columns."""
    ds.PatientOrientation = list(ds.PatientOrientation)[::-1]


def a_direction_less(ds: Dataset) -> None:
    """Empty, as of a projection."""
    ds.PatientOrientation = ["", ""]


def pixels_of_another_shape(ds: Dataset) -> None:
    """Twice as high as they are wide."""
    ds.PixelAspectRatio = [2, 1]


def picture_of_other_slices(ds: Dataset) -> None:
    """Each tile names the slice of the next."""
    names = [one.ReferencedSOPInstanceUID for one in ds.SourceImageSequence]
    for item, name in zip(ds.SourceImageSequence, [*names[1:], names[0]], strict=True):
        item.ReferencedSOPInstanceUID = name


def picture_of_nothing_known(ds: Dataset) -> None:
    """A tile names an instance of somebody else."""
    ds.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def a_slice_less(ds: Dataset) -> None:
    """One tile more than slices are named."""
    ds.SourceImageSequence = list(ds.SourceImageSequence)[:-1]


MISTAKES: tuple[Mistake, ...] = (
    picture_mirrored,
    picture_a_pixel_on,
    picture_upside_down,
    colours_exchanged,
    no_overlay,
    legend_lines_exchanged,
    legend_names_exchanged,
    legend_volumes_exchanged,
    legend_colours_exchanged,
    all_colours_exchanged,
    letters_exchanged,
    letter_lost,
    directions_turned,
    directions_exchanged,
    a_direction_less,
    pixels_of_another_shape,
    picture_of_other_slices,
    picture_of_nothing_known,
    a_slice_less,
)
