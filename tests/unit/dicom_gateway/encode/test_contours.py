"""Outlines give their mask back, whatever its shape and whoever fills them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import RTStructureSetStorage
from scipy import ndimage
from skimage.measure import points_in_poly

from dicom_gateway.encode.contours import outlines
from dicom_gateway.records import ObjectKind
from tests.support.peers import dciodvfy
from tests.support.results import OBLIQUE, a_volume, random_lungs, results_of, unit
from tests.support.series import LUNGS

RT = ObjectKind.RT_STRUCTURE_SET


def drawn(polygons: list[NDArray[np.float64]], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """How many polygons each pixel centre lies in, as another program counts it."""
    j, i = np.indices(shape)
    centres = np.stack([i.ravel(), j.ravel()], axis=1).astype(float)
    inside = np.zeros(shape, dtype=np.int64)
    for polygon in polygons:
        inside += points_in_poly(centres, polygon).reshape(shape)
    return inside


SHAPES = {
    "one pixel": ["......", "..#...", "......"],
    "the whole image": ["####", "####"],
    "a ring": ["#####", "#...#", "#.#.#", "#...#", "#####"],
    "two holes side by side": ["#######", "#.#.#.#", "#######"],
    "holes above each other": ["###", "#.#", "###", "#.#", "###"],
    "touching at a corner": ["#...", ".#..", "..##", "..##"],
    "a hole that touches another at a corner": ["#####", "#.###", "##.##", "#####"],
    "a hole at a corner of the outline": [".###", "#.##", "####"],
    "along the border": ["#...", "#..#", "#..#"],
}


@pytest.mark.parametrize("name", SHAPES)
def test_small_shapes_come_back(name: str) -> None:
    """One polygon for each part, and each pixel in exactly one."""
    mask = np.array([[one == "#" for one in row] for row in SHAPES[name]])
    polygons = outlines(mask)
    assert len(polygons) == ndimage.label(mask)[1]
    np.testing.assert_array_equal(drawn(polygons, mask.shape), mask)


def test_nothing_has_no_outline() -> None:
    """And is no error."""
    assert outlines(np.zeros((4, 5), bool)) == []


@pytest.mark.parametrize("seed", range(40))
def test_random_masks_come_back(seed: int) -> None:
    """From specks to solids with holes in their islands."""
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 25, 2)) < rng.choice([0.1, 0.5, 0.8, 0.95])
    polygons = outlines(mask)
    assert len(polygons) == ndimage.label(mask)[1]
    np.testing.assert_array_equal(drawn(polygons, mask.shape), mask)


@pytest.mark.parametrize(
    "how", [{}, {"orientation": unit(OBLIQUE)}, {"tilt_degrees": 18.5}, {"gap_at": 2}], ids=str
)
def test_a_structure_set_rasterises_back(tmp_path: Path, how: dict[str, object]) -> None:
    """By another program, from the file's own millimetres: Dice 1, also for a single voxel."""
    volume = a_volume(tmp_path, frames=6, rows=40, columns=44, **how)
    mask = random_lungs(volume, 3)
    mask[2, 0, 43] = mask[3, 39, 0] = 1  # in the corners
    made = results_of(mask, volume, tmp_path, (RT,))[RT]
    assert made.sop_class_uid == RTStructureSetStorage
    assert dciodvfy(made.path) == []
    ds = pydicom.dcmread(made.path)
    assert [one.ROIName for one in ds.StructureSetROISequence] == ["Left lung", "Right lung"]
    colours = [list(one.ROIDisplayColor) for one in ds.ROIContourSequence]
    assert colours == [list(one.colour_rgb or ()) for one in LUNGS.segments]
    back = np.zeros_like(mask)
    places = {one.sop_instance_uid: k for k, one in enumerate(volume.slices)}
    for region in ds.ROIContourSequence:
        for contour in region.ContourSequence:
            k = places[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            source = pydicom.dcmread(volume.headers[k])
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            away = points - np.array(source.ImagePositionPatient, float)
            cosines = np.array(source.ImageOrientationPatient, float).reshape(2, 3)
            rows_mm, columns_mm = (float(mm) for mm in source.PixelSpacing)
            assert np.abs(away @ np.cross(*cosines)).max() < 1e-3
            pixels = away @ cosines.T / (columns_mm, rows_mm)
            number = np.uint8(region.ReferencedROINumber)
            back[k] += number * drawn([pixels], back.shape[1:]).astype(np.uint8)
    np.testing.assert_array_equal(back, mask)


def test_a_segment_without_a_voxel_is_named_and_has_no_contour(tmp_path: Path) -> None:
    """Looked and found nothing."""
    volume = a_volume(tmp_path)
    mask = np.zeros(volume.shape_kji, np.uint8)
    made = results_of(mask, volume, tmp_path, (RT,))[RT]
    ds = pydicom.dcmread(made.path)
    assert len(ds.StructureSetROISequence) == 2
    assert not any("ContourSequence" in one for one in ds.ROIContourSequence)
    assert dciodvfy(made.path) == []
