"""The `<name>_postprocess` model: Y, TRACE, TRACE_AFFINE -> MASK on the input's grid.

Runs the bundle's own postprocessing in its own order; `Invertd` finds the operations that
the preprocess model recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import SpaceKeys

from ensemble_builder.runtime.recipe import BundleConfig, Recipe
from ensemble_builder.runtime.tensors import (
    answer,
    instance_device,
    read,
    read_text,
    tensor_output,
)
from ensemble_builder.runtime.trace import TraceError, decode_trace
from ensemble_builder.runtime.volumes import InputError, label_map


class Postprocess:
    """Triton's python model interface (initialize, execute)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Parses the bundle: its postprocessing, and the preprocessing as inverse recipe."""
        version_folder = Path(args["model_repository"]) / args["model_version"]
        self._recipe = Recipe.load(version_folder)
        self._device = instance_device(args)
        bundle = BundleConfig(version_folder / "bundle", self._recipe.config, self._device)
        self._transforms = bundle.postprocessing()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [answer(request, self._compute) for request in requests]

    def _compute(self, request: Any) -> list[Any]:
        y = read(request, "Y", self._device)
        try:
            operations = decode_trace(read_text(request, "TRACE"))
        except TraceError as error:
            raise InputError(str(error)) from error
        affine = read(request, "TRACE_AFFINE", torch.device("cpu"))
        # Invertd reads only the operations and the affine of the image, never its voxels.
        meta = {"affine": affine, "space": SpaceKeys.RAS}
        image = MetaTensor(torch.empty(0), meta=meta, applied_operations=operations)
        # It inverts a MetaTensor; a plain tensor it would only warn about and pass through.
        pred = MetaTensor(y, meta=meta)
        done = self._transforms({self._recipe.image_key: image, self._recipe.pred_key: pred})
        return [tensor_output("MASK", label_map(done[self._recipe.pred_key]))]
