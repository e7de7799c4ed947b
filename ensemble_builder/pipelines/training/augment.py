"""Random crops on the network's grid: turned, scaled, mirrored, cut, blurred and noisy.

In: an example. Out: image and soft labels as the bundle's preprocessing would have given them, had
the patient lain so and the scanner been set so.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ensemble_builder.pipelines.training.examples import Example


def random_crop(
    example: Example,
    rng: np.random.Generator,
    *,
    shape: tuple[int, int, int],
    grid_mm: float,
    hu_range: tuple[float, float],
    mirror_share: float,
) -> tuple[Tensor, Tensor]:
    """Draw a crop.

    Args:
        example: what to draw from.
        rng: source of all chance.
        shape: voxels along the left, the back and the head.
        grid_mm: the network's voxel edge.
        hu_range: HU that become 0 and 1.
        mirror_share: how many crops are mirrored left to right. Paired labels change sides, so
            that left stays the patient's left and the network goes by place, not by the heart.

    Returns:
        Image float32 [1, 1, X, Y, Z], and targets float32 [1, 1 + labels, X, Y, Z] that add up
        to 1: background, then the example's labels.
    """
    mirror = bool(rng.random() < mirror_share)
    grid, outside = _sampling_grid(example, rng, shape, grid_mm, mirror)
    image = _sample(torch.from_numpy(example.hu)[None], grid)
    shares = _sample(torch.from_numpy(example.shares), grid) / 255
    if mirror:
        shares = shares[:, [label - 1 for label in example.mirrored]]
    image, shares = image.transpose(2, 4), shares.transpose(2, 4)
    image = _spoil(image, rng)
    low, high = hu_range
    image = ((image - low) / (high - low)).clamp(0, 1)
    if rng.random() < 0.25:
        image = image ** float(np.exp(rng.normal(0, 0.15)))
    outside = outside.transpose(2, 4)
    if rng.random() < 0.15:
        outside = outside | _beyond_circle(shape, rng)
    image = image.masked_fill(outside, 0.0)
    shares = shares.masked_fill(outside, 0.0)
    targets = torch.cat([1 - shares.sum(1, keepdim=True), shares], dim=1)
    return image.contiguous(), targets.clamp(0, 1).contiguous()


def _sampling_grid(
    example: Example,
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    grid_mm: float,
    mirror: bool,
) -> tuple[Tensor, Tensor]:
    """Normalised sampling positions [1, Z, Y, X, 3] and where they leave the example, as a mask."""
    extent = np.array(example.hu.shape[::-1]) * np.array(example.spacing_mm[::-1])
    crop = np.array(shape) * grid_mm
    stretch = np.exp(rng.normal(0, 0.09)) * np.exp(rng.normal(0, 0.04, 3))
    angles = rng.normal(0, (0.05, 0.05, 0.11))
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [n for n in range(3) if n != axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    if mirror:
        turn[:, 0] *= -1
    spare = np.abs(extent / stretch - crop) / 2
    # Windows in use hold the whole width; along the body they may begin anywhere.
    spread = np.array((0.6, 0.6, 1.0))
    centre = rng.uniform(-1, 1, 3) * spread * spare * stretch
    matrix = (turn * stretch) @ np.diag(crop) / extent[:, None]
    theta = np.concatenate([matrix, (2 * centre / extent)[:, None]], axis=1)
    size = [1, 1, shape[2], shape[1], shape[0]]
    grid = F.affine_grid(torch.from_numpy(theta[None]).float(), size, align_corners=False)
    outside = (grid.abs() > 1).any(-1)[:, None]
    return grid, outside


def _sample(volume: Tensor, grid: Tensor) -> Tensor:
    """Sample [C, K, J, I] at [1, Z, Y, X, 3] to float32 [1, C, Z, Y, X]."""
    # On a CPU grid_sample uses one core per item of a batch: cut the grid in two.
    halves = torch.cat(grid.chunk(2, dim=1))
    source = volume.float()[None].expand(2, -1, -1, -1, -1)
    sampled = F.grid_sample(source, halves, padding_mode="border", align_corners=False)
    return torch.cat((sampled[:1], sampled[1:]), dim=2)


def _spoil(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Scanner faults in HU: thick slices, blur, noise, calibration."""
    if rng.random() < 0.12:
        step = int(rng.integers(2, 4))
        thick = F.avg_pool3d(image, (1, 1, step), ceil_mode=True)
        image = F.interpolate(thick, size=image.shape[2:], mode="trilinear", align_corners=False)
    if rng.random() < 0.12:
        image = F.avg_pool3d(F.pad(image, (1,) * 6, mode="replicate"), 3, stride=1)
    if rng.random() < 0.4:
        noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), np.float32))
        image = image + noise * float(rng.choice([rng.uniform(0, 25), rng.uniform(20, 90)]))
    gain = float(rng.normal(1, 0.03))
    return (image + 1000) * gain - 1000 + float(rng.normal(0, 12))


def _beyond_circle(shape: tuple[int, int, int], rng: np.random.Generator) -> Tensor:
    """What a small field of view cuts off, bool [1, 1, X, Y, 1]."""
    x, y = (torch.arange(n) - (n - 1) / 2 + float(rng.normal(0, 6)) for n in shape[:2])
    radius = float(rng.uniform(0.32, 0.5)) * shape[0]
    cut = (x[:, None] ** 2 + y[None, :] ** 2) > radius**2
    if rng.random() < 0.5:
        cut = (x[:, None].abs() > radius) | (y[None, :].abs() > radius)
    return cut[None, None, :, :, None]
