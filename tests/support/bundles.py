"""Small MONAI bundles with random weights, written to a folder: `a_segmentation_bundle(...)`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import UNet

NETWORK: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8, 8],
    "strides": [2, 2],
    "num_res_units": 1,
    "norm": "instance",
}


def a_segmentation_bundle(
    folder: Path,
    *,
    seed: int = 0,
    axcodes: str = "RAS",
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 4.0),
    roi_size: tuple[int, int, int] = (32, 32, 32),
    without: tuple[str, ...] = (),
    changed: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Writes a bundle shaped like the Model Zoo's and returns its folder.

    Args:
        folder: Where it goes; its last part becomes the bundle's name.
        seed: Of the random weights.
        axcodes: Of its Orientationd.
        spacing_mm: Of its Spacingd.
        roi_size: Of its sliding window.
        without: Top-level keys of the config to leave out.
        changed: Top-level keys of the config to replace.
        metadata: Keys of metadata.json to replace.
    """
    keys = "@image_key"
    config: dict[str, Any] = {
        "imports": ["$import numpy"],
        "image_key": "image",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "UNet", **NETWORK},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": keys, "reader": "ITKReader"},
                {"_target_": "EnsureChannelFirstd", "keys": keys},
                {"_target_": "Orientationd", "keys": keys, "axcodes": axcodes},
                {"_target_": "Spacingd", "keys": keys, "pixdim": list(spacing_mm)},
                {"_target_": "NormalizeIntensityd", "keys": keys, "nonzero": True},
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(roi_size),
            "sw_batch_size": 2,
            "overlap": 0.5,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": keys,
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@bundle_root"},
            ],
        },
        "evaluator": {"_target_": "SupervisedEvaluator", "amp": True},
    }
    config.update(changed or {})
    for key in without:
        config.pop(key)
    described: dict[str, Any] = {
        "version": "0.3.1",
        "description": "random weights, for tests",
        "intended_use": "no medical use",
        "network_data_format": {
            "inputs": {"image": {"modality": "CT"}},
            "outputs": {"pred": {"channel_def": {"0": "background", "1": "one", "2": "two"}}},
        },
    } | (metadata or {})
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "configs" / "metadata.json").write_text(json.dumps(described), encoding="utf-8")
    torch.manual_seed(seed)
    torch.save(UNet(**NETWORK).state_dict(), folder / "models" / "model.pt")
    return folder
