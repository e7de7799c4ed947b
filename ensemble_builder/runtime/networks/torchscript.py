"""From a torch module to the bytes of a TorchScript file, for Triton's PyTorch backend.

Traced at the example's size (scripting fails for several of MONAI's networks). The same network
gives the same bytes: torch numbers its classes as they come and writes the places of source
files beside the code; both are taken out.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import torch

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks.onnx_export import InPrecision

_jit: Any = torch.jit
"""Without types, as most of it is."""

_MANGLED = rb"___torch_mangle_\d+"
_WRITTEN_BY_TORCH = ("version", "byteorder", ".data/serialization_id")


def to_torchscript(
    module: torch.nn.Module, example: torch.Tensor, dtype: torch.dtype = torch.float32
) -> bytes:
    """A TorchScript file whose forward takes float32 [N, C, *roi] for any N.

    Args:
        module: In eval mode, on the example's device.
        example: float32 [1, C, *roi].
        dtype: What it computes in; its input and output stay float32.

    Raises:
        ConversionError: it can't be traced.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the tracer's, about python control flow
            wrapped = InPrecision(module, dtype).eval()
            traced = _jit.trace(wrapped, example, check_trace=False)
            # The same numbers: folding norms into convolutions would change the last digits.
            frozen = _jit.freeze(traced, optimize_numerics=False)
            buffer = io.BytesIO()
            _jit.save(frozen, buffer)
            return _without_origin(buffer.getvalue())
    except Exception as error:  # whatever the tracer raises
        msg = f"the network can't be traced ({type(error).__name__})"
        raise ConversionError(msg) from error


def load_torchscript(model: bytes, device: torch.device) -> Any:
    """What Triton's backend would load: a callable module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _jit.load(io.BytesIO(model), map_location=device).eval()


def _without_origin(archive: bytes) -> bytes:
    reader: Any = torch._C.PyTorchFileReader(io.BytesIO(archive))
    found = io.BytesIO()
    writer: Any = torch._C.PyTorchFileWriter(found)
    for name in reader.get_all_records():
        if name.endswith(".debug_pkl") or name in _WRITTEN_BY_TORCH:
            continue
        content = reader.get_record(name)
        if name.endswith((".py", ".pkl")):
            content = re.sub(rb"\." + _MANGLED, b"", content)
        plain = re.sub("/" + _MANGLED.decode(), "", name)
        writer.write_record(plain, content, len(content))
    writer.write_end_of_file()
    return found.getvalue()
