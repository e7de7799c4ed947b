"""What turns a prediction's channels into labels: MONAI's Activationsd and AsDiscreted.

In: transforms of a bundle's postprocessing. Out: a `Reduction`, which computes the same labels
from any part of a volume, and which can tell where a label is certain before values are
interpolated: interpolation only mixes neighbours.

PyTorch's sigmoid and softmax round the last bit differently in the last few voxels of each
thread's share, so they depend a little on where a share begins, and MONAI's own labels do on
the number of threads. That can show where two logits differ in their last bit only, or where a
sigmoid is its threshold's neighbour. A softmax keeps equal logits equal and their order; an
argmax of sigmoids doesn't, and is left to MONAI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import Activationsd, AsDiscreted

LARGEST_UINT8_LABEL = 254
"""255 stands for a voxel that isn't decided yet."""

SOFTMAX_MARGIN = 1e-3
"""Logits so far apart can't become equal numbers in a softmax in float32."""


@dataclass(frozen=True, slots=True)
class Reduction:
    """Channels to labels.

    Attributes:
        kind: argmax or threshold.
        threshold: The value at which a channel becomes 1.
        activations: MONAI's own converters that come before, in order.
        softmax: One of them is a softmax (the only activation whose argmax can be foreseen).
    """

    kind: str
    threshold: float = 0.0
    activations: tuple[Any, ...] = ()
    softmax: bool = False

    def channels(self, given: int) -> int:
        """How many channels the labels have."""
        return 1 if self.kind == "argmax" else given

    def dtype(self, given: int) -> torch.dtype:
        """The narrowest dtype for the labels of `given` channels."""
        wide = self.kind == "argmax" and given - 1 > LARGEST_UINT8_LABEL
        return torch.int16 if wide else torch.uint8

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        """Labels of a part: [C, ...] -> uint8 (int16 above 255 channels) [C', ...].

        Bit for bit AsDiscreted's, of finite values and of others.
        """
        for activate in self.activations:
            part = activate(part)
        part = part.as_subclass(torch.Tensor)
        if self.kind == "threshold":
            return (part >= self.threshold).to(torch.uint8)
        return argmax(part)

    def can_foresee(self) -> bool:
        """True where `certain` knows how."""
        if self.kind == "threshold":
            return not self.activations
        return not self.activations or (self.softmax and len(self.activations) == 1)

    def certain(self, part: torch.Tensor, slack: float) -> torch.Tensor:
        """Labels that stay what they are when the values change by up to `slack`.

        Args:
            part: Finite values, [C, ...].
            slack: The largest change of each difference between channels (of each value,
                with a threshold).

        Returns:
            Labels as `__call__` gives them; the dtype's largest value where it isn't certain.
        """
        dtype = self.dtype(part.shape[0])
        unsure = torch.iinfo(dtype).max
        if self.kind == "threshold":
            labels = (part >= self.threshold).to(dtype)
            return labels.masked_fill_((part - self.threshold).abs_() <= slack, unsure)
        if self.softmax:
            slack += SOFTMAX_MARGIN
        labels = torch.empty(part.shape[1:], dtype=dtype, device=part.device)
        best, second = two_best(part, labels)
        if second is not None:
            labels.masked_fill_(best.sub_(second) <= slack, unsure)
        return labels[None]


def argmax(part: torch.Tensor) -> torch.Tensor:
    """torch.argmax over the channels, kept as one: the first of equal ones, NaN the largest.

    Channel after channel, which is many times faster than torch.argmax over the slowest axis.

    Args:
        part: [C, ...].

    Returns:
        uint8 (int16 above 255 channels) [1, ...].
    """
    dtype = torch.uint8 if part.shape[0] <= LARGEST_UINT8_LABEL + 1 else torch.int16
    best = part[0].clone()
    labels = torch.zeros(part.shape[1:], dtype=dtype, device=part.device)
    for channel in range(1, part.shape[0]):
        better = part[channel] > best
        labels.masked_fill_(better, channel)
        torch.maximum(best, part[channel], out=best)  # keeps a NaN, so that it shows
    odd = best.isnan()
    if bool(odd.any()):
        labels[odd] = part[:, odd].argmax(0).to(dtype)
    return labels[None]


def two_best(part: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Writes the largest channel's number; gives its value and the second largest one.

    Args:
        part: [C, ...].
        labels: [...], written to.
    """
    best = part[0].clone()
    labels.zero_()
    second: torch.Tensor | None = None
    for channel in range(1, part.shape[0]):
        value = part[channel]
        if part.device.type == "cpu":  # several times faster than PyTorch's comparison and mask
            larger = value.numpy() > best.numpy()
            np.copyto(labels.numpy(), channel, where=larger)
        else:
            labels.masked_fill_(value > best, channel)
        lower = torch.minimum(best, value)
        second = lower if second is None else torch.maximum(second, lower, out=second)
        torch.maximum(best, value, out=best)
    return best, second


def reduction_of(transforms: Sequence[Any], key: str) -> Reduction | None:
    """The reduction that consecutive transforms make, or None where they make none.

    Args:
        transforms: Any number of Activationsd and one AsDiscreted (argmax or threshold).
        key: The one key they must work on.
    """
    activations: list[Any] = []
    softmax = False
    for number, transform in enumerate(transforms):
        if tuple(getattr(transform, "keys", ())) != (key,):
            return None
        if type(transform) is Activationsd:
            if not is_plain_activation(transform):
                return None
            softmax = bool(transform.softmax[0])
            activations.append(_Activation(transform))
        elif type(transform) is AsDiscreted and number == len(transforms) - 1:
            return _discrete(transform, tuple(activations), softmax=softmax)
        else:
            return None
    return None


def is_plain_activation(transform: Any) -> bool:
    """True for a softmax or sigmoid over the channels and nothing else."""
    return (
        type(transform) is Activationsd
        and callable(transform.converter)
        and transform.other[0] is None
        and transform.converter.other is None
        and bool(transform.softmax[0]) != bool(transform.sigmoid[0])
        and not transform.converter.softmax
        and not transform.converter.sigmoid
        and transform.converter.kwargs.get("dim", 0) == 0
    )


class _Activation:
    """One Activationsd as a function of a tensor."""

    def __init__(self, transform: Any) -> None:
        self._convert = transform.converter
        self._sigmoid, self._softmax = transform.sigmoid[0], transform.softmax[0]

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        done: torch.Tensor = self._convert(part, self._sigmoid, self._softmax, None)
        return done.as_subclass(torch.Tensor)


def _discrete(transform: Any, activations: tuple[Any, ...], *, softmax: bool) -> Reduction | None:
    converter = transform.converter
    argmax_, threshold = bool(transform.argmax[0]), transform.threshold[0]
    plain = (
        not converter.argmax
        and converter.to_onehot is None
        and converter.threshold is None
        and converter.rounding is None
        and transform.to_onehot[0] is None
        and transform.rounding[0] is None
        and converter.kwargs.get("dim", 0) == 0
        and converter.kwargs.get("keepdim", True) is True
        and converter.kwargs.get("dtype", torch.float) in (torch.float, torch.float32)
    )
    if not plain or argmax_ == (threshold is not None):
        return None
    if argmax_ and activations and not softmax:
        return None  # equal logits may get unequal sigmoids: see the module's docstring
    kind = "argmax" if argmax_ else "threshold"
    return Reduction(kind, float(threshold or 0.0), activations, softmax)
