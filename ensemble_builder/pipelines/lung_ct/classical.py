"""Lungs by classical image processing: the reference that the network is compared with.

In: HU of a chest CT and its geometry. Out: left and right lung. No learning: a threshold, what the
body encloses, airways taken out, sides parted, holes closed. It finds aerated lung and what that
encloses; consolidation that touches the pleura is missing by construction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]

LEFT_LUNG, RIGHT_LUNG = 1, 2
LUNG_BELOW_HU = -450
AIRWAY_BELOW_HU = -900
"""Air in a windpipe, even blurred by a thick slice; lung tissue on average is denser."""
SMALLEST_LUNG_ML = 40.0
CLOSING_MM = 7.0
"""Vessels thinner than twice this count as lung, as hand-drawn references have them."""


def lung_labels(hu: NDArray[np.int16], affine_lps: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Label both lungs.

    Args:
        hu: int16 [K, J, I], Hounsfield units, axial slices.
        affine_lps: float64 [4, 4], (i, j, k, 1) to LPS mm.

    Returns:
        uint8 [K, J, I]: 0 background, 1 left lung, 2 right lung.

    Raises:
        ValueError: if the volume is not three-dimensional or its slices are not axial.
    """
    canonical, spacing, flips = _canonical(hu, affine_lps)
    labels = _label_canonical(np.maximum(canonical, -1024), spacing)
    return np.ascontiguousarray(np.flip(labels, flips) if flips else labels)


def airway_lumen(hu: NDArray[np.int16], affine_lps: NDArray[np.float64]) -> Mask:
    """The air in windpipe and main bronchi, without their walls: bool [K, J, I].

    Args:
        hu: int16 [K, J, I], Hounsfield units, axial slices.
        affine_lps: float64 [4, 4], (i, j, k, 1) to LPS mm.

    Raises:
        ValueError: as `lung_labels`.
    """
    canonical, spacing, flips = _canonical(hu, affine_lps)
    canonical = np.maximum(canonical, -1024)
    air = (canonical < LUNG_BELOW_HU) & _body(canonical, spacing)
    grown = _airways(canonical, air, spacing, rim_mm=0.0)
    # Noise leaves holes in it, and it reaches far into the lungs' thin branches.
    closed = _close(grown, 3.0, spacing) & air if grown.any() else grown
    lumen = ndimage.binary_opening(closed, _ball(3.5, spacing))
    return np.ascontiguousarray(np.flip(lumen, flips) if flips else lumen)


def _canonical(
    hu: NDArray[np.int16], affine_lps: NDArray[np.float64]
) -> tuple[NDArray[np.int16], NDArray[np.float64], tuple[int, ...]]:
    """The volume with i, j, k to the left, the back and the head; its spacing; axes flipped."""
    if hu.ndim != 3:
        raise ValueError(f"expected a volume [K, J, I], got shape {hu.shape}")
    direction = affine_lps[:3, :3] / np.linalg.norm(affine_lps[:3, :3], axis=0)
    if min(abs(direction[0, 0]), abs(direction[1, 1]), abs(direction[2, 2])) < 0.8:
        raise ValueError("expected axial slices with rows and columns along the patient's axes")
    flips = tuple(axis for axis in range(3) if direction[2 - axis, 2 - axis] < 0)
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)[::-1]
    return np.flip(hu, flips) if flips else hu, spacing, flips


def _label_canonical(hu: NDArray[np.int16], spacing: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Label a volume whose i, j, k run to the left, the back and the head."""
    body = _body(hu, spacing)
    air = (hu < LUNG_BELOW_HU) & body
    air &= ~_airways(hu, air, spacing)
    air = ndimage.binary_opening(air, _ball(1.5, spacing))
    seeds = _lung_components(air, spacing)
    if not seeds.any():
        return np.zeros(hu.shape, np.uint8)
    sides = _part_sides(seeds, spacing)
    out = np.zeros(hu.shape, np.uint8)
    for side in (LEFT_LUNG, RIGHT_LUNG):
        lung = sides == side
        if not lung.any():
            continue
        closed = _close(lung, CLOSING_MM, spacing)
        closed = _fill_slices(closed)
        out[closed & (out == 0) & ((sides == 0) | lung) & body] = side
    # Closing must not give back the airways.
    wide_air = (hu < AIRWAY_BELOW_HU) & (sides == 0)
    out[ndimage.binary_opening(wide_air, _ball(2.5, spacing)) & (sides == 0)] = 0
    return out


def _ball(radius_mm: float, spacing: NDArray[np.float64]) -> Mask:
    """A ball as a structuring element, bool, at least the direct neighbours in each plane."""
    reach = [max(1 if s < 2 * radius_mm else 0, int(radius_mm / s)) for s in spacing]
    grid = np.ogrid[tuple(slice(-r, r + 1) for r in reach)]
    distance = sum((g * s) ** 2 for g, s in zip(grid, spacing, strict=True))
    return np.asarray(distance <= max(radius_mm, float(min(spacing))) ** 2 * 1.001)


def _close(mask: Mask, radius_mm: float, spacing: NDArray[np.float64]) -> Mask:
    """Close by distance, quickly at any radius; bool like `mask`."""
    pad = [(int(radius_mm / s) + 2,) * 2 for s in spacing]
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    grown = np.pad(mask[box], pad)
    near = ndimage.distance_transform_edt(~grown, spacing) <= radius_mm
    closed = ndimage.distance_transform_edt(near, spacing) > radius_mm
    inner = tuple(slice(p[0], -p[1]) for p in pad)
    out = mask.copy()
    out[box] |= closed[inner]
    return out


def _fill_slices(mask: Mask) -> Mask:
    """Fill the holes of every axial slice."""
    out = mask.copy()
    for k in range(mask.shape[0]):
        if mask[k].any():
            out[k] = ndimage.binary_fill_holes(mask[k])
    return out


def _body(hu: NDArray[np.int16], spacing: NDArray[np.float64]) -> Mask:
    """The body with all the air it encloses in the axial plane, without table and cushions."""
    dense = ndimage.binary_opening(hu > -300, _ball(2.5, spacing))
    found, count = ndimage.label(dense)
    if not count:
        return np.zeros(hu.shape, bool)
    sizes = np.bincount(found.ravel())
    sizes[0] = 0
    body: Mask = found == int(sizes.argmax())
    for k in range(hu.shape[0]):
        if not body[k].any():
            continue
        # An edge of the image closes the body where the field of view cuts it.
        closed = ndimage.binary_closing(np.pad(body[k], 8, mode="edge"), iterations=4)
        filled = ndimage.binary_fill_holes(closed)[8:-8, 8:-8]
        body[k] = filled | body[k]
    return body


def _airways(
    hu: NDArray[np.int16], air: Mask, spacing: NDArray[np.float64], rim_mm: float = 2.5
) -> Mask:
    """Windpipe and main bronchi: grown from the top with a threshold that stops at the lung."""
    columns = hu.shape[2]
    cell_mm2 = spacing[1] * spacing[2]
    best: Mask = np.zeros(hu.shape, bool)
    lung_ml = air.sum() * spacing.prod() / 1000
    for k in range(hu.shape[0] - 1, hu.shape[0] // 3, -1):
        spots, _ = ndimage.label(air[k] & (hu[k] < AIRWAY_BELOW_HU))
        for n, box in enumerate(ndimage.find_objects(spots), start=1):
            area = (spots[box] == n).sum() * cell_mm2
            height = (box[0].stop - box[0].start) * spacing[1]
            width = (box[1].stop - box[1].start) * spacing[2]
            middle = (box[1].start + box[1].stop) / 2
            central = abs(middle - columns / 2) * spacing[2] < 60
            if not (60 < area < 900 and central and area > 0.5 * height * width):
                continue
            if max(height, width) > 2.2 * min(height, width):
                continue
            seed = np.zeros(hu.shape, bool)
            seed[k] = spots == n
            grown = _grow(hu, air, seed, spacing, lung_ml)
            if grown.sum() > best.sum():
                best = grown
        if best.sum() * spacing.prod() > 15_000:
            break
    if not best.any():
        return best
    # The wall and the blurred rim belong to the airway, not to the lung.
    near = ndimage.distance_transform_edt(~best, spacing) <= rim_mm
    return np.asarray(near & air)


def _grow(
    hu: NDArray[np.int16], air: Mask, seed: Mask, spacing: NDArray[np.float64], lung_ml: float
) -> Mask:
    """Grow a seed through air as far as thresholds allow without bursting into the lung."""
    best = seed
    limit_ml = min(120.0, 0.06 * lung_ml)
    for below in (-980, -960, -940, -920, -900, -880):
        parts, _ = ndimage.label(air & (hu < below) | seed)
        touched = np.unique(parts[seed])
        grown = np.isin(parts, touched[touched > 0])
        if grown.sum() * spacing.prod() / 1000 > limit_ml:
            break
        best = grown
    return best


def _lung_components(air: Mask, spacing: NDArray[np.float64]) -> Mask:
    """The one or two components of enclosed air that are lung, not gut."""
    parts, count = ndimage.label(air)
    if not count:
        return air
    volume_ml = np.bincount(parts.ravel()) * spacing.prod() / 1000
    volume_ml[0] = 0
    order = np.argsort(volume_ml)[::-1]
    keep = [order[0]]
    if len(order) > 1 and volume_ml[order[1]] > max(SMALLEST_LUNG_ML, 0.12 * volume_ml[order[0]]):
        keep.append(order[1])
    if volume_ml[keep[0]] < SMALLEST_LUNG_ML:
        return np.zeros_like(air)
    return np.isin(parts, keep)


def _part_sides(lungs: Mask, spacing: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Give each voxel of `lungs` its side; lungs that touch are parted where they are narrow."""
    radius_mm = 0.0
    inner = ndimage.distance_transform_edt(lungs, spacing)
    total = int(lungs.sum())
    markers = np.zeros(lungs.shape, np.int32)
    while radius_mm <= 12:
        parts, _ = ndimage.label(inner > radius_mm)
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        two = np.argsort(sizes)[::-1][:2]
        if len(two) == 2 and sizes[two[1]] > 0.1 * total * (1 - radius_mm / 24):
            x = [ndimage.center_of_mass(parts == n)[2] for n in two]
            if abs(x[0] - x[1]) * spacing[2] > 60:
                left, right = (two[0], two[1]) if x[0] > x[1] else (two[1], two[0])
                markers[parts == left], markers[parts == right] = LEFT_LUNG, RIGHT_LUNG
                break
        radius_mm += 1.5
    if not markers.any():
        middle = lungs.shape[2] / 2
        one = LEFT_LUNG if ndimage.center_of_mass(lungs)[2] > middle else RIGHT_LUNG
        return (lungs * one).astype(np.uint8)
    nearest = ndimage.distance_transform_edt(
        markers == 0, spacing, return_distances=False, return_indices=True
    )
    sides = markers[tuple(nearest)]
    return np.where(lungs, sides, 0).astype(np.uint8)
