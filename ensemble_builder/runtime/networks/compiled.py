"""torch.compile: eager's own kernels, fused; half a minute at load, so only where asked for."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks.eager import EagerNetwork
from ensemble_builder.runtime.networks.protocol import NetworkOptions


class CompiledNetwork:
    """A module compiled by torch's inductor: one program for one window, one for batches."""

    def __init__(
        self, module: torch.nn.Module, example: torch.Tensor, options: NetworkOptions
    ) -> None:
        """Compiles both programs.

        Raises:
            ConversionError: this torch can't compile here.
        """
        self._axes = (0, *(2 + axis for axis in options.free_axes))
        try:
            with warnings.catch_warnings(), torch.inference_mode():
                warnings.simplefilter("ignore")  # of its own inner life
                compiled = cast(torch.nn.Module, torch.compile(module))
                self._network = EagerNetwork(compiled, example.device, options)
                for count in {1, min(2, options.most_windows)}:
                    self(torch.cat([example] * count))
        except Exception as error:  # no compiler on this machine, or whatever it stumbles over
            msg = f"the network doesn't compile ({type(error).__name__})"
            raise ConversionError(msg) from error

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """float32 [N, C, *roi] -> float32 [N, C_out, *roi]."""
        plain = windows.as_subclass(torch.Tensor)
        dynamo: Any = torch._dynamo
        for axis in self._axes:
            if plain.shape[axis] > 1:
                dynamo.maybe_mark_dynamic(plain, axis)
        return self._network(plain)
