"""Normalizations that a conversion computes as accurately as PyTorch does.

OpenVINO adds up a whole channel in one float32 sum: on a window of 128 x 128 x 128 voxels its
group and instance normalization are off by some thousandths, which is 0.2 % of the voxels of a
network that hugs its threshold. One axis after the other, each sum stays short, and the result is
a hundred times nearer, in half of a group normalization's time.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class AccurateNorm(nn.Module):
    """A group normalization, or with as many groups as channels an instance normalization."""

    def __init__(
        self,
        groups: int,
        eps: float,
        weight: nn.Parameter | None,
        bias: nn.Parameter | None,
    ) -> None:
        """Keeps what it computes with.

        Args:
            groups: Of channels that are normalized together.
            eps: Added to the variance.
            weight: [C], or None where nothing is scaled.
            bias: [C], with a weight.
        """
        super().__init__()
        self._groups, self._eps = groups, eps
        self.weight, self.bias = weight, bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, *spatial] -> the same."""
        mean = self._mean(x)
        off = x - mean
        factor = torch.rsqrt(self._mean(off * off) + self._eps)
        if self.weight is not None and self.bias is not None:
            shape = [1, -1, *([1] * (x.ndim - 2))]
            factor = factor * self.weight.view(shape)
            return x * factor + (self.bias.view(shape) - mean * factor)
        # One more tensor of the full size is all that it takes: large windows are large.
        return x * factor - mean * factor

    def _mean(self, x: torch.Tensor) -> torch.Tensor:
        """Of each channel's group: [N, C, 1, ...]."""
        for axis in range(x.ndim - 1, 1, -1):
            x = x.mean(axis, keepdim=True)
            # The same number, but for OpenVINO's optimizer, which would make one sum of all.
            x = torch.relu(x) - torch.relu(-x)
        channels = x.shape[1]
        each = channels // self._groups
        if each == 1:
            return x
        ones = [1] * (x.ndim - 2)
        grouped = x.reshape(-1, self._groups, each, *ones).mean(2, keepdim=True)
        return grouped.expand(-1, -1, each, *ones).reshape(-1, channels, *ones)


def with_accurate_norms(module: nn.Module) -> nn.Module:
    """A copy in which each group and instance normalization is an `AccurateNorm`.

    Those that go by statistics from the training are left, and so is what a network normalizes
    in its own code.
    """
    # Without gradients: a conversion traces it, and would keep all that lies between the layers.
    made = copy.deepcopy(module).requires_grad_(requires_grad=False)
    if (whole := _accurate(made)) is not None:
        return whole
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            accurate = _accurate(child)
            if accurate is not None:
                setattr(parent, name, accurate)
    return made


def _accurate(module: nn.Module) -> AccurateNorm | None:
    # Only these classes: one of a bundle's own may compute something else.
    if type(module) is nn.GroupNorm:
        groups = module.num_groups
    elif (
        isinstance(module, _INSTANCE_NORMS)
        and type(module) in _INSTANCE_NORMS
        and not module.track_running_stats
    ):
        groups = module.num_features
    else:
        return None
    found = AccurateNorm(groups, module.eps, module.weight, module.bias)
    return found.train(module.training)
