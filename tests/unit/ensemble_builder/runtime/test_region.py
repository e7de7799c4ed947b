"""Regions of interest: found, cut out, blanked around, and their masks put back."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage

from ensemble_builder.runtime.channels import ChannelsRule, StoredImage, mask_as_image, stack
from ensemble_builder.runtime.region import Box, RegionRule, grow, paste, take_region
from ensemble_builder.runtime.volumes import InputError

SHAPE = (6, 10, 12)
AFFINE = torch.tensor(
    [[0, -2.0, 0, 5.0], [1.0, 0, 0, -7.0], [0, 0, 4.0, 100.0], [0, 0, 0, 1.0]], dtype=torch.float64
)
"""i runs along y in steps of 1 mm, j against x in steps of 2 mm, k in steps of 4 mm."""


def a_mask(dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Label 1 in one voxel, label 2 in a small block."""
    mask = torch.zeros(SHAPE, dtype=torch.int32)
    mask[2, 4, 5] = 1
    mask[3:5, 6:8, 2:4] = 2
    return mask.to(dtype)


def an_image() -> torch.Tensor:
    """Every voxel another value."""
    return torch.arange(6 * 10 * 12, dtype=torch.int16).reshape(SHAPE)


def rescale(slope: float = 1.0, intercept: float = -1024.0) -> torch.Tensor:
    """The same for each slice."""
    return torch.tensor([[slope, intercept]] * SHAPE[0], dtype=torch.float64)


def take(rule: RegionRule, mask: torch.Tensor | None = None, **given: torch.Tensor):
    """The region of the example, but for what is given."""
    return take_region(
        a_mask() if mask is None else mask,
        given.get("image", an_image()),
        given.get("rescale", rescale()),
        given.get("affine", AFFINE),
        rule,
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize(
    ("labels", "start", "stop"),
    [((), (2, 4, 2), (5, 8, 6)), ((1,), (2, 4, 5), (3, 5, 6)), ((2, 9), (3, 6, 2), (5, 8, 4))],
)
def test_the_box_holds_the_labels(dtype, labels, start, stop):
    """The smallest box around all of them, or around those named."""
    part = take(RegionRule("lungs", labels), a_mask(dtype))
    assert (part.box.start, part.box.stop, part.box.size) == (start, stop, SHAPE)
    assert torch.equal(part.image, an_image()[part.box.slices])
    assert len(part.rescale) == part.image.shape[0]


def test_the_margin_is_in_millimetres_and_ends_at_the_image():
    """Each axis grows by its own number of voxels, never beyond the image."""
    part = take(RegionRule("lungs", (1,), margin_mm=5.0))
    # 5 mm are 2 slices of 4 mm, 3 rows of 2 mm and 5 columns of 1 mm.
    assert (part.box.start, part.box.stop) == ((0, 1, 0), (5, 8, 11))


def test_a_parts_voxels_stay_where_they_are_in_the_patient():
    """The part's affine gives each voxel the place that the whole image's gives it."""
    part = take(RegionRule("lungs", (2,)))
    k, j, i = part.box.start
    inside = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    outside = inside + torch.tensor([i, j, k, 0.0], dtype=torch.float64)
    assert torch.equal(part.affine_lps @ inside, AFFINE @ outside)


def test_nothing_is_copied_where_nothing_is_blanked():
    """The part is a view of the server's memory."""
    image = an_image()
    part = take(RegionRule("lungs"), image=image)
    assert part.image.untyped_storage().data_ptr() == image.untyped_storage().data_ptr()


def test_what_is_outside_gets_the_value_that_means_it():
    """-1024 HU are stored as each slice's slope and intercept say; labels and margin are kept."""
    factors = rescale()
    factors[3] = torch.tensor([2.0, 0.0])
    rule = RegionRule("lungs", (2,), margin_mm=1.0, crop=False, outside_value=-1024.0)
    part = take(rule, rescale=factors)
    assert part.box.is_whole
    kept = grow(a_mask() == 2, (1, 1, 1))
    assert torch.equal(part.image[kept], an_image()[kept])
    assert set(part.image[~kept].tolist()) == {0, -512}
    assert part.image[3, 0, 0] == -512


def test_the_image_is_never_written_to():
    """Blanking makes a new image: the one that came is the server's."""
    image = an_image()
    take(RegionRule("lungs", outside_value=0.0), image=image)
    assert torch.equal(image, an_image())


def test_no_label_means_the_whole_image_or_a_refusal():
    """As the pipeline says."""
    part = take(RegionRule("lungs", (7,)))
    assert part.box.is_whole
    assert part.image.shape == SHAPE
    with pytest.raises(InputError, match="mask of 'lungs' has none of its labels \\[7\\]"):
        take(RegionRule("lungs", (7,), when_empty="refuse"))


@pytest.mark.parametrize("margin", [*product((0, 1, 4), repeat=3), (30, 0, 99)])
def test_growing_reaches_as_far_as_the_margin(margin):
    """Exactly the voxels that a box of that size around each one covers."""
    rng = np.random.default_rng(3)
    chosen = rng.random((7, 9, 11)) < 0.02
    chosen[3, 4, 5] = True
    expected = ndimage.binary_dilation(chosen, np.ones([2 * m + 1 for m in margin], bool))
    assert np.array_equal(grow(torch.from_numpy(chosen), margin).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_a_pasted_mask_lies_where_it_was_found(dtype):
    """Cutting out and pasting back gives the labels again, background elsewhere."""
    mask = a_mask(dtype)
    box = take(RegionRule("lungs", (2,))).box
    whole = paste(mask[box.slices], Box.of_tensor(box.tensor()))
    assert whole.dtype == dtype
    assert torch.equal(whole.int(), torch.where(a_mask() == 2, 2, 0).int())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"mask": torch.zeros(1, 2, 3, dtype=torch.uint8)}, "MASK is .1, 2, 3., but IMAGE is"),
        ({"image": torch.zeros(2, 2, dtype=torch.int16)}, "IMAGE must be .K, J, I."),
        ({"rescale": torch.zeros(2, 2, dtype=torch.float64)}, "RESCALE must be finite and .6, 2."),
        ({"affine": torch.zeros(4, 4, dtype=torch.float64)}, "AFFINE must be .4, 4. and give each"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(changed, sentence):
    """The sentence names the tensor and the shape."""
    with pytest.raises(InputError, match=sentence):
        take(RegionRule("lungs"), **changed)


def test_a_slope_of_0_cannot_be_blanked():
    """No stored value would mean what is outside."""
    with pytest.raises(InputError, match="slope of 0"):
        take(RegionRule("lungs", outside_value=0.0), rescale=rescale(slope=0.0))


@pytest.mark.parametrize(
    "rows",
    [
        [[0, 1, 1]],
        [[0, 0, 4], [0, 1, 4], [0, 1, 4]],
        [[-1, 1, 4], [0, 1, 4], [0, 1, 4]],
        [[0, 5, 4], [0, 1, 4], [0, 1, 4]],
        [[0, 1, 2**40], [0, 1, 4], [0, 1, 4]],
    ],
)
def test_boxes_that_are_none_are_refused(rows):
    """Whoever reaches Triton may call the paste model with any BOX."""
    with pytest.raises(InputError, match="BOX must"):
        Box.of_tensor(torch.tensor(rows, dtype=torch.int64))


def test_a_mask_of_another_shape_than_its_box_is_refused():
    """It can't be pasted."""
    with pytest.raises(InputError, match=r"MASK is .1, 1, 1., but BOX is .2, 2, 2."):
        paste(torch.zeros(1, 1, 1, dtype=torch.uint8), Box((0, 0, 0), (2, 2, 2), (4, 4, 4)))


def test_rules_come_back_as_they_were_written():
    """What lies beside model.py says all of it."""
    rule = RegionRule("lungs", (1, 2), 3.5, crop=False, outside_value=-1.0, when_empty="refuse")
    assert RegionRule.from_json(rule.to_json()) == rule
    channels = ChannelsRule(("image", "mask"), ("image", "lungs"), stacked=True, boxed=False)
    assert ChannelsRule.from_json(channels.to_json()) == channels


@pytest.mark.parametrize(("dtype", "intercept"), [(torch.uint8, 0.0), (torch.uint16, 32768.0)])
def test_a_mask_becomes_an_image_of_its_labels(dtype, intercept):
    """Stored value times slope plus intercept is the label, also of a part."""
    box = Box((2, 4, 2), (5, 8, 6), SHAPE)
    found = mask_as_image(a_mask(dtype), AFFINE, box)
    values = found.image * found.rescale[:, 0, None, None] + found.rescale[:, 1, None, None]
    assert found.image.dtype == torch.int16
    assert torch.equal(values, a_mask()[box.slices].double())
    assert found.rescale[0, 1] == intercept


def test_channels_are_stacked_in_their_order():
    """Image first, then the mask's labels, each with its own rescaling."""
    rule = ChannelsRule(("image", "mask"), ("image", "lungs"), stacked=True, boxed=False)
    images = [StoredImage(an_image(), rescale(), AFFINE), mask_as_image(a_mask(), AFFINE, None)]
    found = stack(images, rule)
    assert found.image.shape == (2, *SHAPE)
    assert torch.equal(found.image[1], a_mask().short())
    assert found.rescale[:, 0].tolist() == [[1.0, -1024.0], [1.0, 0.0]]


def test_channels_on_different_grids_are_refused():
    """Shape and affine must agree, whichever images a request brings."""
    rule = ChannelsRule(("image", "image"), ("t1", "flair"), stacked=True, boxed=False)
    one = StoredImage(an_image(), rescale(), AFFINE)
    moved = StoredImage(an_image(), rescale(), AFFINE + 0.5)
    with pytest.raises(InputError, match="'flair' and 't1' have different AFFINEs"):
        stack([one, moved], rule)
    small = StoredImage(an_image()[:2], rescale()[:2], AFFINE)
    with pytest.raises(InputError, match=r"'flair' is .2, 10, 12., but 't1' is .6, 10, 12."):
        stack([one, small], rule)
