"""A made-up patient: the numbers that shape one body, drawn from one seed.

Everything is in the frame of `canvas`: x left, y back, z head, mm of a standard adult, origin at
the carina. Ranges are wider than healthy anatomy on purpose: a network that saw the extremes
meets the ordinary with ease.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ensemble_builder.phantoms.canvas import Floats, Tissue

Arms = Literal["up", "down", "one", "none"]
_Z_WALL = (-400.0, -260.0, -180.0, -100.0, -40.0, 20.0, 60.0)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


@dataclass(frozen=True)
class Patient:
    """One body. Lengths in mm, attenuations in HU.

    Attributes:
        chest_x, chest_y: half width and half depth of the cavity inside the ribs.
        squareness: 0 an ellipse, towards 1 a rounded box.
        apex_z: height of the lung tips above the carina.
        dome_z: height of the diaphragm's domes, (left, right).
        dome_drop: how far the domes fall to the side and to the back.
        tendon: how much of that fall there is towards the middle, 0 to 1.
        muscle, fat: thickness of the layers of the chest wall.
        fat_back: part of the fat layer that remains at the back.
        septum: half thickness of the sheet between the lungs in front of and behind the heart.
        midline_front: sideways displacement of that sheet in front.
        mediastinum_x: half width of the mediastinum at the carina.
        heart: half axes of the heart.
        lung_hu: (left, right) attenuation of lung tissue.
        gravity_hu: rise of lung attenuation per mm towards the side the patient lies on.
        trachea_r: radius of the windpipe.
        contrast_hu: attenuation of blood.
        arms: where the arms lie.
        breast: size of the breasts, 0 for none.
        prone: lying on the belly.
        effusion: fluid height in mm above the lowest pleura, (left, right), 0 for none.
    """

    chest_x: float = 132.0
    chest_y: float = 90.0
    squareness: float = 0.35
    apex_z: float = 100.0
    dome_z: tuple[float, float] = (-98.0, -86.0)
    dome_drop: tuple[float, float] = (55.0, 75.0)
    tendon: float = 0.55
    muscle: float = 18.0
    fat: float = 16.0
    fat_back: float = 0.6
    septum: float = 3.0
    midline_front: float = 6.0
    mediastinum_x: float = 34.0
    heart: tuple[float, float, float] = (62.0, 46.0, 52.0)
    lung_hu: tuple[float, float] = (-860.0, -860.0)
    gravity_hu: float = 0.5
    trachea_r: float = 9.0
    contrast_hu: float = 170.0
    arms: Arms = "up"
    breast: float = 0.0
    prone: bool = False
    effusion: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Patient:
        """Draw a patient; the same state of `rng` gives the same patient."""
        # Breathed out, scarred or drowned lungs are rare, and are what fixed thresholds miss.
        lung_hu = _between(rng, -945, -760) if rng.random() < 0.8 else _between(rng, -780, -640)
        right_dome = _between(rng, -135, -45)
        effusion = [0.0, 0.0]
        if rng.random() < 0.15:
            effusion[int(rng.integers(2))] = float(rng.choice([30, 60, 100, 160]))
        if rng.random() < 0.04:
            # A lung that is gone: collapsed, removed or drowned.
            effusion[int(rng.integers(2))] = 1000.0
        contrast = rng.random() < 0.45
        return cls(
            chest_x=_between(rng, 112, 152),
            chest_y=_between(rng, 72, 112),
            squareness=_between(rng, 0.1, 0.85),
            apex_z=_between(rng, 75, 118),
            dome_z=(right_dome + _between(rng, -30, 14), right_dome),
            dome_drop=(_between(rng, 30, 75), _between(rng, 45, 110)),
            tendon=_between(rng, 0.3, 0.8),
            muscle=_between(rng, 9, 26),
            fat=float(rng.choice([_between(rng, 3, 14), _between(rng, 10, 60)])),
            fat_back=_between(rng, 0.3, 1.0),
            septum=_between(rng, 1.2, 6),
            midline_front=_between(rng, -8, 16),
            mediastinum_x=_between(rng, 26, 46),
            heart=(_between(rng, 48, 82), _between(rng, 36, 62), _between(rng, 40, 66)),
            lung_hu=(lung_hu + _between(rng, -25, 25), lung_hu + _between(rng, -25, 25)),
            gravity_hu=_between(rng, 0, 1.3),
            trachea_r=_between(rng, 6.5, 14),
            contrast_hu=_between(rng, 90, 380) if contrast else _between(rng, 30, 60),
            arms=str(rng.choice(["up", "up", "down", "down", "one", "none"])),  # type: ignore[arg-type]
            breast=_between(rng, 25, 65) if rng.random() < 0.45 else 0.0,
            prone=bool(rng.random() < 0.1),
            effusion=(effusion[0], effusion[1]),
        )

    def cavity(self, z: float) -> tuple[float, float, float]:
        """Half width, half depth and y of the centre of the rib cage's inside at height `z`."""
        top = self.apex_z
        fx = np.interp(
            z,
            (*_Z_WALL, top - 8, top + 25),
            (0.86, 0.92, 0.97, 1.0, 0.98, 0.9, 0.76, 0.60, 0.42),
        )
        fy = np.interp(
            z,
            (*_Z_WALL, top - 8, top + 25),
            (0.92, 0.97, 1.0, 1.0, 1.0, 0.93, 0.78, 0.60, 0.42),
        )
        y = np.interp(z, (-40, 20, 60, top), (0, 2, 10, 20))
        return float(fx * self.chest_x), float(fy * self.chest_y), float(y)

    def trunk(self, z: float) -> tuple[float, float, float]:
        """Half width, half depth and y of the centre of the skin at height `z`.

        Shoulders, neck and the trunk below; the head is painted apart.
        """
        cx, cy, y = self.cavity(min(z, 45.0))
        wall = self.muscle + self.fat
        top = self.apex_z
        shoulder = 30.0 if self.arms == "up" else 58.0
        grow = float(np.interp(z, (20, 60, top + 5, top + 30, top + 48), (0, 0.6, 1, 0.55, 0)))
        x_trunk = cx + wall + 8 + shoulder * grow
        y_trunk = cy + wall + 4 - 12 * grow
        neck = float(np.interp(z, (top + 8, top + 40), (0, 1)))
        neck_x, neck_y = 56 + 0.3 * self.fat, 58 + 0.3 * self.fat
        return (
            x_trunk * (1 - neck) + neck_x * neck,
            y_trunk * (1 - neck) + neck_y * neck,
            y + 4 * neck,
        )

    def radial(self, x: Floats, y: Floats, outline: tuple[float, float, float]) -> Floats:
        """Distance from an outline along the ray from its centre, mm, negative inside."""
        half_x, half_y, y0 = outline
        y = y - np.float32(y0)
        u, v = (x / np.float32(half_x)) ** 2, (y / np.float32(half_y)) ** 2
        level = u + v - np.float32(self.squareness) * np.minimum(u, 1) * np.minimum(v, 1)
        with np.errstate(divide="ignore"):
            return np.asarray(
                np.sqrt(x * x + y * y) * (1 - 1 / np.sqrt(np.maximum(level, 1e-6))), np.float32
            )

    def diaphragm(self, x: Floats, y: Floats, side: int) -> Floats:
        """Height z of the diaphragm on side 0 (left) or 1 (right), float32 like `x`, mm."""
        sign = 1 if side == 0 else -1
        u = (x - sign * 0.5 * self.chest_x) / (0.5 * self.chest_x)
        v = (y + 12) / self.chest_y
        # Towards the middle a dome hardly falls: the heart rests on the central tendon.
        u = np.where(sign * u < 0, np.float32(self.tendon) * u, u)
        back = np.where(v > 0, np.float32(self.dome_drop[1]), np.float32(0.6 * self.dome_drop[1]))
        return np.asarray(
            self.dome_z[side] - self.dome_drop[0] * u * u - back * v * v, dtype=np.float32
        )

    def attenuation(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """HU of each `Tissue`, float32 [number of tissues], with the scatter between people."""
        hu = {
            Tissue.AIR: -1000.0,
            Tissue.SKIN: 20.0,
            Tissue.FAT: -105.0,
            Tissue.MUSCLE: 52.0,
            Tissue.CORTEX: 620.0,
            Tissue.MARROW: 190.0,
            Tissue.LUNG: -860.0,
            Tissue.FISSURE: -690.0,
            Tissue.MEDIASTINUM: -60.0,
            Tissue.BLOOD: self.contrast_hu,
            Tissue.HEART: 0.5 * self.contrast_hu + 22,
            Tissue.AIRWAY: -985.0,
            Tissue.AIRWAY_WALL: 0.0,
            Tissue.FLUID: 12.0,
            Tissue.LIVER: 58.0 + 0.15 * (self.contrast_hu - 45),
            Tissue.SPLEEN: 50.0 + 0.2 * (self.contrast_hu - 45),
            Tissue.GUT_WALL: 42.0,
            Tissue.GUT_CONTENT: 15.0,
            Tissue.GUT_GAS: -985.0,
            Tissue.KIDNEY: 35.0 + 0.4 * (self.contrast_hu - 45),
            Tissue.DISC: 85.0,
            Tissue.TUMOUR: 42.0,
            Tissue.CONSOLIDATION: 25.0,
            Tissue.TABLE_SHELL: -120.0,
            Tissue.TABLE_FOAM: -930.0,
            Tissue.CUSHION: -880.0,
            Tissue.BLANKET: -700.0,
            Tissue.BRAIN: 36.0,
            Tissue.METAL: 2800.0,
            Tissue.GLAND: 15.0,
        }
        table = np.array([hu[t] for t in Tissue], np.float32)
        table += rng.normal(0, 6, table.size).astype(np.float32)
        table[Tissue.TABLE_SHELL] += rng.uniform(-200, 400)
        table[Tissue.TABLE_FOAM] += rng.uniform(-40, 60)
        table[Tissue.CUSHION] += rng.uniform(-80, 120)
        table[Tissue.BLANKET] += rng.uniform(-200, 300)
        return table
