"""What computes one batch of windows: one file per runtime, one small Protocol.

`load_network` reads the weights and picks the runtime. A conversion is used only where it
agrees with eager torch on this very machine; otherwise eager runs, and the log says so.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Protocol

import torch

from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.recipe import BundleConfig, Recipe

_log = logging.getLogger(__name__)


class Network(Protocol):
    """A batch of windows [N, C, *roi] in, a batch of predictions out, on one device."""

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """float32 [N, C_in, *roi] -> float32 [N, C_out, *roi]."""
        ...


def load_network(
    bundle: BundleConfig, recipe: Recipe, bundle_folder: Path, device: torch.device
) -> Network:
    """The network with its weights, in the runtime that the recipe names.

    Raises:
        BundleError: weights that don't load or don't fit.
    """
    module = load_weights(bundle.network(recipe.network_id), bundle_folder / recipe.weights)
    module = module.to(device)
    runtime = recipe.runtime
    if runtime == "auto":
        runtime = "openvino" if device.type == "cpu" else "torch"
    if runtime == "torch":
        return module
    from ensemble_builder.runtime.networks.openvino import (  # noqa: PLC0415 - only where used
        ConversionError,
        OpenVINONetwork,
    )

    try:
        return OpenVINONetwork(module, example_window(bundle, module))
    except ConversionError as error:
        _log.warning("OpenVINO is not used, eager torch is: %s", error)
        return module


def load_weights(module: torch.nn.Module, path: Path) -> torch.nn.Module:
    """Fills a network from a state dict (or a dict that holds one under `model`).

    Never unpickles anything but tensors (`weights_only`).

    Raises:
        BundleError: the file isn't such a state dict, or doesn't fit the network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("model", "state_dict"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                state = state[key]
        module.load_state_dict(state)
    except Exception as error:  # torch raises whatever its unpickler raises
        msg = f"{path.name}: no weights for this network: {error}"
        raise BundleError(msg) from error
    return module


def example_window(bundle: BundleConfig, module: torch.nn.Module) -> torch.Tensor:
    """A fixed, non-constant window of the inferer's roi size: float32 [1, C, *roi]."""
    inferer = bundle.inferer()
    roi = [int(n) for n in inferer.roi_size]
    first = next(p for p in module.parameters() if p.ndim >= 3)
    seed = int(hashlib.sha256(str(roi).encode()).hexdigest()[:8], 16)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, first.shape[1], *(max(n // 8, 1) for n in roi), generator=generator)
    # Smooth structures, as in an image: on white noise every runtime differs more.
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(roi)]
    return torch.nn.functional.interpolate(coarse, size=roi, mode=mode)
