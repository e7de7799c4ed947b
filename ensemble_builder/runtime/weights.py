"""The network with its weights, as MONAI's CheckpointLoader would fill it.

Never unpickles anything but tensors (`weights_only`). Random weights come from a seed, on the
CPU, so that they are the same in every process of one machine.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.recipe import Weights


def network_with_weights(
    bundle: BundleConfig, network_id: str, weights: Weights, folder: Path
) -> torch.nn.Module:
    """The network in eval mode, filled.

    Args:
        bundle: Parsed, on the device where the network should be.
        network_id: Its config id.
        weights: Which ones.
        folder: The bundle's root.

    Raises:
        BundleError: weights that don't load or don't fit.
    """
    module = bundle.network(network_id, weights.seed)
    if weights.seed is None:
        return load_weights(module, folder / weights.path, weights.key, strict=weights.strict)
    return _shaken(module, weights.seed)


def load_weights(
    module: torch.nn.Module, path: Path, key: str = "model", *, strict: bool = True
) -> torch.nn.Module:
    """Fills a network from a state dict, or from a checkpoint that holds one under `key`.

    Raises:
        BundleError: the file isn't such a state dict, or doesn't fit the network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = (
            f"{path.name}: holds more than weights, and is not unpickled, because that runs code; "
            "save the network's state_dict instead"
        )
        raise BundleError(msg) from error
    except Exception as error:  # torch raises whatever its reader raises
        msg = f"{path.name}: can't be read as weights: {_short(error)}"
        raise BundleError(msg) from error
    for name in (key, "model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
            break
    try:
        module.load_state_dict(state, strict=strict)
    except Exception as error:  # of the shape of the file's content
        msg = f"{path.name}: no weights for this network: {_short(error)}"
        raise BundleError(msg) from error
    return module


def _short(error: Exception) -> str:
    """The first words of what torch says; its lists of names go on for pages."""
    words = " ".join(str(error).split())
    return words if len(words) <= 200 else f"{words[:200]} ..."


def _shaken(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights that tell mistakes apart.

    Fresh norms are all alike, so they are shaken; fresh biases outweigh what the image does
    to the output of an untrained network, so they are small.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                if name.endswith("bias"):
                    parameter.copy_(0.02 * noise)
                else:
                    parameter.add_(0.1 * noise)
    return module
