"""Back onto the first image's voxels: a result that only has its axes in another order.

A bundle may turn its image (`Orientationd`) and leave the result as it is: MONAI's file then
says by its affine where it lies. A Triton output has no affine, its voxels are the image's; so
axes are put in the image's order here, which changes no value. A result on other voxels stays
where it is, and is none "on the input's grid".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

TOLERANCE_VOXELS = 0.1
"""How far, at the image's corners, rounding may put a voxel beside the image's own."""


@dataclass(frozen=True, slots=True)
class InputGrid:
    """Of the first image, in MONAI's order of axes.

    Attributes:
        shape: Spatial.
        affine: float64 [4, 4], voxel -> RAS millimetres; None of a photograph.
    """

    shape: tuple[int, ...]
    affine: torch.Tensor | None


def onto_grid(
    plain: torch.Tensor, affine: torch.Tensor | None, grid: InputGrid
) -> torch.Tensor | None:
    """A result in the image's order of axes; None where it lies on other voxels.

    Args:
        plain: [C, *spatial].
        affine: float64 [4, 4] of the result, voxel -> RAS millimetres; where either affine is
            None, only shapes are compared.
        grid: The image's.
    """
    shape = tuple(int(n) for n in plain.shape[1:])
    if affine is None or grid.affine is None:
        return plain if shape == grid.shape else None
    turned = _turned(shape, affine.double().cpu(), grid.affine.double().cpu(), grid.shape)
    if turned is None:
        return None
    source, flipped = turned
    placed = plain.permute(0, *(1 + axis for axis in source))
    return placed.flip([1 + axis for axis in flipped]) if flipped else placed


def _turned(
    shape: Sequence[int], affine: torch.Tensor, onto: torch.Tensor, onto_shape: Sequence[int]
) -> tuple[list[int], list[int]] | None:
    """For each axis of the image the result's, and which of the image's run the other way."""
    axes = len(onto_shape)
    if len(shape) != axes:
        return None
    between = torch.linalg.solve(onto, affine)  # voxel of the result -> of the image
    turn = torch.eye(4, dtype=torch.float64)
    turn[:axes, :axes] = between[:axes, :axes].round()
    source = turn[:axes, :axes].abs().argmax(dim=1).tolist()
    if sorted(source) != list(range(axes)) or tuple(shape[n] for n in source) != tuple(onto_shape):
        return None
    flipped = [axis for axis in range(axes) if turn[axis, source[axis]] < 0]
    for axis in flipped:
        turn[axis, 3] = onto_shape[axis] - 1
    ends = [torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in shape]
    ends += [torch.zeros(1, dtype=torch.float64)] * (3 - axes)
    corners = torch.cartesian_prod(*ends, torch.ones(1, dtype=torch.float64))
    off = (corners @ (between - turn).T).abs().max()
    return (source, flipped) if bool(off <= TOLERANCE_VOXELS) else None
