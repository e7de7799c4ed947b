"""The grid a phantom is painted on: where each voxel lies in the patient, and brushes for shapes.

In: an image grid in LPS millimetres and a patient's pose. Out: a volume of tissue codes. The
patient frame has x to the patient's left, y to the back, z to the head, in millimetres of a
standard adult, with its origin at the carina; size, pose and a smooth warp map it to the scanner.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Point = tuple[float, float, float]
Block = tuple[slice, slice, slice]


class Tissue(IntEnum):
    """What a voxel is made of; the value indexes the table of attenuations."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    CORTEX = 4
    MARROW = 5
    LUNG = 6
    FISSURE = 7
    MEDIASTINUM = 8
    BLOOD = 9
    HEART = 10
    AIRWAY = 11
    AIRWAY_WALL = 12
    FLUID = 13
    LIVER = 14
    SPLEEN = 15
    GUT_WALL = 16
    GUT_CONTENT = 17
    GUT_GAS = 18
    KIDNEY = 19
    DISC = 20
    TUMOUR = 21
    CONSOLIDATION = 22
    TABLE_SHELL = 23
    TABLE_FOAM = 24
    CUSHION = 25
    BLANKET = 26
    BRAIN = 27
    METAL = 28
    GLAND = 29


class Structure(IntEnum):
    """What a voxel belongs to, beside the lungs; a tissue such as blood is in several."""

    NONE = 0
    HEART = 1
    AORTA = 2
    AIRWAYS = 3
    SPINE = 4


@dataclass(frozen=True)
class Pose:
    """How the patient lies in the scanner.

    Attributes:
        scale: patient millimetres per millimetre of the standard adult.
        rotation_rad: turn about the long axis.
        offset_mm: (x, y, z) of the patient's carina relative to the image centre, LPS mm.
        warp_mm: amplitude of the smooth deformation.
        breathing_mm: amplitude of the shift along z from slice to slice.
    """

    scale: float = 1.0
    rotation_rad: float = 0.0
    offset_mm: Point = (0.0, 0.0, 0.0)
    warp_mm: float = 3.0
    breathing_mm: float = 0.0


class Canvas:
    """Tissue codes and lung labels on an axial grid, slice-row-column.

    Attributes:
        tissue: uint8 [K, J, I], values of `Tissue`.
        labels: uint8 [K, J, I], 0 background, 1 left lung, 2 right lung.
        structures: uint8 [K, J, I], values of `Structure`.
        voxel_mm: smallest in-plane voxel edge in the patient's own millimetres.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        shape_kji: tuple[int, int, int],
        spacing_mm: Point,
        pose: Pose,
    ) -> None:
        """Lay the grid.

        Args:
            rng: source of the warp.
            shape_kji: slices, rows, columns.
            spacing_mm: distance of slices, rows, columns in scanner millimetres.
            pose: size and position of the patient.
        """
        self.tissue = np.zeros(shape_kji, np.uint8)
        self.labels = np.zeros(shape_kji, np.uint8)
        self.structures = np.zeros(shape_kji, np.uint8)
        self._structure = Structure.NONE
        self.shape = shape_kji
        self.step = tuple(s / pose.scale for s in spacing_mm)
        self.voxel_mm = min(self.step[1], self.step[2])
        self._cos, self._sin = float(np.cos(pose.rotation_rad)), float(np.sin(pose.rotation_rad))
        axes = []
        for size, step, offset in zip(shape_kji, self.step, pose.offset_mm[::-1], strict=True):
            axes.append((np.arange(size) - (size - 1) / 2) * step - offset / pose.scale)
        self.z, self.y, self.x = (a.astype(np.float32) for a in axes)
        self._margin_mm = 2.0 * pose.warp_mm + 2 * pose.breathing_mm + 2.0

        def wave(a: Floats, b: Floats, amplitude: float) -> Floats:
            out = np.zeros((a.size, b.size), np.float32)
            for _ in range(2):
                la, lb = rng.uniform(140, 320, 2)
                pa, pb = rng.uniform(0, 2 * np.pi, 2)
                out += np.outer(np.sin(2 * np.pi * a / la + pa), np.sin(2 * np.pi * b / lb + pb))
            return (out * amplitude / 2).astype(np.float32)

        self._wave_x = wave(self.z, self.y, pose.warp_mm)
        self._wave_y = wave(self.z, self.x, pose.warp_mm)
        self._wave_z = wave(self.y, self.x, pose.warp_mm)
        if pose.breathing_mm:
            period_mm, phase = rng.uniform(12, 60), rng.uniform(0, 6.3)
            swing = np.sin(2 * np.pi * self.z / period_mm + phase)
            # The chest moves at the diaphragm, hardly at the apex.
            self.z = self.z + pose.breathing_mm * swing * np.clip((40 - self.z) / 120, 0, 1)

    def slice_xyz(self, k: int) -> tuple[Floats, Floats, Floats]:
        """Patient coordinates of slice `k`: x, y, z, each float32 [J, I] in mm."""
        x, y = self.x[None, :], self.y[:, None]
        return (
            self._cos * x + self._sin * y + self._wave_x[k][:, None],
            self._cos * y - self._sin * x + self._wave_y[k][None, :],
            self.z[k] + self._wave_z,
        )

    def point(self, k: int, j: int, i: int) -> Point:
        """Patient coordinates of one voxel: x, y, z in mm."""
        x, y = self.x[i], self.y[j]
        return (
            float(np.float32(self._cos) * x + np.float32(self._sin) * y + self._wave_x[k, j]),
            float(np.float32(self._cos) * y - np.float32(self._sin) * x + self._wave_y[k, i]),
            float(self.z[k] + self._wave_z[j, i]),
        )

    def block(self, low: Point, high: Point) -> tuple[Block, Floats, Floats, Floats] | None:
        """Coordinates of the voxels that a patient-frame box can touch.

        Args:
            low: the corner (x, y, z) nearest to right, front and foot, mm.
            high: the opposite corner.

        Returns:
            The index block and x, y, z, broadcastable to float32 [k, j, i]; None where the box
            lies outside the image.
        """
        corners = np.array(
            [
                (self._cos * px - self._sin * py, self._sin * px + self._cos * py)
                for px in (low[0], high[0])
                for py in (low[1], high[1])
            ]
        )
        bounds = (
            (self.z, low[2], high[2]),
            (self.y, corners[:, 1].min(), corners[:, 1].max()),
            (self.x, corners[:, 0].min(), corners[:, 0].max()),
        )
        found = []
        for axis, a, b in bounds:
            inside = np.flatnonzero((axis >= a - self._margin_mm) & (axis <= b + self._margin_mm))
            if not inside.size:
                return None
            found.append(slice(int(inside[0]), int(inside[-1]) + 1))
        kk, jj, ii = found
        x, y = self.x[None, None, ii], self.y[None, jj, None]
        return (
            (kk, jj, ii),
            self._cos * x + self._sin * y + self._wave_x[kk, jj][:, :, None],
            self._cos * y - self._sin * x + self._wave_y[kk, ii][:, None, :],
            self.z[kk, None, None] + self._wave_z[jj, ii][None],
        )

    def ellipsoid_mask(
        self, centre: Point, radii: Point, tilt_rad: float = 0.0
    ) -> tuple[Block, NDArray[np.bool_], Floats, Floats] | None:
        """Voxels inside an ellipsoid turned by `tilt_rad` in the axial plane.

        Returns:
            The index block, bool [k, j, i], and the block's x and y for further cuts.
        """
        reach = max(radii[0], radii[1]) if tilt_rad else None
        rx, ry = (reach, reach) if reach else radii[:2]
        found = self.block(
            (centre[0] - rx, centre[1] - ry, centre[2] - radii[2]),
            (centre[0] + rx, centre[1] + ry, centre[2] + radii[2]),
        )
        if found is None:
            return None
        where, x, y, z = found
        dx, dy, dz = x - centre[0], y - centre[1], z - centre[2]
        if tilt_rad:
            c, s = float(np.cos(tilt_rad)), float(np.sin(tilt_rad))
            dx, dy = c * dx + s * dy, c * dy - s * dx
        inside = (dx / radii[0]) ** 2 + (dy / radii[1]) ** 2 + (dz / radii[2]) ** 2 < 1
        return where, inside, x, y

    def ellipsoid(
        self,
        tissue: Tissue,
        centre: Point,
        radii: Point,
        tilt_rad: float = 0.0,
        only: tuple[Tissue, ...] = (),
    ) -> None:
        """Fill an ellipsoid with `tissue`, over everything or `only` over the tissues named."""
        found = self.ellipsoid_mask(centre, radii, tilt_rad)
        if found is not None:
            self.put(tissue, found[0], found[1], only)

    def put(
        self,
        tissue: Tissue,
        where: Block,
        inside: NDArray[np.bool_],
        only: tuple[Tissue, ...] = (),
    ) -> None:
        """Set `tissue` where `inside` holds, and take the lung labels away there.

        The voxels belong to the structure of `belonging_to` from now on.
        """
        there = self.tissue[where]
        if only:
            inside = inside & np.isin(there, only)
        there[inside] = tissue
        self.labels[where][inside] = 0
        self.structures[where][inside] = self._structure

    @contextmanager
    def belonging_to(self, structure: Structure) -> Iterator[None]:
        """What is painted inside this block belongs to `structure`."""
        before, self._structure = self._structure, structure
        try:
            yield
        finally:
            self._structure = before

    def tube(
        self,
        tissue: Tissue,
        points: list[Point],
        radii: list[float],
        only: tuple[Tissue, ...] = (),
    ) -> None:
        """Fill a bent tube through `points` whose radius changes linearly between them."""
        for where, distance, radius in self.tube_blocks(points, radii):
            self.put(tissue, where, distance < radius, only)

    def tube_blocks(
        self, points: list[Point], radii: list[float]
    ) -> Iterator[tuple[Block, Floats, Floats]]:
        """For each straight piece: index block, distance to its axis and its radius there, mm."""
        for (a, ra), (b, rb) in zip(
            zip(points[:-1], radii[:-1], strict=True),
            zip(points[1:], radii[1:], strict=True),
            strict=True,
        ):
            reach = max(ra, rb)
            found = self.block(
                (min(a[0], b[0]) - reach, min(a[1], b[1]) - reach, min(a[2], b[2]) - reach),
                (max(a[0], b[0]) + reach, max(a[1], b[1]) + reach, max(a[2], b[2]) + reach),
            )
            if found is None:
                continue
            where, x, y, z = found
            axis = np.subtract(b, a).astype(np.float32)
            length2 = float(axis @ axis) or 1.0
            dx, dy, dz = x - np.float32(a[0]), y - np.float32(a[1]), z - np.float32(a[2])
            t = np.clip((dx * axis[0] + dy * axis[1] + dz * axis[2]) / length2, 0, 1)
            distance2 = (dx - t * axis[0]) ** 2 + (dy - t * axis[1]) ** 2 + (dz - t * axis[2]) ** 2
            yield where, np.sqrt(distance2), ra + (rb - ra) * t
