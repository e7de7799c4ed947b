"""TensorRT on an NVIDIA GPU: torch -> ONNX -> an engine for this very GPU, built at load.

Written against TensorRT 10 and 11 (strongly typed networks, tensors by name). Needs a GPU:
where there is none, or no TensorRT, it says so in one sentence and eager torch runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks import engine_cache
from ensemble_builder.runtime.networks.onnx_export import INPUT, OUTPUT, to_onnx
from ensemble_builder.runtime.networks.onnxruntime import output_shape
from ensemble_builder.runtime.networks.protocol import NetworkOptions


class TensorRTNetwork:
    """An engine with its tensors on the device, computing on a stream of its own."""

    def __init__(
        self,
        trt: Any,
        engine: bytes,
        device: torch.device,
        most_windows: int,
        shape: Callable[[torch.Size], list[int]],
    ) -> None:
        """Loads an engine that was built for this GPU.

        Args:
            trt: The module tensorrt.
            engine: What `build_engine` gave.
            device: The GPU.
            most_windows: Largest batch it was built for.
            shape: Shape of the windows -> shape of their predictions.

        Raises:
            ConversionError: this TensorRT can't load it.
        """
        self._device = device
        self._most_windows = most_windows
        self._shape = shape
        with torch.cuda.device(device):
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                msg = "TensorRT can't load its engine"
                raise ConversionError(msg)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                msg = "the GPU has too little free memory for the engine"
                raise ConversionError(msg)
            stream: Any = torch.cuda.Stream  # without types
            self._stream = stream(device)

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """float32 [N, C, *roi] -> float32 [N, C_out, *roi], on the same device."""
        if windows.shape[0] > self._most_windows:
            return torch.cat([self(part) for part in torch.split(windows, self._most_windows)])
        plain = windows.as_subclass(torch.Tensor).contiguous()
        found = torch.empty(self._shape(plain.shape), dtype=torch.float32, device=self._device)
        context, torch_stream = self._context, torch.cuda.current_stream(self._device)
        with torch.cuda.device(self._device):
            context.set_input_shape(INPUT, tuple(plain.shape))
            context.set_tensor_address(INPUT, plain.data_ptr())
            context.set_tensor_address(OUTPUT, found.data_ptr())
            # Each waits for the other on the GPU; the CPU goes on. Memory that torch hands out
            # again belongs to its own stream, which has waited, so nothing is overwritten.
            self._stream.wait_stream(torch_stream)
            if not context.execute_async_v3(self._stream.cuda_stream):
                msg = f"TensorRT can't compute windows {list(plain.shape)}"
                raise RuntimeError(msg)
            torch_stream.wait_stream(self._stream)
        return found


def convert(
    module: torch.nn.Module,
    example: torch.Tensor,
    options: NetworkOptions,
    prediction: torch.Tensor,
) -> TensorRTNetwork:
    """Exports a module, builds its engine or takes it from the cache, and loads it.

    Args:
        module: In eval mode, on the example's device.
        example: float32 [1, C, *roi], on a GPU.
        options: Of them, `precision` and `most_windows`.
        prediction: What eager makes of the example.

    Raises:
        ConversionError: no GPU, no TensorRT, or it doesn't take the network.
    """
    if example.device.type != "cuda":
        msg = "TensorRT computes on an NVIDIA GPU, this instance has none"
        raise ConversionError(msg)
    trt = import_tensorrt()
    model = to_onnx(module, example, dtype=options.dtype, free_axes=options.free_axes)
    shape = output_shape(example.shape, prediction.shape, options.free_axes)
    name = engine_cache.digest(
        model,
        trt.__version__,
        torch.cuda.get_device_name(example.device),
        torch.cuda.get_device_capability(example.device),
        tuple(example.shape),
        options.most_windows,
    )
    engine = engine_cache.cached(name)
    if engine is not None:
        try:
            return TensorRTNetwork(trt, engine, example.device, options.most_windows, shape)
        except ConversionError:  # a damaged file, or a driver that changed: build it again
            engine = None
    with torch.cuda.device(example.device):
        engine = build_engine(trt, model, example.shape[1:], options)
    engine_cache.keep(name, engine)
    return TensorRTNetwork(trt, engine, example.device, options.most_windows, shape)


def import_tensorrt() -> Any:
    """The module tensorrt.

    Raises:
        ConversionError: it isn't here, or its libraries aren't.
    """
    try:
        import tensorrt  # noqa: PLC0415 - only where it is used
    except (ImportError, OSError) as error:
        msg = "TensorRT isn't installed (pip install tensorrt, on a machine with an NVIDIA GPU)"
        raise ConversionError(msg) from error
    return tensorrt


def build_engine(trt: Any, model: bytes, window: Sequence[int], options: NetworkOptions) -> bytes:
    """An engine for the GPU that is current: takes seconds to minutes.

    Args:
        trt: The module tensorrt.
        model: ONNX; its own types are the precision that is computed in.
        window: [C, *roi], one size for all windows.
        options: Of them, `most_windows` and `free_axes`.

    Raises:
        ConversionError: TensorRT doesn't take the network; says which part.
    """
    if options.free_axes:
        msg = "windows of any size come, and an engine is built for one size"
        raise ConversionError(msg)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # Strongly typed: the network's own types hold, nothing is made half precision behind us.
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        reason = str(parser.get_error(0).desc()) if parser.num_errors else "it doesn't say why"
        msg = f"TensorRT doesn't take the network: {reason}"
        raise ConversionError(msg)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and no float32
    profile = builder.create_optimization_profile()
    one, most = (1, *window), (options.most_windows, *window)
    profile.set_shape(INPUT, one, most, most)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        msg = "TensorRT can't build an engine for this network on this GPU"
        raise ConversionError(msg)
    return bytes(plan)
