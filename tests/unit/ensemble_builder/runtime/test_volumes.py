"""Between the contract's volumes and MONAI's images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensemble_builder.runtime.volumes import InputError, is_exact_in_float32, monai_image

AFFINE = torch.tensor(
    [[0.5, 0, 0, -100], [0, 0.6, 0, -90], [0, 0, 3, 40], [0, 0, 0, 1]], dtype=torch.float64
)


def _rescale(k: int, slope: float = 1.0, intercept: float = -1024.0) -> torch.Tensor:
    return torch.tensor([[slope, intercept]] * k, dtype=torch.float64)


def test_a_voxel_keeps_its_value_and_its_place() -> None:
    """IMAGE[k, j, i] becomes image[i, j, k], at the same millimetres with x and y negated."""
    stored = torch.arange(2 * 3 * 4, dtype=torch.int16).reshape(2, 3, 4)
    image = monai_image(stored, _rescale(2), AFFINE)
    assert image.shape == (4, 3, 2)
    assert float(image[3, 1, 1]) == float(stored[1, 1, 3]) - 1024
    place_lps = AFFINE @ torch.tensor([3, 1, 1, 1], dtype=torch.float64)
    place_ras = image.affine @ torch.tensor([3, 1, 1, 1], dtype=torch.float64)
    assert torch.equal(place_ras, place_lps * torch.tensor([-1, -1, 1, 1], dtype=torch.float64))


@pytest.mark.parametrize("slope", [1.0, 0.1, 2.5, 1000.0])
def test_rescaling_rounds_once(slope: float) -> None:
    """Values are float64 arithmetic rounded to float32, whichever way is taken (C.11.1)."""
    rng = np.random.default_rng(1)
    stored = rng.integers(-32768, 32767, (3, 5, 6), dtype=np.int16)
    expected = (stored.astype(np.float64) * slope - 1024.0).astype(np.float32)
    image = monai_image(torch.from_numpy(stored), _rescale(3, slope), AFFINE)
    assert np.array_equal(expected, image.as_tensor().permute(2, 1, 0).numpy())


def test_each_slice_has_its_own_rescale() -> None:
    """Slope and intercept of slice k apply to slice k only."""
    stored = torch.ones(2, 2, 2, dtype=torch.int16)
    rescale = torch.tensor([[2.0, 0.0], [3.0, 10.0]], dtype=torch.float64)
    image = monai_image(stored, rescale, AFFINE)
    assert image[..., 0].unique().tolist() == [2.0]
    assert image[..., 1].unique().tolist() == [13.0]


@pytest.mark.parametrize(
    ("shape", "rescale", "affine", "word"),
    [
        ((2, 2), _rescale(2), AFFINE, "IMAGE"),
        ((0, 2, 2), _rescale(0), AFFINE, "IMAGE"),
        ((2, 2, 2), _rescale(3), AFFINE, "RESCALE"),
        ((2, 2, 2), _rescale(2, float("nan")), AFFINE, "RESCALE"),
        ((2, 2, 2), _rescale(2), torch.zeros(4, 4, dtype=torch.float64), "AFFINE"),
        ((2, 2, 2), _rescale(2), AFFINE * float("inf"), "AFFINE"),
        ((2, 2, 2), _rescale(2), AFFINE.T, "AFFINE"),
    ],
)
def test_what_is_no_volume_is_refused_by_the_tensor_s_name(
    shape: tuple[int, ...], rescale: torch.Tensor, affine: torch.Tensor, word: str
) -> None:
    """An input that can't be a volume is the client's fault, named by its tensor."""
    with pytest.raises(InputError, match=word):
        monai_image(torch.ones(shape, dtype=torch.int16), rescale, affine)


@pytest.mark.parametrize(
    ("slope", "intercept", "exact"),
    [
        (1.0, -1024.0, True),
        (-1.0, -8192.0, True),
        (511.0, 32767.0, True),
        (511.0, 32768.0, False),
        (1.0, 2.0**24, False),
        (512.0, 0.0, False),
        (0.5, 0.0, False),
        (1.0, 0.5, False),
    ],
)
def test_the_short_way_is_taken_where_it_is_exact(
    slope: float, intercept: float, exact: bool
) -> None:
    """A usual CT's is; at the bound every int16 value is still the one of float64."""
    stored = torch.arange(-32768, 32768).to(torch.int16).reshape(1, 256, 256)
    rescale = _rescale(1, slope, intercept)
    assert is_exact_in_float32(stored, rescale) is exact
    plain = (stored.to(torch.float64) * slope + intercept).to(torch.float32)
    image = monai_image(stored, rescale, AFFINE).as_tensor()
    assert torch.equal(plain.permute(2, 1, 0), image)
