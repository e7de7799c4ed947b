"""The `<name>_inferer` model: X -> Y, the network under the bundle's own inferer.

The sliding window runs in this process; `networks/` decides what computes each window, unless
the network is a Triton model of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ensemble_builder.errors import Cancelled
from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.fusion import split
from ensemble_builder.runtime.heap import give_back
from ensemble_builder.runtime.loading import extra_name
from ensemble_builder.runtime.networks import LoadedNetwork, example_windows, load_network
from ensemble_builder.runtime.networks.triton import TritonNetwork
from ensemble_builder.runtime.recipe import BUNDLE_FOLDER, Recipe
from ensemble_builder.runtime.tensors import answer, instance_device, read, say, tensor_output
from ensemble_builder.runtime.turns import Turn
from ensemble_builder.runtime.window_slab import Reduce
from ensemble_builder.runtime.windows import sliding_window

_NICENESS = 10
"""On a CPU the network takes all cores for as long as it lasts. Whoever has little to do (an
instance that arrives, another study's preprocessing, a result) goes first, and the network
loses no more than that little; without, an instance waits for its turn again and again."""


class Inferer:
    """Triton's python model interface (initialize, execute)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads weights and compiles the network for the device."""
        version_folder = Path(args["model_repository"]) / args["model_version"]
        self._recipe = Recipe.load(version_folder)
        self._device = instance_device(args)
        if self._device.type == "cpu":
            # Inherited by all threads that compute.
            os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
        folder = version_folder / BUNDLE_FOLDER
        bundle = self._recipe.open(folder, self._device)
        self._inferer = bundle.inferer()
        self._network = self._choose(bundle, folder)
        self._reduce = self._reduction(bundle)
        self._amp = self._recipe.amp and self._device.type == "cuda"
        own = self._recipe.network_model
        network = self._network
        self._windows = network.network if isinstance(network, LoadedNetwork) else network
        say(args, f"asks {own.name} for its windows" if own else self._network)
        # Not where another model computes: none can be called before this one is loaded.
        if self._device.type == "cuda" and not self._recipe.needs_eager and own is None:
            with torch.inference_mode():  # cuDNN chooses its algorithms now, not for a patient
                self._network(example_windows(self._recipe.window).to(self._device))
        del bundle
        give_back()

    def _choose(self, bundle: BundleConfig, folder: Path) -> Callable[..., torch.Tensor]:
        if self._recipe.network_model is None:
            return load_network(bundle, self._recipe, folder, self._device)
        batch = int(getattr(self._inferer, "sw_batch_size", 1))
        return TritonNetwork(self._recipe.network_model, self._device, batch)

    def _reduction(self, bundle: BundleConfig) -> Reduce | None:
        """What of the postprocessing this step does already."""
        recipe = self._recipe
        if not recipe.y_channels:
            return None
        return split(bundle.postprocessing(), recipe.pred_key, recipe.y_channels).reduce

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [answer(request, self._compute) for request in requests]

    def _compute(self, request: Any) -> list[Any]:
        recipe = self._recipe
        x = read(request, "X", self._device)

        def extra(key: str) -> torch.Tensor:
            return read(request, extra_name(key), self._device)[None]

        args = [extra(key) for key in recipe.network_args]
        kwargs = {name: extra(key) for name, key in recipe.network_kwargs.items()}
        amp = torch.autocast("cuda") if self._amp else contextlib.nullcontext()
        turn = Turn(request)
        with amp:
            if args or kwargs:
                if turn():
                    msg = "nobody waits for this request any more"
                    raise Cancelled(msg)
                y = self._inferer(x[None], self._network, *args, **kwargs)[0]
                y = y if self._reduce is None else self._reduce(y)
            else:
                y = sliding_window(self._inferer, x[None], self._windows, self._reduce, turn)[0]
        return [tensor_output("Y", y if self._reduce is not None else y.to(torch.float32))]
