"""A bundle as Python sees it: its parsed configuration and its whole pipeline in one process.

In: the bundle's folder. Out: HU to labels exactly as `monai.bundle run` computes them, but from an
array instead of a file. The served ensemble is compared with this.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, SaveImaged
from numpy.typing import NDArray


def read_config(bundle_root: Path, name: str = "inference") -> ConfigParser:
    """Parse `configs/<name>.json` with the bundle's own folder as root."""
    parser = ConfigParser()
    parser.read_config(str(bundle_root / "configs" / f"{name}.json"))
    parser["bundle_root"] = os.fspath(bundle_root)
    return parser


class InProcess:
    """Preprocessing, network, inferer and postprocessing of inference.json, without file I/O."""

    def __init__(self, bundle_root: Path, weights: Path | None = None) -> None:
        """Load the bundle.

        Args:
            bundle_root: folder with `configs` and `models`.
            weights: a state dict to use in place of `models/model.pt`.
        """
        parser = read_config(bundle_root)
        for step in parser["preprocessing"]["transforms"]:
            if step["_target_"] == "LoadImaged":
                # Its reader may not be installed, and the array is already here.
                step["_disabled_"] = True
        for step in parser["postprocessing"]["transforms"]:
            if step["_target_"] == "SaveImaged":
                step["_disabled_"] = True
        parser["device"] = "$torch.device('cpu')"
        self.preprocessing = self._without(parser.get_parsed_content("preprocessing"))
        self.network = parser.get_parsed_content("network_def")
        self.inferer = parser.get_parsed_content("inferer")
        self.postprocessing = self._without(parser.get_parsed_content("postprocessing"))
        state = torch.load(
            weights or bundle_root / "models" / "model.pt", map_location="cpu", weights_only=True
        )
        self.network.load_state_dict(state)
        self.network.eval()

    @staticmethod
    def _without(steps: Compose) -> Compose:
        left = [t for t in steps.transforms if not isinstance(t, LoadImaged | SaveImaged)]
        steps.transforms = tuple(left)
        return steps

    def labels(self, hu: NDArray[np.int16], affine_lps: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Segment one volume.

        Args:
            hu: int16 [K, J, I], Hounsfield units.
            affine_lps: float64 [4, 4], (i, j, k, 1) to LPS mm.

        Returns:
            uint8 [K, J, I]: 0 background, then the bundle's own labels.
        """
        affine_ras = np.diag((-1.0, -1.0, 1.0, 1.0)) @ affine_lps
        array = torch.from_numpy(np.ascontiguousarray(hu.transpose(2, 1, 0))).float()
        image = MetaTensor(array, affine=torch.from_numpy(affine_ras))
        image.meta["original_channel_dim"] = "no_channel"
        data: dict[str, Any] = {"image": image}
        data = self.preprocessing(data)
        with torch.no_grad():
            pred = self.inferer(data["image"][None], self.network)[0]
        data["pred"] = MetaTensor(torch.as_tensor(pred), meta=data["image"].meta)
        out = self.postprocessing(data)["pred"]
        return np.asarray(out[0], dtype=np.uint8).transpose(2, 1, 0).copy()
