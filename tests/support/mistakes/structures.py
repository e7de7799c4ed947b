"""Mistakes in an RT Structure Set."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from tests.support.mistakes.anything import Mistake
from tests.support.mistakes.segmentation import other_frame_of_reference


def _contours(ds: Dataset) -> list[Dataset]:
    return [one for region in ds.ROIContourSequence for one in region.get("ContourSequence", [])]


def _moved(ds: Dataset, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
    for contour in _contours(ds):
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        contour.ContourData = [round(float(mm), 5) for mm in change(points).ravel()]


def contours_mirrored(ds: Dataset) -> None:
    """About the middle of all."""
    everything = np.concatenate(
        [np.array(one.ContourData, float).reshape(-1, 3) for one in _contours(ds)]
    )
    middle = (everything[:, 0].min() + everything[:, 0].max()) / 2
    _moved(ds, lambda points: points * (-1, 1, 1) + (2 * middle, 0, 0))


def contours_a_slice_on(ds: Dataset) -> None:
    """In millimetres alone."""
    _moved(ds, lambda points: points + np.array([0, 0, 2.5]))


def contours_a_pixel_on(ds: Dataset) -> None:
    """In millimetres alone."""
    _moved(ds, lambda points: points + np.array([0.7, 0, 0]))


def contours_transposed(ds: Dataset) -> None:
    """X for y."""
    _moved(ds, lambda points: points[:, [1, 0, 2]])


def contours_scaled(ds: Dataset) -> None:
    """As with a wrong pixel spacing."""
    _moved(ds, lambda points: points * (1.05, 1.05, 1))


def a_contour_less(ds: Dataset) -> None:
    """The last one."""
    region = ds.ROIContourSequence[-1]
    region.ContourSequence = list(region.ContourSequence)[:-1]


def a_contour_twice(ds: Dataset) -> None:
    """Some viewers would cut it out."""
    region = ds.ROIContourSequence[0]
    region.ContourSequence = [*region.ContourSequence, deepcopy(region.ContourSequence[0])]


def contours_on_other_images(ds: Dataset) -> None:
    """Each names the image of the next."""
    contours = ds.ROIContourSequence[0].ContourSequence
    names = [one.ContourImageSequence[0].ReferencedSOPInstanceUID for one in contours]
    for contour, name in zip(contours, [*names[1:], "1.2.3"], strict=True):
        contour.ContourImageSequence[0].ReferencedSOPInstanceUID = name


def regions_exchanged(ds: Dataset) -> None:
    """Contours of one under the number of the other."""
    for one in ds.ROIContourSequence:
        one.ReferencedROINumber = 3 - one.ReferencedROINumber


def region_names_exchanged(ds: Dataset) -> None:
    """Left for right, in words."""
    one, other = ds.StructureSetROISequence
    one.ROIName, other.ROIName = other.ROIName, one.ROIName


def region_sides_exchanged(ds: Dataset) -> None:
    """Left for right, in codes."""
    for one in ds.RTROIObservationsSequence:
        one.ReferencedROINumber = 3 - one.ReferencedROINumber


def region_elsewhere(ds: Dataset) -> None:
    """One region in another frame of reference."""
    ds.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3"


def open_contour(ds: Dataset) -> None:
    """Which encloses nothing."""
    _contours(ds)[0].ContourGeometricType = "OPEN_PLANAR"


def structure_of_another_series(ds: Dataset) -> None:
    """As the source."""
    study = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


MISTAKES: tuple[Mistake, ...] = (
    other_frame_of_reference,
    region_elsewhere,
    contours_mirrored,
    contours_a_slice_on,
    contours_a_pixel_on,
    contours_transposed,
    contours_scaled,
    a_contour_less,
    a_contour_twice,
    contours_on_other_images,
    regions_exchanged,
    region_names_exchanged,
    region_sides_exchanged,
    open_contour,
    structure_of_another_series,
)
