"""A bundle with a UNet of a usual size, for when no other is given: an abdominal CT's, say.

In: a folder. Out: a MONAI bundle without weights, as the builder takes it with random ones.
"""

from __future__ import annotations

import json
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
        "channels": [16, 32, 64, 128, 256],
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
            {"_target_": "Spacingd", "keys": _KEYS, "pixdim": [2.0, 2.0, 2.5], "mode": "bilinear"},
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
        "overlap": 0.25,
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
    "description": "A UNet of a usual size with random weights: it measures, it doesn't segment",
    "intended_use": "no medical use",
    "network_data_format": {
        "inputs": {"image": {"modality": "CT"}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "organ"}}},
    },
}


def write_usual_bundle(folder: Path) -> Path:
    """Writes it and returns its folder, whose name becomes the pipeline's."""
    (folder / "configs").mkdir(parents=True)
    for name, document in (("inference", _CONFIG), ("metadata", _METADATA)):
        path = folder / "configs" / f"{name}.json"
        path.write_text(json.dumps(document, indent=2), encoding="utf-8")
    return folder
