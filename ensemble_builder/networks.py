"""The optional fourth model of a bundle, `<name>_network`: its exported files and its config.

Comes in: the filled network and how it will be asked. Goes out: what the recipe says of the
model, the file for Triton's own backend where one is wanted, and the config. Nothing is
written. An export is compared with eager torch right here; one that differs is not used, the
Python backend is, and a note says so. The same network gives the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from tritonclient.grpc import model_config_pb2 as pb

from ensemble_builder.errors import BundleError, ConversionError
from ensemble_builder.runtime.networks import Network, NetworkOptions, example_windows
from ensemble_builder.runtime.networks.agreement import Agreement, check
from ensemble_builder.runtime.networks.eager import eager_predictions
from ensemble_builder.runtime.networks.examples import comparison_windows
from ensemble_builder.runtime.networks.onnx_export import INPUT, OUTPUT, to_onnx
from ensemble_builder.runtime.networks.onnxruntime import OnnxRuntimeNetwork, output_shape
from ensemble_builder.runtime.networks.tensorrt import build_engine, import_tensorrt
from ensemble_builder.runtime.networks.torchscript import load_torchscript, to_torchscript
from ensemble_builder.runtime.recipe import NetworkModel

NETWORK_BACKENDS = ("python", "onnxruntime", "tensorrt", "pytorch")
"""Triton backends that may run a network of its own. `python` is in every server and runs any
runtime; NVIDIA's containers have the others too."""

BATCH_LIMIT_BYTES = 512 * 2**20
"""Windows and predictions of one full batch."""
LARGEST_BATCH = 8

QUEUE_DELAY_US = 2000
"""How long a window waits for others: nothing beside its computing, enough to meet them."""

PRIORITY_LEVELS = 4
"""As the gateway's jobs: immediate, high, normal, low."""
DEFAULT_PRIORITY = 3

PLATFORMS = {
    "onnxruntime": ("onnxruntime_onnx", "model.onnx"),
    "tensorrt": ("tensorrt_plan", "model.plan"),
    "pytorch": ("pytorch_libtorch", "model.pt"),
}
"""Backend -> Triton's platform and the file it loads."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExportedNetwork:
    """A network as a model of its own.

    Attributes:
        model: What the recipe says of it.
        files: File in the version folder -> content; empty for the Python backend.
        checks: What the comparison of the export with eager torch found.
        notes: What a person should know, in words.
    """

    model: NetworkModel
    files: Mapping[str, bytes] = field(default_factory=dict)
    checks: tuple[Agreement, ...] = ()
    notes: tuple[str, ...] = ()


def export_network(
    name: str,
    module: torch.nn.Module,
    window: tuple[int, ...],
    options: NetworkOptions,
    backend: str = "python",
) -> ExportedNetwork:
    """Makes a network a model of its own.

    Args:
        name: Of the Triton model.
        module: In eval mode, with its weights, on the CPU.
        window: [C, *roi] of the example.
        options: Precision and free axes; `most_windows` is chosen here.
        backend: One of NETWORK_BACKENDS.

    Raises:
        BundleError: the backend is none, the network gives something other than one tensor,
            or an engine for TensorRT can't be built on this machine.
    """
    if backend not in NETWORK_BACKENDS:
        msg = f"network backend '{backend}' is not one of {', '.join(NETWORK_BACKENDS)}"
        raise BundleError(msg)
    example = example_windows(window)
    prediction = eager_predictions(module, example)
    model = _described(name, example, prediction, options.free_axes)
    options = replace(options, most_windows=model.most_windows)
    if backend == "python":
        return ExportedNetwork(model)
    if backend == "tensorrt":
        return _engine(model, module, example, options)
    try:
        if options.free_axes:
            msg = "its windows may be of any size"
            raise ConversionError(msg)
        return _exported(model, module, example, options, backend)
    except ConversionError as error:
        note = f"{name} runs on Triton's Python backend, not on {backend}: {error}"
        _log.warning("%s", note)
        return ExportedNetwork(model, notes=(note,))


def _described(
    name: str, example: torch.Tensor, prediction: torch.Tensor, free_axes: tuple[int, ...]
) -> NetworkModel:
    """How many windows a batch holds follows from their size, and from nothing else."""
    window, row = list(example.shape[1:]), list(prediction.shape[1:])
    one = 4 * (prod(window) + prod(row))
    for axis in free_axes:
        window[1 + axis] = -1
        if len(row) > 1:
            row[1 + axis] = -1
    return NetworkModel(
        name=name,
        backend="python",
        input=INPUT,
        output=OUTPUT,
        most_windows=max(1, min(LARGEST_BATCH, BATCH_LIMIT_BYTES // one)),
        input_dims=tuple(window),
        output_dims=tuple(row),
        example_dims=tuple(example.shape[1:]),
    )


def _exported(
    model: NetworkModel,
    module: torch.nn.Module,
    example: torch.Tensor,
    options: NetworkOptions,
    backend: str,
) -> ExportedNetwork:
    windows = comparison_windows(example, options)
    expected = [(batch, eager_predictions(module, batch)) for batch in windows]
    call: Network
    if backend == "onnxruntime":
        content = to_onnx(module, example, dtype=options.dtype)
        shape = output_shape(example.shape, expected[0][1].shape)
        call = OnnxRuntimeNetwork(content, example.device, shape)
    else:
        content = to_torchscript(module, example, options.dtype)
        call = load_torchscript(content, example.device)
        # The PyTorch backend finds a forward's arguments by the number after the name.
        model = replace(model, input=f"{INPUT}__0", output=f"{OUTPUT}__0")
    with torch.inference_mode():
        checks = check(call, expected, options.precision)
    file = PLATFORMS[backend][1]
    return ExportedNetwork(replace(model, backend=backend), {file: content}, checks)


def _engine(
    model: NetworkModel, module: torch.nn.Module, example: torch.Tensor, options: NetworkOptions
) -> ExportedNetwork:
    """A plan for the GPU of this machine: the one file that other machines can't use."""
    try:
        trt = import_tensorrt()
        if not torch.cuda.is_available():
            msg = "this machine has no GPU"
            raise ConversionError(msg)
        onnx = to_onnx(module, example, dtype=options.dtype)
        plan = build_engine(trt, onnx, example.shape[1:], options)
    except ConversionError as error:
        msg = (
            f"network backend tensorrt: {error}; build on the machine that will serve, or choose "
            "runtime tensorrt, which builds its engine when the model loads"
        )
        raise BundleError(msg) from error
    note = f"{model.name}: model.plan runs only on this kind of GPU with this TensorRT"
    return ExportedNetwork(
        replace(model, backend="tensorrt"), {PLATFORMS["tensorrt"][1]: plan}, notes=(note,)
    )


def network_config(model: NetworkModel) -> pb.ModelConfig:
    """The model's config: batches of several studies' windows, priorities, a warm-up."""
    config = pb.ModelConfig(name=model.name, max_batch_size=model.most_windows)
    fp32 = pb.DataType.Value("TYPE_FP32")
    config.input.add(name=model.input, data_type=fp32, dims=model.input_dims)
    config.output.add(name=model.output, data_type=fp32, dims=model.output_dims)
    if model.backend == "python":
        config.backend = "python"
        # Otherwise the backend moves every input to the CPU before the model sees it.
        config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"
    else:
        config.backend = model.backend
        config.platform, config.default_model_filename = PLATFORMS[model.backend]
    gpu_only = model.backend == "tensorrt"
    kinds: Any = pb.ModelInstanceGroup
    config.instance_group.add(count=1, kind=kinds.KIND_GPU if gpu_only else kinds.KIND_AUTO)
    config.dynamic_batching.max_queue_delay_microseconds = QUEUE_DELAY_US
    config.dynamic_batching.priority_levels = PRIORITY_LEVELS
    config.dynamic_batching.default_priority_level = DEFAULT_PRIORITY
    warm_up = config.model_warmup.add(name="one_window", batch_size=1)  # 0 would be skipped
    sample = warm_up.inputs[model.input]
    sample.data_type = fp32
    sample.dims.extend(model.example_dims)
    sample.random_data = True
    return config
