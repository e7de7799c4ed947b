"""Between the contract's images and MONAI's: axes, frames of reference, rescaling.

The contract speaks DICOM ([K, J, I], LPS, stored values); MONAI speaks NIfTI ([I, J, K],
RAS, modality values). Nothing is copied or flipped for it: the axes are a view, the frame is
a sign in the affine. Photographs are [H, W, C] here and [W, H, C] there, as PIL's reader
gives them.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import SpaceKeys

from ensemble_builder.runtime.inputs import Layout

LPS_TO_RAS = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
"""DICOM counts towards left and posterior, MONAI (as NIfTI) towards right and anterior."""

SMALLEST_AFFINE_DETERMINANT_MM3 = 1e-9
"""A voxel smaller than this is no voxel: the affine is degenerate."""


class InputError(ValueError):
    """The request can't be served as it is; the sentence goes back to the client."""


def monai_image(
    stored: torch.Tensor,
    rescale: torch.Tensor,
    affine_lps: torch.Tensor,
    layout: Layout = "volume",
    names: tuple[str, str, str] = ("IMAGE", "RESCALE", "AFFINE"),
) -> MetaTensor:
    """Stored values as MONAI's readers would have loaded them.

    Args:
        stored: int16 or float32, stored pixel values: [K, J, I] (volume), [C, K, J, I]
            (channels) or [J, I] (gray).
        rescale: float64, slope and intercept per slice: [K, 2], [C, K, 2] or [1, 2].
        affine_lps: float64 [4, 4], (i, j, k, 1) -> LPS millimetres.
        layout: Which of these it is.
        names: Of the three tensors, for the sentences.

    Returns:
        float32 [I, J, K], [C, I, J, K] or [I, J] with a RAS affine, a view of slice-ordered
        memory.

    Raises:
        InputError: shapes that don't fit together, or an affine that isn't one.
    """
    _, meta = image_meta(stored, rescale, affine_lps, layout, names)
    values = _rescaled(stored.reshape(-1, *stored.shape[-2:]), rescale.reshape(-1, 2))
    values = values.reshape(stored.shape)
    if layout == "channels":
        values = values.permute(0, 3, 2, 1)
    else:
        values = values.permute(*reversed(range(values.ndim)))
    return MetaTensor(values, meta=meta)


def image_meta(
    stored: torch.Tensor,
    rescale: torch.Tensor,
    affine_lps: torch.Tensor,
    layout: Layout = "volume",
    names: tuple[str, str, str] = ("IMAGE", "RESCALE", "AFFINE"),
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """What `monai_image` would give, without its voxels.

    Args:
        stored: As there, and all others.
        rescale: Of each slice.
        affine_lps: float64 [4, 4].
        layout: Which axes `stored` has.
        names: Of the three tensors, for the sentences.

    Returns:
        The image's shape and its metadata.

    Raises:
        InputError: shapes that don't fit together, or an affine that isn't one.
    """
    axes = {"volume": "[K, J, I]", "channels": "[C, K, J, I]", "gray": "[J, I]"}[layout]
    if stored.ndim != axes.count(",") + 1 or 0 in stored.shape:
        msg = f"{names[0]} must be {axes} without empty axes, not {list(stored.shape)}"
        raise InputError(msg)
    slices = (1,) if layout == "gray" else tuple(stored.shape[:-2])
    if rescale.shape != (*slices, 2) or not bool(torch.isfinite(rescale).all()):
        msg = f"{names[1]} must be finite and {[*slices, 2]} for this {names[0]}"
        raise InputError(msg)
    _check_affine(affine_lps, names[2])
    channels_first = layout == "channels"
    spatial = tuple(int(n) for n in reversed(stored.shape[1 if channels_first else 0 :]))
    meta = {
        "affine": LPS_TO_RAS @ affine_lps,
        "space": SpaceKeys.RAS,
        # MONAI's word for "no channel axis" is not a number.
        "original_channel_dim": 0 if channels_first else float("nan"),
        "spatial_shape": spatial,
    }
    return ((int(stored.shape[0]), *spatial) if channels_first else spatial), meta


def photograph(pixels: torch.Tensor, name: str = "IMAGE") -> MetaTensor:
    """A photograph as PIL's reader would have loaded it: uint8 [W, H, C], a view.

    Args:
        pixels: uint8 [H, W, C].
        name: Of the tensor, for the sentence.

    Raises:
        InputError: it has another shape.
    """
    if pixels.ndim != 3 or 0 in pixels.shape:
        msg = f"{name} must be [H, W, C] without empty axes, not {list(pixels.shape)}"
        raise InputError(msg)
    meta = {
        "space": SpaceKeys.RAS,
        "original_channel_dim": -1,
        "spatial_shape": (pixels.shape[1], pixels.shape[0]),
    }
    return MetaTensor(pixels.permute(1, 0, 2), meta=meta)


def _check_affine(affine_lps: torch.Tensor, name: str) -> None:
    if affine_lps.shape != (4, 4) or not bool(torch.isfinite(affine_lps).all()):
        msg = f"{name} must be finite and [4, 4]"
        raise InputError(msg)
    volume_mm3 = float(torch.linalg.det(affine_lps[:3, :3]).abs())
    last_row_ok = affine_lps[3].tolist() == [0.0, 0.0, 0.0, 1.0]
    if volume_mm3 < SMALLEST_AFFINE_DETERMINANT_MM3 or not last_row_ok:
        msg = f"{name} doesn't map voxels to a volume: check the spacing and the orientation"
        raise InputError(msg)


def is_exact_in_float32(stored: torch.Tensor, rescale: torch.Tensor) -> bool:
    """True where any stored value, rescaled, is a whole number below 2**24.

    Every step is then exact in float32: slope, intercept and product are no larger.

    Args:
        stored: int16 or float32.
        rescale: float64 [..., 2], slope and intercept.
    """
    if stored.dtype != torch.int16 or not bool((rescale == rescale.round()).all()):
        return False
    slope, intercept = (float(rescale[..., n].abs().max()) for n in (0, 1))
    return slope * 32768 + intercept < 2**24


def _rescaled(stored: torch.Tensor, rescale: torch.Tensor) -> torch.Tensor:
    """Modality values in float32: float64 arithmetic, rounded once (PS3.3 C.11.1)."""
    if is_exact_in_float32(stored, rescale):
        # Integers below 2**24 are exact in float32: the same result in half the memory.
        factors = rescale.to(stored.device, torch.float32)
        values = stored.to(torch.float32)
        return values.mul_(factors[:, 0, None, None]).add_(factors[:, 1, None, None])
    values = torch.empty(stored.shape, dtype=torch.float32, device=stored.device)
    for k, (slope, intercept) in enumerate(rescale.tolist()):
        values[k] = stored[k].to(torch.float64).mul_(slope).add_(intercept)
    return values
