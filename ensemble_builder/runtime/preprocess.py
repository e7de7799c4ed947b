"""The `<name>_preprocess` model: IMAGE, RESCALE, AFFINE -> X, TRACE, TRACE_AFFINE.

Takes stored pixel values as DICOM orders them and gives the network's input, through the
bundle's own MONAI transforms, on the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import SpaceKeys

from ensemble_builder.runtime.recipe import BundleConfig, Recipe
from ensemble_builder.runtime.tensors import (
    LPS_TO_RAS,
    InputError,
    answer,
    instance_device,
    read,
    tensor_output,
    text_output,
)
from ensemble_builder.runtime.trace import encode_trace

SMALLEST_AFFINE_DETERMINANT_MM3 = 1e-9
"""A voxel smaller than this is no voxel: the affine is degenerate."""


class Preprocess:
    """Triton's python model interface (initialize, execute)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Parses the bundle and builds its preprocessing once."""
        version_folder = Path(args["model_repository"]) / args["model_version"]
        self._recipe = Recipe.load(version_folder)
        self._device = instance_device(args)
        bundle = BundleConfig(version_folder / "bundle", self._recipe.config, self._device)
        self._transforms = bundle.preprocessing()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [answer(request, self._compute) for request in requests]

    def _compute(self, request: Any) -> list[Any]:
        stored = read(request, "IMAGE", self._device)
        rescale = read(request, "RESCALE", torch.device("cpu"))
        affine = read(request, "AFFINE", torch.device("cpu"))
        image = monai_image(stored, rescale, affine)
        key = self._recipe.image_key
        x = self._transforms({key: image})[key]
        if getattr(x, "pending_operations", None):
            msg = "the preprocessing leaves lazy operations pending, which can't be inverted"
            raise RuntimeError(msg)
        return [
            tensor_output("X", x.to(torch.float32)),
            text_output("TRACE", encode_trace(x.applied_operations)),
            tensor_output("TRACE_AFFINE", x.affine.to(torch.float64).cpu()),
        ]


def monai_image(
    stored: torch.Tensor, rescale: torch.Tensor, affine_lps: torch.Tensor
) -> MetaTensor:
    """The volume as MONAI's readers would have loaded it.

    Args:
        stored: int16 [K, J, I], stored pixel values.
        rescale: float64 [K, 2], slope and intercept per slice.
        affine_lps: float64 [4, 4], (i, j, k, 1) -> LPS millimetres.

    Returns:
        float32 [I, J, K] with a RAS affine, a view of slice-ordered memory.

    Raises:
        InputError: shapes that don't fit together, or an affine that isn't one.
    """
    if stored.ndim != 3 or 0 in stored.shape:
        msg = f"IMAGE must be [K, J, I] without empty axes, not {list(stored.shape)}"
        raise InputError(msg)
    if rescale.shape != (stored.shape[0], 2) or not bool(torch.isfinite(rescale).all()):
        msg = f"RESCALE must be finite and [{stored.shape[0]}, 2] for this IMAGE"
        raise InputError(msg)
    if affine_lps.shape != (4, 4) or not bool(torch.isfinite(affine_lps).all()):
        msg = "AFFINE must be finite and [4, 4]"
        raise InputError(msg)
    volume_mm3 = float(torch.linalg.det(affine_lps[:3, :3]).abs())
    last_row_ok = affine_lps[3].tolist() == [0.0, 0.0, 0.0, 1.0]
    if volume_mm3 < SMALLEST_AFFINE_DETERMINANT_MM3 or not last_row_ok:
        msg = "AFFINE doesn't map voxels to a volume: check the spacing and the orientation"
        raise InputError(msg)
    meta = {
        "affine": LPS_TO_RAS @ affine_lps,
        "space": SpaceKeys.RAS,
        "original_channel_dim": float("nan"),  # MONAI's word for "no channel axis"
        "spatial_shape": tuple(reversed(stored.shape)),
    }
    return MetaTensor(_rescaled(stored, rescale).permute(2, 1, 0), meta=meta)


def _rescaled(stored: torch.Tensor, rescale: torch.Tensor) -> torch.Tensor:
    """Modality values in float32: float64 arithmetic, rounded once (PS3.3 C.11.1)."""
    whole = bool((rescale == rescale.round()).all())
    if whole and float(rescale.abs().max()) * 32768 < 2**23:
        # Integers below 2**24 are exact in float32: the same result in half the memory.
        factors = rescale.to(stored.device, torch.float32)
        values = stored.to(torch.float32)
        return values.mul_(factors[:, 0, None, None]).add_(factors[:, 1, None, None])
    values = torch.empty(stored.shape, dtype=torch.float32, device=stored.device)
    for k, (slope, intercept) in enumerate(rescale.tolist()):
        values[k] = stored[k].to(torch.float64).mul_(slope).add_(intercept)
    return values
