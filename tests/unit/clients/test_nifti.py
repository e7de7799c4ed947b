"""NIfTI in and out without a voxel in the wrong place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from clients.errors import ClientError
from clients.nifti import is_nifti, read_nifti, write_nifti

# 1.5 mm to the patient's right for each i, turned a little: as a converter writes it.
RAS = np.array(
    [[-1.5, 0.1, 0, 40], [0.1, 1.5, 0, -30], [0, 0, 3.0, 10], [0, 0, 0, 1.0]], np.float64
)
SHAPE_IJK = (6, 5, 4)


def a_nifti(
    path: Path,
    values: NDArray[Any],
    *,
    affine: NDArray[np.float64] | None = RAS,
    slope: tuple[float, float] | None = None,
    units: str = "mm",
) -> Path:
    """Writes raw values [I, J, K] with a slope and intercept beside them."""
    image = nibabel.Nifti1Image(values, affine)
    if slope is not None:
        image.header.set_slope_inter(*slope)
    image.header.set_xyzt_units(units)
    nibabel.save(image, path)
    if slope is not None:  # nibabel scales when it saves; the raw values are meant
        with path.open("r+b") as file:
            file.seek(112)
            file.write(np.array(slope, "<f4").tobytes())
    return path


def counted(dtype: str = "int16") -> NDArray[Any]:
    """Every voxel another value."""
    return np.arange(np.prod(SHAPE_IJK)).reshape(SHAPE_IJK).astype(dtype)


def test_a_voxel_keeps_its_place_in_the_patient(tmp_path: Path) -> None:
    """value[i, j, k] in RAS is image[k, j, i] at the same point in LPS."""
    volume = read_nifti(a_nifti(tmp_path / "a.nii.gz", counted()))
    assert volume.image.shape == SHAPE_IJK[::-1]
    assert volume.image.dtype == np.int16
    assert volume.image[3, 2, 1] == counted()[1, 2, 3]
    ras = RAS @ [1, 2, 3, 1]
    np.testing.assert_allclose(volume.affine_lps @ [1, 2, 3, 1], ras * [-1, -1, 1, 1])


def test_a_mask_lies_where_its_image_lies(tmp_path: Path) -> None:
    """Out again: the same affine, the same coordinate codes, labels in [I, J, K]."""
    source = read_nifti(a_nifti(tmp_path / "a.nii.gz", counted()))
    mask = (source.image > 60).astype(np.uint8)
    write_nifti(tmp_path / "m.nii.gz", mask, source.affine_lps, like=source.header)
    image, original = nibabel.load(tmp_path / "m.nii.gz"), nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, original.affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(image.dataobj), (counted() > 60).astype(np.uint8))
    assert image.get_data_dtype() == np.uint8
    assert int(image.header["sform_code"]) == int(original.header["sform_code"])


def test_slope_and_intercept_go_beside_the_raw_values(tmp_path: Path) -> None:
    """Stored values stay as they are, as those of DICOM do."""
    volume = read_nifti(a_nifti(tmp_path / "a.nii", counted(), slope=(0.5, -1024.0)))
    np.testing.assert_array_equal(volume.image.transpose(2, 1, 0), counted())
    np.testing.assert_allclose(volume.rescale, np.tile([0.5, -1024.0], (4, 1)))
    assert volume.largest_error == 0.0


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "float32", "float64", "uint16"])
def test_whole_numbers_of_any_type_are_exact(tmp_path: Path, dtype: str) -> None:
    """Any type that holds whole numbers within 16 bits loses nothing."""
    volume = read_nifti(a_nifti(tmp_path / "a.nii", counted(dtype)))
    np.testing.assert_array_equal(volume.image.transpose(2, 1, 0), counted(dtype))
    assert volume.largest_error == 0.0


def test_large_whole_numbers_are_shifted_exactly(tmp_path: Path) -> None:
    """Unsigned 16-bit values above 32767 fit after a shift that the intercept takes back."""
    values = counted("uint16") + 50000
    values[0, 0, 0] = 65535
    volume = read_nifti(a_nifti(tmp_path / "a.nii", values.astype(np.uint16)))
    slope, intercept = volume.rescale[0]
    back = volume.image.transpose(2, 1, 0) * slope + intercept
    np.testing.assert_array_equal(back, values)
    assert volume.largest_error == 0.0


def test_fractions_are_spread_over_16_bits_and_the_error_is_said(tmp_path: Path) -> None:
    """A CT in floats keeps a thirtieth of a Hounsfield unit; the bound holds for each voxel."""
    values = np.linspace(-1024.5, 3071.25, int(np.prod(SHAPE_IJK))).reshape(SHAPE_IJK)
    volume = read_nifti(a_nifti(tmp_path / "a.nii", values))
    slope, intercept = volume.rescale[0]
    back = volume.image.transpose(2, 1, 0) * slope + intercept
    assert 0 < volume.largest_error < 0.04
    assert np.abs(back - values).max() <= volume.largest_error * 1.0001


def refused(path: Path, why: str) -> None:
    """Reading `path` is refused with `why`."""
    with pytest.raises(ClientError, match=why):
        read_nifti(path)


def test_what_would_be_a_guess_is_refused(tmp_path: Path) -> None:
    """No orientation, no numbers, no volume, no millimetres: each said by name."""
    image = nibabel.Nifti1Image(counted(), RAS)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "nowhere.nii")
    refused(tmp_path / "nowhere.nii", "left and right would be a guess")

    holes = counted("float32")
    holes[0, 0, 0] = np.nan
    refused(a_nifti(tmp_path / "nan.nii", holes), "no numbers")
    refused(a_nifti(tmp_path / "4d.nii", np.zeros((4, 4, 4, 2), np.int16)), "a volume")
    refused(a_nifti(tmp_path / "metre.nii", counted(), units="meter"), "convert it to millimetres")
    (tmp_path / "text.nii").write_text("no image", encoding="utf-8")
    refused(tmp_path / "text.nii", "can't be read as NIfTI")


def test_a_single_time_point_is_a_volume(tmp_path: Path) -> None:
    """Many converters write [I, J, K, 1]."""
    volume = read_nifti(a_nifti(tmp_path / "a.nii", counted()[..., None]))
    assert volume.image.shape == SHAPE_IJK[::-1]


def test_names_tell_nifti_from_dicom() -> None:
    """.nii and .nii.gz, in any case."""
    assert is_nifti(Path("a.NII.gz"))
    assert is_nifti(Path("a.nii"))
    assert not is_nifti(Path("a.dcm"))
