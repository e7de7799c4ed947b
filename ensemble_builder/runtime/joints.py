"""The models between the bundles of a pipeline: Region, Paste, Channels, Merge.

In and out: the contract's own tensors, so that a bundle's models can't tell whether a request or
one of these feeds them. Each reads its rule beside its model.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ensemble_builder.runtime.channels import (
    CHANNELS_FILE,
    ChannelsRule,
    StoredImage,
    mask_as_image,
    stack,
)
from ensemble_builder.runtime.merge import MERGE_FILE, MergeRule, merge
from ensemble_builder.runtime.region import REGION_FILE, Box, RegionRule, paste, take_region
from ensemble_builder.runtime.tensors import answer, instance_device, read, tensor_output

_CPU = torch.device("cpu")


def _rule(args: dict[str, str], name: str) -> str:
    folder = Path(args["model_repository"]) / args["model_version"]
    return (folder / name).read_text(encoding="utf-8")


class Region:
    """MASK, IMAGE, RESCALE, AFFINE -> IMAGE, RESCALE, AFFINE, BOX of a part."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the rule."""
        self._rule = RegionRule.from_json(_rule(args, REGION_FILE))
        self._device = instance_device(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [answer(request, self._compute) for request in requests]

    def _compute(self, request: Any) -> list[Any]:
        part = take_region(
            read(request, "MASK", self._device),
            read(request, "IMAGE", self._device),
            read(request, "RESCALE", _CPU),
            read(request, "AFFINE", _CPU),
            self._rule,
        )
        return [
            tensor_output("PART_IMAGE", part.image),
            tensor_output("PART_RESCALE", part.rescale),
            tensor_output("PART_AFFINE", part.affine_lps),
            tensor_output("BOX", part.box.tensor()),
        ]


class Paste:
    """MASK of a part, BOX -> WHOLE_MASK on the whole grid."""

    def initialize(self, args: dict[str, str]) -> None:
        """Nothing to read."""
        self._device = instance_device(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [answer(request, self._compute) for request in requests]

    def _compute(self, request: Any) -> list[Any]:
        box = Box.of_tensor(read(request, "BOX", _CPU))
        return [tensor_output("WHOLE_MASK", paste(read(request, "MASK", self._device), box))]


class Channels:
    """Images IMAGE_n and masks MASK_n -> one input: IMAGE, RESCALE, AFFINE."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the rule."""
        self._rule = ChannelsRule.from_json(_rule(args, CHANNELS_FILE))
        self._device = instance_device(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [answer(request, self._compute) for request in requests]

    def _compute(self, request: Any) -> list[Any]:
        box = Box.of_tensor(read(request, "BOX", _CPU)) if self._rule.boxed else None
        affine = read(request, "AFFINE", _CPU)
        images = [
            self._image(request, n)
            if source == "image"
            else mask_as_image(read(request, f"MASK_{n}", self._device), affine, box)
            for n, source in enumerate(self._rule.sources)
        ]
        done = stack(images, self._rule)
        return [
            tensor_output("STACKED_IMAGE", done.image),
            tensor_output("STACKED_RESCALE", done.rescale),
            tensor_output("STACKED_AFFINE", done.affine_lps),
        ]

    def _image(self, request: Any, n: int) -> StoredImage:
        return StoredImage(
            read(request, f"IMAGE_{n}", self._device),
            read(request, f"RESCALE_{n}", _CPU),
            read(request, f"AFFINE_{n}", _CPU),
        )


class Merge:
    """One mask for each member -> MERGED_MASK."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the rule."""
        self._rule = MergeRule.from_json(_rule(args, MERGE_FILE))
        self._device = instance_device(args)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [answer(request, self._compute) for request in requests]

    def _compute(self, request: Any) -> list[Any]:
        masks = [read(request, one.tensor, self._device) for one in self._rule.members]
        return [tensor_output("MERGED_MASK", merge(masks, self._rule))]
