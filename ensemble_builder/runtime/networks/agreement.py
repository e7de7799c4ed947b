"""Does a converted network compute what eager torch computes? Figures, and how far they may go."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks.protocol import Network


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a conversion may be from eager float32.

    Attributes:
        least_same: Least part of the voxels with the same decision.
        largest_off: Largest difference, as a part of the range of eager's predictions.
    """

    least_same: float
    largest_off: float


TOLERANCES = {
    "f32": Tolerance(0.999, 1e-3),
    "f16": Tolerance(0.99, 1e-2),
    "bf16": Tolerance(0.98, 5e-2),
}
"""By precision. What is lost on a trained network is less; random weights hug their thresholds."""

LEAST_RANGE = 1e-2
"""Where predictions hardly vary, differences count against this part of their size."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What one comparison found.

    Attributes:
        windows: Shape of the batch, [N, C, *roi].
        same: Part of the voxels (or rows of scores) with the same decision: the largest channel
            and, channel by channel, the sign, which is where a sigmoid's threshold lies.
        off: Largest difference, as a part of the range of eager's predictions.
    """

    windows: tuple[int, ...]
    same: float
    off: float

    def within(self, tolerance: Tolerance) -> bool:
        """True where both figures are as good as they must be."""
        return self.same >= tolerance.least_same and self.off <= tolerance.largest_off

    def __str__(self) -> str:
        shape = "x".join(str(size) for size in self.windows)
        return f"{shape}: {100 * self.same:.3f} % same decisions, off by {self.off:.1e} at most"


def agreement(windows: torch.Tensor, eager: torch.Tensor, ours: torch.Tensor) -> Agreement:
    """Compares two predictions of one batch: [N, C_out, *roi] or [N, n].

    Raises:
        ConversionError: they can't be compared: other shapes, or values that are no numbers.
    """
    if eager.shape != ours.shape:
        msg = f"it gives {list(ours.shape)} where eager gives {list(eager.shape)}"
        raise ConversionError(msg)
    if not bool(torch.isfinite(eager).all()):
        msg = "eager itself gives no finite numbers on the test windows, so nothing can be compared"
        raise ConversionError(msg)
    if not bool(torch.isfinite(ours).all()):
        msg = "it gives values that are no finite numbers"
        raise ConversionError(msg)
    eager, ours = eager.to(torch.float32), ours.to(eager.device, torch.float32)
    same = (eager > 0) == (ours > 0)
    decided = float(same.to(torch.float32).mean(dtype=torch.float64))
    if eager.shape[1] > 1:
        chosen = (eager.argmax(1) == ours.argmax(1)).to(torch.float32)
        decided = min(decided, float(chosen.mean(dtype=torch.float64)))
    spread = float(eager.max() - eager.min())
    scale = max(spread, LEAST_RANGE * float(eager.abs().max()), 1e-12)
    return Agreement(tuple(windows.shape), decided, float((eager - ours).abs().max()) / scale)


def check(
    network: Network,
    expected: list[tuple[torch.Tensor, torch.Tensor]],
    precision: str,
) -> tuple[Agreement, ...]:
    """Runs a converted network on each batch and compares.

    Args:
        network: The conversion.
        expected: Batches of windows and eager's float32 predictions for them.
        precision: Whose tolerance holds.

    Raises:
        ConversionError: a batch fails, or differs by more than the tolerance.
    """
    tolerance = TOLERANCES[precision]
    found = []
    for windows, eager in expected:
        try:
            ours = network(windows)
        except Exception as error:  # whatever the runtime raises
            shape = "x".join(str(size) for size in windows.shape)
            msg = f"it fails on windows {shape} ({type(error).__name__})"
            raise ConversionError(msg) from error
        figures = agreement(windows, eager, ours)
        if not figures.within(tolerance):
            msg = (
                f"it differs from eager on {figures}; {precision} must reach "
                f"{100 * tolerance.least_same:g} % and {tolerance.largest_off:g}"
            )
            raise ConversionError(msg)
        found.append(figures)
    return tuple(found)
