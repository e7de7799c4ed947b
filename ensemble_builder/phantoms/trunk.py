"""The body's outline, its wall of fat, muscle and ribs, the lungs and what carries the patient.

In: a canvas and a patient. Out: the canvas with these tissues and with lung labels, slice by
slice. Organs that displace lung are painted over it afterwards by `organs`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_builder.phantoms.canvas import Canvas, Floats, Tissue
from ensemble_builder.phantoms.patient import Patient

LEFT_LUNG, RIGHT_LUNG = 1, 2
_PLEURA_MM = 3.0
_RIB_MM = 9.0
_FISSURE_VOXEL_MM = 1.6
"""On a coarser grid a fissure would be a wall."""


@dataclass(frozen=True)
class _Slice:
    """One slice being painted: views of the canvas, and coordinates float32 [J, I] in mm."""

    tissue: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    x: Floats
    y: Floats
    z: Floats
    height: float


def paint_trunk(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Paint skin to lungs on every slice, and label the lungs."""
    rib_gap = float(rng.uniform(21, 29))
    rib_share = float(rng.uniform(0.34, 0.5))
    rib_slope = float(rng.uniform(0.3, 0.75))
    fissure = rng.uniform(-12, 12, 3)
    for k in range(canvas.shape[0]):
        height = float(canvas.z[k])
        if height > patient.apex_z + 70:
            # From here up there is only the neck's upper end, painted with the head.
            continue
        here = _Slice(canvas.tissue[k], canvas.labels[k], *canvas.slice_xyz(k), height)
        body = _layers(here, patient)
        if height > patient.apex_z + 12 or not body.any():
            continue
        cavity = patient.cavity(height)
        wall = patient.radial(here.x, here.y, cavity)
        band = (wall > 1) & (wall < _RIB_MM) & body
        phase = ((here.z + rib_slope * (cavity[1] * 0.9 - here.y)) / rib_gap) % 1.0
        # Costal cartilage replaces bone in front, low down.
        bony = (here.y > -0.72 * cavity[1]) & (height > -230)
        rib = band & (phase < rib_share)
        core = (phase > 0.09) & (phase < rib_share - 0.09) & (wall > 3) & (wall < _RIB_MM - 2)
        here.tissue[band] = Tissue.MUSCLE
        here.tissue[rib & bony] = Tissue.CORTEX
        here.tissue[rib & bony & core] = Tissue.MARROW
        here.tissue[rib & ~bony] = Tissue.DISC
        _lungs(here, patient, wall)
        if canvas.voxel_mm < _FISSURE_VOXEL_MM:
            _fissures(here, fissure)


def _layers(here: _Slice, patient: Patient) -> NDArray[np.bool_]:
    """Skin, the fat under it, muscle with its sheets of fat; returns the body, bool [J, I]."""
    outline = patient.trunk(here.height)
    skin = patient.radial(here.x, here.y, outline)
    body = skin < 0
    back = np.clip((here.y - outline[2]) / outline[1], 0, 1)
    fat = patient.fat * (1 - (1 - patient.fat_back) * back)
    folds = np.sin(here.x / 31.0) + np.cos(here.y / 27.0) + here.height / 40.0
    here.tissue[body] = Tissue.MUSCLE
    here.tissue[body & (np.sin(skin / 5.5 + folds) > 0.93)] = Tissue.FAT
    here.tissue[body & (skin > -fat)] = Tissue.FAT
    here.tissue[body & (skin > -2.0)] = Tissue.SKIN
    return body


def _lungs(here: _Slice, patient: Patient, wall: Floats) -> None:
    """Both lungs of one slice, the abdomen under them and fluid in them.

    Args:
        here: the slice.
        patient: the anatomy.
        wall: distance from the rib cage's inside, negative within, float32 [J, I], mm.
    """
    x, y, z = here.x, here.y, here.z
    _, half_y, y0 = patient.cavity(here.height)
    midline = patient.midline_front * np.clip((y0 - y) / half_y, 0, 1)
    tip_x, tip_y = 0.36 * patient.chest_x, 18.0
    here.tissue[wall < 0] = Tissue.MEDIASTINUM
    for side in (0, 1):
        sign = 1 if side == 0 else -1
        dome = patient.diaphragm(x, y, side)
        below = (sign * (x - midline) > 0) & (z < dome) & (wall < 0)
        here.tissue[below] = Tissue.FAT
        # The dome itself is a sheet of muscle.
        here.tissue[below & (z > dome - 4)] = Tissue.MUSCLE
        tip = patient.apex_z - ((x - sign * tip_x) ** 2 + 0.7 * (y - tip_y) ** 2) / 66.0
        lung = (
            (wall < -_PLEURA_MM)
            & (sign * (x - midline) > patient.septum)
            & (z > dome)
            & ((z < tip) | (z < patient.apex_z - 105))
        )
        depth = patient.effusion[side]
        if depth:
            floor = patient.dome_z[side] - patient.dome_drop[1] * 0.8
            downhill = -y if patient.prone else y
            # Fluid climbs at the back of a patient lying down, most near the diaphragm.
            wet = z - 0.9 * (downhill - 20) < floor + depth
            here.tissue[lung & wet] = Tissue.FLUID
            lung &= ~wet
        here.tissue[lung] = Tissue.LUNG
        here.labels[lung] = LEFT_LUNG if side == 0 else RIGHT_LUNG


def _fissures(here: _Slice, shift: NDArray[np.float64]) -> None:
    """The sheets between the lobes: an oblique one on each side, a level one on the right."""
    lung = here.tissue == Tissue.LUNG
    level = here.z - (shift[2] - 22 + 8 * np.sin(here.y / 40.0))
    for side, label in enumerate((LEFT_LUNG, RIGHT_LUNG)):
        oblique = here.z - (shift[side] - 0.85 * here.y - 12 * np.sin(here.x / 55.0) - 15)
        own = lung & (here.labels == label)
        here.tissue[own & (np.abs(oblique) < 0.55)] = Tissue.FISSURE
        if label == RIGHT_LUNG:
            here.tissue[own & (np.abs(level) < 0.5) & (oblique > 0)] = Tissue.FISSURE


def paint_support(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Table, cushion and blanket, under a patient who is already painted.

    They stand in the scanner's frame: straight, however the patient is turned.
    """
    sign = -1 if patient.prone else 1
    _, half_y, y0 = patient.trunk(-60.0)
    back = sign * y0 + half_y + float(rng.uniform(-4, 6))
    cushion = float(rng.choice([0, 0, 10, 25, 40]))
    thick = float(rng.uniform(25, 70))
    sag = float(rng.choice([0, 0, rng.uniform(10, 60)]))
    half_width = float(rng.uniform(190, 270))
    shell = float(rng.uniform(1.5, 5))
    bedding = rng.random() < 0.35
    folds = rng.uniform(0, 6.3, 2)
    for k in range(canvas.shape[0]):
        x, y = canvas.x[None, :] - canvas.x.mean(), canvas.y[:, None]
        tissue = canvas.tissue[k]
        air = tissue == Tissue.AIR
        depth = sign * y - back + sag * (x / half_width) ** 2
        flank = np.abs(x) < half_width
        if cushion:
            # A mattress gives way under the patient: it fills whatever the body leaves.
            tissue[air & flank & (depth > -20) & (depth < cushion)] = Tissue.CUSHION
        inside = air & flank & (depth >= cushion) & (depth < cushion + thick)
        tissue[inside] = Tissue.TABLE_FOAM
        rim = (depth < cushion + shell) | (depth > cushion + thick - shell)
        rim |= np.abs(x) > half_width - shell
        tissue[inside & rim] = Tissue.TABLE_SHELL
        if bedding:
            over = patient.radial(*canvas.slice_xyz(k)[:2], patient.trunk(float(canvas.z[k])))
            fold = 12 + 8 * np.sin(x / 25 + folds[0]) + 5 * np.sin(y / 17 + folds[1])
            tissue[air & (over > fold) & (over < fold + 6) & (depth < 0)] = Tissue.BLANKET
