"""Agreement with SimpleITK and dcm2niix where they are right: every voxel and every corner."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.volume import assemble_volume
from dicom_gateway.records import Series, Volume
from tests.support.dicom import CORONAL, a_ct_series
from tests.support.series import a_kept_series, a_real_series

RIGHT = ("v01", "v02", "v10", "v11", "v14", "v18")
"""The real series for which both tools are known to be right."""

CORNER_MM = 1e-3


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    """Two decoders for all tests here."""
    with DecoderPool(2) as pool:
        yield pool


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    """An arena beside the test's files."""
    folder = tmp_path / "shm"
    folder.mkdir()
    with Arena(64 << 20, folder) as arena:
        yield arena


def a_series(name: str, folder: Path) -> Series:
    """A real series by its short name, or a generated one."""
    if name == "coronal":
        return a_kept_series(folder, a_ct_series(9, orientation=CORONAL, shuffled=True))
    if name == "oblique":
        oblique = (0.96, 0.28, 0.0, -0.28, 0.96, 0.0)
        return a_kept_series(folder, a_ct_series(9, orientation=oblique, slope=2.0))
    (series,) = [one for one in a_real_series(name)[0] if one.modality in ("CT", "MR")]
    return series


def values_of(arena: Arena, volume: Volume) -> NDArray[np.float32]:
    """What the voxels mean, [K, J, I], as float32 like the tools have them."""
    stored = arena.view(volume.image, np.dtype(np.int16), volume.shape_kji)
    slope, intercept = volume.rescale[:, 0, None, None], volume.rescale[:, 1, None, None]
    found: NDArray[np.float32] = (stored * slope + intercept).astype(np.float32)
    return found


def turned_like(
    affine_lps: NDArray[np.float64], values: NDArray[np.float32], other_lps: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Another tool may run along an axis the other way: its voxels in our order.

    `values` and the result are [K, J, I]; both affines (i, j, k, 1) -> LPS millimetres.
    """
    turned = other_lps.copy()
    for axis in range(3):
        if affine_lps[:3, axis] @ other_lps[:3, axis] < 0:
            last = values.shape[2 - axis] - 1
            turned[:3, 3] = turned[:3, 3] + last * turned[:3, axis]
            turned[:3, axis] = -turned[:3, axis]
            values = np.flip(values, 2 - axis)
    return turned, values


def agree(
    volume: Volume,
    ours: NDArray[np.float32],
    other: NDArray[np.float64],
    theirs: NDArray[np.float32],
) -> None:
    """Every voxel, and all eight corners within a micrometre."""
    affine, turned = turned_like(volume.affine_lps, theirs, other)
    assert turned.shape == ours.shape
    scale = float(np.abs(ours).max())
    np.testing.assert_allclose(turned, ours, rtol=0, atol=1e-6 * scale)
    k, j, i = (n - 1 for n in volume.shape_kji)
    corners = np.array([[a, b, c, 1] for a in (0, i) for b in (0, j) for c in (0, k)])
    away = np.linalg.norm(corners @ (affine - volume.affine_lps).T, axis=1)
    assert away.max() < CORNER_MM


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its bindings, on Python 3.12
@pytest.mark.parametrize("name", ["coronal", "oblique", *RIGHT])
def test_simpleitk_agrees_where_it_is_right(
    name: str, tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """Regular series; of others it makes silent mistakes of up to 48 mm."""
    import SimpleITK  # noqa: PLC0415 - with its warnings ignored

    series = a_series(name, tmp_path / "series")
    volume = assemble_volume(series, arena, pool)
    if name == "v14":
        image = SimpleITK.ReadImage(str(volume.headers[0]))
    else:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames([str(path) for path in volume.headers])
        image = reader.Execute()
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = direction * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    theirs = SimpleITK.GetArrayFromImage(image).astype(np.float32)
    agree(volume, values_of(arena, volume), affine, theirs)


@pytest.mark.parametrize("name", ["coronal", "oblique", *RIGHT])
def test_dcm2niix_agrees_where_it_is_right(
    name: str, tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """Of PyPI: Debian's of 2022 is another program."""
    series = a_series(name, tmp_path / "series")
    volume = assemble_volume(series, arena, pool)
    source, made = tmp_path / "source", tmp_path / "nifti"
    source.mkdir()
    made.mkdir()
    for number, path in enumerate(dict.fromkeys(volume.headers)):
        (source / f"{number:04d}.dcm").symlink_to(path)
    command = [dcm2niix.bin, "-z", "n", "-b", "n", "-f", "volume", "-o", str(made), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (found,) = made.glob("*.nii")
    assert done.returncode == 0, done.stdout
    image = nib.load(found)
    assert isinstance(image, nib.Nifti1Image)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(image.affine)  # NIfTI is RAS
    theirs = np.asarray(image.get_fdata(dtype=np.float32)).T
    agree(volume, values_of(arena, volume), affine, theirs)
