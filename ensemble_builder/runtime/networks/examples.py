"""Fixed windows on which a conversion is compared with eager torch: never constant, never noise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from ensemble_builder.runtime.networks.protocol import NetworkOptions

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_COARSE = 8

_USUAL_STRIDE = 32
"""What networks shrink an image by, all levels together, as a rule."""


def example_windows(window: Sequence[int], count: int = 1) -> torch.Tensor:
    """Smooth structures as in an image, the same on every machine: float32 [count, C, *roi].

    Args:
        window: [C, *roi], two or three spatial axes.
        count: How many windows; no two of them are equal.
    """
    channels, *roi = (int(size) for size in window)
    seed = int(hashlib.sha256(str([channels, *roi]).encode()).hexdigest()[:8], 16)
    generator = torch.Generator().manual_seed(seed)
    coarse = [max(size // _COARSE, 2) for size in roi]
    # On white noise every runtime differs more than on an image.
    noise = torch.rand(count, channels, *coarse, generator=generator)
    return torch.nn.functional.interpolate(noise, size=roi, mode=_MODES[len(roi)])


def comparison_windows(example: torch.Tensor, options: NetworkOptions) -> list[torch.Tensor]:
    """The example, then a batch of two where batches occur, then another size where sizes vary."""
    window = list(example.shape[1:])
    found = [example]
    if options.most_windows > 1:
        found.append(example_windows(window, 2).to(example.device))
    if options.free_axes:
        # Whatever stride divides the example divides this one too.
        for axis in options.free_axes:
            size = window[1 + axis]
            window[1 + axis] += _USUAL_STRIDE if size % _USUAL_STRIDE == 0 else size
        found.append(example_windows(window).to(example.device))
    return found
