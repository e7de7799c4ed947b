"""What computes one batch of windows: one file per runtime, one small Protocol.

`load_network` fills the network and picks the runtime. A conversion is used only where it
agrees with eager torch on this very machine; otherwise eager runs, and the log says so.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.networks.choose import LoadedNetwork, choose_network
from ensemble_builder.runtime.networks.eager import EagerNetwork
from ensemble_builder.runtime.networks.examples import example_windows
from ensemble_builder.runtime.networks.protocol import (
    PRECISIONS,
    RUNTIMES,
    Network,
    NetworkOptions,
)
from ensemble_builder.runtime.recipe import Recipe
from ensemble_builder.runtime.weights import network_with_weights
from ensemble_builder.runtime.window_plan import is_windowed

__all__ = [
    "PRECISIONS",
    "RUNTIMES",
    "LoadedNetwork",
    "Network",
    "NetworkOptions",
    "choose_network",
    "example_windows",
    "load_network",
    "network_options",
]

_log = logging.getLogger(__name__)


def load_network(
    bundle: BundleConfig,
    recipe: Recipe,
    bundle_folder: Path,
    device: torch.device,
    most_windows: int | None = None,
) -> LoadedNetwork:
    """The network with its weights, in the runtime that the recipe names.

    Args:
        bundle: Parsed for the device.
        recipe: What the builder found.
        bundle_folder: The bundle's root.
        device: Where windows will be.
        most_windows: Largest batch; what the bundle's inferer asks for where not given.

    Raises:
        BundleError: weights that don't load or don't fit, or a network that gives something
            other than one tensor.
    """
    module = network_with_weights(bundle, recipe.network_id, recipe.weights, bundle_folder)
    options = network_options(recipe, bundle.inferer(), most_windows)
    if recipe.needs_eager:
        if options.precision != "f32":
            _log.warning("eager torch computes this network in f32: it takes several tensors")
        plain = NetworkOptions("torch", amp=recipe.amp)
        return LoadedNetwork(EagerNetwork(module.to(device), device, plain), "torch", "f32")
    return choose_network(module, example_windows(recipe.window), device, options)


def network_options(
    recipe: Recipe, inferer: Any, most_windows: int | None = None
) -> NetworkOptions:
    """What a network is loaded for: the recipe's words, and what its inferer will ask for."""
    roi = getattr(inferer, "roi_size", None)
    sizes = [roi] if isinstance(roi, int) else list(roi or [])
    # Without a window of its own the inferer hands on whatever the preprocessing gives.
    fixed = bool(sizes) and all(int(size) > 0 for size in sizes)
    batch = getattr(inferer, "sw_batch_size", None) or getattr(inferer, "batch_size", None) or 1
    return NetworkOptions(
        runtime=recipe.runtime,
        precision=recipe.precision,
        amp=recipe.amp,
        most_windows=most_windows or int(batch),
        many_windows=is_windowed(inferer),
        free_axes=() if fixed else tuple(range(len(recipe.window) - 1)),
    )
