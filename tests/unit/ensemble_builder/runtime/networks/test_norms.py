"""Normalizations that a conversion computes as accurately as PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ensemble_builder.runtime.networks import NetworkOptions, choose_network, example_windows
from ensemble_builder.runtime.networks.norms import AccurateNorm, with_accurate_norms

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.GroupNorm(2, 6), (2, 6, 9, 8, 7)),
        (nn.GroupNorm(3, 6, affine=False), (1, 6, 9, 8)),
        (nn.GroupNorm(1, 4), (2, 4, 5)),
        (nn.InstanceNorm3d(4), (2, 4, 9, 8, 7)),
        (nn.InstanceNorm2d(4, affine=True, eps=1e-3), (2, 4, 9, 8)),
        (nn.InstanceNorm1d(3), (1, 3, 11)),
    ],
)
def test_the_same_as_pytorchs(norm: nn.Module, shape: tuple[int, ...]) -> None:
    """Weights, epsilon and groups are taken over."""
    generator = torch.Generator().manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=generator)
    x = torch.randn(shape, generator=generator) * 3 + 1
    accurate = with_accurate_norms(norm.eval())
    assert isinstance(accurate, AccurateNorm)
    torch.testing.assert_close(accurate(x), norm(x), rtol=1e-5, atol=1e-5)


def test_only_those_that_look_at_the_image() -> None:
    """Statistics from the training, and classes of a bundle's own, stay what they are."""

    class Own(nn.GroupNorm):
        """Might do anything."""

    module = nn.Sequential(
        nn.BatchNorm3d(4), nn.InstanceNorm3d(4, track_running_stats=True), Own(2, 4)
    )
    assert not any(isinstance(one, AccurateNorm) for one in with_accurate_norms(module).modules())


def test_the_network_itself_is_left_alone() -> None:
    """A copy is changed: eager torch is what everything is compared with."""
    module = nn.Sequential(nn.Conv3d(1, 4, 1), nn.GroupNorm(2, 4))
    changed = with_accurate_norms(module)
    assert isinstance(changed[1], AccurateNorm)
    assert type(module[1]) is nn.GroupNorm


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm3d(4)])
def test_large_windows_through_openvino(norm: nn.Module) -> None:
    """A million voxels a channel are added up without losing thousandths."""
    module = nn.Sequential(nn.Conv3d(1, 4, 1), nn.ReLU(), norm).eval()
    window = (1, 104, 104, 104)
    loaded = choose_network(module, example_windows(window), CPU, NetworkOptions("openvino"))
    assert loaded.runtime == "openvino"
    x = example_windows(window) + torch.rand(1, *window, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = module.double()(x.double()).float()
        off = float((loaded(x) - expected).abs().max())
    assert off < 2e-4
