"""From a torch module to the bytes of an ONNX model: the way to ONNX Runtime and TensorRT.

The same network gives the same bytes, on any machine: nothing of where or when it was made
stays in the file.
"""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import torch

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks.eager import without_list

INPUT = "WINDOWS"
OUTPUT = "PREDICTION"

OPSET = 18
"""Triton's ONNX Runtime and TensorRT 10 both read it."""

LIMIT_BYTES = 2**31 - 1
"""Of a protobuf message; a larger network needs files beside it, which nobody has asked for yet."""


class InPrecision(torch.nn.Module):
    """A module computing in another dtype between float32 doors."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self.module = module if dtype == torch.float32 else copy.deepcopy(module).to(dtype)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """float32 [N, C, *roi] -> float32 [N, C_out, *roi]."""
        found: torch.Tensor = without_list(self.module(windows.to(self._dtype)))
        return found.to(torch.float32)


def to_onnx(
    module: torch.nn.Module,
    example: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    free_axes: tuple[int, ...] = (),
) -> bytes:
    """An ONNX model with a free batch axis, from WINDOWS [N, C, *roi] to PREDICTION.

    Args:
        module: In eval mode, on the example's device.
        example: float32 [1, C, *roi].
        dtype: What it computes in; its inputs and outputs stay float32.
        free_axes: Spatial axes that are free too.

    Raises:
        ConversionError: it doesn't export, or is larger than 2 GiB.
    """
    try:
        import onnx  # noqa: PLC0415 - only where it is used
    except ImportError as error:
        msg = "onnx isn't installed (pip install onnx)"
        raise ConversionError(msg) from error
    wrapped = InPrecision(module, dtype).eval()
    axes = {0: "batch"} | {2 + axis: f"size_{axis}" for axis in free_axes}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the tracer's, about python control flow
            try:
                model = _traced(wrapped, example, axes)
            except Exception:  # noqa: BLE001 - the tracer raises what it likes; the other may do
                model = _exported(wrapped, example, axes)
            _forget_its_origin(model)
            onnx.checker.check_model(model)
            found: bytes = model.SerializeToString(deterministic=True)
    except Exception as error:  # whatever the exporters raise
        msg = f"the network doesn't export to ONNX ({type(error).__name__})"
        raise ConversionError(msg) from error
    if len(found) > LIMIT_BYTES:
        msg = "the network is larger than the 2 GiB of one ONNX file"
        raise ConversionError(msg)
    return found


def _traced(module: torch.nn.Module, example: torch.Tensor, axes: dict[int, str]) -> Any:
    """By torch's older exporter: seconds, and no path of this machine in the file."""
    import onnx  # noqa: PLC0415

    buffer = io.BytesIO()
    export: Any = torch.onnx.export  # its types forget that it writes to a buffer too
    export(
        module,
        (example,),
        buffer,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: axes, OUTPUT: {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,
    )
    return onnx.load_model_from_string(buffer.getvalue())


def _exported(module: torch.nn.Module, example: torch.Tensor, axes: dict[int, str]) -> Any:
    """By torch.export, which takes some networks that the tracer doesn't."""
    # A batch of one would be taken for a constant.
    several = torch.cat([example, example])
    program = torch.onnx.export(
        module,
        (several,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in axes.items()},),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _forget_its_origin(model: Any) -> None:
    """Takes out source places and names of this machine's files."""
    del model.metadata_props[:]
    model.doc_string = ""
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        del graph.metadata_props[:]
        for value in [*getattr(graph, "value_info", ())]:
            value.doc_string = ""
            del value.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
