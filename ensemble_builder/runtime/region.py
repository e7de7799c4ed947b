"""Regions of interest: where a mask's labels lie, the image cut to them, a mask put back.

In: a mask and the image it belongs to, on one grid. Out: the image's part in a box, its affine, and
the box itself, with which `paste` puts a mask found in that part back onto the whole grid.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from ensemble_builder.runtime.volumes import InputError

REGION_FILE = "region.json"

LARGEST_GRID_VOXELS = 2**34
"""Of a box's grid: what claims more is no grid of ours."""

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class RegionRule:
    """What makes a region.

    Attributes:
        name: Of the node whose mask says where, for the sentences.
        labels: That count; empty for all but the background.
        margin_mm: How far the region reaches beyond them, along the image's axes.
        crop: Cut to the bounding box.
        outside_value: In the modality's unit; what is further away than the margin becomes this.
        when_empty: Take the whole image where no label is there, or refuse.
    """

    name: str
    labels: tuple[int, ...] = ()
    margin_mm: float = 0.0
    crop: bool = True
    outside_value: float | None = None
    when_empty: Literal["whole", "refuse"] = "whole"

    def to_json(self) -> str:
        """The rule as it lies beside model.py."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str) -> RegionRule:
        """Reads what `to_json` wrote."""
        raw = json.loads(text)
        return RegionRule(**{**raw, "labels": tuple(raw["labels"])})


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a grid.

    Attributes:
        start: First k, j, i.
        stop: One after the last k, j, i.
        size: K, J, I of the whole grid.
    """

    start: Shape
    stop: Shape
    size: Shape

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Indices of the part in an array [K, J, I]."""
        k, j, i = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return k, j, i

    @property
    def shape(self) -> Shape:
        """K, J, I of the part."""
        k, j, i = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return k, j, i

    @property
    def is_whole(self) -> bool:
        """True where the part is the grid."""
        return self.shape == self.size

    def tensor(self) -> torch.Tensor:
        """int64 [3, 3]: start, stop, size of each axis k, j, i."""
        return torch.tensor([self.start, self.stop, self.size], dtype=torch.int64).T.contiguous()

    @staticmethod
    def of_tensor(tensor: torch.Tensor) -> Box:
        """Reads what `tensor` gave.

        Raises:
            InputError: it is no box of a grid.
        """
        if tuple(tensor.shape) != (3, 3):
            msg = f"BOX must be [3, 3], not {list(tensor.shape)}"
            raise InputError(msg)
        rows = [[int(n) for n in row] for row in tensor.tolist()]
        if any(not 0 <= start < stop <= size for start, stop, size in rows) or (
            math.prod(row[2] for row in rows) > LARGEST_GRID_VOXELS
        ):
            msg = "BOX must hold start, stop and size of each axis, with 0 <= start < stop <= size"
            raise InputError(msg)
        k, j, i = rows
        return Box((k[0], j[0], i[0]), (k[1], j[1], i[1]), (k[2], j[2], i[2]))


@dataclass(frozen=True, slots=True)
class Part:
    """An image's part, as a request would bring it.

    Attributes:
        image: int16 [K, J, I], stored values; a view where nothing was blanked.
        rescale: float64 [K, 2].
        affine_lps: float64 [4, 4].
        box: Where it lies in the whole.
    """

    image: torch.Tensor
    rescale: torch.Tensor
    affine_lps: torch.Tensor
    box: Box


def take_region(
    mask: torch.Tensor,
    image: torch.Tensor,
    rescale: torch.Tensor,
    affine_lps: torch.Tensor,
    rule: RegionRule,
) -> Part:
    """Finds a region and takes it out of the image.

    Args:
        mask: uint8 or uint16 [K, J, I].
        image: int16 [K, J, I], stored values; never written to.
        rescale: float64 [K, 2], slope and intercept per slice, on the CPU.
        affine_lps: float64 [4, 4], on the CPU.
        rule: What makes the region.

    Raises:
        InputError: shapes that don't fit, an affine without spacing, or no label to go by where
            the rule refuses that.
    """
    _check_shapes(mask, image, rescale, affine_lps)
    chosen = _chosen(mask, rule.labels)
    bounds = _bounds(chosen)
    if bounds is None:
        if rule.when_empty == "refuse":
            which = f"labels {list(rule.labels)}" if rule.labels else "label"
            msg = f"the mask of '{rule.name}' has none of its {which}, so there is no region"
            raise InputError(msg)
        return Part(image, rescale, affine_lps, _whole(image))
    margin = _margin_voxels(affine_lps, rule.margin_mm)
    box = _grown_box(bounds, margin, image) if rule.crop else _whole(image)
    part = image[box.slices]
    rescale = rescale[box.slices[0]]
    if rule.outside_value is not None:
        kept = grow(chosen[box.slices], margin)
        part = torch.where(kept, part, _stored(rule.outside_value, rescale).to(part.device))
    return Part(part, rescale, _moved(affine_lps, box), box)


def paste(mask: torch.Tensor, box: Box) -> torch.Tensor:
    """A mask of a region on the whole grid, background elsewhere: [K, J, I] like `mask`.

    Raises:
        InputError: the mask hasn't the box's shape.
    """
    if tuple(mask.shape) != box.shape:
        msg = f"MASK is {list(mask.shape)}, but BOX is {list(box.shape)}"
        raise InputError(msg)
    if box.is_whole:
        return mask
    whole = torch.zeros(box.size, dtype=mask.dtype, device=mask.device)
    whole[box.slices] = mask
    return whole


def grow(chosen: torch.Tensor, margin: Shape) -> torch.Tensor:
    """Every voxel within `margin` voxels of a chosen one, axis by axis: bool [K, J, I]."""
    out = chosen
    for axis, wanted in enumerate(margin):
        reach = 0
        while reach < min(wanted, out.shape[axis]):
            # A run has at least reach + 1 voxels, also at the edge: moved by no more, no gap.
            step = min(reach + 1, wanted - reach, out.shape[axis] - 1)
            if step < 1:
                break
            length = out.shape[axis] - step
            before = out
            out = out.clone()
            out.narrow(axis, step, length).logical_or_(before.narrow(axis, 0, length))
            out.narrow(axis, 0, length).logical_or_(before.narrow(axis, step, length))
            reach += step
    return out


def _check_shapes(
    mask: torch.Tensor, image: torch.Tensor, rescale: torch.Tensor, affine_lps: torch.Tensor
) -> None:
    if image.ndim != 3 or 0 in image.shape:
        msg = f"IMAGE must be [K, J, I] without empty axes, not {list(image.shape)}"
        raise InputError(msg)
    if mask.shape != image.shape:
        msg = f"MASK is {list(mask.shape)}, but IMAGE is {list(image.shape)}"
        raise InputError(msg)
    if tuple(rescale.shape) != (image.shape[0], 2) or not bool(torch.isfinite(rescale).all()):
        msg = f"RESCALE must be finite and [{image.shape[0]}, 2] for this IMAGE"
        raise InputError(msg)
    spacing = affine_lps[:3, :3].norm(dim=0) if tuple(affine_lps.shape) == (4, 4) else affine_lps
    if spacing.shape != (3,) or not bool(((spacing > 0) & spacing.isfinite()).all()):
        msg = "AFFINE must be [4, 4] and give each axis a spacing"
        raise InputError(msg)


def _chosen(mask: torch.Tensor, labels: tuple[int, ...]) -> torch.Tensor:
    """Where the labels are: bool like `mask`."""
    if not labels:
        return mask != 0
    return torch.isin(
        mask if mask.dtype == torch.uint8 else mask.to(torch.int32),
        torch.tensor(
            [n for n in labels if n < 256 or mask.dtype != torch.uint8],
            dtype=torch.uint8 if mask.dtype == torch.uint8 else torch.int32,
            device=mask.device,
        ),
    )


def _bounds(chosen: torch.Tensor) -> tuple[Shape, Shape] | None:
    """First and one after the last index of each axis; None where nothing is chosen."""
    flat = chosen.any(dim=0)
    start, stop = [], []
    for line in (chosen.flatten(1).any(dim=1), flat.any(dim=1), flat.any(dim=0)):
        found = line.nonzero()
        if not len(found):
            return None
        start.append(int(found[0]))
        stop.append(int(found[-1]) + 1)
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def _margin_voxels(affine_lps: torch.Tensor, margin_mm: float) -> Shape:
    i, j, k = (math.ceil(margin_mm / float(mm)) for mm in affine_lps[:3, :3].norm(dim=0))
    return k, j, i


def _whole(image: torch.Tensor) -> Box:
    k, j, i = (int(n) for n in image.shape)
    return Box((0, 0, 0), (k, j, i), (k, j, i))


def _grown_box(bounds: tuple[Shape, Shape], margin: Shape, image: torch.Tensor) -> Box:
    size = _whole(image).size
    starts = [max(0, a - m) for a, m in zip(bounds[0], margin, strict=True)]
    stops = [min(n, b + m) for b, m, n in zip(bounds[1], margin, size, strict=True)]
    return Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]), size)


def _moved(affine_lps: torch.Tensor, box: Box) -> torch.Tensor:
    """The affine of a part that begins at `box.start`."""
    out = affine_lps.clone()
    start = torch.tensor([*reversed(box.start), 1], dtype=affine_lps.dtype)
    out[:, 3] = affine_lps @ start
    return out


def _stored(value: float, rescale: torch.Tensor) -> torch.Tensor:
    """The stored value nearest to one of the modality's: int16 [K, 1, 1].

    Raises:
        InputError: a slope is 0.
    """
    if not bool((rescale[:, 0] != 0).all()):
        msg = "RESCALE has a slope of 0, so no stored value means what is outside the region"
        raise InputError(msg)
    stored = ((value - rescale[:, 1]) / rescale[:, 0]).round().clamp(-32768, 32767)
    return stored.to(torch.int16)[:, None, None]
