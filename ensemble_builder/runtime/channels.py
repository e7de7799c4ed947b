"""Feeding: images and masks as the channels of a bundle's input, or a mask as an image.

In: stored images and label maps of one grid. Out: one input as a request would bring it. A mask's
labels become values: label 2 is 2.0 for the bundle's preprocessing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from ensemble_builder.runtime.region import Box
from ensemble_builder.runtime.volumes import InputError

CHANNELS_FILE = "channels.json"

LARGEST_AFFINE_DIFFERENCE_MM = 1e-3
"""Between affines of images that are channels of one input."""


@dataclass(frozen=True, slots=True)
class ChannelsRule:
    """What becomes the channels.

    Attributes:
        sources: "image" or "mask" for each channel, in order.
        names: Of the nodes or inputs, for the sentences.
        stacked: A channel axis in front, also for one channel.
        boxed: Masks are cut to a BOX first, as the images have been.
    """

    sources: tuple[Literal["image", "mask"], ...]
    names: tuple[str, ...]
    stacked: bool
    boxed: bool

    def to_json(self) -> str:
        """The rule as it lies beside model.py."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str) -> ChannelsRule:
        """Reads what `to_json` wrote."""
        raw = json.loads(text)
        return ChannelsRule(
            **{**raw, "sources": tuple(raw["sources"]), "names": tuple(raw["names"])}
        )


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image as a request brings it: int16 [K, J, I], float64 [K, 2], float64 [4, 4]."""

    image: torch.Tensor
    rescale: torch.Tensor
    affine_lps: torch.Tensor


def mask_as_image(mask: torch.Tensor, affine_lps: torch.Tensor, box: Box | None) -> StoredImage:
    """A label map as an image whose values are the labels.

    Args:
        mask: uint8 or uint16 [K, J, I].
        affine_lps: float64 [4, 4], of the result.
        box: The part of the mask to take; all where None.

    Raises:
        InputError: the mask isn't on the box's grid.
    """
    if box is not None:
        if tuple(mask.shape) != box.size:
            msg = f"MASK is {list(mask.shape)}, but BOX lies in {list(box.size)}"
            raise InputError(msg)
        mask = mask[box.slices]
    # Labels above 32767 fit into int16 as DICOM's unsigned values do: by a shift.
    shift = 32768 if mask.dtype == torch.uint16 else 0
    stored = (mask.to(torch.int32) - shift).to(torch.int16) if shift else mask.to(torch.int16)
    rescale = torch.tensor([[1.0, float(shift)]], dtype=torch.float64)
    return StoredImage(stored, rescale.repeat(mask.shape[0], 1), affine_lps)


def stack(images: Sequence[StoredImage], rule: ChannelsRule) -> StoredImage:
    """Images as the channels of one: int16 [C, K, J, I], float64 [C, K, 2], float64 [4, 4].

    Raises:
        InputError: images that don't lie on one grid.
    """
    first = images[0]
    for name, one in zip(rule.names, images, strict=True):
        if one.image.shape != first.image.shape:
            msg = (
                f"'{name}' is {list(one.image.shape)}, but '{rule.names[0]}' is "
                f"{list(first.image.shape)}; the channels of one input lie on one grid"
            )
            raise InputError(msg)
        if one.rescale.shape != first.rescale.shape:
            msg = f"RESCALE of '{name}' must be {list(first.rescale.shape)}"
            raise InputError(msg)
        apart = (one.affine_lps - first.affine_lps).abs().max()
        if not float(apart) <= LARGEST_AFFINE_DIFFERENCE_MM:
            msg = (
                f"'{name}' and '{rule.names[0]}' have different AFFINEs; the channels of one "
                "input lie on one grid"
            )
            raise InputError(msg)
    if not rule.stacked:
        return first
    return StoredImage(
        torch.stack([one.image for one in images]),
        torch.stack([one.rescale for one in images]),
        first.affine_lps,
    )
