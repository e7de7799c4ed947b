"""NIfTI in and out: RAS millimetres and [I, J, K] there, LPS and [K, J, I] here.

In: a .nii or .nii.gz file. Out: what the contract's inputs want (stored values as int16,
RESCALE, AFFINE), and a mask on the same grid as a NIfTI file. Nothing is resampled.

Source: the NIfTI-1 standard (nifti1.h): sform and qform, scl_slope and scl_inter, xyzt_units.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.errors import ClientError

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_STEPS = 65535
"""Distances between neighbouring int16 values from the lowest to the highest."""
_SMALLEST_VOXEL_MM3 = 1e-9
"""A cube of a micrometre; below it an affine is a mistake."""


@dataclass(frozen=True)
class NiftiVolume:
    """A NIfTI image as the contract wants it.

    Attributes:
        image: int16 [K, J, I], C order.
        rescale: float64 [K, 2], slope and intercept; value = image * slope + intercept.
        affine_lps: float64 [4, 4], (i, j, k, 1) -> LPS millimetres.
        largest_error: How far any value may be from the file's; 0 where int16 holds them all.
        header: nibabel's header, for the mask.
    """

    image: NDArray[np.int16]
    rescale: NDArray[np.float64]
    affine_lps: NDArray[np.float64]
    largest_error: float
    header: Any


def is_nifti(path: Path) -> bool:
    """True when the name says so."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_nifti(path: Path) -> NiftiVolume:
    """Reads a 3-D image without losing what 16 bits can hold.

    Whole numbers that fit into int16 stay as they are, with the file's own slope and
    intercept beside them. Others are spread over the int16 range, and `largest_error` says
    what that costs (0.04 HU for a chest CT, far below its noise).

    Raises:
        ClientError: no readable 3-D NIfTI image, values that are no numbers, or an image
            that doesn't say how it lies in the patient.
    """
    image = _load(path)
    header = image.header
    # Before the voxels are read: a damaged header may promise any number of them.
    _require_placed(image, path)
    try:
        raw = np.asarray(image.dataobj.get_unscaled())
    except MemoryError as error:
        msg = (
            f"{path.name} says it is {' x '.join(map(str, image.shape))} voxels large, which "
            "doesn't fit into this machine's memory; if it is smaller, its header is damaged"
        )
        raise ClientError(msg) from error
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        msg = (
            f"the voxels of {path.name} can't be read ({type(error).__name__}): the file is cut "
            "short or damaged. Copy it again, or convert it again from DICOM"
        )
        raise ClientError(msg) from error
    while raw.ndim > 3 and raw.shape[-1] == 1:
        raw = raw[..., 0]
    if raw.ndim != 3 or min(raw.shape) < 2:
        msg = f"{path.name} has the shape {image.shape}; a volume [I, J, K] is needed"
        raise ClientError(msg)
    if not (np.issubdtype(raw.dtype, np.integer) or np.issubdtype(raw.dtype, np.floating)):
        msg = f"{path.name} holds {raw.dtype} values; whole or real numbers are needed"
        raise ClientError(msg)
    # The header in memory has forgotten them: nibabel keeps them beside the data alone.
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    values, (step, base), largest = _as_int16(raw, path)
    # value = raw * slope + intercept, and raw = values * step + base.
    turned = np.ascontiguousarray(values.transpose(2, 1, 0))
    rescale = np.tile([step * slope, base * slope + intercept], (turned.shape[0], 1))
    affine = np.asarray(_RAS_TO_LPS @ image.affine, dtype=np.float64)
    return NiftiVolume(turned, rescale, affine, largest * abs(slope), header)


def write_nifti(
    path: Path,
    values_kji: NDArray[np.integer[Any]],
    affine_lps: NDArray[np.float64],
    like: Any = None,
) -> None:
    """Writes whole numbers [K, J, I], such as a label map, as NIfTI [I, J, K].

    Args:
        path: .nii or .nii.gz.
        values_kji: Any type that NIfTI has; kept as it is.
        affine_lps: float64 [4, 4], (i, j, k, 1) -> LPS millimetres.
        like: nibabel's header of the source, whose codes of the coordinate systems are kept.

    Raises:
        ClientError: the file can't be written.
    """
    image = _nibabel().Nifti1Image(
        np.ascontiguousarray(values_kji.transpose(2, 1, 0)), _RAS_TO_LPS @ affine_lps
    )
    scanner = 1
    sform = int(like["sform_code"]) if like is not None else 0
    qform = int(like["qform_code"]) if like is not None else 0
    image.set_sform(image.affine, code=sform or qform or scanner)
    image.set_qform(image.affine, code=qform or sform or scanner)
    image.header.set_xyzt_units("mm")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _nibabel().save(image, path)
    except OSError as error:
        msg = f"{path} can't be written ({error.strerror})"
        raise ClientError(msg) from error


def _nibabel() -> Any:
    # Its types cover only half of it, so it is used untyped, behind this one door.
    import nibabel  # noqa: PLC0415

    return nibabel


def _load(path: Path) -> Any:
    """The image with its header read, its voxels not yet."""
    from nibabel.filebasedimages import ImageFileError  # noqa: PLC0415 - --help stays quick
    from nibabel.spatialimages import HeaderDataError, HeaderTypeError  # noqa: PLC0415

    nibabel = _nibabel()
    try:
        image = nibabel.load(path)
    except (HeaderDataError, HeaderTypeError, OverflowError) as error:
        msg = (
            f"the NIfTI header of {path.name} is damaged ({' '.join(str(error).split())}). "
            "Convert it again from DICOM"
        )
        raise ClientError(msg) from error
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
        msg = (
            f"{path.name} can't be read as NIfTI ({type(error).__name__}); "
            "is it complete, and really a .nii or .nii.gz file?"
        )
        raise ClientError(msg) from error
    if not isinstance(image, nibabel.Nifti1Image):
        msg = f"{path.name} is no single-file NIfTI image (.nii or .nii.gz)"
        raise ClientError(msg)
    return image


def _require_placed(image: Any, path: Path) -> None:
    header = image.header
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        msg = (
            f"{path.name} doesn't say how it lies in the patient (sform and qform code are 0), "
            "so left and right would be a guess. Convert it again from DICOM, or set the sform"
        )
        raise ClientError(msg)
    try:
        unit = str(header.get_xyzt_units()[0])
    except KeyError as error:
        msg = (
            f"{path.name} gives its unit of length as code {int(header['xyzt_units'])}, which "
            "NIfTI doesn't have; convert it again from DICOM"
        )
        raise ClientError(msg) from error
    if unit not in ("mm", "unknown"):
        msg = f"{path.name} is in {unit}; convert it to millimetres"
        raise ClientError(msg)
    axes = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(axes).all() or abs(np.linalg.det(axes[:3, :3])) < _SMALLEST_VOXEL_MM3:
        msg = (
            f"{path.name} places its voxels nowhere (its affine has no volume); "
            "convert it again from DICOM, or set the sform"
        )
        raise ClientError(msg)


def _as_int16(
    raw: NDArray[Any], path: Path
) -> tuple[NDArray[np.int16], tuple[float, float], float]:
    """Values, (step, base) so that raw = values * step + base, and the largest error."""
    limits = np.iinfo(np.int16)
    if np.issubdtype(raw.dtype, np.floating) and not np.isfinite(raw).all():
        msg = f"{path.name} holds values that are no numbers (NaN or infinite); replace them first"
        raise ClientError(msg)
    low, high = float(raw.min()), float(raw.max())
    if not np.isfinite(high - low):
        msg = f"{path.name} holds values from {low:.3g} to {high:.3g}; no scanner makes these"
        raise ClientError(msg)
    whole = np.issubdtype(raw.dtype, np.integer) or bool((raw == np.rint(raw)).all())
    if whole and limits.min <= low and high <= limits.max:
        return raw.astype(np.int16), (1.0, 0.0), 0.0
    if whole and high - low <= _STEPS:
        base = low - limits.min
        return (raw.astype(np.int64) - round(base)).astype(np.int16), (1.0, base), 0.0
    step = (high - low) / _STEPS
    if step == 0.0:  # the same value everywhere, and no whole number
        return np.zeros(raw.shape, np.int16), (1.0, low), high - low
    base = low - limits.min * step
    values = np.rint((raw.astype(np.float64) - base) / step)
    return np.clip(values, limits.min, limits.max).astype(np.int16), (step, base), step / 2
