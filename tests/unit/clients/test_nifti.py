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


def damaged(path: Path, offset: int, value: NDArray[Any]) -> Path:
    """A good file with one field of its header overwritten.

    Source: the byte offsets are those of nifti1.h.
    """
    a_nifti(path, counted())
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(value.tobytes())
    return path


@pytest.mark.parametrize(
    ("offset", "value", "why"),
    [
        pytest.param(70, np.array(999, "<i2"), "header of a.nii is damaged", id="datatype"),
        pytest.param(40, np.array(9, "<i2"), "header of a.nii is damaged", id="dim[0]"),
        pytest.param(108, np.array(1e30, "<f4"), "a.nii", id="vox_offset"),
        pytest.param(123, np.array(7, "u1"), "unit of length as code 7", id="xyzt_units"),
        pytest.param(42, np.array([32767] * 3, "<i2"), "a.nii", id="dim[1..3]"),
        pytest.param(280, np.zeros(12, "<f4"), "places its voxels nowhere", id="srow"),
        pytest.param(280, np.full(12, np.nan, "<f4"), "places its voxels nowhere", id="srow nan"),
    ],
)
def test_a_damaged_header_is_told_in_a_sentence(
    tmp_path: Path, offset: int, value: NDArray[Any], why: str
) -> None:
    """Whatever a field holds, nobody sees a traceback."""
    refused(damaged(tmp_path / "a.nii", offset, value), why)


def test_any_damage_is_a_refusal_or_a_volume(tmp_path: Path) -> None:
    """Random bytes anywhere in the header end in a sentence or in an image, in nothing else."""
    path = a_nifti(tmp_path / "a.nii", counted())
    good = path.read_bytes()
    random = np.random.default_rng(2)
    refusals = 0
    for _ in range(300):
        bad = bytearray(good)
        for place in random.integers(0, 348, 3):
            bad[place] = random.integers(0, 256)
        path.write_bytes(bad)
        try:
            assert read_nifti(path).image.ndim == 3
        except ClientError as error:
            assert "a.nii" in str(error)
            refusals += 1
    assert refusals


def test_an_image_of_one_value_keeps_it(tmp_path: Path) -> None:
    """Also where that value is no whole number."""
    volume = read_nifti(a_nifti(tmp_path / "a.nii", np.full(SHAPE_IJK, -1000.5)))
    slope, intercept = volume.rescale[0]
    np.testing.assert_array_equal(volume.image * slope + intercept, -1000.5)
    assert volume.largest_error == 0.0


def test_a_single_time_point_is_a_volume(tmp_path: Path) -> None:
    """Many converters write [I, J, K, 1]."""
    volume = read_nifti(a_nifti(tmp_path / "a.nii", counted()[..., None]))
    assert volume.image.shape == SHAPE_IJK[::-1]


def test_names_tell_nifti_from_dicom() -> None:
    """.nii and .nii.gz, in any case."""
    assert is_nifti(Path("a.NII.gz"))
    assert is_nifti(Path("a.nii"))
    assert not is_nifti(Path("a.dcm"))
