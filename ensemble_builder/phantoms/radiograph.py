"""Made-up chest radiographs with known findings: what is seen, not who.

In: a seed, and a size. Out: a frontal projection as a detector's maker would show it, with the
findings that were painted in, the same for the same seed. Used to train, test and show the
built-in classification. Nobody's anatomy, and far simpler than anybody's.

A radiograph is a shadow: along each ray the attenuations of what lies there add up. So each
structure is a map of centimetres of water that it adds or takes away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ensemble_builder.phantoms.chest_shadow import FINDINGS, Chest, Map, cast_shadow

_WATER_PER_CM = 0.2
"""Attenuation of water at the energies of a chest radiograph."""

FIELD_CM = (42.0, 36.0)
"""Height and width that an image covers, more or less."""

_DRAWN_AT = 256
"""Larger images are painted at about this many rows and enlarged: it is a sketch anyway."""


@dataclass(frozen=True, slots=True)
class Radiograph:
    """One image.

    Attributes:
        pixels: uint16 [J, I], bone bright (MONOCHROME2).
        bits_stored: What `pixels` uses.
        spacing_mm: Between rows and between columns.
        findings: Whether each of `FINDINGS` is there.
        chest: What was painted.
    """

    pixels: NDArray[np.uint16]
    bits_stored: int
    spacing_mm: tuple[float, float]
    findings: tuple[bool, ...]
    chest: Chest


def radiograph(
    seed: int,
    shape_ji: tuple[int, int] = (160, 144),
    *,
    findings: tuple[bool, ...] | None = None,
    bits_stored: int | None = None,
) -> Radiograph:
    """Paints one.

    Args:
        seed: The same seed gives the same image at the same size.
        shape_ji: Rows and columns.
        findings: Which of `FINDINGS` to paint; drawn by lot where not given.
        bits_stored: 8 to 16; drawn by lot where not given.
    """
    rng = np.random.default_rng((seed, 0xC4E57))
    chest = Chest.drawn(rng, findings)
    bits = bits_stored or int(rng.choice([10, 12, 12, 14, 15, 16]))
    zoom = float(rng.uniform(0.92, 1.08))
    field = (FIELD_CM[0] * zoom, FIELD_CM[1] * zoom * float(rng.uniform(0.94, 1.06)))
    rows, columns = shape_ji
    fewer = min(1.0, _DRAWN_AT / max(shape_ji))
    drawn = (max(round(rows * fewer), 8), max(round(columns * fewer), 8))
    y_cm = (np.arange(drawn[0]) + 0.5) / drawn[0] * field[0]
    x_cm = ((np.arange(drawn[1]) + 0.5) / drawn[1] - 0.5) * field[1]
    x, y = _turned(x_cm[None, :], y_cm[:, None], rng)
    water_cm = cast_shadow(chest, x, y, rng)
    shown = _developed(water_cm, field[0] / drawn[0], rng)
    if drawn != shape_ji:
        zooms = (rows / drawn[0], columns / drawn[1])
        shown = ndimage.zoom(shown, zooms, order=1, mode="nearest", grid_mode=True)
        shown = shown[:rows, :columns]
    shown = _marked(np.clip(shown, 0, 1), rng)
    low = rng.uniform(0, 0.1)
    most = 2**bits - 1
    values = most * (low + shown * rng.uniform(0.75, 1.0 - low))
    pixels = np.clip(np.rint(values), 0, most).astype(np.uint16)
    spacing_mm = (10 * field[0] / rows, 10 * field[1] / columns)
    return Radiograph(pixels, bits, spacing_mm, chest.findings, chest)


def _turned(x: Map, y: Map, rng: np.random.Generator) -> tuple[Map, Map]:
    """Nobody stands quite straight or in the middle."""
    angle = np.deg2rad(rng.normal(0, 1.5))
    shift_x, shift_y = rng.normal(0, 0.8), rng.normal(0, 1.0)
    middle = FIELD_CM[0] / 2
    across, down = x - shift_x, y - shift_y - middle
    cos, sin = np.cos(angle), np.sin(angle)
    return across * cos + down * sin, middle + down * cos - across * sin


def _developed(water_cm: Map, pixel_cm: float, rng: np.random.Generator) -> Map:
    """Scatter, noise and the maker's way of showing it: 0 .. 1, bone bright."""
    thickness = np.maximum(water_cm, 0.0)
    light = np.exp(-_WATER_PER_CM * thickness)
    scatter = rng.uniform(0.1, 0.5) * ndimage.gaussian_filter(light, 3.0 / pixel_cm)
    light = ndimage.gaussian_filter(light, 0.03 / pixel_cm) + scatter
    photons = 10 ** rng.uniform(3.6, 5.0)
    light *= 1 + rng.normal(size=light.shape) / np.sqrt(photons * light + 1)
    shadow = -np.log(np.maximum(light, 1e-5))
    # Large differences are made smaller, small ones kept: what every maker's software does.
    broad = ndimage.gaussian_filter(shadow, rng.uniform(2, 5) / pixel_cm)
    shadow = shadow - rng.uniform(0, 0.35) * broad
    low, high = np.percentile(shadow, [rng.uniform(0.5, 4), rng.uniform(96, 99.7)])
    unit = np.clip((shadow - low) / (high - low), -0.2, 1.2)
    steep = rng.uniform(0.1, 5.0)
    curved = 1 / (1 + np.exp(-steep * (unit - 0.5)))
    ends = 1 / (1 + np.exp(steep * np.array([0.7, -0.7])))
    return np.asarray(((curved - ends[0]) / (ends[1] - ends[0])) ** rng.uniform(0.8, 1.25))


def _marked(shown: Map, rng: np.random.Generator) -> Map:
    """Lead letters and collimation, which lie on the image and not in the patient."""
    rows, columns = shown.shape
    if rng.random() < 0.5:
        top, left = round(rows * rng.uniform(0.03, 0.1)), round(columns * rng.uniform(0.85, 0.93))
        tall, thick = max(rows // 24, 3), max(rows // 110, 1)
        shown[top : top + tall, left : left + thick] = 1.0
        shown[top + tall - thick : top + tall, left : left + tall // 2] = 1.0
    if rng.random() < 0.25:
        edge = round(rng.uniform(0.01, 0.04) * min(rows, columns))
        if edge:
            value = float(rng.choice([0.0, 1.0]))
            shown[:edge], shown[-edge:], shown[:, :edge], shown[:, -edge:] = (value,) * 4
    return shown


__all__ = ["FIELD_CM", "FINDINGS", "Radiograph", "radiograph"]
