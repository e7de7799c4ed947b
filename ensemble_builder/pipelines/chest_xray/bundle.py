"""The chest radiograph bundle in one process: pixels to scores.

In: one image. Out: a score for each finding, as `monai.bundle run` computes them, but from an
array instead of a file. Training, measurements and tests use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, SaveClassificationd
from numpy.typing import NDArray

from ensemble_builder.pipelines.training.inference import read_config

BUNDLE_ROOT = Path(__file__).parent

_IO = ("LoadImaged", "SaveClassificationd")


def prepared(preprocessing: Compose, pixels: NDArray[Any]) -> torch.Tensor:
    """What the network takes of one image.

    Args:
        preprocessing: The bundle's, without its reader.
        pixels: [J, I], bone bright, any range of values.

    Returns:
        float32 [1, I, J], as MONAI orders the axes.
    """
    array = torch.from_numpy(np.ascontiguousarray(pixels.T).astype(np.float32))
    image = MetaTensor(array, affine=torch.eye(4, dtype=torch.float64))
    image.meta["original_channel_dim"] = "no_channel"
    return torch.as_tensor(preprocessing({"image": image})["image"]).as_subclass(torch.Tensor)


def without_io(bundle_root: Path, place: str) -> Compose:
    """The bundle's preprocessing or postprocessing without what reads and writes files."""
    parser = read_config(bundle_root)
    for step in parser[place]["transforms"]:
        if step["_target_"] in _IO:
            step["_disabled_"] = True
    steps: Compose = parser.get_parsed_content(place)
    left = [t for t in steps.transforms if not isinstance(t, LoadImaged | SaveClassificationd)]
    steps.transforms = tuple(left)
    return steps


class ChestXrayBundle:
    """Gives float32 [n]: a score from 0 to 1 for each of `phantoms.radiograph.FINDINGS`."""

    def __init__(self, bundle_root: Path = BUNDLE_ROOT, weights: Path | None = None) -> None:
        self.preprocessing = without_io(bundle_root, "preprocessing")
        self._postprocessing = without_io(bundle_root, "postprocessing")
        self._network: torch.nn.Module = read_config(bundle_root).get_parsed_content("network_def")
        state = torch.load(
            weights or bundle_root / "models" / "model.pt", map_location="cpu", weights_only=True
        )
        self._network.load_state_dict(state)
        self._network.eval()

    def scores(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Scores one image [J, I], bone bright."""
        with torch.inference_mode():
            pred = self._network(prepared(self.preprocessing, pixels)[None])[0]
            done = self._postprocessing({"pred": MetaTensor(pred)})["pred"]
        return np.asarray(done, dtype=np.float32)
