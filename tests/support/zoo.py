"""Bundles of shapes that the Model Zoo has and others that it doesn't, without weights.

Each function writes one and returns its folder; read them with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"
_UNET_2D = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "channels": [4, 8, 8],
    "strides": [2, 2],
}


def a_bundle(
    folder: Path,
    config: Mapping[str, Any],
    *,
    name: str = "inference.json",
    inputs: Mapping[str, Any] | None = None,
    classes: Mapping[str, str] | None = None,
    scripts: Mapping[str, str] | None = None,
) -> Path:
    """Writes config, metadata and scripts."""
    configs = folder / "configs"
    configs.mkdir(parents=True)
    text = json.dumps(config) if name.endswith("json") else yaml.safe_dump(dict(config))
    (configs / name).write_text(text, encoding="utf-8")
    metadata = {
        "version": "1.0.0",
        "network_data_format": {
            "inputs": inputs or {"image": {"type": "image", "modality": "MR"}},
            "outputs": {"pred": {"channel_def": dict(classes or {"0": "nothing", "1": "thing"})}},
        },
    }
    (configs / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    for path, source in (scripts or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(source, encoding="utf-8")
    return folder


def compose(*transforms: Any) -> dict[str, Any]:
    """A Compose of transforms."""
    return {"_target_": "Compose", "transforms": list(transforms)}


def step(target: str, keys: Any = "pred", **options: Any) -> dict[str, Any]:
    """One transform."""
    return {"_target_": target, "keys": keys, **options}


def a_photograph_bundle(folder: Path) -> Path:
    """RGB in, a mask on the photograph's own grid out; the inverse comes first."""
    return a_bundle(
        folder,
        {
            "device": _DEVICE,
            "network_def": {**_UNET_2D, "in_channels": 3, "out_channels": 2},
            "network": "$@network_def.to(@device)",
            "preprocessing": compose(
                step("LoadImaged", "image"),
                step("EnsureChannelFirstd", "image", channel_dim=-1),
                step("Resized", "image", spatial_size=[64, 96], mode="bilinear"),
                step("ScaleIntensityd", "image"),
            ),
            "inferer": {"_target_": "SimpleInferer"},
            "postprocessing": compose(
                step("Invertd", transform="@preprocessing", orig_keys="image"),
                step("AsDiscreted", argmax=True),
                step("SaveImaged", output_dir="."),
            ),
        },
        inputs={"image": {"type": "magnitude", "format": "RGB", "num_channels": 3}},
    )


def a_radiograph_classifier(folder: Path) -> Path:
    """A 2-D radiograph in, three softmax scores out."""
    return a_bundle(
        folder,
        {
            "device": _DEVICE,
            "network_def": {
                "_target_": "DenseNet",
                "spatial_dims": 2,
                "in_channels": 1,
                "out_channels": 3,
                "init_features": 8,
                "growth_rate": 4,
                "block_config": [2, 2],
            },
            "network": "$@network_def.to(@device)",
            "preprocessing": compose(
                step("LoadImaged", "image", ensure_channel_first=True),
                step("Resized", "image", spatial_size=[64, 64]),
                step("ScaleIntensityd", "image"),
            ),
            "inferer": {"_target_": "SimpleInferer"},
            "postprocessing": compose(
                step("Activationsd", softmax=True),
                step("SaveClassificationd", output_dir="."),
            ),
        },
        inputs={"image": {"type": "image", "modality": "X-ray", "spatial_shape": [64, 64]}},
        classes={"0": "normal", "1": "effusion", "2": "nodule"},
    )


_SCRIPTS = {
    "scripts/__init__.py": "",
    "scripts/net.py": '''
import torch


class TwoBranches(torch.nn.Module):
    """Not one of MONAI's networks; its forward has python control flow."""

    def __init__(self, in_channels, out_channels, width):
        super().__init__()
        self.first = torch.nn.Conv3d(in_channels, width, 3, padding=1)
        self.second = torch.nn.Conv3d(width, width, 3, padding=1)
        self.last = torch.nn.Conv3d(width, out_channels, 1)

    def forward(self, x):
        y = torch.relu(self.first(x))
        if x.shape[1] == 2:
            y = y + torch.tanh(self.second(y))
        return self.last(y)
''',
    "scripts/transforms.py": '''
from monai.transforms import MapTransform


class RobustScaled(MapTransform):
    """Scales by quantiles, the bundle's own way."""

    def __init__(self, keys, low, high):
        super().__init__(keys)
        self.low, self.high = low, high

    def __call__(self, data):
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            a, b = image.quantile(self.low), image.quantile(self.high)
            d[key] = 2 * (image - a) / (b - a).clamp_min(1e-6) - 1
        return d
''',
}


def a_bundle_with_scripts(folder: Path) -> Path:
    """A YAML template: lists joined by reference, two named images, own network and transform."""
    return a_bundle(
        folder,
        {
            "imports": ["$import torch", "$import scripts.net"],
            "device": _DEVICE,
            "image_keys": ["t1", "flair"],
            "voxel": {"spacing": [2.0, 2.0, 3.0]},
            "width": "$2 * 3",
            "network_def": {
                "_target_": "scripts.net.TwoBranches",
                "in_channels": "$len(@image_keys)",
                "out_channels": 3,
                "width": "@width",
            },
            "network": "$@network_def.to(@device)",
            "load": [
                step("LoadImaged", "@image_keys", ensure_channel_first=True, image_only=True),
            ],
            "geometry": [
                step("Orientationd", "@image_keys", axcodes="LPS"),
                step(
                    "Spacingd",
                    "@image_keys",
                    pixdim="@voxel#spacing",
                    mode=["bilinear", "bilinear"],
                ),
            ],
            "intensity": [
                step("scripts.transforms.RobustScaled", "@image_keys", low=0.02, high=0.98),
                step("ConcatItemsd", "@image_keys", name="image", dim=0),
                step("DeleteItemsd", "flair"),
            ],
            "preprocessing": {
                "_target_": "Compose",
                "transforms": "$@load + @geometry + @intensity",
            },
            "inferer": {
                "_target_": "SlidingWindowInferer",
                "roi_size": [32, 32, 16],
                "sw_batch_size": 2,
                "mode": "gaussian",
            },
            "postprocessing": compose(
                step("Activationsd", softmax=True),
                step("Invertd", transform="@preprocessing", orig_keys="t1", nearest_interp=False),
                step("AsDiscreted", argmax=True),
                step("SaveImaged", output_dir="."),
            ),
        },
        name="inference.yaml",
        inputs={
            "t1": {"type": "image", "modality": "MR"},
            "flair": {"type": "image", "modality": "MR"},
        },
        classes={"0": "background", "1": "core", "2": "oedema"},
        scripts=_SCRIPTS,
    )


def a_bundle_of_contrasts(folder: Path) -> Path:
    """Two contrasts in one key; two masks that may overlap, as of a tumour and its core."""
    return a_bundle(
        folder,
        {
            "device": _DEVICE,
            "network_def": {
                "_target_": "UNet",
                "spatial_dims": 3,
                "in_channels": 2,
                "out_channels": 2,
                "channels": [4, 8],
                "strides": [2],
            },
            "network": "$@network_def.to(@device)",
            "preprocessing": compose(
                step("LoadImaged", "image", ensure_channel_first=True),
                step("NormalizeIntensityd", "image", nonzero=True, channel_wise=True),
            ),
            "inferer": {
                "_target_": "SlidingWindowInferer",
                "roi_size": [32, 32, 16],
                "sw_batch_size": 1,
            },
            "postprocessing": compose(
                step("Activationsd", sigmoid=True),
                step("Invertd", transform="@preprocessing", orig_keys="image"),
                step("AsDiscreted", threshold=0.5),
                step("SaveImaged", output_dir="."),
            ),
        },
        inputs={
            "image": {
                "type": "image",
                "modality": "MR",
                "num_channels": 2,
                "channel_def": {"0": "T1", "1": "T1_Gd"},
            }
        },
        classes={"0": "Whole tumour", "1": "Tumour core"},
    )


def a_clicked_bundle(folder: Path) -> Path:
    """A volume and clicks: their signal becomes a second channel."""
    return a_bundle(
        folder,
        {
            "device": _DEVICE,
            "data": "$[{'image': 'a.nii.gz', 'clicks': [[1, 2, 3]]}]",
            "network_def": {
                "_target_": "UNet",
                "spatial_dims": 3,
                "in_channels": 2,
                "out_channels": 1,
                "channels": [4, 8],
                "strides": [2],
            },
            "network": "$@network_def.to(@device)",
            "preprocessing": compose(
                step("LoadImaged", "image", ensure_channel_first=True),
                step("ScaleIntensityd", "image"),
                {"_target_": "scripts.clicks.AddClicks", "image": "image", "clicks": "clicks"},
            ),
            "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32]},
            "postprocessing": compose(
                step("Activationsd", sigmoid=True), step("AsDiscreted", threshold=0.5)
            ),
        },
        scripts={
            "scripts/clicks.py": '''
import torch


class AddClicks:
    """One more channel that is 1 at each click."""

    def __init__(self, image, clicks):
        self.image, self.clicks = image, clicks

    def __call__(self, data):
        d = dict(data)
        image = d[self.image]
        signal = torch.zeros_like(image[:1])
        for i, j, k in d[self.clicks]:
            signal[0, i, j, k] = 1
        d[self.image] = torch.cat([image, signal])
        return d
'''
        },
        classes={"0": "thing"},
    )


def a_bundle_that_crops(folder: Path) -> Path:
    """CropForeground, padding and flips, all undone; the prediction is masked with the image."""
    return a_bundle(
        folder,
        {
            "device": _DEVICE,
            "network_def": {
                "_target_": "UNet",
                "spatial_dims": 3,
                "in_channels": 1,
                "out_channels": 3,
                "channels": [4, 8],
                "strides": [2],
            },
            "network": "$@network_def.to(@device)",
            "preprocessing": compose(
                step("LoadImaged", "image"),
                step("EnsureChannelFirstd", "image"),
                step("Orientationd", "image", axcodes="PLS"),
                step("CropForegroundd", "image", source_key="image", select_fn="$lambda x: x > 0"),
                step("Flipd", "image", spatial_axis=0),
                step("SpatialPadd", "image", spatial_size=[40, 40, 40]),
                step("Spacingd", "image", pixdim=[2.0, 1.5, -1.0]),
                step("NormalizeIntensityd", "image"),
            ),
            "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [32, 32, 32]},
            "postprocessing": compose(
                step("Lambdad", func="$lambda x: torch.softmax(x, 0)"),
                {"_target_": "scripts.mask.ByImage", "pred": "pred", "image": "image"},
                step("Invertd", transform="@preprocessing", orig_keys="image"),
                step("AsDiscreted", argmax=True),
                step("SaveImaged", output_dir="."),
            ),
        },
        scripts={
            "scripts/mask.py": '''
class ByImage:
    """Reads the image itself after the network."""

    def __init__(self, pred, image):
        self.pred, self.image = pred, image

    def __call__(self, data):
        d = dict(data)
        d[self.pred] = d[self.pred] * (d[self.image] > -1)
        return d
'''
        },
        classes={"0": "background", "1": "one", "2": "two"},
    )


def a_variation(folder: Path, drawn: Mapping[str, Any]) -> Path:
    """The canonical segmentation with everything that may differ drawn by somebody else.

    Args:
        folder: Where it goes.
        drawn: channels, classes, roi_size, overlap, mode, axcodes, spacing, resampling,
            geometry_first, activation_first, nearest.
    """
    geometry = [
        step("Orientationd", "image", axcodes=drawn["axcodes"]),
        step("Spacingd", "image", pixdim=drawn["spacing"], mode=drawn["resampling"]),
    ]
    intensity = [
        step("ScaleIntensityRanged", "image", a_min=-900, a_max=400, b_min=-1, b_max=1, clip=True),
        step("NormalizeIntensityd", "image", channel_wise=True),
    ]
    middle = geometry + intensity if drawn["geometry_first"] else intensity + geometry
    softmax = step("Activationsd", softmax=True)
    argmax = step("AsDiscreted", argmax=True)
    inverse = step(
        "Invertd", transform="@preprocessing", orig_keys="image", nearest_interp=drawn["nearest"]
    )
    after = [inverse, argmax] if drawn["activation_first"] else [argmax, inverse]
    channels = drawn["channels"]
    return a_bundle(
        folder,
        {
            "device": _DEVICE,
            "network_def": {
                "_target_": "UNet",
                "spatial_dims": 3,
                "in_channels": channels,
                "out_channels": drawn["classes"],
                "channels": [4, 8],
                "strides": [2],
                "num_res_units": 1,
            },
            "network": "$@network_def.to(@device)",
            "preprocessing": compose(
                step("LoadImaged", "image", ensure_channel_first=True), *middle
            ),
            "inferer": {
                "_target_": "SlidingWindowInferer",
                "roi_size": drawn["roi_size"],
                "sw_batch_size": 2,
                "overlap": drawn["overlap"],
                "mode": drawn["mode"],
            },
            "postprocessing": compose(softmax, *after, step("SaveImaged", output_dir=".")),
        },
        inputs={"image": {"type": "image", "num_channels": channels}},
        classes={str(n): f"class {n}" for n in range(drawn["classes"])},
    )
