"""Bundles with a UNet of a usual size and of a large one, for when no others are given.

In: a folder. Out: a MONAI bundle without weights, as the builder takes it with random ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KEYS = "@image_key"
_CONFIG: dict[str, Any] = {
    "imports": ["$import torch"],
    "image_key": "image",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "strides": [2, 2, 2, 2],
        "num_res_units": 2,
        "norm": "batch",
    },
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": _KEYS},
            {"_target_": "EnsureChannelFirstd", "keys": _KEYS},
            {"_target_": "Orientationd", "keys": _KEYS, "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": _KEYS, "pixdim": "@spacing_mm", "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": _KEYS,
                "a_min": -100,
                "a_max": 240,
                "b_min": 0.0,
                "b_max": 1.0,
                "clip": True,
            },
        ],
    },
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": [96, 96, 96],
        "sw_batch_size": 2,
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": _KEYS,
                "nearest_interp": False,
                "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        ],
    },
}
_METADATA = {
    "version": "0.1.0",
    "description": "A UNet with random weights: it measures, it doesn't segment",
    "intended_use": "no medical use",
    "network_data_format": {
        "inputs": {"image": {"modality": "CT"}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "organ"}}},
    },
}


@dataclass(frozen=True, slots=True)
class Network:
    """How much a study costs.

    Attributes:
        channels: Of the UNet, from the full resolution down.
        spacing_mm: Of the voxels that it sees, RAS.
        overlap: Of two neighbouring windows, as a share of one.
    """

    channels: Sequence[int]
    spacing_mm: Sequence[float]
    overlap: float


USUAL = Network((16, 32, 64, 128, 256), (2.0, 2.0, 2.5), 0.25)
"""The Model Zoo's spleen network, an abdominal CT."""
LARGE = Network((32, 64, 128, 256, 320), (1.5, 1.5, 1.5), 0.5)
"""nnU-Net's channels and half windows (Isensee et al. 2021) at TotalSegmentator's spacing."""


def write_usual_bundle(folder: Path, network: Network = USUAL) -> Path:
    """Writes it and returns its folder, whose name becomes the pipeline's."""
    (folder / "configs").mkdir(parents=True)
    config = _CONFIG | {
        "spacing_mm": list(network.spacing_mm),
        "network_def": _CONFIG["network_def"] | {"channels": list(network.channels)},
        "inferer": _CONFIG["inferer"] | {"overlap": network.overlap},
    }
    for name, document in (("inference", config), ("metadata", _METADATA)):
        path = folder / "configs" / f"{name}.json"
        path.write_text(json.dumps(document, indent=2), encoding="utf-8")
    return folder
