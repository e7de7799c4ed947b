"""What every runtime offers and is told: a callable from windows to predictions, and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ensemble_builder.errors import BundleError

RUNTIMES = ("auto", "torch", "openvino", "onnxruntime", "tensorrt", "torch_compile", "triton")
"""What may compute a window. `auto` is OpenVINO on a CPU and eager torch on a GPU; `triton`
asks a model of its own on the same server."""

PRECISIONS = ("f32", "bf16", "f16")
"""What a runtime may compute in; windows and predictions stay float32 outside of it."""

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Network(Protocol):
    """A batch of windows in, a batch of predictions out, on one device."""

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """float32 [N, C, *roi] -> float32 [N, C_out, *roi], or [N, n] of a classification."""
        ...


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What a network is loaded for.

    Attributes:
        runtime: One of RUNTIMES.
        precision: One of PRECISIONS. Another than f32 trades digits for time: ask for it.
        amp: The bundle's evaluator asks for mixed precision. MONAI gives it on CUDA only, and
            only eager torch follows; a converted network computes in `precision`.
        most_windows: Largest batch that will be asked for. Above 1, conversions are also
            compared on a batch of two.
        many_windows: An inferer asks for the windows of a study one after the other, so that
            several may be computed beside each other.
        free_axes: Spatial axes (0 is the first) whose size may differ from the example's.
    """

    runtime: str = "auto"
    precision: str = "f32"
    amp: bool = False
    most_windows: int = 1
    many_windows: bool = False
    free_axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses words that mean nothing here.

        Raises:
            BundleError: names the option and what it may be.
        """
        for name, value, known in (
            ("runtime", self.runtime, RUNTIMES),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                msg = f"{name} '{value}' is not one of {', '.join(known)}"
                raise BundleError(msg)

    @property
    def dtype(self) -> torch.dtype:
        """The precision as torch names it."""
        return DTYPES[self.precision]
