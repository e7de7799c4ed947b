"""Draws segments on their CT: axial, coronal and sagittal, to scale, the patient's left marked.

In: a source volume and segments on its grid. Out: one PNG. Directions come from the affine,
so a mirrored result is seen as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from clients.demo.reading import SegmentOnSource, SourceVolume

LUNG_WINDOW_HU = (-1250.0, 350.0)
"""Black and white of a wide lung window (centre -450, width 1600): vessels show in the lungs
and the body around them keeps its greys."""

_INK = (236, 239, 244)
_FAINT = (140, 150, 165)
_PAPER = (16, 18, 22)
_FILL = 0.38
_MARGIN_MM = 45.0
_WIDTH_PX = 1800
_MAX_PANEL_PX = 860
_GAP_PX = 14
_HEAD_PX = 64
_FOOT_PX = 72
_FINE = 2


@dataclass(frozen=True)
class Upright:
    """A volume turned so that its axes are the patient's.

    Attributes:
        values: [Z, Y, X]: towards the head, the back, the patient's left.
        spacing_mm: Of z, y, x.
    """

    values: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]


def upright(values: NDArray[np.generic], affine_lps: NDArray[np.float64]) -> Upright:
    """Permutes and flips [K, J, I] to [Z, Y, X] along the nearest patient axes.

    Oblique volumes stay on their own grid: only the nearest axis is named.
    """
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    cosines = affine_lps[:3, :3] / spacing
    axis_of: dict[int, int] = {}
    strength = np.abs(cosines)
    for _ in range(3):
        patient, voxel = divmod(int(strength.argmax()), 3)
        axis_of[patient] = voxel
        strength[patient, :] = -1
        strength[:, voxel] = -1
    # Voxel axis i is array axis 2, j is 1, k is 0; patient axis x is 0, y is 1, z is 2.
    order = [2 - axis_of[patient] for patient in (2, 1, 0)]
    turned = np.transpose(values, order)
    for axis, patient in enumerate((2, 1, 0)):
        if cosines[patient, axis_of[patient]] < 0:
            turned = np.flip(turned, axis)
    z, y, x = (float(spacing[axis_of[patient]]) for patient in (2, 1, 0))
    return Upright(turned.astype(np.float32, copy=False), (z, y, x))


def draw_overlay(
    path: Path,
    source: SourceVolume,
    segments: Sequence[SegmentOnSource],
    *,
    title: str,
    window_hu: tuple[float, float] = LUNG_WINDOW_HU,
) -> None:
    """Writes a PNG with three panels and a legend with each segment's volume in ml.

    The panels go through the largest extent of the segments. Left of the patient is right
    of the picture, as radiologists look at it.
    """
    ct = upright(source.hu, source.affine_lps)
    masks = [upright(segment.mask, source.affine_lps).values for segment in segments]
    together = np.max(masks, axis=0) if masks else np.zeros_like(ct.values)
    at = _through_the_middle(together)
    crop = _crop(together, ct.spacing_mm)
    panels = [
        _Panel("Axial", 0, ("R", "L"), at, crop),
        _Panel("Coronal", 1, ("R", "L"), at, crop),
        _Panel("Sagittal", 2, ("A", "P"), at, crop),
    ]
    sizes_mm = [panel.size_mm(ct) for panel in panels]
    room_px = _WIDTH_PX - _GAP_PX * (len(panels) + 1)
    px_per_mm = min(
        room_px / sum(width for width, _ in sizes_mm),
        _MAX_PANEL_PX / max(height for _, height in sizes_mm),
    )
    low, high = window_hu
    grey = Upright(np.clip((ct.values - low) / (high - low), 0, 1), ct.spacing_mm)
    colours = [segment.colour_rgb for segment in segments]
    images = [panel.draw(grey, masks, colours, px_per_mm) for panel in panels]

    width = sum(image.width for image in images) + _GAP_PX * (len(images) + 1)
    height = _HEAD_PX + max(image.height for image in images) + _FOOT_PX
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP_PX, 18), title, fill=_INK, font=_font(26))
    pen.text((width - _GAP_PX, 24), "not a medical device", _FAINT, _font(18), anchor="ra")
    left, tallest = _GAP_PX, max(image.height for image in images)
    for image in images:
        sheet.paste(image, (left, _HEAD_PX + (tallest - image.height) // 2))
        left += image.width + _GAP_PX
    _draw_legend(pen, height - _FOOT_PX // 2, segments, source.voxel_ml)
    sheet.save(path, optimize=True)


@dataclass(frozen=True)
class _Panel:
    """One cut through the volume; `axis` is the one that is looked along."""

    name: str
    axis: int
    ends: tuple[str, str]
    at: tuple[int, int, int]
    crop: tuple[slice, slice, slice]

    def cut(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[rows, columns]; rows go down the picture."""
        plane: NDArray[np.float32] = np.take(values, self.at[self.axis], axis=self.axis)
        rows, columns = (n for n in range(3) if n != self.axis)
        plane = plane[self.crop[rows], self.crop[columns]]
        # The head is up in coronal and sagittal pictures, but z grows towards it.
        return plane if self.axis == 0 else plane[::-1]

    def size_mm(self, volume: Upright) -> tuple[float, float]:
        rows, columns = (n for n in range(3) if n != self.axis)
        plane = self.cut(volume.values)
        return (
            plane.shape[1] * volume.spacing_mm[columns],
            plane.shape[0] * volume.spacing_mm[rows],
        )

    def draw(
        self,
        grey: Upright,
        masks: Sequence[NDArray[np.float32]],
        colours: Sequence[tuple[int, int, int]],
        px_per_mm: float,
    ) -> Image.Image:
        width_mm, height_mm = self.size_mm(grey)
        size = max(1, round(width_mm * px_per_mm)), max(1, round(height_mm * px_per_mm))
        fine = size[0] * _FINE, size[1] * _FINE
        picture = np.repeat(_enlarge(self.cut(grey.values), fine)[..., None] * 255, 3, axis=2)
        for mask, colour in zip(masks, colours, strict=True):
            inside = _enlarge(self.cut(mask), fine) > 0.5
            rim = inside & ~_shrunk(inside, 2 * _FINE)
            ink = np.array(colour, np.float32)
            picture[inside] = (1 - _FILL) * picture[inside] + _FILL * ink
            picture[rim] = ink
        image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).reduce(_FINE)
        pen = ImageDraw.Draw(image)
        middle = image.height // 2
        _shadowed(pen, (10, 8), self.name, font=_font(18), anchor="la", fill=_FAINT)
        _shadowed(pen, (10, middle), self.ends[0], font=_font(26), anchor="lm", fill=_INK)
        _shadowed(
            pen, (image.width - 10, middle), self.ends[1], font=_font(26), anchor="rm", fill=_INK
        )
        return image


def _through_the_middle(together: NDArray[np.float32]) -> tuple[int, int, int]:
    if not together.any():
        z, y, x = (n // 2 for n in together.shape)
    else:
        z, y, x = (
            int(together.sum(axis=tuple(n for n in range(3) if n != axis)).argmax())
            for axis in range(3)
        )
    return z, y, x


def _crop(
    together: NDArray[np.float32], spacing_mm: tuple[float, float, float]
) -> tuple[slice, slice, slice]:
    cuts = []
    for axis, step_mm in enumerate(spacing_mm):
        hit = together.any(axis=tuple(n for n in range(3) if n != axis)).nonzero()[0]
        margin = round(_MARGIN_MM / step_mm)
        first, last = (hit[0], hit[-1]) if len(hit) else (0, together.shape[axis])
        cuts.append(slice(max(0, int(first) - margin), int(last) + margin + 1))
    return cuts[0], cuts[1], cuts[2]


def _enlarge(plane: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)


def _shrunk(inside: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    padded = np.pad(inside, by)
    shrunk = inside.copy()
    rows, columns = inside.shape
    for down, right in ((0, by), (2 * by, by), (by, 0), (by, 2 * by)):
        shrunk &= padded[down : down + rows, right : right + columns]
    return shrunk


def _draw_legend(
    pen: ImageDraw.ImageDraw, y: int, segments: Sequence[SegmentOnSource], voxel_ml: float
) -> None:
    x: float = _GAP_PX
    for segment in segments:
        text = f"{segment.name}  {segment.mask.sum() * voxel_ml:,.0f} ml"
        pen.rounded_rectangle((x, y - 11, x + 22, y + 11), 5, fill=segment.colour_rgb)
        pen.text((x + 34, y), text, _INK, _font(22), anchor="lm")
        x += 34 + pen.textlength(text, _font(22)) + 44


def _shadowed(pen: ImageDraw.ImageDraw, xy: tuple[int, int], text: str, **look: Any) -> None:
    pen.text(xy, text, stroke_width=2, stroke_fill=_PAPER, **look)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
