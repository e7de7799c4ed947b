"""The `<name>_preprocess` model: what a request brings -> X, TRACE and whatever is carried.

Takes stored pixel values as DICOM orders them, photographs, clicks, and gives the network's
input, through the bundle's own MONAI transforms, on the device.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ensemble_builder.runtime.forward import preprocess
from ensemble_builder.runtime.heap import KeptMemory
from ensemble_builder.runtime.loading import (
    extra_name,
    input_affine,
    network_input,
    root_cause,
)
from ensemble_builder.runtime.placing import InputGrid
from ensemble_builder.runtime.recipe import BUNDLE_FOLDER, Recipe
from ensemble_builder.runtime.state import encode_state, state_of
from ensemble_builder.runtime.tensors import (
    answer,
    instance_device,
    read,
    tensor_output,
    text_output,
)
from ensemble_builder.runtime.volumes import InputError
from ensemble_builder.samples import sample

_log = logging.getLogger(__name__)


class Preprocess:
    """Triton's python model interface (initialize, execute)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Parses the bundle and builds its preprocessing once."""
        version_folder = Path(args["model_repository"]) / args["model_version"]
        self._recipe = Recipe.load(version_folder)
        self._device = instance_device(args)
        bundle = self._recipe.open(version_folder / BUNDLE_FOLDER, self._device)
        self._transforms = bundle.preprocessing()
        self._memory = KeptMemory()
        self._warm_up()

    def _warm_up(self) -> None:
        """One generated input goes through, so that the first study needn't wait for imports."""
        request = sample(self._recipe.inputs)
        try:
            with torch.inference_mode():
                preprocess(
                    self._transforms,
                    self._recipe.inputs,
                    lambda name, device: torch.from_numpy(request[name]).to(device),
                    self._device,
                )
        except Exception as error:  # noqa: BLE001 - a bundle may want another size; it will say so
            _log.info("the warm-up didn't go through: %s", root_cause(error))

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        with self._memory:
            return [answer(request, self._compute) for request in requests]

    def _compute(self, request: Any) -> list[Any]:
        recipe = self._recipe

        def tensor(name: str, device: torch.device) -> torch.Tensor:
            return read(request, name, device)

        try:
            done, shape = preprocess(self._transforms, recipe.inputs, tensor, self._device)
        except InputError:
            raise
        except Exception as error:
            raise _as_input_error(error) from error
        x = network_input(recipe.network_key, done)
        affine = input_affine(recipe.inputs, tensor)
        outputs = [
            tensor_output("X", x),
            text_output("TRACE", encode_state(state_of(done, InputGrid(shape, affine)))),
        ]
        for key in recipe.extra_keys():
            outputs.append(tensor_output(extra_name(key), torch.as_tensor(done[key])))
        for one in recipe.carried:
            if one.tensor != "X":  # which is there already
                outputs.append(tensor_output(one.tensor, torch.as_tensor(done[one.key])))
        return outputs


def _as_input_error(error: Exception) -> Exception:
    """Values that a bundle's transform can't take are the request's fault; the rest is ours."""
    cause = root_cause(error)
    if isinstance(cause, ValueError | IndexError):
        sentence = " ".join(str(cause).split())[:200]
        return InputError(f"the bundle's preprocessing can't take this input: {sentence}")
    return error
