"""The `<name>_network` model: WINDOWS -> PREDICTION, the network alone.

The optional fourth model of a bundle. Inferers ask it for their windows; Triton merges what
waits into batches, also windows of different studies, and hands them over together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.networks import load_network
from ensemble_builder.runtime.networks.protocol import Network as _Network
from ensemble_builder.runtime.recipe import BUNDLE_FOLDER, Recipe
from ensemble_builder.runtime.tensors import answer, instance_device, read, say, tensor_output


class Network:
    """Triton's python model interface (initialize, execute)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads weights and compiles the network for the device.

        Raises:
            BundleError: the bundle's recipe knows of no such model.
        """
        version_folder = Path(args["model_repository"]) / args["model_version"]
        recipe = Recipe.load(version_folder)
        if recipe.network_model is None:
            msg = "recipe: names no model for the network; build the bundle again"
            raise BundleError(msg)
        self._model = recipe.network_model
        self._device = instance_device(args)
        folder = version_folder / BUNDLE_FOLDER
        bundle = recipe.open(folder, self._device)
        self._network = load_network(bundle, recipe, folder, self._device, self._model.most_windows)
        say(args, self._network)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request; the network runs once for all of them."""
        live = [request for request in requests if not request.is_cancelled()]
        batch = _Batch(live, self._windows, self._network)
        return [answer(request, lambda one: self._part(batch, one)) for request in requests]

    def _windows(self, request: Any) -> torch.Tensor:
        return read(request, self._model.input, self._device)

    def _part(self, batch: _Batch, request: Any) -> list[Any]:
        return [tensor_output(self._model.output, batch.part(request).to(torch.float32))]


class _Batch:
    """Several requests computed together, at the first of them that asks."""

    def __init__(self, requests: list[Any], windows: Any, network: _Network) -> None:
        self._requests = requests
        self._windows = windows
        self._network = network
        self._parts: tuple[torch.Tensor, ...] = ()
        self._error: Exception | None = None

    def part(self, request: Any) -> torch.Tensor:
        """One request's predictions; an error of the whole batch is an error of each of it."""
        if self._error is not None:
            raise self._error
        if not self._parts:
            try:
                several = [self._windows(one) for one in self._requests]
                joined = several[0] if len(several) == 1 else torch.cat(several)
                counts = [one.shape[0] for one in several]
                self._parts = torch.split(self._network(joined), counts)
            except Exception as error:  # answer() finds the words for it, for each request
                self._error = error
                raise
        at = next(n for n, one in enumerate(self._requests) if one is request)
        return self._parts[at]
