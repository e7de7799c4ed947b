"""Reads a received SEG back and lays it on its source, as any viewer would.

In: the source's CT files and the SEG as the PACS got it. Out: masks on the source's grid,
found through Image Position (Patient) alone, and how exactly they fit. Nothing the gateway
had in memory is used here, so a mistake on the way shows.

Source: PS3.3 A.51 (Segmentation IOD), C.7.6.16.2.3/4 (plane position and orientation).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.errors import ClientError

if TYPE_CHECKING:
    from pydicom import Dataset

LEFT = "7771000"
RIGHT = "24028007"
"""SNOMED CT codes of the sides (PS3.16 CID 244)."""

_DEFAULT_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167))
_GRID_TOLERANCE = 1e-4
"""Largest accepted difference of direction cosines and of pixel spacings in mm."""


@dataclass(frozen=True)
class SourceVolume:
    """A CT series as a volume.

    Attributes:
        hu: float32 [K, J, I].
        affine_lps: float64 [4, 4], (i, j, k, 1) -> LPS millimetres.
        positions_mm: float64 [K, 3], Image Position (Patient) of each slice.
        sop_instance_uids: K entries, in the order of k.
    """

    series_instance_uid: str
    hu: NDArray[np.float32]
    affine_lps: NDArray[np.float64]
    positions_mm: NDArray[np.float64]
    sop_instance_uids: tuple[str, ...]

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine_lps[:3, :3]))) / 1000.0


@dataclass(frozen=True)
class SegmentOnSource:
    """One segment of a SEG, on the grid of its source.

    Attributes:
        mask: bool [K, J, I].
        side: "left", "right" or "", from the type modifier's code.
    """

    number: int
    name: str
    side: str
    colour_rgb: tuple[int, int, int]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class ReceivedSegmentation:
    """A SEG laid on its source.

    Attributes:
        worst_offset_mm: Largest distance between a frame and the source slice it lies on.
        misreferenced_frames: Frames whose referenced source instance is not the one at
            the frame's position.
    """

    sop_instance_uid: str
    segments: tuple[SegmentOnSource, ...]
    frames: int
    worst_offset_mm: float
    misreferenced_frames: int


def source_series_uid(segmentation: Path) -> str:
    """The series that a SEG says it was made from (PS3.3 C.12.1 Common Instance Reference).

    Raises:
        ClientError: it doesn't say.
    """
    from pydicom import dcmread  # noqa: PLC0415

    ds = dcmread(segmentation, stop_before_pixels=True)
    for item in ds.get("ReferencedSeriesSequence", []):
        return str(item.SeriesInstanceUID)
    msg = f"{segmentation.name} doesn't say which series it was made from"
    raise ClientError(msg)


def read_source(files: Iterable[Path], series_instance_uid: str) -> SourceVolume:
    """Reads the single-frame instances of one series, in the order of their positions.

    Raises:
        ClientError: none of the files belongs to the series.
    """
    from pydicom import dcmread  # noqa: PLC0415

    slices: list[tuple[float, NDArray[np.float64], str, NDArray[np.float32], Any]] = []
    for path in files:
        ds = dcmread(path)
        if ds.get("SeriesInstanceUID") != series_instance_uid or "PixelData" not in ds:
            continue
        position = np.array(ds.ImagePositionPatient, dtype=np.float64)
        normal = np.cross(*_directions(ds.ImageOrientationPatient))
        slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
        hu = ds.pixel_array.astype(np.float32) * slope + intercept
        grid = (ds.ImageOrientationPatient, ds.PixelSpacing)
        slices.append((float(position @ normal), position, str(ds.SOPInstanceUID), hu, grid))
    if len(slices) < 2:
        msg = "the study that was sent doesn't hold the slices that the SEG was made from"
        raise ClientError(msg)
    slices.sort(key=lambda one: one[0])
    positions = np.stack([one[1] for one in slices])
    orientation, pixel_spacing = slices[0][4]
    affine = _affine(positions, orientation, pixel_spacing)
    return SourceVolume(
        series_instance_uid,
        np.stack([one[3] for one in slices]),
        affine,
        positions,
        tuple(one[2] for one in slices),
    )


def read_segmentation(path: Path, source: SourceVolume) -> ReceivedSegmentation:
    """Lays a binary SEG on its source through the positions of its frames.

    Raises:
        ClientError: its rows and columns are not the source's, so it can't be laid on it.
    """
    from pydicom import dcmread  # noqa: PLC0415

    ds = dcmread(path)
    shared = ds.SharedFunctionalGroupsSequence[0]
    _require_same_grid(ds, shared, source)
    pixels = np.asarray(ds.pixel_array, dtype=bool)
    pixels = pixels.reshape(int(ds.NumberOfFrames), int(ds.Rows), int(ds.Columns))
    masks = {int(s.SegmentNumber): np.zeros(source.hu.shape, bool) for s in ds.SegmentSequence}
    worst_mm, misreferenced = 0.0, 0
    for frame, groups in zip(pixels, ds.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, np.float64)
        distances = np.linalg.norm(source.positions_mm - position, axis=1)
        k = int(distances.argmin())
        worst_mm = max(worst_mm, float(distances[k]))
        misreferenced += _referenced_instance(groups) != source.sop_instance_uids[k]
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        masks[number][k] |= frame
    segments = tuple(
        SegmentOnSource(
            int(item.SegmentNumber),
            str(item.SegmentLabel),
            _side(item),
            _colour(item),
            masks[int(item.SegmentNumber)],
        )
        for item in ds.SegmentSequence
    )
    return ReceivedSegmentation(
        str(ds.SOPInstanceUID), segments, len(pixels), worst_mm, misreferenced
    )


def _directions(orientation: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = np.array([float(v) for v in orientation])
    return values[:3], values[3:]


def _affine(
    positions_mm: NDArray[np.float64], orientation: Any, pixel_spacing: Any
) -> NDArray[np.float64]:
    # Pixel Spacing is (between rows, between columns): j first, then i (PS3.3 10.7.1.3).
    along_i, along_j = _directions(orientation)
    affine = np.eye(4)
    affine[:3, 0] = along_i * float(pixel_spacing[1])
    affine[:3, 1] = along_j * float(pixel_spacing[0])
    affine[:3, 2] = (positions_mm[-1] - positions_mm[0]) / (len(positions_mm) - 1)
    affine[:3, 3] = positions_mm[0]
    return affine


def _require_same_grid(ds: Dataset, shared: Dataset, source: SourceVolume) -> None:
    along_i, along_j = _directions(shared.PlaneOrientationSequence[0].ImageOrientationPatient)
    spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
    same = (
        (int(ds.Rows), int(ds.Columns)) == source.hu.shape[1:]
        and np.allclose(along_i * spacing[1], source.affine_lps[:3, 0], atol=_GRID_TOLERANCE)
        and np.allclose(along_j * spacing[0], source.affine_lps[:3, 1], atol=_GRID_TOLERANCE)
    )
    if not same:
        msg = "the received SEG has other rows and columns than the images it was made from"
        raise ClientError(msg)


def _referenced_instance(groups: Dataset) -> str:
    for derivation in groups.get("DerivationImageSequence", []):
        for image in derivation.get("SourceImageSequence", []):
            return str(image.ReferencedSOPInstanceUID)
    return ""


def _side(segment: Dataset) -> str:
    for kind in segment.get("SegmentedPropertyTypeCodeSequence", []):
        for modifier in kind.get("SegmentedPropertyTypeModifierCodeSequence", []):
            if modifier.CodeValue in (LEFT, RIGHT):
                return "left" if modifier.CodeValue == LEFT else "right"
    return ""


def _colour(segment: Dataset) -> tuple[int, int, int]:
    from highdicom.color import CIELabColor  # noqa: PLC0415

    value = segment.get("RecommendedDisplayCIELabValue")
    if value is None:
        return _DEFAULT_COLOURS[int(segment.SegmentNumber) % len(_DEFAULT_COLOURS)]
    red, green, blue = CIELabColor.from_dicom_value([int(v) for v in value]).to_rgb(clip=True)
    return int(red), int(green), int(blue)
