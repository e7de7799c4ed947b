"""Examples to train on: generated phantoms, and real series with classical labels.

In: seeds, or a folder of DICOM. Out: volumes in canonical order (axes to the left, the back and
the head) with soft labels: the share of each network voxel that a lung fills, so that the network
learns edges finer than its grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy import ndimage

from ensemble_builder.phantoms import random_phantom
from ensemble_builder.pipelines.lung_ct.classical import lung_labels


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
        shares: uint8 [2, K, J, I], share of left and right lung, 255 is all.
        spacing_mm: distance of slices, rows, columns.
    """

    hu: NDArray[np.int16]
    shares: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float]


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


def phantom_examples(first_seed: int, count: int, grid_mm: float) -> list[Example]:
    """Paint `count` random phantoms from `first_seed` on."""
    out = []
    for seed in range(first_seed, first_seed + count):
        phantom = random_phantom(seed)
        out.append(_example(phantom.hu, phantom.labels, phantom.spacing_mm, grid_mm))
    return out


def real_example(folder: Path, grid_mm: float) -> Example:
    """Read a real series and label it by the classical method.

    Raises:
        ValueError: as `read_dicom`, or if no lungs are found.
    """
    volume = read_dicom(folder)
    labels = lung_labels(volume.hu, volume.affine_lps)
    if not labels.any():
        raise ValueError(f"no lungs found in {folder.name}")
    direction = np.diag(volume.affine_lps)[:3]
    flips = tuple(axis for axis in range(3) if direction[2 - axis] < 0)
    k, j, i = (float(v) for v in np.linalg.norm(volume.affine_lps[:3, :3], axis=0)[::-1])
    # Half the columns and rows are plenty for a grid of several millimetres.
    thin = (slice(None), slice(None, None, 2), slice(None, None, 2))
    hu, labels = (np.ascontiguousarray(np.flip(a, flips)[thin]) for a in (volume.hu, labels))
    return _example(hu, labels, (k, 2 * j, 2 * i), grid_mm)


def _example(
    hu: NDArray[np.int16],
    labels: NDArray[np.uint8],
    spacing_mm: tuple[float, float, float],
    grid_mm: float,
) -> Example:
    # A Gaussian of the variance of a box as wide as the network's voxel.
    width = [grid_mm / 12**0.5 / s for s in spacing_mm]
    shares = np.stack(
        [
            ndimage.gaussian_filter(np.where(labels == v, np.float32(255), np.float32(0)), width)
            for v in (1, 2)
        ]
    )
    return Example(hu, np.rint(shares).astype(np.uint8), spacing_mm)
