"""Between the contract's volumes and MONAI's images: axes, frames of reference, rescaling.

The contract speaks DICOM ([K, J, I], LPS, stored values); MONAI speaks NIfTI ([I, J, K],
RAS, modality values). Nothing is copied or flipped for it: the axes are a view, the frame is
a sign in the affine.
"""

from __future__ import annotations

import torch
from monai.data import MetaTensor
from monai.utils import SpaceKeys

LPS_TO_RAS = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
"""DICOM counts towards left and posterior, MONAI (as NIfTI) towards right and anterior."""

SMALLEST_AFFINE_DETERMINANT_MM3 = 1e-9
"""A voxel smaller than this is no voxel: the affine is degenerate."""


class InputError(ValueError):
    """The request can't be served as it is; the sentence goes back to the client."""


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


def label_map(pred: torch.Tensor) -> torch.Tensor:
    """uint8 [K, J, I] from the postprocessing's [1, I, J, K] label map.

    Raises:
        RuntimeError: more than one channel, or labels that don't fit.
    """
    if pred.ndim != 4 or pred.shape[0] != 1:
        msg = f"the postprocessing gives {list(pred.shape)}, not a label map [1, I, J, K]"
        raise RuntimeError(msg)
    labels = pred.as_subclass(torch.Tensor)[0]
    if float(labels.min()) < 0 or float(labels.max()) > 255:
        msg = "the postprocessing gives labels outside 0..255"
        raise RuntimeError(msg)
    return labels.to(torch.uint8).permute(2, 1, 0).contiguous()
