"""Generated inputs for any bundle: for probing it, for warm-up, for proving that it is served.

Smooth shapes with noise on an oblique, anisotropic grid, so that an exchanged axis, a
forgotten flip or a wrong spacing changes the result. Never all zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ensemble_builder.runtime.inputs import Input

VOLUME_KJI = (37, 46, 53)
IMAGE_JI = (147, 181)
"""Odd and different along each axis."""

AIR, WATER = -1000, 0


def oblique_affine_lps(spacing_ijk_mm: Sequence[float] = (1.3, 1.7, 2.6)) -> NDArray[np.float64]:
    """float64 [4, 4]: (i, j, k, 1) -> LPS millimetres, turned about two axes."""
    a, b = np.deg2rad(11.0), np.deg2rad(-7.0)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(spacing_ijk_mm)
    affine[:3, 3] = (-61.0, 47.5, -310.25)
    return affine


def sample(
    inputs: Sequence[Input],
    shape_kji: Sequence[int] | None = None,
    shape_ji: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, NDArray[Any]]:
    """A request: Triton tensor name -> array.

    Args:
        inputs: What the pipeline takes.
        shape_kji: Of its volumes.
        shape_ji: Of its 2-D images.
        seed: The same seed gives the same request.
    """
    rng = np.random.default_rng(seed)
    volume = tuple(shape_kji or VOLUME_KJI)
    image = tuple(shape_ji or IMAGE_JI)
    first = next((one for one in inputs if one.is_image), None)
    grid = volume if first is not None and first.layout in ("volume", "channels") else image
    found: dict[str, NDArray[Any]] = {}
    for one in inputs:
        if one.layout == "rgb":
            pixels = np.stack([_picture(rng, image, 0, 255) for _ in range(one.channels)], axis=-1)
            found[one.tensor] = pixels.astype(np.uint8)
        elif one.is_stored:
            found |= _stored(one, rng, volume, image)
        elif one.layout == "points":
            # Indices in MONAI's order of axes, well inside.
            middle = [n // 2 for n in reversed(grid)][: one.channels]
            found[one.tensor] = np.array([middle], dtype=np.int64)
        else:
            found[one.tensor] = np.array([1.0], dtype=np.float32)
    return found


def _stored(
    one: Input, rng: np.random.Generator, volume: tuple[int, ...], image: tuple[int, ...]
) -> dict[str, NDArray[Any]]:
    shape = image if one.layout == "gray" else volume
    slices = 1 if one.layout == "gray" else volume[0]
    channels = [_picture(rng, shape, AIR, 1500) for _ in range(one.channels)]
    values = np.stack(channels)
    if one.datatype == "FP32":
        stored = (values + 0.2 * (values % 3)).astype(np.float32)  # no integers would do
    else:
        stored = values.astype(np.int16)
    rescale = np.tile(np.array([1.0, 0.0]), (one.channels, slices, 1))
    if one.layout != "channels":
        stored, rescale = stored[0], rescale[0]
    return {one.tensor: stored, one.rescale: rescale, one.affine: oblique_affine_lps()}


def _picture(
    rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float
) -> NDArray[np.float64]:
    """Blobs of several sizes before a background, with noise: float64, low..high."""
    coarse, fine = (
        _normalised(ndimage.gaussian_filter(rng.normal(size=shape), sigma)) for sigma in (6.0, 2.0)
    )
    picture = coarse + 0.6 * fine + 0.05 * rng.normal(size=shape)
    inside = ndimage.gaussian_filter(_ball(shape), 1.0)
    unit = 1.0 / (1.0 + np.exp(-1.5 * picture))
    return np.asarray(np.clip(low + (high - low) * unit * inside, low, high).round())


def _normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values / values.std())


def _ball(shape: tuple[int, ...]) -> NDArray[np.float64]:
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    squared = np.sum([axis**2 for axis in axes], axis=0)
    return np.asarray(squared < 0.85, dtype=np.float64)
