"""The frames of an instance: one of most, many of an enhanced object.

In: a `Header`. Out: `Frame`s, each with its own place in the patient, its rescale and what
tells it from the others. Multi-frame objects are read a second time, with their functional
groups. Nothing is written.

Source: PS3.3 C.7.6.16 (Multi-frame Functional Groups).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pydicom
from pydicom.dataset import Dataset

from dicom_gateway.assemble import traits
from dicom_gateway.assemble.elements import UNREADABLE, numbers, rescale_of, values_of
from dicom_gateway.assemble.headers import Header
from dicom_gateway.assemble.traits import Traits
from dicom_gateway.errors import UnusableSeries

LARGEST_NUMBER_OF_FRAMES = 100_000
"""More is a damaged number; the largest enhanced objects have some ten thousand."""

_GROUPS = [
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *traits.KEYWORDS,
]


@dataclass(frozen=True, slots=True)
class Frame:
    """One image with its place in the patient; None where the header says nothing usable.

    Attributes:
        header: Of the instance it is in.
        number: 1-based place in the instance (PS3.3 C.7.6.6).
        position_lps_mm: Centre of the first voxel.
        orientation: Direction of rising column index, then of rising row index (LPS).
        pixel_spacing_mm: Between rows, between columns (PS3.3 10.7.1.3).
        rescale: Slope, intercept; (1, 0) where absent.
        traits: What tells its volume from others in the same series.
    """

    header: Header
    number: int
    position_lps_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, ...] | None
    rescale: tuple[float, float] | None
    traits: Traits

    @property
    def sop_instance_uid(self) -> str:
        """Of the instance it is in."""
        return self.header.sop_instance_uid


def frames_of(header: Header) -> tuple[Frame, ...]:
    """All frames of one instance, in the order in which it has them.

    Raises:
        UnusableSeries: (unsupported_object) when a multi-frame object can't be read, or has
            another number of functional groups than of frames.
    """
    if header.number_of_frames == 1 and header.position_lps_mm is not None:
        return (_single(header),)
    try:
        ds = pydicom.dcmread(header.path, stop_before_pixels=True, specific_tags=list(_GROUPS))
        own = values_of(ds, "PerFrameFunctionalGroupsSequence")
        shared = values_of(ds, "SharedFunctionalGroupsSequence")[:1]
    except UNREADABLE as error:
        msg = (
            f"a multi-frame object of this series can't be read ({type(error).__name__}); "
            "send the series again"
        )
        raise UnusableSeries(msg, code="unsupported_object") from error
    if not own and not shared and header.number_of_frames == 1:
        return (_single(header),)
    _check_count(header, len(own))
    indices = traits.telling_indices(ds)
    return tuple(
        _frame(header, number, [*own[number - 1 : number], *shared], ds, indices)
        for number in range(1, header.number_of_frames + 1)
    )


def _check_count(header: Header, groups: int) -> None:
    count = header.number_of_frames
    if not 1 <= count <= LARGEST_NUMBER_OF_FRAMES or groups not in (0, count):
        msg = (
            f"a multi-frame object says that it has {count} frames and describes {groups}; "
            "send it again, or as single-frame instances"
        )
        raise UnusableSeries(msg, code="unsupported_object")


def _single(header: Header) -> Frame:
    return Frame(
        header=header,
        number=1,
        position_lps_mm=header.position_lps_mm,
        orientation=header.orientation,
        pixel_spacing_mm=header.pixel_spacing_mm,
        rescale=header.rescale,
        traits=header.traits,
    )


def _frame(
    header: Header, number: int, groups: Sequence[Dataset], ds: Dataset, indices: Sequence[int]
) -> Frame:
    def found(sequence: str, keyword: str, count: int) -> tuple[float, ...] | None:
        for group in groups:
            items = values_of(group, sequence)
            if items and isinstance(items[0], Dataset):
                return numbers(items[0], keyword, count)
        return None

    return Frame(
        header=header,
        number=number,
        position_lps_mm=found("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=found("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        pixel_spacing_mm=found("PixelMeasuresSequence", "PixelSpacing", 2),
        rescale=_rescale(header, groups),
        traits=traits.of_frame(groups, ds, indices),
    )


def _rescale(header: Header, groups: Sequence[Dataset]) -> tuple[float, float] | None:
    for group in groups:
        items = values_of(group, "PixelValueTransformationSequence")
        if items and isinstance(items[0], Dataset):
            return rescale_of(items[0])
    return header.rescale
