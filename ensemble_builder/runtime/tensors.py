"""Between Triton's tensors and torch: by DLPack, on the device where they are.

Also the one place where errors of the models get Triton's codes: INVALID_ARG is the input's
fault, INTERNAL is ours. A plain exception would reach the client as a traceback with paths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from ensemble_builder.errors import Cancelled, ModelFailed, memory_used_up
from ensemble_builder.runtime.heap import give_back, leave_room
from ensemble_builder.runtime.turns import Turn, at_work
from ensemble_builder.runtime.volumes import InputError


def say(args: dict[str, str], what: object) -> None:
    """One line in the server's log."""
    pb_utils.Logger.log_info(f"{args['model_name']}: {what}")


def instance_device(args: dict[str, str]) -> torch.device:
    """The device Triton gave this instance: KIND_AUTO is a GPU where there is one."""
    if args["model_instance_kind"] != "GPU":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pb_utils.Logger.log_warn(
            f"{args['model_name']}: computes on the CPU, although Triton has a GPU for it: torch "
            f"{torch.__version__} can't use that; install its build for the driver's CUDA"
        )
        return torch.device("cpu")
    device = torch.device(f"cuda:{args['model_instance_device_id']}")
    torch.cuda.set_device(device)  # for what names none: a bundle's code, cupy
    return device


def read(request: Any, name: str, device: torch.device) -> torch.Tensor:
    """An input tensor as torch sees it, without a copy when it is on `device` already.

    It is the server's memory: never write to it.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        msg = f"the input {name} is missing"
        raise InputError(msg)
    found: torch.Tensor = torch.utils.dlpack.from_dlpack(tensor.to_dlpack())
    return found.to(device)


def read_text(request: Any, name: str) -> str:
    """A BYTES tensor of one element as text.

    Raises:
        InputError: it is missing or has not exactly one element.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    values = [] if tensor is None else tensor.as_numpy().reshape(-1).tolist()
    if len(values) != 1:
        msg = f"the input {name} must have exactly one element"
        raise InputError(msg)
    return bytes(values[0]).decode("utf-8", errors="replace")


def tensor_output(name: str, value: torch.Tensor) -> Any:
    """An output tensor, handed over by DLPack from the device where it is."""
    plain = value.detach().as_subclass(torch.Tensor).contiguous()
    return pb_utils.Tensor.from_dlpack(name, plain)


def text_output(name: str, value: str) -> Any:
    """A BYTES tensor of one element."""
    return pb_utils.Tensor(name, np.array([value.encode("utf-8")], dtype=np.object_))


def answer(request: Any, compute: Callable[[Any], list[Any]]) -> Any:
    """Runs one request to one response; whatever goes wrong becomes an error with a code."""
    if Turn(request).unwanted():
        return _error("nobody waits for this request any more", "CANCELLED")
    try:
        with torch.inference_mode(), at_work(request):
            response = pb_utils.InferenceResponse(output_tensors=compute(request))
        leave_room()
        return response
    except ModelFailed as error:
        # With Triton's own words and code: they tell whoever watches which stub has died.
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), error.triton_code))
    except Exception as error:  # noqa: BLE001 - the edge of a request
        sentence, code = _named(error)
    if code == "UNAVAILABLE":
        # Three stubs share the memory: what this one keeps for later, another may need now. Not
        # above: as long as the error is there, so are the frames it came through, with their
        # tensors.
        give_back()
    if code == "INTERNAL" and _gpu_is_lost():
        # No later request would fare better in this process, and each would count as the model's
        # fault. Whoever watches the server loads a model again whose process has ended.
        logging.getLogger(__name__).critical("CUDA has given this process up: it ends")
        os._exit(1)
    return _error(sentence, code)


def _gpu_is_lost() -> bool:
    """Whether CUDA has given this process up: after a fault of the device or of a kernel."""
    cuda: Any = torch.cuda  # without types
    if not cuda.is_initialized():
        return False
    try:
        cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _named(error: Exception) -> tuple[str, str]:
    """The sentence and Triton's code of what went wrong with a request."""
    if isinstance(error, InputError):
        return str(error), "INVALID_ARG"
    if isinstance(error, Cancelled):
        return str(error), "CANCELLED"
    whose = memory_used_up(error)
    if whose is not None:
        return f"{whose} has too little free memory for this volume", "UNAVAILABLE"
    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return "the model failed; the server's log has the reason", "INTERNAL"


def _error(sentence: str, code: str) -> Any:
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(sentence, getattr(pb_utils.TritonError, code))
    )
