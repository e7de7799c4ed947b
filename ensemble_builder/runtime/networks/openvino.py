"""OpenVINO on the CPU, in float32: several times faster than eager torch there."""

from __future__ import annotations

import warnings
from typing import cast

import openvino
import torch

from ensemble_builder.errors import BuilderError

LEAST_AGREEMENT = 0.999
"""Least part of a window's voxels on which OpenVINO must choose eager's channel."""

LARGEST_DIFFERENCE = 1e-3
"""Largest difference from eager, as a part of the range of eager's outputs."""


class ConversionError(BuilderError):
    """OpenVINO can't take this network, or computes something else with it."""

    code = "conversion_failed"


class OpenVINONetwork:
    """A torch module converted at load, compared with eager once, then used for windows."""

    def __init__(self, module: torch.nn.Module, example: torch.Tensor) -> None:
        """Converts and compares.

        Args:
            module: In eval mode, on the CPU.
            example: float32 [1, C, *roi].

        Raises:
            ConversionError: the network doesn't convert, or differs from eager.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.jit.trace's, about python control flow
                model = openvino.convert_model(module, example_input=example)
            model.reshape([-1, *example.shape[1:]])
            # bf16 is the default on CPUs that have it; FACTS: 99.8-99.9 % agreement only.
            hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
            self._compiled = openvino.Core().compile_model(model, "CPU", hints)
            self._request = self._compiled.create_infer_request()
        except Exception as error:  # whatever its frontend raises
            msg = f"the network doesn't convert ({type(error).__name__})"
            raise ConversionError(msg) from error
        self._compare(module, example)

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """float32 [N, C_in, *roi] -> float32 [N, C_out, *roi]."""
        plain = windows.as_subclass(torch.Tensor).contiguous()
        outputs = self._request.infer([plain.numpy()], share_inputs=True, share_outputs=False)
        return torch.from_numpy(outputs[0])

    def _compare(self, module: torch.nn.Module, example: torch.Tensor) -> None:
        with torch.inference_mode():
            eager = cast(torch.Tensor, module(example))
            ours = self(example)
        if eager.shape != ours.shape or not bool(torch.isfinite(ours).all()):
            msg = f"it gives {list(ours.shape)} where eager gives {list(eager.shape)}"
            raise ConversionError(msg)
        same = float((eager.argmax(1) == ours.argmax(1)).double().mean())
        if same < LEAST_AGREEMENT:
            msg = f"it agrees with eager on only {100 * same:.2f} % of the voxels"
            raise ConversionError(msg)
        off = float((eager - ours).abs().max() / (eager.max() - eager.min()).clamp_min(1e-6))
        if off > LARGEST_DIFFERENCE:
            msg = f"it differs from eager by {100 * off:.2f} % of the outputs' range"
            raise ConversionError(msg)
