"""The shadow of a made-up chest: centimetres of water along each ray.

In: a `Chest`, and where each ray passes (x towards the patient's left, y down, in cm). Out: a
map of water. Frontal view; the patient's left is on the right of the image, as radiographs hang.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Map = NDArray[np.float64]
"""float64 [J, I]."""

FINDINGS = ("cardiomegaly", "pleural_effusion", "pneumothorax", "lung_consolidation")
"""What may be painted, in the order of the classes."""

_SHARE = 0.3
"""How often each is there when it is left to chance."""

ENLARGED = 0.54
"""Heart wider than this share of the chest: painted hearts are narrower than 0.5 or wider."""


@dataclass(frozen=True, slots=True)
class Chest:
    """One made-up chest; lengths in cm.

    Attributes:
        half_width: Of the inner chest at its base.
        apex, base: Where the lungs begin and where their domes end, down the image.
        depth: Front to back of the lungs.
        heart_share: Width of the heart as a share of the chest's.
        wall: Soft tissue around the lungs.
        findings: As `FINDINGS`.
        sides: On which side each of them is, 1 is the patient's left.
    """

    half_width: float
    apex: float
    base: float
    depth: float
    wall: float
    heart_share: float
    heart_tilt: float
    female: bool
    findings: tuple[bool, ...]
    sides: tuple[int, ...]

    @staticmethod
    def drawn(rng: np.random.Generator, findings: tuple[bool, ...] | None = None) -> Chest:
        """By lot, but for the findings where they are given."""
        lots = tuple(bool(one) for one in rng.random(len(FINDINGS)) < _SHARE)
        found = lots if findings is None else findings
        apex = rng.uniform(5.0, 8.0)
        share = rng.uniform(ENLARGED, 0.68) if found[0] else rng.uniform(0.36, 0.48)
        return Chest(
            half_width=rng.uniform(11.5, 14.5),
            apex=apex,
            base=apex + rng.uniform(20.0, 26.0),
            depth=rng.uniform(14.0, 19.0),
            wall=rng.uniform(4.0, 9.0),
            heart_share=float(share),
            heart_tilt=rng.uniform(0.3, 0.8),
            female=bool(rng.random() < 0.5),
            findings=found,
            sides=tuple(int(one) for one in rng.choice([-1, 1], size=len(FINDINGS))),
        )


def cast_shadow(chest: Chest, x: Map, y: Map, rng: np.random.Generator) -> Map:
    """Centimetres of water along each ray.

    Args:
        chest: What to paint.
        x: [J, I] or broadcasting to it, cm towards the patient's left of the spine.
        y: The same, cm down.
        rng: For what is not worth an attribute: ribs, vessels, noise in tissue.
    """
    x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    water = _trunk(chest, x, y)
    air = np.zeros_like(water)
    for side in (-1, 1):
        lung, reach = _lung(chest, x, y, side, rng)
        air += _with_findings(chest, lung, reach, x, y, side, rng)
    heart = _heart(chest, x, y)
    water -= air * (1 - 0.75 * heart)
    water += _middle(chest, x, y, rng) + _bones(chest, x, y, rng)
    water += _below(chest, x, y, rng) + _outside(chest, x, y, rng)
    return water


def _step(distance_cm: NDArray[Any], soft_cm: float = 0.25) -> Map:
    """0 outside, 1 inside: a smooth edge."""
    return np.asarray(1 / (1 + np.exp(-np.clip(distance_cm / soft_cm, -30, 30))))


def _trunk(chest: Chest, x: Map, y: Map) -> Map:
    half = (chest.half_width + chest.wall) * (0.42 + 0.58 * _step(y - chest.apex + 2.5, 1.6))
    across = np.clip(1 - (x / half) ** 2, 0, None)
    front_to_back = chest.depth + 0.6 * chest.wall
    return np.asarray(front_to_back * np.sqrt(across) * (0.6 + 0.4 * _step(y - chest.apex, 2.0)))


@dataclass(frozen=True, slots=True)
class _Reach:
    """How far into a lung a ray passes: distances in cm from its borders, inside positive."""

    lateral: Map
    medial: Map
    top: Map
    floor: Map


def _lung(chest: Chest, x: Map, y: Map, side: int, rng: np.random.Generator) -> tuple[Map, _Reach]:
    """Centimetres of air of one lung [J, I], and where its borders are."""
    along = x * side
    height = chest.base - chest.apex
    up = np.clip((chest.base - y) / height, 0, 1)
    lateral = chest.half_width * np.sqrt(1 - 0.72 * up**2.6)
    medial = 2.4 + 1.2 * np.exp(-(((y - chest.apex - 0.55 * height) / 4.0) ** 2))
    middle = (lateral + medial) / 2
    half = np.maximum((lateral - medial) / 2, 0.5)
    dome = rng.uniform(2.0, 4.5)
    floor = chest.base + 1.5 - (0.9 if side < 0 else 0.0)
    floor = floor - dome * np.clip(1 - ((along - 0.45 * middle) / half) ** 2, -1.2, 1)
    top = chest.apex + 0.16 * (along - middle) ** 2
    reach = _Reach(lateral - along, along - medial, y - top, floor - y)
    inside = _step(reach.lateral) * _step(reach.medial) * _step(reach.top) * _step(reach.floor)
    roundness = np.sqrt(np.clip(1 - ((along - middle) / (1.15 * half)) ** 2, 0.05, 1))
    thick = 0.55 + 0.45 * np.clip(reach.top / 8, 0, 1)
    return 0.72 * chest.depth * roundness * thick * inside, reach


def _with_findings(  # noqa: PLR0917 - a lung and where it is
    chest: Chest,
    air: Map,
    reach: _Reach,
    x: Map,
    y: Map,
    side: int,
    rng: np.random.Generator,
) -> Map:
    _, effusion, pneumothorax, consolidation = chest.findings
    here = [side == one for one in chest.sides]
    lung = air - np.minimum(_vessels(chest, x, y, side, rng), 0.6 * air)
    if pneumothorax and here[2]:
        lung = _collapsed(air, lung, reach, rng)
    if consolidation and (here[3] or rng.random() < 0.35):
        lung = _consolidated(lung, reach, x, y, rng)
    if effusion and (here[1] or rng.random() < 0.3):
        lung = _drowned(chest, lung, reach, y, rng)
    return np.asarray(lung)


def _collapsed(air: Map, lung: Map, reach: _Reach, rng: np.random.Generator) -> Map:
    """Air without vessels outside a shrunken lung, and the thin line of its pleura between."""
    gap = rng.uniform(1.3, 6.0)
    from_edge = np.minimum(reach.lateral, 0.8 * reach.top)
    inner = from_edge - gap * (0.35 + 0.65 * np.clip(1 - reach.top / 22, 0, 1))
    shrunk = _step(inner, 0.1)
    dense = np.clip(gap / 8, 0.1, 0.6)
    line = 0.5 * np.exp(-((inner / 0.15) ** 2))
    return np.asarray(shrunk * lung * (1 - dense) + (1 - shrunk) * air * 1.2 - line * (air > 1))


def _consolidated(lung: Map, reach: _Reach, x: Map, y: Map, rng: np.random.Generator) -> Map:
    """One or two cloudy patches within the lung."""
    inside = (reach.lateral > 1) & (reach.medial > 1) & (reach.top > 2) & (reach.floor > 1)
    places = np.argwhere(inside)
    if not len(places):
        return lung
    pixel_cm = abs(float(y[1, 0] - y[0, 0]))
    cloud = ndimage.gaussian_filter(rng.normal(size=lung.shape), 0.5 / pixel_cm)
    cloud /= cloud.std() + 1e-9
    for _ in range(int(rng.integers(1, 3))):
        j, i = places[rng.integers(len(places))]
        wide, tall = rng.uniform(1.6, 4.5, size=2)
        away = np.hypot((x - x[j, i]) / wide, (y - y[j, i]) / tall)
        patch = _step(1.0 - away + 0.14 * cloud, 0.12)
        lung = lung * (1 - rng.uniform(0.4, 0.85) * patch * (0.85 + 0.1 * np.tanh(cloud)))
    return np.asarray(lung)


def _drowned(chest: Chest, lung: Map, reach: _Reach, y: Map, rng: np.random.Generator) -> Map:
    """Fluid at the base, higher at the chest's wall: the meniscus."""
    height = rng.uniform(2.0, 10.0)
    rise = rng.uniform(1.5, 4.0) * np.exp(-np.clip(reach.lateral, 0, None) / 2.2)
    inner = 0.5 * rise * np.exp(-np.clip(reach.medial, 0, None) / 1.5)
    below = y - (chest.base + 1.0 - height - rise - inner)
    return np.asarray(lung * (1 - rng.uniform(0.75, 0.97) * _step(below, 0.5)))


def _vessels(chest: Chest, x: Map, y: Map, side: int, rng: np.random.Generator) -> Map:
    """Branches from the hilum outwards: cm of water [J, I]."""
    water = np.zeros_like(x)
    hilum = np.array([side * 3.2, chest.apex + 0.48 * (chest.base - chest.apex)])
    for _ in range(14):
        angle = rng.uniform(-1.35, 1.35)
        way = np.array([side * np.cos(angle), np.sin(angle)])
        length, radius = rng.uniform(4, 10), rng.uniform(0.15, 0.4)
        start = hilum + rng.normal(0, 0.5, size=2)
        dx, dy = x - start[0], y - start[1]
        along = np.clip(dx * way[0] + dy * way[1], 0, length)
        bend = rng.normal(0, 0.02) * along**2
        off = np.hypot(dx - along * way[0] + bend * way[1], dy - along * way[1] - bend * way[0])
        thin = radius * (1 - 0.8 * along / length)
        water += 2 * thin * np.exp(-((off / np.maximum(thin, 0.05)) ** 2))
    return water


def _heart(chest: Chest, x: Map, y: Map) -> Map:
    """How much of the depth the heart takes: 0 .. 1."""
    width = 2 * chest.half_width * chest.heart_share
    tall = 0.40 * width + 1.5
    centre_x, centre_y = 0.17 * width, chest.base - 0.55 * tall - 0.5
    down = (y - centre_y) / tall
    half = width / 2
    across = (x - centre_x - chest.heart_tilt * down) / half
    inside = 1 - np.sqrt(across**2 + np.abs(down) ** 2.3)
    return np.asarray(_step(inside * half, 0.22))


def _middle(chest: Chest, x: Map, y: Map, rng: np.random.Generator) -> Map:
    """Spine, great vessels and the windpipe."""
    spine = 4.0 * np.exp(-((x / 1.9) ** 4)) * (1 + 0.12 * np.sin(2 * np.pi * y / 2.6))
    arch_y = chest.apex + rng.uniform(6.0, 8.0)
    arch = 4.0 * _step(rng.uniform(1.5, 2.4) - np.hypot(x - 2.2, y - arch_y), 0.2)
    pipe = np.exp(-((x / 0.8) ** 4)) * _step(chest.apex + 8.5 - y, 0.8)
    return np.asarray(spine + arch - 1.8 * pipe)


def _bones(chest: Chest, x: Map, y: Map, rng: np.random.Generator) -> Map:
    water = np.zeros_like(x)
    inside = _step(chest.half_width + 0.8 - np.abs(x), 0.3)
    gap = (chest.base - chest.apex + 3) / 10.5
    strong = rng.uniform(0.6, 1.3)
    slope, fall = rng.uniform(0.05, 0.25), rng.uniform(0.015, 0.03)
    for n in range(11):
        off = y - (chest.apex - 1.5 + n * gap + slope * np.abs(x) + fall * x**2 - 1.5)
        band = np.exp(-((off / 0.42) ** 4)) + 0.5 * np.exp(-(((np.abs(off) - 0.42) / 0.12) ** 2))
        water += strong * band * inside
        front = y - (chest.apex + 1 + n * gap - 0.5 * np.abs(x) + 6)
        shown = inside * _step(np.abs(x) - 4.5, 0.8) * (n < 7)
        water += 0.4 * strong * np.exp(-((front / 0.5) ** 4)) * shown
    collar = y - (chest.apex + 1.2 - 0.16 * np.abs(x) + 0.6 * np.sin(np.abs(x) / 3))
    water += 1.4 * np.exp(-((collar / 0.55) ** 4)) * _step(np.abs(x) - 1.8) * inside
    blade = np.hypot((np.abs(x) - chest.half_width - 1.5) / 3.2, (y - chest.apex - 5) / 5.5)
    return np.asarray(water + rng.uniform(0.3, 1.0) * _step(1 - blade, 0.05))


def _below(chest: Chest, x: Map, y: Map, rng: np.random.Generator) -> Map:
    """The belly, with gas in the stomach under the left dome."""
    belly = rng.uniform(1, 4) * _step(y - chest.base - 1.5, 1.0)
    if rng.random() < 0.5:
        wide, tall = rng.uniform(1.5, 3.0), rng.uniform(0.8, 1.8)
        away = np.hypot((x - rng.uniform(4.5, 7)) / wide, (y - chest.base - 2.5) / tall)
        belly = belly - rng.uniform(2, 5) * _step(1 - away, 0.08)
    return np.asarray(belly)


def _outside(chest: Chest, x: Map, y: Map, rng: np.random.Generator) -> Map:
    """Breasts, folds, and what hangs on a patient: lines and leads."""
    water = np.zeros_like(x)
    if chest.female:
        wide, heavy = rng.uniform(4, 6.5), rng.uniform(0.5, 2.5)
        low = chest.base - rng.uniform(1, 5)
        for side in (-1, 1):
            away = np.hypot((x - side * 7.5) / wide, (y - low) / (0.8 * wide))
            water += heavy * np.sqrt(np.clip(1 - away**2, 0, None))
    for _ in range(int(rng.integers(0, 3))):
        start, end = rng.uniform(-9, 9), rng.uniform(-9, 9)
        line = x - start - (end - start) * y / 40 - rng.normal(0, 1) * np.sin(y / 6)
        water += rng.uniform(0.3, 1.2) * np.exp(-((line / 0.12) ** 2))
    pixel_cm = abs(float(y[1, 0] - y[0, 0]))
    tissue = ndimage.gaussian_filter(rng.normal(size=x.shape), 1.5 / pixel_cm)
    return np.asarray(water + 0.4 * tissue / (tissue.std() + 1e-9))
