"""How a model answers what goes wrong, in a process of its own with a scripted Python backend."""

from __future__ import annotations

import subprocess
import sys

_CODE = """
import gc, sys, types, weakref
import numpy as np
import torch

class TritonError(Exception):
    INVALID_ARG, UNAVAILABLE = "INVALID_ARG", "UNAVAILABLE"
    INTERNAL, CANCELLED = "INTERNAL", "CANCELLED"
    def __init__(self, sentence, code):
        self.args = (code, sentence)

class InferenceResponse:
    def __init__(self, output_tensors=None, error=None):
        self.outputs, self.error = output_tensors, error

class Logger:
    log_warn = staticmethod(print)

backend = types.ModuleType("triton_python_backend_utils")
backend.TritonError, backend.InferenceResponse = TritonError, InferenceResponse
backend.Logger = Logger
sys.modules["triton_python_backend_utils"] = backend

class Request:
    def request_id(self):
        return "1"
    def is_cancelled(self):
        return False
    def parameters(self):
        return "{}"

A_GPU = {
    "model_name": "lung_ct_inferer",
    "model_instance_kind": "GPU",
    "model_instance_device_id": "1",
}

from ensemble_builder.runtime.tensors import answer, instance_device
"""


def _says(code: str) -> tuple[str, int]:
    """What a script prints, and its exit status."""
    found = subprocess.run(
        [sys.executable, "-c", _CODE + code], capture_output=True, text=True, check=False
    )
    assert found.returncode in (0, 1), found.stderr
    return found.stdout, found.returncode


def test_memory_of_the_gpu_that_a_transform_lacks_is_named_and_given_back() -> None:
    """The request may be tried again, and then finds what this one had taken."""
    said, status = _says("""
class Volume:
    pass

def compute(request):
    global seen
    volume = Volume()
    seen = weakref.ref(volume)
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    except torch.OutOfMemoryError as error:
        raise RuntimeError("applying transform Spacingd") from error

torch.cuda.empty_cache = lambda: print("given back:", seen() is None)
print(answer(Request(), compute).error.args)
""")
    assert status == 0
    assert said.splitlines() == [
        "given back: True",
        "('UNAVAILABLE', 'the GPU has too little free memory for this volume')",
    ]


def test_little_room_on_a_gpu_is_left_to_the_other_steps() -> None:
    """What torch keeps for this process is theirs where they could be short of it."""
    said, _ = _says("""
torch.cuda.is_initialized = lambda: True
torch.cuda.empty_cache = lambda: print("given back")
for free in (90, 10):
    torch.cuda.mem_get_info = lambda: (free, 100)
    print(free, answer(Request(), lambda request: ["a tensor"]).outputs)
""")
    assert said.splitlines() == ["90 ['a tensor']", "given back", "10 ['a tensor']"]


def test_a_process_that_the_gpu_has_given_up_ends() -> None:
    """Its successor serves the next request; here, each would be called the model's fault."""
    said, status = _says("""
def broken():
    raise RuntimeError("CUDA error: unspecified launch failure")

torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = broken
print(answer(Request(), lambda request: broken()).error.args)
""")
    assert (said, status) == ("", 1)


def test_a_model_that_fails_beside_a_working_gpu_lives_on() -> None:
    """The request gets an error without paths, and the log the reason."""
    said, status = _says("""
def broken(request):
    raise RuntimeError("/a/path/of/ours")

torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = lambda: None
print(answer(Request(), broken).error.args)
""")
    assert status == 0
    assert said.strip() == "('INTERNAL', \"the model failed; the server's log has the reason\")"


def test_a_gpu_that_torch_cannot_use_is_said() -> None:
    """Else a GPU that nobody uses would only show as a slow server."""
    said, _ = _says("""
torch.cuda.is_available = lambda: False
print(instance_device(A_GPU))
""")
    assert "lung_ct_inferer: computes on the CPU, although Triton has a GPU for it" in said
    assert said.splitlines()[-1] == "cpu"


def test_the_gpu_that_triton_chose_is_the_current_one() -> None:
    """For code of a bundle's, and cupy, which name none."""
    said, _ = _says("""
torch.cuda.is_available = lambda: True
torch.cuda.set_device = print
instance_device(A_GPU)
""")
    assert said.strip() == "cuda:1"
