"""The `<name>_inferer` model: X -> Y, the network under the bundle's own inferer.

The sliding window runs in this process; `networks/` decides what computes each window.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from ensemble_builder.runtime.networks import load_network
from ensemble_builder.runtime.recipe import BundleConfig, Recipe
from ensemble_builder.runtime.tensors import answer, instance_device, read, tensor_output


class Inferer:
    """Triton's python model interface (initialize, execute)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads weights and compiles the network for the device."""
        version_folder = Path(args["model_repository"]) / args["model_version"]
        recipe = Recipe.load(version_folder)
        self._device = instance_device(args)
        bundle = BundleConfig(version_folder / "bundle", recipe.config, self._device)
        self._inferer = bundle.inferer()
        self._network = load_network(bundle, recipe, version_folder / "bundle", self._device)
        self._amp = recipe.amp and self._device.type == "cuda"

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [answer(request, self._compute) for request in requests]

    def _compute(self, request: Any) -> list[Any]:
        x = read(request, "X", self._device)
        amp = torch.autocast("cuda") if self._amp else contextlib.nullcontext()
        with amp:
            y = self._inferer(inputs=x[None], network=self._network)
        return [tensor_output("Y", y[0].to(torch.float32))]
