"""What counts as used-up memory."""

from __future__ import annotations

import mmap

import pytest
import torch

from ensemble_builder.errors import is_out_of_memory

_NOBODY_HAS = 1 << 61


def test_used_up_memory_is_known_whoever_says_it() -> None:
    """From the kernel, from Python and from torch."""
    with pytest.raises(OSError) as refused:
        mmap.mmap(-1, _NOBODY_HAS)
    assert is_out_of_memory(refused.value)
    with pytest.raises(RuntimeError) as no_tensor:
        torch.empty(_NOBODY_HAS, dtype=torch.uint8)
    assert is_out_of_memory(no_tensor.value)
    assert is_out_of_memory(MemoryError())


def test_other_trouble_is_not_memory() -> None:
    """A missing file is nobody's lack of memory."""
    with pytest.raises(OSError) as missing:
        open("/does/not/exist")  # noqa: PTH123, SIM115
    assert not is_out_of_memory(missing.value)
