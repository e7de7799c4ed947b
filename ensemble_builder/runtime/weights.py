"""The network with its weights, as MONAI's CheckpointLoader would fill it.

Never unpickles anything but tensors (`weights_only`). Random weights come from a seed, on the
CPU, so that they are the same in every process of one machine.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.recipe import Weights

_jit: Any = torch.jit  # without types
_LFS = b"version https://git-lfs"


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
    """Fills a network from a state dict, from a checkpoint that holds one, or from TorchScript.

    Args:
        module: The network.
        path: The file.
        key: Where a checkpoint keeps the network's state; others are looked at after it.
        strict: No other may be there; the network's own must be in any case.

    Raises:
        BundleError: the file isn't such a state dict, or doesn't fit the network.
    """
    state = _state(_content(path), key, module)
    try:
        lacking = module.load_state_dict(state, strict=strict).missing_keys
    except Exception as error:  # of the shape of the file's content
        msg = f"{path.name}: no weights for this network: {_short(error)}"
        raise BundleError(msg) from error
    learnt = {name for name, _ in module.named_parameters()}
    random = [name for name in lacking if name in learnt]
    if random:
        msg = (
            f"{path.name}: lacks {len(random)} of the network's {len(learnt)} weights, such as "
            f"{random[0]}, which would be random, though its loader is not strict; save the "
            "state_dict of the whole network"
        )
        raise BundleError(msg)
    return module


def is_torchscript(path: Path) -> bool:
    """True for an archive that torch.jit.save wrote: it holds the network's code, too."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _content(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(len(_LFS))
    if head == _LFS:
        msg = f"{path.name}: is a pointer of Git LFS, not the weights; fetch them with git lfs pull"
        raise BundleError(msg)
    if not head.startswith((b"PK", b"\x80")):
        msg = f"{path.name}: is no file that torch.save wrote; download the weights again"
        raise BundleError(msg)
    try:
        if is_torchscript(path):
            return _jit.load(str(path), map_location="cpu").state_dict()
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = (
            f"{path.name}: holds more than weights, and is not unpickled, because that runs code; "
            "save the network's state_dict instead"
        )
        raise BundleError(msg) from error
    except Exception as error:  # torch raises whatever its reader raises
        msg = f"{path.name}: can't be read as weights: {_short(error)}"
        raise BundleError(msg) from error


def _state(found: Any, key: str, module: torch.nn.Module) -> Any:
    """The network's state dict in a file's content; what comes nearest where none fits."""
    if not isinstance(found, Mapping):
        return found
    inside = (found.get(name) for name in (key, "model", "state_dict"))
    named = [state for state in inside if isinstance(state, Mapping)]
    for state in (*named, found):
        fitting = _fitting(state, module)
        if fitting is not None:
            return fitting
    others = [_fitting(state, module) for state in found.values()]
    fits = [one for one in others if one is not None]
    if len(fits) == 1:  # of two, one may be a moving average: nobody could say which is meant
        return fits[0]
    return named[0] if named else found


def _fitting(state: Any, module: torch.nn.Module) -> Any:
    """All of the network's weights out of a state dict; None where they aren't in it.

    Training frameworks keep the network in a module of theirs and put its name before each
    weight's: `module.`, `net.`, `_orig_mod.`.
    """
    own = list(module.state_dict())
    if not own or not isinstance(state, Mapping):
        return None
    if all(name in state for name in own):
        return state
    before = {str(name)[: -len(own[0])] for name in state if str(name).endswith(own[0])}
    fits = [prefix for prefix in before if all(f"{prefix}{name}" in state for name in own)]
    if len(fits) != 1:
        return None
    return {name: state[f"{fits[0]}{name}"] for name in own}


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
