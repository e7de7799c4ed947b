"""Small networks that read aloud: `a_network(dims=2)`, `Twins`, `Counting`."""

from __future__ import annotations

import torch


def a_network(*, dims: int = 3, channels: int = 1, out: int = 3, seed: int = 0) -> torch.nn.Module:
    """A segmentation network with a norm, for windows [N, channels, *roi] of any size."""
    torch.manual_seed(seed)
    convolution = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims]
    norm = {2: torch.nn.InstanceNorm2d, 3: torch.nn.InstanceNorm3d}[dims]
    return torch.nn.Sequential(
        convolution(channels, 6, 3, padding=1),
        norm(6, affine=True),
        torch.nn.PReLU(),
        convolution(6, out, 3, padding=1),
    ).eval()


def a_classifier(*, channels: int = 3, classes: int = 4) -> torch.nn.Module:
    """A 2-D classification network, for images of any size."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(channels, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, classes),
    ).eval()


class Moody(torch.nn.Module):
    """Decides by python control flow, which a trace freezes as it was on the example.

    On one window it computes one thing, on several another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """[N, 1, *roi] -> [N, 3, *roi]."""
        found: torch.Tensor = self.convolution(windows)
        return found if windows.shape[0] == 1 else -found


class BySize(torch.nn.Module):
    """Decides by the size of its windows, so that no trace holds for other sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """[N, 1, *roi] -> [N, 3, *roi]."""
        found: torch.Tensor = self.convolution(windows)
        return found if windows.shape[-1] <= 32 else -found


class Twins(torch.nn.Module):
    """Gives two predictions, as networks with deep supervision do."""

    def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, C, *roi] -> twice [N, C, *roi]."""
        return windows, windows * 2


class Untraceable(torch.nn.Module):
    """Goes through numpy, which no exporter follows."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """[N, 1, *roi] -> [N, 2, *roi]."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            msg = "not to be traced"
            raise RuntimeError(msg)
        found: torch.Tensor = self.convolution(windows)
        return found
