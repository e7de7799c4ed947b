"""Between Triton's tensors and torch: by DLPack, on the device where they are.

Also the one place where errors of the models get Triton's codes: INVALID_ARG is the input's
fault, INTERNAL is ours. A plain exception would reach the client as a traceback with paths.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from ensemble_builder.errors import Cancelled, ModelFailed, is_out_of_memory
from ensemble_builder.runtime.turns import Turn, at_work
from ensemble_builder.runtime.volumes import InputError


def say(args: dict[str, str], what: object) -> None:
    """One line in the server's log."""
    pb_utils.Logger.log_info(f"{args['model_name']}: {what}")


def instance_device(args: dict[str, str]) -> torch.device:
    """The device Triton gave this instance: KIND_AUTO is a GPU where there is one."""
    if args["model_instance_kind"] == "GPU" and torch.cuda.is_available():
        return torch.device(f"cuda:{args['model_instance_device_id']}")
    return torch.device("cpu")


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
            return pb_utils.InferenceResponse(output_tensors=compute(request))
    except InputError as error:
        return _error(str(error), "INVALID_ARG")
    except Cancelled as error:
        return _error(str(error), "CANCELLED")
    except ModelFailed as error:
        # With Triton's own words and code: they tell whoever watches which stub has died.
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), error.triton_code))
    except torch.cuda.OutOfMemoryError:
        # Three stubs share the GPU: what this one keeps for later, another may need now.
        torch.cuda.empty_cache()
        return _error("the GPU has too little free memory for this volume", "UNAVAILABLE")
    except Exception as error:
        if is_out_of_memory(error):
            return _error("this machine has too little free memory for this volume", "UNAVAILABLE")
        logging.getLogger(__name__).exception("a request failed")
        return _error("the model failed; the server's log has the reason", "INTERNAL")


def _error(sentence: str, code: str) -> Any:
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(sentence, getattr(pb_utils.TritonError, code))
    )
