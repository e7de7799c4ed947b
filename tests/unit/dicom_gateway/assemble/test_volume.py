"""A series becomes one true volume in shared memory, or is refused whole."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.plan import plan_images
from dicom_gateway.assemble.policy import Allowance
from dicom_gateway.assemble.volume import assemble, assemble_volume
from dicom_gateway.errors import ArenaFull, BrokenPixelData, UnusableSeries, VolumeTooLarge
from dicom_gateway.records import Volume
from tests.support.dicom import a_ct_series, a_pattern, an_enhanced_series
from tests.support.series import a_kept_series, a_real_series

ARENA_BYTES = 64 << 20


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
    with Arena(ARENA_BYTES, folder) as arena:
        yield arena
    assert list(folder.iterdir()) == []


def stored(arena: Arena, volume: Volume) -> NDArray[np.int16]:
    """A copy of the voxels in the arena, [K, J, I]."""
    return np.array(arena.view(volume.image, np.int16, volume.shape_kji))


def rescaled(arena: Arena, volume: Volume) -> NDArray[np.float64]:
    """What the voxels mean, [K, J, I]."""
    slope, intercept = volume.rescale[:, 0, None, None], volume.rescale[:, 1, None, None]
    return stored(arena, volume) * slope + intercept


@pytest.mark.parametrize("syntax", [None, JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_slices_lie_in_the_order_of_their_positions(
    tmp_path: Path, arena: Arena, pool: DecoderPool, syntax: str | None
) -> None:
    """Whatever order they came in; position, identity and pixels of each k belong together."""
    how = {"transfer_syntax_uid": syntax} if syntax else {}
    datasets = a_ct_series(frames=7, rows=34, columns=36, shuffled=True, **how)  # type: ignore[arg-type]
    series = a_kept_series(tmp_path, datasets)
    volume = assemble_volume(series, arena, pool)
    assert volume.shape_kji == (7, 34, 36)
    np.testing.assert_array_equal(stored(arena, volume), a_pattern((7, 34, 36)))
    by_uid = {ds.SOPInstanceUID: ds for ds in datasets}
    for k, (slice_, header) in enumerate(zip(volume.slices, volume.headers, strict=True)):
        ds = by_uid[slice_.sop_instance_uid]
        assert slice_.position_lps_mm == tuple(ds.ImagePositionPatient)
        assert ds.InstanceNumber == k + 1
        assert header in [i.path for i in series.instances]


def test_each_slice_keeps_its_own_rescale(tmp_path: Path, arena: Arena, pool: DecoderPool) -> None:
    """Slope and intercept may change from slice to slice."""
    series = a_kept_series(
        tmp_path, a_ct_series(frames=3, slope=(1, 2, 0.5), intercept=(-1024, 0, 7))
    )
    volume = assemble_volume(series, arena, pool)
    np.testing.assert_array_equal(volume.rescale, [[1, -1024], [2, 0], [0.5, 7]])


def test_the_shift_of_unsigned_data_is_in_the_intercept(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """What is stored changes by 32768, what it means doesn't."""
    values = np.linspace(0, 65535, 2 * 6 * 5).astype(np.int64).reshape(2, 6, 5)
    series = a_kept_series(
        tmp_path, a_ct_series(pixels=values, signed=False, slope=0.25, intercept=-3)
    )
    volume = assemble_volume(series, arena, pool)
    np.testing.assert_array_equal(rescaled(arena, volume), values * 0.25 - 3)


def test_set_apart_instances_are_never_used(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """The same UID with other bytes is kept, but not part of any volume."""
    series = a_kept_series(tmp_path, a_ct_series(frames=5, duplicate_at=2))
    with pytest.raises(UnusableSeries):
        assemble_volume(series, arena, pool)
    apart = dataclasses.replace(series.instances[3], conflicts=True)
    kept = (*series.instances[:3], apart, *series.instances[4:])
    volume = assemble_volume(dataclasses.replace(series, instances=kept), arena, pool)
    assert volume.shape_kji[0] == 5


@pytest.mark.parametrize("syntax", [None, JPEGLSLossless, JPEG2000Lossless])
def test_broken_pixels_leave_nothing_behind(
    tmp_path: Path, arena: Arena, pool: DecoderPool, syntax: str | None
) -> None:
    """The room comes back, and the next series goes through the same children."""
    how = {"transfer_syntax_uid": syntax} if syntax else {}
    broken = a_kept_series(tmp_path / "broken", a_ct_series(frames=9, broken_at=4, **how))  # type: ignore[arg-type]
    with pytest.raises(BrokenPixelData):
        assemble_volume(broken, arena, pool)
    assert arena.free_bytes == ARENA_BYTES
    whole = a_kept_series(tmp_path / "whole", a_ct_series(frames=9))
    assert assemble_volume(whole, arena, pool).shape_kji[0] == 9


def test_a_refused_series_takes_no_room(tmp_path: Path, arena: Arena, pool: DecoderPool) -> None:
    """Geometry is judged before any memory is lent."""
    series = a_kept_series(tmp_path, a_ct_series(frames=9, gap_at=4))
    with pytest.raises(UnusableSeries) as caught:
        assemble_volume(series, arena, pool)
    assert caught.value.code == "missing_slices"
    assert arena.free_bytes == ARENA_BYTES


def test_too_large_and_just_now_full_are_two_things(tmp_path: Path, pool: DecoderPool) -> None:
    """One needs a person, the other only time."""
    series = a_kept_series(tmp_path, a_ct_series(frames=3, rows=64, columns=64))
    with Arena(8192) as small, pytest.raises(VolumeTooLarge):
        assemble_volume(series, small, pool)
    with Arena(3 * 8192) as tight, tight.borrow(1), pytest.raises(ArenaFull):
        assemble_volume(series, tight, pool)


def test_a_series_without_usable_instances_is_refused(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """All set apart: nothing to make a volume of."""
    series = a_kept_series(tmp_path, a_ct_series(frames=2))
    apart = tuple(dataclasses.replace(i, conflicts=True) for i in series.instances)
    with pytest.raises(UnusableSeries) as caught:
        assemble_volume(dataclasses.replace(series, instances=apart), arena, pool)
    assert caught.value.code == "no_pixel_data"


def test_an_enhanced_object_is_the_same_volume_as_its_single_slices(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """Frames in any order, each with its own rescale."""
    slopes = [1.0 + 0.5 * k for k in range(6)]
    singles = a_ct_series(6, slope=slopes)
    enhanced = an_enhanced_series(6, slopes=slopes, shuffled=True)
    one = assemble_volume(a_kept_series(tmp_path / "singles", singles), arena, pool)
    other = assemble_volume(a_kept_series(tmp_path / "enhanced", [enhanced]), arena, pool)
    np.testing.assert_array_equal(rescaled(arena, other), rescaled(arena, one))
    np.testing.assert_allclose(other.affine_lps, one.affine_lps, rtol=0, atol=1e-9)
    assert sorted(slice_.frame_number for slice_ in other.slices) == [1, 2, 3, 4, 5, 6]
    assert {slice_.sop_instance_uid for slice_ in other.slices} == {enhanced.SOPInstanceUID}


def test_floating_point_pixels_make_an_fp32_volume(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """Four bytes for each voxel, and nothing rounded."""
    series, values = a_ct_series(4, rows=8, columns=6, intercept=0.0), []
    for number, ds in enumerate(series):
        values.append(np.linspace(-1, 1 + number, 48).astype(np.float32).reshape(8, 6))
        for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
            delattr(ds, keyword)
        ds.BitsAllocated = 32
        ds.FloatPixelData = values[-1].tobytes()
    volume = assemble_volume(a_kept_series(tmp_path, series), arena, pool)
    assert (volume.dtype, volume.image.size_bytes) == ("FP32", 4 * 4 * 48)
    found = arena.view(volume.image, np.dtype(np.float32), volume.shape_kji)
    np.testing.assert_array_equal(found, np.stack(values))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits_stored", [12, 16])
def test_an_inverted_picture_keeps_its_stored_values(
    tmp_path: Path, arena: Arena, pool: DecoderPool, signed: bool, bits_stored: int
) -> None:
    """Lowest and highest change places in the rescale; nothing is lost on the way."""
    lowest = -(1 << (bits_stored - 1)) if signed else 0
    highest = lowest + (1 << bits_stored) - 1
    stored = np.linspace(lowest, highest, 48).astype(int).reshape(1, 8, 6)
    (ds,) = a_ct_series(pixels=stored, signed=signed, bits_stored=bits_stored, intercept=0.0)
    ds.PhotometricInterpretation = "MONOCHROME1"
    series = a_kept_series(tmp_path, [ds])
    (plan,) = plan_images(series)
    volume = assemble(plan, series, arena, pool)
    np.testing.assert_array_equal(rescaled(arena, volume), lowest + highest - stored)


def test_several_volumes_are_never_taken_for_one(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """Who asks for the volume of a series is told that there are more, and how they are called."""
    series = a_kept_series(tmp_path, [an_enhanced_series(4, times=2)])
    with pytest.raises(UnusableSeries, match="time point 1 of 2, time point 2 of 2"):
        assemble_volume(series, arena, pool, allowed=Allowance(split=True))


@pytest.mark.parametrize("name", ["v01", "v02", "v10", "v11", "v14", "v18"])
def test_real_regular_series_equal_their_goldens(
    name: str, arena: Arena, pool: DecoderPool
) -> None:
    """Every voxel, by digest, and the affine within 1e-4 mm."""
    all_series, goldens = a_real_series(name)
    (series,) = [s for s in all_series if s.modality in ("CT", "MR")]
    golden = goldens[series.series_instance_uid]
    volume = assemble_volume(series, arena, pool)
    floats = rescaled(arena, volume).astype("<f4")
    assert hashlib.sha256(floats.tobytes()).hexdigest() == golden["sha256"]
    np.testing.assert_allclose(volume.affine_lps, golden["affine_LPS"], rtol=0, atol=1e-4)
    assert volume.slices[0].sop_instance_uid == golden["first_sop"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("v03", "gantry_tilt"),
        ("v04", "missing_slices"),
        ("v06", "gantry_tilt"),
        ("v07", "duplicate_positions"),
        ("v08", "several_orientations"),
        ("v09", "duplicate_positions"),
        ("v12", "duplicate_positions"),
        ("v13", "no_geometry"),
        ("v15", "no_geometry"),
        ("v16", "no_geometry"),
        ("v17", "unsupported_object"),
        ("v19", "duplicate_positions"),
    ],
)
def test_real_irregular_series_are_refused_by_name(
    name: str, code: str, arena: Arena, pool: DecoderPool
) -> None:
    """Never a wrong affine in silence."""
    (series,) = a_real_series(name)[0]
    with pytest.raises(UnusableSeries) as caught:
        assemble_volume(series, arena, pool)
    assert caught.value.code == code
