"""What a request brings: the builder, the runtime and the heartbeat use the same words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Layout = Literal["volume", "channels", "gray", "rgb", "points", "value"]
"""How an input comes: a volume [K, J, I]; co-registered volumes [C, K, J, I]; one 2-D image
[J, I]; a photograph [H, W, C]; points [N, D]; one number [1]."""

InputDatatype = Literal["INT16", "FP32"]
"""Of stored values: integers in half the memory, or floating point numbers for series that have
such pixels."""


@dataclass(frozen=True, slots=True)
class Input:
    """One thing that a request brings.

    Attributes:
        key: Its key in the preprocessing's dictionary.
        tensor: Name of its main tensor; RESCALE and AFFINE are named after it.
        channels: C of the layouts that have one, 1 otherwise.
        datatype: Triton's word for stored values.
    """

    key: str
    tensor: str
    layout: Layout
    channels: int = 1
    datatype: InputDatatype = "INT16"

    @property
    def is_image(self) -> bool:
        """False for points and numbers."""
        return self.layout not in ("points", "value")

    @property
    def is_stored(self) -> bool:
        """True where stored values with RESCALE and AFFINE come, as from DICOM."""
        return self.layout in ("volume", "channels", "gray")

    @property
    def rescale(self) -> str:
        """Name of the tensor with slopes and intercepts."""
        return "RESCALE" if self.tensor == "IMAGE" else f"{self.tensor}_RESCALE"

    @property
    def affine(self) -> str:
        """Name of the tensor with the affine."""
        return "AFFINE" if self.tensor == "IMAGE" else f"{self.tensor}_AFFINE"
