"""The `<name>_postprocess` model: Y and TRACE -> the contract's outputs.

Runs the bundle's own postprocessing in its own order; `Invertd` finds the operations that
the preprocess model recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ensemble_builder.runtime.fusion import run, split
from ensemble_builder.runtime.heap import KeptMemory
from ensemble_builder.runtime.recipe import BUNDLE_FOLDER, Recipe
from ensemble_builder.runtime.recording import warm_up
from ensemble_builder.runtime.results import result
from ensemble_builder.runtime.state import decode_state, dictionary_of
from ensemble_builder.runtime.tensors import (
    answer,
    instance_device,
    read,
    read_text,
    tensor_output,
)
from ensemble_builder.runtime.trace import TraceError
from ensemble_builder.runtime.volumes import InputError


class Postprocess:
    """Triton's python model interface (initialize, execute)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Parses the bundle: its postprocessing, and the preprocessing as inverse recipe."""
        version_folder = Path(args["model_repository"]) / args["model_version"]
        self._recipe = Recipe.load(version_folder)
        self._device = instance_device(args)
        bundle = self._recipe.open(version_folder / BUNDLE_FOLDER, self._device)
        self._transforms = bundle.postprocessing()
        self._memory = KeptMemory()
        warm_up()
        recipe = self._recipe
        if recipe.y_channels:  # the inferer step has done a part of it
            self._transforms = split(self._transforms, recipe.pred_key, recipe.y_channels).rest

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        with self._memory:
            return [answer(request, self._compute) for request in requests]

    def _compute(self, request: Any) -> list[Any]:
        y = read(request, "Y", self._device)
        try:
            state = decode_state(read_text(request, "TRACE"))
        except TraceError as error:
            raise InputError(str(error)) from error
        carried = {one.key: read(request, one.tensor, self._device) for one in self._recipe.carried}
        recipe = self._recipe
        data = dictionary_of(recipe.network_key, recipe.pred_key, state, y, carried)
        done = run(self._transforms, data, recipe.pred_key)
        return [
            tensor_output(one.tensor, result(done[one.key], one, state.grid))
            for one in recipe.outputs
        ]
