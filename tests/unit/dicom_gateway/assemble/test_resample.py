"""Irregular stacks come onto a regular grid where the patient is, and masks come back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.policy import Allowance
from dicom_gateway.assemble.resample import land
from dicom_gateway.assemble.volume import assemble_volume
from dicom_gateway.errors import UnusableSeries, VolumeTooLarge
from dicom_gateway.records import Volume
from tests.support.dicom import a_ct_series
from tests.support.series import a_kept_series
from tests.support.volumes import patient_coordinates, sampled

RESAMPLED = Allowance(resample=True)
SHAPE = {"frames": 12, "rows": 40, "columns": 44}


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    """Two decoders for all tests here."""
    with DecoderPool(2) as pool:
        yield pool


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    """An arena that must leave nothing behind."""
    folder = tmp_path / "shm"
    folder.mkdir()
    with Arena(64 << 20, folder) as arena:
        yield arena


def a_slope(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A value that changes evenly in every direction of the patient: linear steps are exact."""
    return 40 + 3 * points[..., 0] - 2 * points[..., 1] + 5 * points[..., 2]


def values(arena: Arena, volume: Volume) -> NDArray[np.float64]:
    """What the voxels mean, [K, J, I]."""
    stored = np.array(arena.view(volume.image, np.dtype(np.int16), volume.shape_kji))
    return stored * volume.rescale[:, 0, None, None] + volume.rescale[:, 1, None, None]


@pytest.mark.parametrize(
    "how",
    [
        {"tilt_degrees": 18.5},
        {"tilt_degrees": -9.0, "gap_at": 5},
        {"gap_at": (3, 8)},
        {"tilt_degrees": 14.0, "orientation": (0.96, 0.28, 0.0, -0.28, 0.96, 0.0)},
    ],
)
def test_every_voxel_of_the_grid_has_the_value_of_its_place_in_the_patient(
    tmp_path: Path, arena: Arena, pool: DecoderPool, how: dict[str, Any]
) -> None:
    """Shear undone, gaps filled: at each grid point the linear field is what it is there."""
    series = a_ct_series(**SHAPE, **how, spacing_mm=4.0, origin_lps_mm=(-15, -16, -20))
    sampled(series, a_slope)
    volume = assemble_volume(a_kept_series(tmp_path, series), arena, pool, allowed=RESAMPLED)
    found = values(arena, volume)
    expected = a_slope(patient_coordinates(volume.shape_kji, volume.affine_lps))
    outside = found == found.min()
    # Where only one of the two neighbouring frames reaches, its value alone counts.
    inside = ~binary_dilation(outside, iterations=3)
    assert inside.mean() > 0.4
    assert np.abs(found - expected)[inside].max() < 1.0  # each source value was rounded
    axes = volume.affine_lps[:3, :3]
    angles = axes.T @ axes
    np.testing.assert_allclose(angles - np.diag(np.diag(angles)), 0, atol=1e-5)


def test_uneven_distances_and_stray_slices_come_where_they_belong(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """Positions count, each by itself: jitter along the normal and beside it."""
    series = a_ct_series(**SHAPE, spacing_mm=4.0, origin_lps_mm=(-15, -16, -20))
    jitter = np.random.default_rng(3).uniform(-0.9, 0.9, (len(series), 3))
    for ds, by in zip(series, jitter, strict=True):
        x, y, z = (float(mm) for mm in ds.ImagePositionPatient)
        ds.ImagePositionPatient = [round(x + by[0], 3), round(y + by[1], 3), round(z + by[2], 3)]
    sampled(series, a_slope)
    kept = a_kept_series(tmp_path, series)
    with pytest.raises(UnusableSeries):
        assemble_volume(kept, arena, pool)
    volume = assemble_volume(kept, arena, pool, allowed=RESAMPLED)
    found = values(arena, volume)
    expected = a_slope(patient_coordinates(volume.shape_kji, volume.affine_lps))
    # A slice or two from the rim, where each plane has both its neighbours.
    assert np.abs(found - expected)[1:-1, 4:-4, 4:-4].max() < 1.0


def test_planes_on_source_frames_are_those_frames(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """A missing slice is filled in; what was there stays bit for bit."""
    series = a_ct_series(**SHAPE, gap_at=5, spacing_mm=4.0)
    volume = assemble_volume(a_kept_series(tmp_path, series), arena, pool, allowed=RESAMPLED)
    assert volume.shape_kji == (12, 40, 44)
    stored = np.array(arena.view(volume.image, np.dtype(np.int16), volume.shape_kji))
    there = [k for k in range(12) if k != 5]
    for k, ds in zip(there, series, strict=True):
        np.testing.assert_array_equal(stored[k], ds.pixel_array)
    between = (stored[4].astype(int) + stored[6]) / 2
    assert np.abs(stored[5] - between).max() <= 0.5
    assert "resampled (missing_slices)" in volume.notes[0]


@pytest.mark.parametrize(
    "how", [{"tilt_degrees": 18.5}, {"gap_at": (3, 7)}, {"tilt_degrees": -12.0, "gap_at": 4}]
)
def test_a_mask_drawn_in_the_patient_lands_there_on_each_source_frame(
    tmp_path: Path, arena: Arena, pool: DecoderPool, how: dict[str, Any]
) -> None:
    """No voxel of the ball further off than half a voxel of the grid."""
    series = a_ct_series(**SHAPE, **how, spacing_mm=2.0, origin_lps_mm=(-15, -16, -10))
    volume = assemble_volume(a_kept_series(tmp_path, series), arena, pool, allowed=RESAMPLED)
    corners = np.array([one.position_lps_mm for one in volume.slices])
    middle = corners.mean(axis=0) + np.array([15, 16, 0])
    points = patient_coordinates(volume.shape_kji, volume.affine_lps)
    ball = (np.linalg.norm(points - middle, axis=-1) < 9).astype(np.uint8)
    landed, sources = land(ball, volume)
    assert landed.shape == sources.shape_kji == (len(series), 40, 44)
    half_voxel = 0.5 * np.linalg.norm(volume.affine_lps[:3, :3].sum(axis=1))
    for s, one in enumerate(sources.slices):
        affine = sources.affine_lps.copy()
        affine[:3, 3] = one.position_lps_mm
        away = np.linalg.norm(patient_coordinates((1, 40, 44), affine)[0] - middle, axis=-1)
        assert landed[s][away < 9 - half_voxel].all()
        assert not landed[s][away > 9 + half_voxel].any()
    assert landed.any()


def test_padding_never_mixes_with_tissue(tmp_path: Path, arena: Arena, pool: DecoderPool) -> None:
    """A corner without pixels stays one; there is no value between it and tissue."""
    series = a_ct_series(**SHAPE, tilt_degrees=15.0, spacing_mm=4.0, intercept=0.0)
    for ds in series:
        pixels = np.full((40, 44), 50, np.int16)
        pixels[:9, :9] = -2000
        ds.PixelData = pixels.tobytes()
        ds.add_new(0x00280120, "US", 63536)  # -2000, as GE writes it
    volume = assemble_volume(a_kept_series(tmp_path, series), arena, pool, allowed=RESAMPLED)
    assert set(np.unique(values(arena, volume))) == {-2000.0, 50.0}


def test_slices_of_different_scale_come_onto_one(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """PET has a slope for each slice; mixed values have the scale of none of them."""
    slopes = [0.5 + 0.1 * k for k in range(12)]
    series = a_ct_series(**SHAPE, gap_at=5, slope=slopes, intercept=-10.0, spacing_mm=4.0)
    volume = assemble_volume(a_kept_series(tmp_path, series), arena, pool, allowed=RESAMPLED)
    found = values(arena, volume)
    step = volume.rescale[0, 0]
    assert (volume.rescale == volume.rescale[0]).all()
    there = [k for k in range(12) if k != 5]
    for k, ds in zip(there, series, strict=True):
        expected = ds.pixel_array * float(ds.RescaleSlope) - 10.0
        np.testing.assert_allclose(found[k], expected, atol=step)


@pytest.mark.parametrize(
    ("how", "allowed", "words"),
    [
        ({"gap_at": (4, 5, 6)}, RESAMPLED, "gap of 16 mm"),
        ({"tilt_degrees": 40.0}, RESAMPLED, "lean by 40.0 degrees"),
        ({"gap_at": 5}, Allowance(resample=True, max_gap_mm=7.0), "max-gap-mm"),
    ],
)
def test_beyond_the_limits_a_series_is_refused_by_name(
    tmp_path: Path,
    arena: Arena,
    pool: DecoderPool,
    how: dict[str, Any],
    allowed: Allowance,
    words: str,
) -> None:
    """Nothing is invented over a wide gap, and the arena has all its room back."""
    series = a_kept_series(tmp_path, a_ct_series(**SHAPE, **how, spacing_mm=4.0))
    with pytest.raises(UnusableSeries, match=words) as caught:
        assemble_volume(series, arena, pool, allowed=allowed)
    assert caught.value.code in ("missing_slices", "gantry_tilt")
    assert arena.free_bytes == arena.size_bytes


def test_what_is_only_needed_for_a_moment_goes_back(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """Afterwards the arena holds the volume alone; without room for both, nothing is begun."""
    series = a_kept_series(tmp_path, a_ct_series(**SHAPE, gap_at=5, spacing_mm=4.0))
    volume = assemble_volume(series, arena, pool, allowed=RESAMPLED)
    assert volume.image.size_bytes == 12 * 40 * 44 * 2
    arena.free(volume.image)
    assert arena.free_bytes == arena.size_bytes
    with Arena(70_000, arena.path.parent) as small, pytest.raises(VolumeTooLarge, match="moment"):
        assemble_volume(series, small, pool, allowed=RESAMPLED)
