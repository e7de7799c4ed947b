"""Mistakes in a segmentation, of bits or of labels."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from tests.support.mistakes.anything import Mistake


def set_in(ds: Dataset, keyword: str, value: Any) -> None:
    """Sets an element wherever it is."""
    ds.walk(lambda parent, one: setattr(parent, keyword, value) if one.keyword == keyword else None)


def other_frame_of_reference(ds: Dataset) -> None:
    """Also deeper down."""
    set_in(ds, "FrameOfReferenceUID", "1.2.3")


def _measures(ds: Dataset) -> Dataset:
    return ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


def _orientation(ds: Dataset) -> Dataset:
    return ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]


def wrong_spacing(ds: Dataset) -> None:
    """One per cent is enough."""
    spacing = [float(mm) * 1.01 for mm in _measures(ds).PixelSpacing]
    _measures(ds).PixelSpacing = spacing


def swapped_spacing(ds: Dataset) -> None:
    """Between rows for between columns."""
    _measures(ds).PixelSpacing = list(_measures(ds).PixelSpacing)[::-1]


def wrong_distance(ds: Dataset) -> None:
    """Twice that between slices."""
    _measures(ds).SpacingBetweenSlices = 5.0


def mirrored(ds: Dataset) -> None:
    """Rows run the other way."""
    one = [float(x) for x in _orientation(ds).ImageOrientationPatient]
    _orientation(ds).ImageOrientationPatient = [-x for x in one[:3]] + one[3:]


def transposed(ds: Dataset) -> None:
    """Rows for columns."""
    one = list(_orientation(ds).ImageOrientationPatient)
    _orientation(ds).ImageOrientationPatient = one[3:] + one[:3]


def _groups(ds: Dataset) -> list[Dataset]:
    return list(ds.PerFrameFunctionalGroupsSequence)


def all_one_slice_on(ds: Dataset) -> None:
    """Positions and references together: in itself it is sound."""
    groups = _groups(ds)
    places = {_uid(one): one for one in groups}
    uids = sorted(places, key=lambda uid: float(_position(places[uid])[2]))
    following = dict(zip(uids, [*uids[1:], uids[0]], strict=True))
    found = {
        uid: (deepcopy(one.PlanePositionSequence), deepcopy(one.DerivationImageSequence))
        for uid, one in places.items()
    }
    for one in groups:
        position, derivation = found[following[_uid(one)]]
        one.PlanePositionSequence = deepcopy(position)
        one.DerivationImageSequence = deepcopy(derivation)


def _uid(groups: Dataset) -> str:
    return str(groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)


def _position(groups: Dataset) -> list[Any]:
    return list(groups.PlanePositionSequence[0].ImagePositionPatient)


def moved_in_plane(ds: Dataset) -> None:
    """By one column."""
    for one in _groups(ds):
        x, y, z = (float(mm) for mm in _position(one))
        one.PlanePositionSequence[0].ImagePositionPatient = [round(x + 0.7, 6), y, z]


def references_exchanged(ds: Dataset) -> None:
    """Of two frames on different slices."""
    first, last = _groups(ds)[0], _groups(ds)[-1]
    first.DerivationImageSequence, last.DerivationImageSequence = (
        deepcopy(last.DerivationImageSequence),
        deepcopy(first.DerivationImageSequence),
    )
    if _uid(first) == _uid(last):
        first.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def numbers_exchanged(ds: Dataset) -> None:
    """Frames of segment 1 for those of 2, with their indices."""
    for one in _groups(ds):
        item = one.SegmentIdentificationSequence[0]
        item.ReferencedSegmentNumber = 3 - item.ReferencedSegmentNumber
        index = one.FrameContentSequence[0]
        index.DimensionIndexValues = [
            3 - index.DimensionIndexValues[0],
            index.DimensionIndexValues[1],
        ]


def index_of_another_segment(ds: Dataset) -> None:
    """Viewers group frames by it."""
    index = _groups(ds)[0].FrameContentSequence[0]
    index.DimensionIndexValues = [2, index.DimensionIndexValues[1]]


def index_out_of_order(ds: Dataset) -> None:
    """Viewers sort frames by it."""
    ranks = {1: 2, 2: 1}
    for one in _groups(ds):
        index = one.FrameContentSequence[0]
        values = index.DimensionIndexValues
        if isinstance(values, int):
            index.DimensionIndexValues = ranks.get(values, values)
        else:
            index.DimensionIndexValues = [values[0], ranks.get(values[1], values[1])]


def a_frame_less(ds: Dataset) -> None:
    """With its pixels."""
    frames = pixels_by_frame(ds)
    ds.PerFrameFunctionalGroupsSequence = _groups(ds)[:-1]
    put_pixels(ds, frames[:-1])


def a_frame_twice(ds: Dataset) -> None:
    """With its pixels."""
    frames = pixels_by_frame(ds)
    ds.PerFrameFunctionalGroupsSequence = [*_groups(ds), deepcopy(_groups(ds)[-1])]
    put_pixels(ds, np.concatenate([frames, frames[-1:]]))


def an_empty_frame(ds: Dataset) -> None:
    """In place of one with content."""
    frames = pixels_by_frame(ds)
    frames[-1] = 0
    put_pixels(ds, frames)


def frames_mirrored(ds: Dataset) -> None:
    """The pixels alone."""
    put_pixels(ds, pixels_by_frame(ds)[:, :, ::-1])


def pixels_by_frame(ds: Dataset) -> NDArray[np.uint8]:
    """[F, J, I]."""
    shape = int(ds.NumberOfFrames), int(ds.Rows), int(ds.Columns)
    raw = np.frombuffer(ds.PixelData, np.uint8)
    if ds.BitsAllocated == 1:
        raw = np.unpackbits(raw, bitorder="little")
    return raw[: np.prod(shape)].reshape(shape).copy()


def put_pixels(ds: Dataset, frames: NDArray[np.uint8]) -> None:
    """The way back."""
    ds.NumberOfFrames = len(frames)
    flat = frames.ravel()
    raw = (np.packbits(flat, bitorder="little") if ds.BitsAllocated == 1 else flat).tobytes()
    ds.PixelData = raw + b"\0" * (len(raw) % 2)


def _described(ds: Dataset) -> list[Dataset]:
    return [one for one in ds.SegmentSequence if one.SegmentNumber]


def names_exchanged(ds: Dataset) -> None:
    """Left lung for right lung, in words."""
    one, other = _described(ds)
    one.SegmentLabel, other.SegmentLabel = other.SegmentLabel, one.SegmentLabel


def _types(ds: Dataset) -> list[Dataset]:
    return [one.SegmentedPropertyTypeCodeSequence[0] for one in _described(ds)]


def sides_exchanged(ds: Dataset) -> None:
    """Left for right, in codes."""
    one, other = _types(ds)
    key = "SegmentedPropertyTypeModifierCodeSequence"
    first = deepcopy(one[key].value)
    one[key].value = deepcopy(other[key].value)
    other[key].value = first


def side_lost(ds: Dataset) -> None:
    """A lung, whichever."""
    del _types(ds)[0].SegmentedPropertyTypeModifierCodeSequence


def another_organ(ds: Dataset) -> None:
    """A kidney."""
    _types(ds)[0].CodeValue = "64033007"


def another_series(ds: Dataset) -> None:
    """As the source."""
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def a_source_less(ds: Dataset) -> None:
    """In the list of all."""
    items = ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence = list(items)[:-1]


MISTAKES: tuple[Mistake, ...] = (
    other_frame_of_reference,
    wrong_spacing,
    swapped_spacing,
    wrong_distance,
    mirrored,
    transposed,
    all_one_slice_on,
    moved_in_plane,
    references_exchanged,
    index_out_of_order,
    a_frame_less,
    a_frame_twice,
    an_empty_frame,
    frames_mirrored,
    names_exchanged,
    sides_exchanged,
    side_lost,
    another_organ,
    another_series,
    a_source_less,
)

OF_BITS: tuple[Mistake, ...] = (numbers_exchanged, index_of_another_segment)
"""What a label map has no place for."""
