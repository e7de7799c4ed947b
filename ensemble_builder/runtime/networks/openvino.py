"""OpenVINO on the CPU: several times faster than eager torch there, and the default there."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import torch

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks.protocol import NetworkOptions


class OpenVINONetwork:
    """A torch module converted without ONNX between; any batch size, any number of axes."""

    def __init__(
        self, module: torch.nn.Module, example: torch.Tensor, options: NetworkOptions
    ) -> None:
        """Converts and compiles.

        Args:
            module: In eval mode, on the CPU.
            example: float32 [1, C, *roi].
            options: Of them, `precision` and `free_axes`.

        Raises:
            ConversionError: OpenVINO isn't here, or can't take the network.
        """
        if example.device.type != "cpu":
            msg = "OpenVINO computes on the CPU, this instance has a GPU"
            raise ConversionError(msg)
        try:
            import openvino  # noqa: PLC0415 - only where it is used
        except ImportError as error:
            msg = "OpenVINO isn't installed (pip install openvino)"
            raise ConversionError(msg) from error
        shape: list[int] = [-1, *example.shape[1:]]
        for axis in options.free_axes:
            shape[2 + axis] = -1
        hints = {"INFERENCE_PRECISION_HINT": options.precision, "PERFORMANCE_HINT": "LATENCY"}
        try:
            with warnings.catch_warnings(), _root_logger_as_it_was():
                warnings.simplefilter("ignore")  # torch.jit.trace's, about python control flow
                model = openvino.convert_model(module, example_input=example)
            model.reshape(shape)
            # Always said: left alone it takes bf16 on CPUs that have it.
            self._compiled = openvino.Core().compile_model(model, "CPU", hints)
            self._request = self._compiled.create_infer_request()
        except Exception as error:  # whatever its frontend raises
            msg = f"the network doesn't convert ({type(error).__name__})"
            raise ConversionError(msg) from error

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """float32 [N, C, *roi] -> float32 [N, C_out, *roi]."""
        plain = windows.as_subclass(torch.Tensor).contiguous()
        # The outputs are copied: the request writes its next ones to the same memory.
        outputs = self._request.infer([plain.numpy()], share_inputs=True, share_outputs=False)
        return torch.from_numpy(outputs[0])


@contextlib.contextmanager
def _root_logger_as_it_was() -> Iterator[None]:
    """OpenVINO's converter mutes the root logger, and where it fails leaves it mute."""
    root = logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:] = filters
        root.handlers[:] = handlers
