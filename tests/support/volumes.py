"""Volumes that no axis, sign or spacing can be mixed up in: `an_oblique_volume()`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from scipy.ndimage import gaussian_filter

from ensemble_builder.verify import StoredVolume


def an_oblique_volume(
    shape_kji: tuple[int, int, int] = (30, 90, 100), *, seed: int = 0, slope: float = 1.0
) -> StoredVolume:
    """Smooth random structures on a rotated, anisotropic grid that is off the centre."""
    rng = np.random.default_rng(seed)
    values = gaussian_filter(rng.normal(size=shape_kji), (1.5, 4, 4))
    image = (values / values.std() * 300).astype(np.int16)
    a, b = 0.3, 0.2
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([0.9, 0.8, 2.5])
    affine[:3, 3] = (-30.5, -55.25, 120.75)
    return StoredVolume(image, np.tile([slope, -24.0], (shape_kji[0], 1)), affine)


def patient_coordinates(
    shape_kji: tuple[int, int, int], affine_lps: NDArray[np.float64]
) -> NDArray[np.float64]:
    """LPS millimetres of every voxel, [K, J, I, 3]."""
    k, j, i = np.indices(shape_kji)
    return np.stack([i, j, k], axis=-1) @ affine_lps[:3, :3].T + affine_lps[:3, 3]


def sampled(
    series: Iterable[Dataset], field: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> None:
    """Gives each single-frame instance the values that `field` has where its pixels lie."""
    for ds in series:
        orientation = np.array(ds.ImageOrientationPatient, float)
        affine = np.eye(4)
        affine[:3, 0] = orientation[:3] * float(ds.PixelSpacing[1])
        affine[:3, 1] = orientation[3:] * float(ds.PixelSpacing[0])
        affine[:3, 3] = np.array(ds.ImagePositionPatient, float)
        values = field(patient_coordinates((1, ds.Rows, ds.Columns), affine)[0])
        stored = (values - float(ds.RescaleIntercept)) / float(ds.RescaleSlope)
        ds.PixelData = np.rint(stored).astype("<i2").tobytes()
