"""Whole planes interpolated nearly: how near, and that PyTorch decides the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ensemble_builder.runtime.axes import axis_maps
from ensemble_builder.runtime.grid import Grid
from ensemble_builder.runtime.nearly import NearlyLabels, off_in_float32
from ensemble_builder.runtime.recording import Sample
from ensemble_builder.runtime.reduction import Reduction
from ensemble_builder.runtime.resample import resample_to_labels

ARGMAX = Reduction("argmax")


def a_sample(dtype: torch.dtype, size: tuple[int, ...] = (61, 47, 40), **more: Any) -> Sample:
    """A resampling along the axes, a little smaller than the source and shifted."""
    theta = torch.diag(torch.tensor([0.93, 0.91, 0.95], dtype=dtype))
    theta = torch.cat([theta, torch.tensor([[0.013], [-0.02], [0.004]], dtype=dtype)], dim=1)
    options = {"mode": "bilinear", "padding_mode": "border", "align_corners": False} | more
    return Sample(theta=theta[None], size=size, **options)


def noise(channels: int, seed: int = 0) -> torch.Tensor:
    """A prediction that never is the same at two neighbours."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, 33, 29, 31, generator=generator)


def a_grid(sample: Sample, source: torch.Tensor) -> Grid:
    """As resample_to_labels makes it where nothing follows."""
    maps, _ = axis_maps(sample.size, [])
    return Grid(sample, tuple(source.shape[1:]), tuple(maps), source.device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["border", "zeros", "reflection"])
def test_nearly_is_within_its_bound(
    dtype: torch.dtype, align_corners: bool, padding_mode: str
) -> None:
    """What is computed axis by axis is off from PyTorch's kernel by less than was promised."""
    source = noise(2)
    sample = a_sample(dtype, padding_mode=padding_mode, align_corners=align_corners)
    grid = a_grid(sample, source)
    largest = float(source.abs().max())
    near = NearlyLabels(grid, source, ARGMAX, largest)
    exact = grid.interpolate(source.to(dtype), grid.box(0, 40)).view(2, 40, 47, 61)
    off = 0.0
    for k in range(40):
        low, high = (near._across(int(side[k])) for side in (grid.axes[2].low, grid.axes[2].high))
        value = torch.lerp(low, high, float(grid.axes[2].weight[k]))[0]
        within = ~(grid.axes[1].odd[:, None] | grid.axes[0].odd[None] | grid.axes[2].odd[k])
        off = max(off, float(((exact[1, k] - exact[0, k]) - value).abs()[within].max()))
    assert 0 < off < off_in_float32(grid, largest)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_noise_takes_pytorch_a_few_points(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no two neighbours agree, all but a few labels are certain all the same."""
    computed = 0
    interpolate = Grid.interpolate

    def counted(self: Any, source: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        nonlocal computed
        computed += len(points)
        return interpolate(self, source, points)

    source, sample = noise(channels), a_sample(torch.float64)
    reduction = ARGMAX if channels > 1 else Reduction("threshold", 0.4)
    maps, _ = axis_maps(sample.size, [])
    grid = a_grid(sample, source)
    values = grid.interpolate(source.double(), grid.box(0, 40))
    expected = reduction(values).view(1, 40, 47, 61).permute(0, 3, 2, 1)
    monkeypatch.setattr(Grid, "interpolate", counted)
    actual = resample_to_labels(source, sample, maps, None, reduction)
    assert torch.equal(expected, actual)
    assert computed < 0.02 * actual.numel()


def test_ties_are_left_to_pytorch() -> None:
    """Equal channels have no lead: the first one wins, as argmax has it."""
    source = noise(1).round().repeat(2, 1, 1, 1)
    source[1, :5] += 1.0
    sample = a_sample(torch.float64)
    maps, _ = axis_maps(sample.size, [])
    grid = a_grid(sample, source)
    near = NearlyLabels(grid, source, ARGMAX, 4.0)
    labels = torch.empty(40, 47, 61, dtype=torch.uint8)
    open_ones = near.fill(labels, 3, 9)
    assert len(open_ones) > 0.5 * labels[3:9].numel()
    values = grid.interpolate(source.double(), grid.box(0, 40))
    expected = ARGMAX(values).view(1, 40, 47, 61).permute(0, 3, 2, 1)
    assert torch.equal(expected, resample_to_labels(source, sample, maps, None, ARGMAX))
