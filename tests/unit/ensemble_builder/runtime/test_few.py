"""A few points of a prediction: PyTorch's values without converting all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ensemble_builder.runtime.axes import axis_maps
from ensemble_builder.runtime.few import interpolate_few, is_worth
from ensemble_builder.runtime.grid import Grid
from tests.unit.ensemble_builder.runtime.test_nearly import a_sample


def a_grid(shape: tuple[int, ...], **more: Any) -> Grid:
    """Of a resampling along the axes."""
    sample = a_sample(torch.float64, **more)
    maps, _ = axis_maps(sample.size, [])
    return Grid(sample, shape, tuple(maps), torch.device("cpu"))


@pytest.mark.parametrize("padding_mode", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_pytorchs_own_bits(padding_mode: str, align_corners: bool) -> None:
    """Also outside of the image, at its border, and where a value is half-way between two."""
    generator = torch.Generator().manual_seed(3)
    source = torch.randn(3, 33, 29, 31, generator=generator)
    source[:, :9] = source[:, :9].mul(8).round() / 8  # many ties
    grid = a_grid((33, 29, 31), padding_mode=padding_mode, align_corners=align_corners)
    flat = torch.randint(0, 61 * 47 * 40, (1500,), generator=generator)
    expected = grid.interpolate(source.double(), grid.points(flat))
    actual = interpolate_few(source, grid, flat, float(source.abs().max()))
    assert torch.equal(expected, actual)


def test_only_a_few_points_are_worth_it() -> None:
    """Many points, and resamplings that round otherwise, are left to PyTorch."""
    source = torch.zeros(2, 33, 29, 31)
    assert is_worth(source, a_grid((33, 29, 31)), 400)
    assert not is_worth(source, a_grid((33, 29, 31)), 4000)
    assert not is_worth(source.double(), a_grid((33, 29, 31)), 400)
