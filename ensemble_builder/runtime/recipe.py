"""A bundle's config, made ready to run inside Triton: the steps without their file I/O.

`recipe.json` beside each generated `model.py` says which bundle config to read and what the
builder found in it; `BundleConfig` instantiates the parts. Only `preprocessing`,
`inferer`, the network and `postprocessing` are ever instantiated: never handlers, datasets,
evaluators or checkpoint loaders.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from ensemble_builder.errors import BundleError
from ensemble_builder.version import BUILDER_VERSION, compatible

RECIPE_FILE = "recipe.json"
READERS = ("LoadImage", "LoadImaged", "LoadImageD", "LoadImageDict")
WRITERS = ("SaveImage", "SaveImaged", "SaveImageD", "SaveImageDict")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the builder found in a bundle and the runtime needs to know.

    Attributes:
        config: Path of the config inside the bundle, such as configs/inference.json.
        image_key: Key of the one input in the preprocessing's dictionary.
        pred_key: Key of the prediction in the postprocessing's dictionary.
        network_id: Config id of the network; its weights lie in `weights`.
        weights: Path of the state dict inside the bundle.
        runtime: torch, openvino, or auto (OpenVINO on a CPU, torch on a GPU).
        amp: The bundle's evaluator asks for mixed precision (on CUDA only, as MONAI does).
    """

    builder_version: str
    config: str
    image_key: str
    pred_key: str
    network_id: str
    weights: str
    runtime: str
    amp: bool

    def to_json(self) -> str:
        """The recipe as it lies beside model.py."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @staticmethod
    def load(version_folder: Path) -> Recipe:
        """Reads the recipe beside a model.py.

        Raises:
            BundleError: it was written by a builder that this runtime doesn't understand.
        """
        raw = json.loads((version_folder / RECIPE_FILE).read_text(encoding="utf-8"))
        built_with = str(raw.get("builder_version"))
        if not compatible(built_with):
            msg = (
                f"this repository was built by tritome {built_with} and can't be served by "
                f"{BUILDER_VERSION}: build it again with `tritome build`"
            )
            raise BundleError(msg)
        return Recipe(**raw)


class BundleConfig:
    """One bundle's config, parsed; gives the parts that are served.

    A bundle is code: parsing it runs the expressions in it.
    """

    def __init__(self, bundle: Path, config: str, device: torch.device) -> None:
        if (bundle / "scripts").is_dir() and str(bundle) not in sys.path:
            sys.path.insert(0, str(bundle))  # one process serves one bundle, names can't clash
        self._parser = ConfigParser()
        self._parser.read_config(str(bundle / config))
        self._parser["bundle_root"] = str(bundle)
        self._parser["device"] = f"$__import__('torch').device('{device}')"
        for place, item in list(_components(self._parser.config)):
            name = str(item["_target_"]).rsplit(".", 1)[-1]
            if name in READERS:
                self._parser[place] = _without_reading(item)
            elif name in WRITERS:
                keys = item.get("keys", "pred")
                self._parser[place] = {"_target_": "monai.transforms.Identityd", "keys": keys}
        self._parser.parse()
        self._raw: dict[str, Any] = dict(self._parser.config)

    def has(self, name: str) -> bool:
        """True when the config has this top-level key."""
        return name in self._raw

    def raw(self, name: str, default: Any) -> Any:
        """A top-level key as it is written, nothing instantiated."""
        return self._raw.get(name, default)

    def preprocessing(self) -> Compose:
        """The preprocessing without its reader; also the recipe for its own inverse."""
        return self._compose("preprocessing")

    def postprocessing(self) -> Compose:
        """The postprocessing without its writer, in the bundle's own order."""
        return self._compose("postprocessing")

    def inferer(self) -> Any:
        """The bundle's inferer, such as a SlidingWindowInferer."""
        return self._parser.get_parsed_content("inferer")

    def network(self, network_id: str) -> torch.nn.Module:
        """The network, on the device, in eval mode, without weights."""
        network = cast(torch.nn.Module, self._parser.get_parsed_content(network_id))
        return network.eval()

    def _compose(self, name: str) -> Compose:
        found = self._parser.get_parsed_content(name)
        if isinstance(found, list | tuple):
            found = Compose(found)
        if not isinstance(found, Compose):
            msg = f"{name}: is a {type(found).__name__}, expected a Compose of transforms"
            raise BundleError(msg)
        return found


def _components(config: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All `_target_` items of a raw config with their ConfigParser ids."""
    if isinstance(config, dict):
        if isinstance(config.get("_target_"), str):
            yield place, config
        children: Any = config.items()
    elif isinstance(config, list):
        children = enumerate(config)
    else:
        return
    for key, child in children:
        yield from _components(child, f"{place}::{key}" if place else str(key))


def _without_reading(reader: dict[str, Any]) -> dict[str, Any]:
    """What is left of a LoadImaged when the image is already in memory.

    Replaced before anything is instantiated: an ITKReader needs itk only to be constructed.
    """
    if reader.get("ensure_channel_first") is True:
        return {"_target_": "monai.transforms.EnsureChannelFirstd", "keys": reader["keys"]}
    return {"_target_": "monai.transforms.Identityd", "keys": reader["keys"]}
