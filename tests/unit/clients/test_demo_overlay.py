"""The picture: geometry, colours, and the patient's left on the right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clients.demo.overlay import draw_overlay, upright
from clients.demo.reading import SegmentOnSource, SourceVolume

RED, BLUE = (230, 40, 40), (40, 80, 230)
AXIAL_LPS = np.array(
    [[2.0, 0, 0, -80], [0, 2.0, 0, -80], [0, 0, 4.0, -80], [0, 0, 0, 1.0]], np.float64
)


def a_source(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> SourceVolume:
    """Grey tissue everywhere."""
    return SourceVolume("1.2", np.full(shape, -450, np.float32), affine, np.zeros((0, 3)), ())


def a_box_at_x(
    source: SourceVolume, low_mm: float, high_mm: float, name: str, colour: tuple[int, int, int]
) -> SegmentOnSource:
    """A box around the origin in y and z, between two x in LPS millimetres."""
    k, j, i = np.indices(source.hu.shape)
    ijk1 = np.stack([i, j, k, np.ones_like(i)]).reshape(4, -1)
    x, y, z, _ = (source.affine_lps @ ijk1).reshape(4, *source.hu.shape)
    mask = (x > low_mm) & (x < high_mm) & (abs(y) < 30) & (abs(z) < 30)
    return SegmentOnSource(1, name, "", colour, mask)


def panels(path: Path) -> list[NDArray[np.uint8]]:
    """The three panels, cut out where the paper's colour ends."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    middle = picture[picture.shape[0] // 2 - 20]
    inside = (middle != (16, 18, 22)).any(axis=1)
    edges = np.flatnonzero(np.diff(np.pad(inside.astype(int), 1)))
    return [picture[:, a:b] for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 100]


def where(panel: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Pixels of a segment's rim, which has its full colour."""
    found: NDArray[np.bool_] = np.abs(panel.astype(int) - colour).max(axis=2) < 12
    return found


@pytest.mark.parametrize(
    "turned",
    [
        np.diag([1.0, 1.0, 1.0]),
        np.diag([-1.0, -1.0, 1.0]),  # stored right to left, back to front (as NIfTI's RAS)
        np.diag([1.0, 1.0, -1.0]),  # feet last
        np.array([[0, 0, -1.0], [1.0, 0, 0], [0, -1.0, 0]]),  # a sagittal acquisition
    ],
    ids=["axial", "reversed", "head first", "sagittal"],
)
def test_the_patients_left_is_on_the_right_however_it_was_stored(
    turned: NDArray[np.float64], tmp_path: Path
) -> None:
    """Red lies at the patient's left: right in the axial and coronal panels, whole in both."""
    affine = np.eye(4)
    affine[:3, :3] = turned * [2.0, 2.0, 4.0]
    shape = (40, 80, 80)
    affine[:3, 3] = -affine[:3, :3] @ [(n - 1) / 2 for n in shape[::-1]]
    source = a_source(affine, shape)
    segments = [
        a_box_at_x(source, 10, 60, "Left", RED),
        a_box_at_x(source, -60, -10, "Right", BLUE),
    ]
    path = tmp_path / "overlay.png"
    draw_overlay(path, source, segments, title="test")
    axial, coronal, _ = panels(path)
    for panel in (axial, coronal):
        picture = panel[64:-72]
        red, blue = (where(picture, colour) for colour in (RED, BLUE))
        assert red.any()
        assert blue.any()
        middle = picture.shape[1] / 2
        assert red.nonzero()[1].min() > middle
        assert blue.nonzero()[1].max() < middle


def test_left_is_marked_beside_the_patients_left(tmp_path: Path) -> None:
    """Bright letters at both edges of the axial panel: R left, L right, and nothing between."""
    source = a_source(AXIAL_LPS, (40, 80, 80))
    draw_overlay(tmp_path / "o.png", source, [], title="test")
    axial = panels(tmp_path / "o.png")[0][64:-72]
    row = axial[axial.shape[0] // 2 - 14 : axial.shape[0] // 2 + 14]
    bright = (row.min(axis=2) > 225).any(axis=0).nonzero()[0]
    left_letter = bright[bright < 40]
    right_letter = bright[bright > axial.shape[1] - 40]
    assert len(left_letter) > 5
    assert len(right_letter) > 5
    assert len(left_letter) + len(right_letter) == len(bright)
    # An L is one upright stroke and a foot; an R is wider in its upper half.
    letter = row[:, right_letter.min() : right_letter.max() + 1].min(axis=2) > 225
    rows = letter.any(axis=1).nonzero()[0]
    upper = letter[rows[0] : rows[len(rows) // 2]].any(axis=0).sum()
    lower = letter[rows[len(rows) // 2] : rows[-1] + 1].any(axis=0).sum()
    assert upper < lower


def test_millimetres_are_to_scale(tmp_path: Path) -> None:
    """A cube of 60 mm is as high as wide in all panels, though slices are 4 mm apart."""
    source = a_source(AXIAL_LPS, (40, 80, 80))
    cube = a_box_at_x(source, -30, 30, "Cube", RED)
    draw_overlay(tmp_path / "o.png", source, [cube], title="test")
    for panel in panels(tmp_path / "o.png"):
        rows, columns = where(panel[64:-72], RED).nonzero()
        # The box is 15 slices of 4 mm, or 30 voxels of 2 mm, give or take one.
        assert np.ptp(rows) / np.ptp(columns) == pytest.approx(1.0, abs=0.08)


def test_inside_a_segment_the_image_shows_through(tmp_path: Path) -> None:
    """The fill is a tint: the grey of -450 HU (the window's middle) mixed with the colour."""
    source = a_source(AXIAL_LPS, (40, 80, 80))
    box = a_box_at_x(source, -30, 30, "Box", RED)
    draw_overlay(tmp_path / "o.png", source, [box], title="test")
    axial = panels(tmp_path / "o.png")[0][64:-72]
    rows, columns = where(axial, RED).nonzero()
    centre = axial[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
    expected = 0.62 * np.array([127.5] * 3) + 0.38 * np.array(RED)
    np.testing.assert_allclose(centre, expected, atol=3)


def test_upright_turns_a_sagittal_volume_without_losing_a_voxel() -> None:
    """One bright voxel of a sagittal acquisition is found at its place in the patient."""
    values = np.zeros((3, 4, 5), np.float32)
    values[2, 3, 1] = 1.0
    # i runs to the back, j to the feet, k to the patient's left.
    affine = np.array([[0, 0, 3.0, 0], [1.0, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1.0]])
    turned = upright(values, affine)
    assert turned.values.shape == (4, 5, 3)
    assert turned.spacing_mm == (2.0, 1.0, 3.0)
    assert turned.values[0, 1, 2] == 1.0
