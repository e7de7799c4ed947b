"""Examples to train on: volumes with the share of each network voxel that a label fills.

In: generated phantoms or a labelled CT, and what the network shall learn of them. Out: volumes
in canonical order (axes to the left, the back and the head) with soft labels, so that a network
learns edges finer than its grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy import ndimage

from ensemble_builder.phantoms import ThoraxPhantom, random_phantom


@dataclass(frozen=True)
class Target:
    """What a network learns.

    Attributes:
        of_phantom: a phantom's labels, uint8 [K, J, I]: 0 background, 1 ... `mirrored`'s length.
        mirrored: label that each label (1, 2, ...) becomes in a mirrored patient.
    """

    of_phantom: Callable[[ThoraxPhantom], NDArray[np.uint8]]
    mirrored: tuple[int, ...]


@dataclass(frozen=True)
class Volume:
    """A CT series on its own grid.

    Attributes:
        hu: int16 [K, J, I], Hounsfield units.
        affine_lps: float64 [4, 4], (i, j, k, 1) to LPS mm.
    """

    hu: NDArray[np.int16]
    affine_lps: NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """One volume to draw crops from.

    Attributes:
        hu: int16 [K, J, I], canonical order.
        shares: uint8 [labels, K, J, I], share of each label, 255 is all.
        spacing_mm: distance of slices, rows, columns.
        mirrored: label that each label (1, 2, ...) becomes in a mirrored patient.
    """

    hu: NDArray[np.int16]
    shares: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]
    mirrored: tuple[int, ...]


def read_dicom(folder: Path) -> Volume:
    """Read one axial CT series of single-frame instances, for training and measuring only.

    The gateway has its own, careful reader; this one trusts the folder.

    Raises:
        ValueError: if the folder holds no CT series or its slices are not evenly spaced.
    """
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        ds = pydicom.dcmread(path, force=True)
        if "ImagePositionPatient" in ds and "PixelData" in ds:
            found.append(ds)
    if len(found) < 2:
        raise ValueError(f"no CT series of at least two instances in {folder.name}")
    rows = np.array(found[0].ImageOrientationPatient, float)
    normal = np.cross(rows[:3], rows[3:])
    found.sort(key=lambda ds: float(normal @ np.array(ds.ImagePositionPatient, float)))
    positions = np.array([ds.ImagePositionPatient for ds in found], float)
    gaps = np.diff(positions @ normal)
    if gaps.min() <= 0 or gaps.max() > 1.05 * gaps.min():
        raise ValueError(f"slices are not evenly spaced: {gaps.min():.2f} to {gaps.max():.2f} mm")
    hu = np.stack(
        [ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in found]
    )
    affine = np.eye(4)
    row_mm, column_mm = (float(v) for v in found[0].PixelSpacing)
    affine[:3, 0], affine[:3, 1] = rows[:3] * column_mm, rows[3:] * row_mm
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(found) - 1)
    affine[:3, 3] = positions[0]
    return Volume(np.clip(np.rint(hu), -32768, 32767).astype(np.int16), affine)


def phantom_examples(target: Target, first_seed: int, count: int, grid_mm: float) -> list[Example]:
    """Paint `count` random phantoms from `first_seed` on."""
    out = []
    for seed in range(first_seed, first_seed + count):
        phantom = random_phantom(seed)
        labels = target.of_phantom(phantom)
        out.append(make_example(phantom.hu, labels, phantom.spacing_mm, grid_mm, target.mirrored))
    return out


def make_example(
    hu: NDArray[np.int16],
    labels: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float],
    grid_mm: float,
    mirrored: tuple[int, ...],
) -> Example:
    """Soften the labels of a volume in canonical order.

    Args:
        hu: int16 [K, J, I].
        labels: uint8 [K, J, I].
        spacing_mm: distance of slices, rows, columns.
        grid_mm: the network's voxel edge.
        mirrored: as in `Example`; its length is the number of labels.
    """
    # A Gaussian of the variance of a box as wide as the network's voxel.
    width = [grid_mm / 12**0.5 / s for s in spacing_mm]
    shares = np.stack(
        [
            ndimage.gaussian_filter(np.where(labels == v, np.float32(255), np.float32(0)), width)
            for v in range(1, len(mirrored) + 1)
        ]
    )
    return Example(hu, np.rint(shares).astype(np.uint8), spacing_mm, mirrored)
