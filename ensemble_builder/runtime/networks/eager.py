"""Eager torch: the reference, and what runs where no conversion agrees with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch

from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.networks.protocol import NetworkOptions


class EagerNetwork:
    """The bundle's module as MONAI would call it; takes further tensors as the module does."""

    def __init__(
        self, module: torch.nn.Module, device: torch.device, options: NetworkOptions
    ) -> None:
        """Takes a module in eval mode that is on the device already."""
        self._module = module
        self._device = device
        self._dtype = None if options.precision == "f32" else options.dtype
        # As SupervisedEvaluator does: autocast("cuda"), which on a CPU is nothing at all.
        self._amp = options.amp and device.type == "cuda"

    def __call__(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[N, C, *roi] -> [N, C_out, *roi]; float16 under MONAI's mixed precision, as there."""
        with self._autocast():
            found = without_list(self._module(windows, *args, **kwargs))
        return cast(torch.Tensor, found if self._dtype is None else found.to(torch.float32))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype is not None:
            return torch.autocast(self._device.type, self._dtype)
        return torch.autocast("cuda") if self._amp else contextlib.nullcontext()


def eager_predictions(module: torch.nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """What the module makes of a batch in plain float32: [N, C_out, *roi] or [N, n].

    Raises:
        BundleError: it gives something other than one tensor for N windows.
    """
    with torch.inference_mode():
        found = without_list(module(windows))
    if not isinstance(found, torch.Tensor):
        msg = (
            f"network: gives {_described(found)} where serving needs one tensor; make it return "
            "its prediction alone (deep supervision off), in its config or in scripts/"
        )
        raise BundleError(msg)
    if found.ndim < 2 or found.shape[0] != windows.shape[0] or not found.is_floating_point():
        msg = (
            f"network: gives {str(found.dtype).removeprefix('torch.')} {list(found.shape)} for "
            f"windows {list(windows.shape)}; serving needs one row of numbers for each window"
        )
        raise BundleError(msg)
    return found


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """While it lasts, torch's convolutions on a GPU are float32's.

    By default cuDNN cuts their factors to 11 bits (TF32), as it does for MONAI. What a conversion
    to float32 is compared with must not be further from float32 than the conversion may be.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def without_list(found: Any) -> Any:
    """The tensor of a list of one: MONAI's sliding window gives the same for both.

    Networks with deep supervision give such lists where it is switched off.
    """
    return found[0] if isinstance(found, list | tuple) and len(found) == 1 else found


def _described(found: object) -> str:
    if isinstance(found, Mapping):
        return f"a dictionary with {', '.join(map(str, found)) or 'nothing in it'}"
    if isinstance(found, tuple | list):
        return f"a {type(found).__name__} of {len(found)}"
    return f"a {type(found).__name__}"
