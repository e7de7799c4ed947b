"""A result whose axes are in another order goes back onto the image's voxels; another doesn't."""

from __future__ import annotations

import itertools

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Flip, Orientation, Spacing

from ensemble_builder.runtime.placing import InputGrid, onto_grid
from ensemble_builder.runtime.recipe import Output
from ensemble_builder.runtime.results import result

SHAPE = (5, 4, 3)
OBLIQUE = torch.tensor(
    [
        [-0.69, 0.02, 0.31, 12.0],
        [0.03, -0.81, 0.12, -7.5],
        [0.05, 0.08, 2.4, 101.25],
        [0.0, 0.0, 0.0, 1.0],
    ],
    dtype=torch.float64,
)
GRID = InputGrid(SHAPE, OBLIQUE)
CODES = [
    "".join(code)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for code in itertools.product(*order)
]
MASK = Output("pred", "MASK", "labelmap", "UINT8", (-1, -1, -1))


def an_image() -> MetaTensor:
    """[1, I, J, K], every voxel another value."""
    count = SHAPE[0] * SHAPE[1] * SHAPE[2]
    return MetaTensor(torch.arange(float(count)).reshape(1, *SHAPE), affine=OBLIQUE)


@pytest.mark.parametrize("axcodes", CODES)
def test_every_order_of_axes_is_undone(axcodes: str) -> None:
    """All 48 of them: MONAI turns the image, and here it comes back, voxel by voxel."""
    image = an_image()
    turned = Orientation(axcodes=axcodes, labels=(("L", "R"), ("P", "A"), ("I", "S")))(image)
    placed = onto_grid(turned.as_subclass(torch.Tensor), turned.affine, GRID)
    assert placed is not None
    assert torch.equal(placed, image.as_subclass(torch.Tensor))


def test_turned_labels_are_served_on_the_images_voxels() -> None:
    """By the result itself, whose shape alone would say nothing where sizes are equal."""
    image = an_image()
    turned = Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(image)
    assert torch.equal(result(turned, MASK, GRID), result(image, MASK, GRID))


@pytest.mark.parametrize("moved", [(0.5, 0, 0), (0, -1, 0), (0, 0, 1)])
def test_voxels_beside_the_images_are_none_of_them(moved: tuple[float, float, float]) -> None:
    """Half a voxel, or whole ones: the same shape, in another place."""
    affine = OBLIQUE.clone()
    affine[:3, 3] += OBLIQUE[:3, :3] @ torch.tensor(moved, dtype=torch.float64)
    plain = an_image().as_subclass(torch.Tensor)
    assert onto_grid(plain, affine, GRID) is None
    with pytest.raises(RuntimeError, match="not brought back"):
        result(MetaTensor(plain, affine=affine), MASK, GRID)


def test_other_voxels_of_the_same_number_are_none_of_them() -> None:
    """Another spacing that happens to give the same shape."""
    affine = OBLIQUE.clone()
    affine[:3, :3] *= 1.05
    assert onto_grid(an_image().as_subclass(torch.Tensor), affine, GRID) is None


def test_a_turned_grid_of_another_spacing_is_none() -> None:
    """As `Spacing` leaves it without an inverse."""
    other = Spacing(pixdim=(1.0, 1.0, 1.0))(an_image())
    assert onto_grid(other.as_subclass(torch.Tensor), other.affine, GRID) is None


def test_rounding_is_no_other_place() -> None:
    """What inverting many operations leaves in an affine."""
    affine = OBLIQUE * (1 + 1e-6)
    affine[3, 3] = 1.0
    plain = an_image().as_subclass(torch.Tensor)
    placed = onto_grid(plain, affine, GRID)
    assert placed is not None
    assert torch.equal(placed, plain)


def test_pictures_are_turned_back_as_volumes_are() -> None:
    """[C, W, H] with an affine of three axes."""
    affine = torch.diag(torch.tensor([-0.2, -0.2, 1.0, 1.0], dtype=torch.float64))
    image = MetaTensor(torch.arange(12.0).reshape(1, 4, 3), affine=affine)
    flipped = Flip(spatial_axis=0)(image)
    placed = onto_grid(flipped.as_subclass(torch.Tensor), flipped.affine, InputGrid((4, 3), affine))
    assert placed is not None
    assert torch.equal(placed, image.as_subclass(torch.Tensor))


def test_without_an_affine_only_the_shape_counts() -> None:
    """A photograph has none."""
    plain = torch.ones(1, 4, 3)
    assert onto_grid(plain, None, InputGrid((4, 3), None)) is plain
    assert onto_grid(plain, None, InputGrid((3, 4), None)) is None
