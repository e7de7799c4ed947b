"""From the postprocessing's tensors to the contract's outputs: axes, datatypes, checks."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor

from ensemble_builder.runtime.placing import InputGrid, onto_grid
from ensemble_builder.runtime.recipe import Output

LARGEST_LABEL = {"UINT8": 255, "UINT16": 65535}
_TORCH = {"UINT8": torch.uint8, "UINT16": torch.uint16}


def result(pred: Any, output: Output, grid: InputGrid) -> torch.Tensor:
    """One output as the contract states it.

    Args:
        pred: What the postprocessing left under the output's key: [C, *spatial] in MONAI's
            order of axes ([*spatial] where it has squeezed one channel away), or [n] scores.
        output: What it should become.
        grid: The first image's.

    Returns:
        Labels [K, J, I], masks and images [C, K, J, I], or scores [n].

    Raises:
        RuntimeError: another shape or place, or labels that don't fit the datatype.
    """
    plain = torch.as_tensor(pred).detach().as_subclass(torch.Tensor)
    if output.kind == "scores":
        return plain.to(torch.float32).reshape(-1)
    wanted = len(output.dims) + (1 if output.kind == "labelmap" else 0)
    if plain.ndim == wanted - 1 and output.kind != "masks":
        plain = plain[None]  # the bundle has squeezed its only channel away
    if plain.ndim != wanted or (output.kind == "labelmap" and plain.shape[0] != 1):
        msg = f"the postprocessing gives {list(plain.shape)} for {output.key}: not a {output.kind}"
        raise RuntimeError(msg)
    if output.on_input_grid:
        affine = pred.affine if output.has_affine and isinstance(pred, MetaTensor) else None
        placed = onto_grid(plain, affine, grid)
        if placed is None:
            msg = (
                f"the postprocessing gives {list(plain.shape[1:])} for {output.key} where the "
                f"image has {list(grid.shape)}, or other voxels than the image's: it was not "
                "brought back to the image's grid"
            )
            raise RuntimeError(msg)
        plain = placed
    spatial_reversed = (0, *range(plain.ndim - 1, 0, -1))
    if output.kind == "image":
        return plain.to(torch.float32).permute(*spatial_reversed).contiguous()
    labels = whole_numbers(plain, output).permute(*spatial_reversed)
    return (labels[0] if output.kind == "labelmap" else labels).contiguous()


def whole_numbers(plain: torch.Tensor, output: Output) -> torch.Tensor:
    """Labels in the output's datatype: cut where the bundle's writer cuts, rounded otherwise.

    Raises:
        RuntimeError: labels outside the datatype.
    """
    if plain.dtype == _TORCH[output.datatype]:
        return plain  # narrow labels that fit by their dtype
    if plain.is_floating_point():
        plain = plain.trunc() if output.cut else plain.round()
    largest = LARGEST_LABEL[output.datatype]
    low, high = (float(one) for one in torch.aminmax(plain)) if plain.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= largest):
        msg = f"the postprocessing gives labels outside 0..{largest} for {output.key}"
        raise RuntimeError(msg)
    return plain.to(_TORCH[output.datatype])
