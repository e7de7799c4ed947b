"""The recipe: what the builder found in a bundle and the models in Triton need to know.

It lies as `recipe.json` beside each generated `model.py`, the same file for all models of a
bundle. Everything in it comes from the builder; nothing from a request reaches it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch

from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.version import BUILDER_VERSION, compatible

RECIPE_FILE = "recipe.json"
BUNDLE_FOLDER = "bundle"
"""The bundle's configs, scripts and weights, beside the recipe."""

OutputKind = Literal["labelmap", "masks", "scores", "image"]


@dataclass(frozen=True, slots=True)
class Output:
    """One result.

    Attributes:
        key: Its key in the postprocessing's dictionary.
        datatype: Triton's word.
        dims: Of the tensor, -1 is any.
        on_input_grid: The result's voxels are those of the first image.
        cut: Labels that aren't whole are cut, as the bundle's writer would; otherwise rounded.
        has_affine: The bundle's result still says where it lies; otherwise its shape must do.
    """

    key: str
    tensor: str
    kind: OutputKind
    datatype: str
    dims: tuple[int, ...]
    on_input_grid: bool = True
    cut: bool = False
    has_affine: bool = True


@dataclass(frozen=True, slots=True)
class Carried:
    """A tensor of the preprocessing's that the postprocessing reads: an edge of the ensemble."""

    key: str
    tensor: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the weights are and how MONAI's CheckpointLoader would take them.

    Attributes:
        path: Inside the bundle; empty for random ones.
        key: Of the network's state in the checkpoint.
        strict: Every weight must be there and no other.
        seed: Of random weights; None where there is a file.
    """

    path: str
    key: str = "model"
    strict: bool = True
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class NetworkModel:
    """A Triton model of its own for the network, which the inferer asks for its windows.

    Attributes:
        name: Of the model, such as lung_ct_network.
        backend: Triton's backend that runs it.
        input: Name of its input, float32 [N, C, *roi].
        output: Name of its output, float32 [N, C_out, *roi] or [N, n].
        most_windows: Largest N.
        input_dims: [C, *roi], -1 where sizes vary.
        output_dims: The same of the output.
        example_dims: [C, *roi] of one window that may come.
    """

    name: str
    backend: str
    input: str
    output: str
    most_windows: int
    input_dims: tuple[int, ...]
    output_dims: tuple[int, ...]
    example_dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything the three models of a bundle need besides the bundle itself.

    Attributes:
        configs: Config files inside the bundle, later ones win.
        overrides: Config ids and what was put there with --set.
        network_key: Key of the network's input after the preprocessing.
        network_args: Further keys given to the network, in order.
        network_kwargs: Keyword of the network -> key.
        carried: What the postprocessing needs of the preprocessing besides the trace.
        window: [C, *spatial] of one network call, as the builder saw it.
        runtime: What computes the network.
        amp: The bundle's evaluator asks for mixed precision (on CUDA only, as MONAI does).
        network_model: The model that computes the network; None where the inferer does.
        y_channels: Channels of the network's output where the inferer step makes labels of
            them already (`fusion.split`); 0 where Y is the network's output.
    """

    builder_version: str
    configs: tuple[str, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    network_id: str
    network_key: str
    pred_key: str
    weights: Weights
    window: tuple[int, ...]
    runtime: str = "auto"
    precision: str = "f32"
    amp: bool = False
    network_args: tuple[str, ...] = ()
    network_kwargs: Mapping[str, str] = field(default_factory=dict)
    carried: tuple[Carried, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    network_model: NetworkModel | None = None
    y_channels: int = 0

    def open(self, bundle: Path, device: torch.device) -> BundleConfig:
        """The bundle's config as the builder read it."""
        return BundleConfig(bundle, self.configs, device, self.overrides)

    @property
    def needs_eager(self) -> bool:
        """True where the network gets more than one tensor, so nothing converts it."""
        return bool(self.network_args or self.network_kwargs)

    def extra_keys(self) -> tuple[str, ...]:
        """Keys that reach the network besides its input."""
        return (*self.network_args, *self.network_kwargs.values())

    def to_json(self) -> str:
        """The recipe as it lies beside model.py."""
        raw = asdict(self)
        for one in raw["inputs"]:
            if one["datatype"] == "INT16":  # as recipes were before there was a choice
                del one["datatype"]
        for one in raw["outputs"]:
            if one["has_affine"]:  # likewise
                del one["has_affine"]
        return json.dumps(raw, indent=2, sort_keys=True) + "\n"

    @staticmethod
    def load(version_folder: Path) -> Recipe:
        """Reads the recipe beside a model.py.

        Raises:
            BundleError: it was written by a builder that this runtime doesn't understand.
        """
        raw = json.loads((version_folder / RECIPE_FILE).read_text(encoding="utf-8"))
        built_with = str(raw.get("builder_version"))
        if not compatible(built_with) or set(raw) != {one.name for one in fields(Recipe)}:
            msg = (
                f"this repository was built by tritome {built_with} and can't be served by "
                f"{BUILDER_VERSION}: build it again with `tritome build`"
            )
            raise BundleError(msg)
        return Recipe(
            **{
                **raw,
                "configs": tuple(raw["configs"]),
                "inputs": tuple(Input(**one) for one in raw["inputs"]),
                "outputs": tuple(_with_dims(Output, one) for one in raw["outputs"]),
                "carried": tuple(_with_dims(Carried, one) for one in raw["carried"]),
                "weights": Weights(**raw["weights"]),
                "window": tuple(raw["window"]),
                "network_args": tuple(raw["network_args"]),
                "network_model": _network_model(raw["network_model"]),
            }
        )


def _network_model(raw: dict[str, Any] | None) -> NetworkModel | None:
    if raw is None:
        return None
    dims = ("input_dims", "output_dims", "example_dims")
    return NetworkModel(**{**raw, **{name: tuple(raw[name]) for name in dims}})


def _with_dims(kind: Any, raw: dict[str, Any]) -> Any:
    return kind(**{**raw, "dims": tuple(raw["dims"])})
