"""ONNX Runtime on the CPU, or on CUDA where the instance has a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks.onnx_export import INPUT, OUTPUT, to_onnx
from ensemble_builder.runtime.networks.protocol import NetworkOptions

_FATAL_ONLY = 4


class OnnxRuntimeNetwork:
    """An ONNX model in this process; on CUDA its tensors stay on the device."""

    def __init__(
        self, model: bytes, device: torch.device, output_shape: Callable[[torch.Size], list[int]]
    ) -> None:
        """Loads a model whose doors are WINDOWS and PREDICTION, both float32.

        Args:
            model: An ONNX file's content.
            device: Where the windows are.
            output_shape: Shape of the windows -> shape of their predictions.

        Raises:
            ConversionError: ONNX Runtime isn't here, can't use the device or the model.
        """
        try:
            import onnxruntime  # noqa: PLC0415 - only where it is used
        except ImportError as error:
            msg = "ONNX Runtime isn't installed (pip install onnxruntime, or onnxruntime-gpu)"
            raise ConversionError(msg) from error
        self._device = device
        self._output_shape = output_shape
        on_gpu = device.type == "cuda"
        wanted = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
        if wanted not in onnxruntime.get_available_providers():
            msg = "this ONNX Runtime has no CUDA (pip install onnxruntime-gpu in its place)"
            raise ConversionError(msg)
        # Not in TF32: what is asked for is float32.
        settings = {"device_id": device.index or 0, "use_tf32": 0} if on_gpu else {}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=[(wanted, settings)]
            )
        except Exception as error:  # whatever its loader raises
            msg = f"ONNX Runtime doesn't take the network ({type(error).__name__})"
            raise ConversionError(msg) from error
        if self._session.get_providers()[0] != wanted:
            msg = "ONNX Runtime found no working CUDA and would compute on the CPU"
            raise ConversionError(msg)

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """float32 [N, C, *roi] -> float32 [N, C_out, *roi], on the same device."""
        plain = windows.as_subclass(torch.Tensor).contiguous()
        if self._device.type == "cpu":
            return torch.from_numpy(self._session.run([OUTPUT], {INPUT: plain.numpy()})[0])
        found = torch.empty(
            self._output_shape(plain.shape), dtype=torch.float32, device=self._device
        )
        binding = self._session.io_binding()
        binding.bind_input(INPUT, **_place(plain))
        binding.bind_output(OUTPUT, **_place(found))
        # It computes on a stream of its own: torch's work must be done before it starts, and
        # it waits for its own before it returns.
        torch.cuda.current_stream(self._device).synchronize()
        self._session.run_with_iobinding(binding)
        return found


def convert(
    module: torch.nn.Module,
    example: torch.Tensor,
    options: NetworkOptions,
    prediction: torch.Tensor,
) -> OnnxRuntimeNetwork:
    """Exports a module and loads it.

    Args:
        module: In eval mode, on the example's device.
        example: float32 [1, C, *roi].
        options: Of them, `precision` and `free_axes`.
        prediction: What eager makes of the example.

    Raises:
        ConversionError: it doesn't export, or ONNX Runtime doesn't take it.
    """
    model = to_onnx(module, example, dtype=options.dtype, free_axes=options.free_axes)
    shape = output_shape(example.shape, prediction.shape, options.free_axes)
    return OnnxRuntimeNetwork(model, example.device, shape)


def output_shape(
    windows: torch.Size, prediction: torch.Size, free_axes: tuple[int, ...] = ()
) -> Callable[[torch.Size], list[int]]:
    """How the predictions' shape follows from the windows', learned from one example.

    Raises:
        ConversionError: sizes are free and the prediction's don't follow them one to one.
    """
    row = list(prediction[1:])
    if not free_axes or len(row) == 1:
        return lambda shape: [shape[0], *row]
    if prediction[2:] != windows[2:]:
        msg = "its predictions are of another size than its windows, which may be of any size"
        raise ConversionError(msg)
    return lambda shape: [shape[0], row[0], *shape[2:]]


def _place(tensor: torch.Tensor) -> dict[str, Any]:
    return {
        "device_type": "cuda",
        "device_id": tensor.device.index or 0,
        "element_type": np.float32,
        "shape": tuple(tensor.shape),
        "buffer_ptr": tensor.data_ptr(),
    }
