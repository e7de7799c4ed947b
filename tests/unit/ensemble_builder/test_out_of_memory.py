"""What counts as used-up memory."""

from __future__ import annotations

import mmap

import pytest
import torch
from monai.transforms import Compose, Lambdad

from ensemble_builder.errors import memory_used_up

_NOBODY_HAS = 1 << 61


def test_used_up_memory_is_known_whoever_says_it() -> None:
    """From the kernel, from Python and from torch."""
    with pytest.raises(OSError) as refused:
        mmap.mmap(-1, _NOBODY_HAS)
    assert memory_used_up(refused.value) == "this machine"
    with pytest.raises(RuntimeError) as no_tensor:
        torch.empty(_NOBODY_HAS, dtype=torch.uint8)
    assert memory_used_up(no_tensor.value) == "this machine"
    assert memory_used_up(MemoryError()) == "this machine"


def test_used_up_memory_is_known_in_a_transform() -> None:
    """MONAI says which one it was, not why."""
    take = Lambdad("image", lambda image: image.new_empty(_NOBODY_HAS))
    with pytest.raises(RuntimeError, match="applying transform") as failed:
        Compose([take])({"image": torch.zeros(1, dtype=torch.uint8)})
    assert memory_used_up(failed.value) == "this machine"


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.77 GiB",
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_used_up_memory_of_a_gpu_is_known(words: str) -> None:
    """From torch's allocator, and from the libraries that have one of their own."""
    assert memory_used_up(RuntimeError(words)) == "the GPU"


def test_other_trouble_is_not_memory() -> None:
    """A missing file is nobody's lack of memory."""
    with pytest.raises(OSError) as missing:
        open("/does/not/exist")  # noqa: PTH123, SIM115
    assert memory_used_up(missing.value) is None
