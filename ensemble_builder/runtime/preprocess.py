"""The `<name>_preprocess` model: IMAGE, RESCALE, AFFINE -> X, TRACE, TRACE_AFFINE.

Takes stored pixel values as DICOM orders them and gives the network's input, through the
bundle's own MONAI transforms, on the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ensemble_builder.runtime.recipe import BundleConfig, Recipe
from ensemble_builder.runtime.tensors import (
    answer,
    instance_device,
    read,
    tensor_output,
    text_output,
)
from ensemble_builder.runtime.trace import encode_trace
from ensemble_builder.runtime.volumes import monai_image


class Preprocess:
    """Triton's python model interface (initialize, execute)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Parses the bundle and builds its preprocessing once."""
        version_folder = Path(args["model_repository"]) / args["model_version"]
        self._recipe = Recipe.load(version_folder)
        self._device = instance_device(args)
        bundle = BundleConfig(version_folder / "bundle", self._recipe.config, self._device)
        self._transforms = bundle.preprocessing()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [answer(request, self._compute) for request in requests]

    def _compute(self, request: Any) -> list[Any]:
        stored = read(request, "IMAGE", self._device)
        rescale = read(request, "RESCALE", torch.device("cpu"))
        affine = read(request, "AFFINE", torch.device("cpu"))
        image = monai_image(stored, rescale, affine)
        key = self._recipe.image_key
        x = self._transforms({key: image})[key]
        if getattr(x, "pending_operations", None):
            msg = "the preprocessing leaves lazy operations pending, which can't be inverted"
            raise RuntimeError(msg)
        return [
            tensor_output("X", x.to(torch.float32)),
            text_output("TRACE", encode_trace(x.applied_operations)),
            tensor_output("TRACE_AFFINE", x.affine.to(torch.float64).cpu()),
        ]
