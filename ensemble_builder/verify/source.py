"""What is compared: a bundle with its recipe, and a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import triton_to_np_dtype

from ensemble_builder.bundle import Bundle
from ensemble_builder.errors import ParityError
from ensemble_builder.plan import input_tensors
from ensemble_builder.repository import served_version, versions_of
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.runtime.recipe import BUNDLE_FOLDER, RECIPE_FILE, Recipe

Request = Mapping[str, NDArray[Any]]
"""Triton tensor name -> array."""


def fitting(request: Request, inputs: Sequence[Input], who: str) -> Request:
    """A person's request in the datatypes that a pipeline takes.

    Args:
        request: As it was given.
        inputs: What the pipeline takes.
        who: Its name, for the sentence.

    Raises:
        ParityError: the pipeline takes something else than was given.
    """
    wanted = {tensor.name: tensor for one in inputs for tensor in input_tensors(one)}
    if set(request) != set(wanted) or any(
        value.ndim != len(wanted[name].dims) for name, value in request.items()
    ):
        kinds = ", ".join(f"{one.key} ({one.layout})" for one in inputs)
        msg = (
            f"--input is one volume, and '{who}' takes {kinds}; leave --input away, and what it "
            "takes is generated"
        )
        raise ParityError(msg)
    return {
        name: value.astype(triton_to_np_dtype(wanted[name].datatype), copy=False)
        for name, value in request.items()
    }


@dataclass(frozen=True, slots=True)
class Source:
    """A bundle as it was built: MONAI reads the same files with the same recipe."""

    recipe: Recipe
    folder: Path

    @staticmethod
    def of(bundle: Bundle) -> Source:
        """A bundle that was read."""
        return Source(bundle.recipe, bundle.folder)

    @staticmethod
    def in_repository(repository: Path, pipeline: str, version: int | None = None) -> Source:
        """A pipeline in a model repository, by its inferer, which has the weights.

        Raises:
            ParityError: there is no such pipeline of one bundle.
        """
        model = repository / f"{pipeline}_inferer"
        if version is None and versions_of(model):
            version = served_version(model)
        folder = model / str(version)
        if not (folder / RECIPE_FILE).is_file():
            msg = (
                f"{repository} has no pipeline '{pipeline}' that was built from a bundle; "
                "`tritome build` writes one"
            )
            raise ParityError(msg)
        return Source(Recipe.load(folder), folder / BUNDLE_FOLDER)


@dataclass(frozen=True, slots=True)
class StoredVolume:
    """One volume as the contract wants it.

    Attributes:
        image: int16 [K, J, I], stored pixel values.
        rescale: float64 [K, 2], slope and intercept per slice.
        affine_lps: float64 [4, 4], (i, j, k, 1) -> LPS millimetres.
    """

    image: NDArray[np.int16]
    rescale: NDArray[np.float64]
    affine_lps: NDArray[np.float64]

    def request(self) -> dict[str, NDArray[Any]]:
        """The tensors of a pipeline of one volume."""
        return {"IMAGE": self.image, "RESCALE": self.rescale, "AFFINE": self.affine_lps}
