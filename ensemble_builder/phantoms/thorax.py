"""Thorax phantoms: made-up chest CT with true labels of the lungs and of what lies between them.

In: a seed and an image grid. Out: HU, labels and geometry, the same for the same seed. Used to
train and test the built-in networks and to make the demo's study; shows nobody's anatomy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_builder.phantoms.acquisition import (
    Acquisition,
    Region,
    draw_coverage,
    scan,
    shift_slabs,
)
from ensemble_builder.phantoms.canvas import Canvas, Point, Pose, Structure
from ensemble_builder.phantoms.lungs import paint_disease, paint_trees, shade_lungs
from ensemble_builder.phantoms.organs import (
    paint_abdomen,
    paint_airways,
    paint_bones,
    paint_limbs,
    paint_mediastinum,
)
from ensemble_builder.phantoms.patient import Patient
from ensemble_builder.phantoms.trunk import paint_support, paint_trunk

# Slices thicker than this are painted thinner and averaged, so that they blur along z.
_PAINTED_STEP_MM = 2.6
STRUCTURES = tuple(int(s) for s in Structure if s is not Structure.NONE)
_CLEAN_CENTRE_MM: Point = (0.0, 0.0, 25.0)


@dataclass(frozen=True)
class ThoraxPhantom:
    """One phantom study.

    Attributes:
        hu: int16 [K, J, I], Hounsfield units, slice-row-column.
        labels: uint8 [K, J, I]: 0 background, 1 left lung, 2 right lung.
        structures: uint8 [K, J, I]: values of `canvas.Structure`.
        affine_lps: float64 [4, 4], (i, j, k, 1) to LPS millimetres.
        patient: the anatomy.
        acquisition: the protocol.
    """

    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    structures: NDArray[np.uint8]
    affine_lps: NDArray[np.float64]
    patient: Patient
    acquisition: Acquisition

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of slices, rows and columns in mm."""
        i, j, k = np.linalg.norm(self.affine_lps[:3, :3], axis=0)
        return float(k), float(j), float(i)


def thorax_phantom(
    seed: int,
    *,
    shape_kji: tuple[int, int, int] = (80, 512, 512),
    spacing_mm: Point = (4.0, 0.75, 0.75),
    patient: Patient | None = None,
    acquisition: Acquisition | None = None,
    disease: float = 0.0,
    flip_kji: tuple[bool, bool, bool] = (False, False, False),
) -> ThoraxPhantom:
    """Paint a phantom and scan it.

    Args:
        seed: the same seed and arguments give the same phantom.
        shape_kji: slices, rows, columns.
        spacing_mm: distance of slices, rows, columns in mm.
        patient: the anatomy; by default a standard adult.
        acquisition: the protocol; by default a calm, sharp one.
        disease: 0 for healthy lungs, 1 for a hospital's mix.
        flip_kji: store an axis in the opposite order, as feet-first or prone protocols do; the
            affine says so, the anatomy stays where it is.

    Returns:
        The phantom.

    Raises:
        ValueError: if a size or a spacing is not positive.
    """
    if min(shape_kji) < 1 or min(spacing_mm) <= 0:
        raise ValueError(f"a grid needs positive sizes, got {shape_kji} and {spacing_mm} mm")
    rng = np.random.default_rng(seed)
    body = patient or Patient()
    protocol = acquisition or Acquisition(pose=_clean_pose())
    thin = max(1, math.ceil(spacing_mm[0] / _PAINTED_STEP_MM))
    painted = (shape_kji[0] * thin, *shape_kji[1:])
    canvas = Canvas(rng, painted, (spacing_mm[0] / thin, *spacing_mm[1:]), protocol.pose)
    paint_trunk(canvas, body, rng)
    paint_limbs(canvas, body, rng)
    paint_abdomen(canvas, body, rng)
    paint_mediastinum(canvas, body, rng)
    paint_bones(canvas, body, rng)
    paint_airways(canvas, body, rng)
    paint_support(canvas, body, rng)
    hu = body.attenuation(rng)[canvas.tissue]
    shade_lungs(canvas, body, rng, hu)
    paint_disease(canvas, body, rng, hu, disease)
    paint_trees(canvas, body, rng, hu)
    height = canvas.z.reshape(-1, thin).mean(axis=1)
    shoulder = np.exp(-(((height - body.apex_z) / 45) ** 2)).astype(np.float32)
    image = scan(hu, protocol, rng, thin=thin, shoulder=shoulder)
    maps = []
    for painted_map, values in ((canvas.labels, (1, 2)), (canvas.structures, STRUCTURES)):
        thick = _thick_labels(painted_map, thin, values)
        shift_slabs(thick, protocol)
        maps.append(thick)
    arrays: list[NDArray[Any]] = [np.rint(image).astype(np.int16), *maps]
    affine = _affine(shape_kji, spacing_mm)
    for axis, flip in enumerate(flip_kji):
        if flip:
            arrays = [np.flip(array, axis) for array in arrays]
            column = 2 - axis
            affine[:3, 3] += affine[:3, column] * (shape_kji[axis] - 1)
            affine[:3, column] *= -1
    hu_stored, labels, structures = (np.ascontiguousarray(array) for array in arrays)
    return ThoraxPhantom(hu_stored, labels, structures, affine, body, protocol)


def random_phantom(
    seed: int, *, voxel_mm: float = 2.4, region: Region | None = None
) -> ThoraxPhantom:
    """Draw a patient, a disease and a protocol, and paint them: one example to train on.

    Args:
        seed: the same seed gives the same phantom.
        voxel_mm: voxel edge in the slice, mm.
        region: part of the body that the scan covers; drawn by default.
    """
    rng = np.random.default_rng((seed, 7))
    centre, length, width = draw_coverage(rng, region)
    step = float(rng.choice([2.5, 2.5, 2.5, 3.0, 4.0, 5.0, 7.0, 8.0, 10.0]))
    size = int(width / voxel_mm)
    protocol = Acquisition.draw(rng, (0.0, 0.0, -centre))
    return thorax_phantom(
        seed,
        shape_kji=(max(4, round(length / step)), size, size),
        spacing_mm=(step, width / size, width / size),
        patient=Patient.draw(rng),
        acquisition=protocol,
        disease=1.0,
    )


def _clean_pose() -> Pose:
    return Pose(offset_mm=_CLEAN_CENTRE_MM)


def _thick_labels(
    labels: NDArray[np.uint8], thin: int, values: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Label each image slice with what fills at least half of it, uint8 [K, J, I]."""
    if thin == 1:
        return labels
    parts = labels.reshape(-1, thin, *labels.shape[1:])
    out = np.zeros((parts.shape[0], *labels.shape[1:]), np.uint8)
    for value in values:
        out[(parts == value).sum(axis=1, dtype=np.uint8) * 2 >= thin] = value
    return out


def _affine(shape_kji: tuple[int, int, int], spacing_mm: Point) -> NDArray[np.float64]:
    """Axial affine whose image centre is the frame's origin, float64 [4, 4], LPS mm."""
    affine = np.eye(4)
    for column, (size, step) in enumerate(zip(shape_kji[::-1], spacing_mm[::-1], strict=True)):
        affine[column, column] = step
        affine[column, 3] = -step * (size - 1) / 2
    return affine
