"""What is inside the lungs: vessels, small airways, disease, and the density of the tissue.

In: a canvas whose organs are painted and its attenuations in HU. Out: the same HU, and labels from
which dense disease that touches the pleura is taken away: the labels mean aerated lung and what
it encloses, which is also what a threshold with closed holes finds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ensemble_builder.phantoms.canvas import Canvas, Floats, Point, Tissue
from ensemble_builder.phantoms.patient import Patient
from ensemble_builder.phantoms.trunk import LEFT_LUNG, RIGHT_LUNG


def shade_lungs(canvas: Canvas, patient: Patient, rng: np.random.Generator, hu: Floats) -> None:
    """Give lung tissue its side's density, the pull of gravity and slow unevenness.

    Args:
        canvas: painted organs.
        patient: the anatomy.
        rng: source of chance.
        hu: float32 [K, J, I], changed in place.
    """
    sign = -1.0 if patient.prone else 1.0
    waves = rng.uniform(30, 110, 3)
    patchy = float(rng.choice([0.0, 8.0, 25.0, 60.0]))
    for k in range(canvas.shape[0]):
        lung = canvas.tissue[k] == Tissue.LUNG
        if not lung.any():
            continue
        x, y, z = (np.broadcast_to(a, lung.shape)[lung] for a in canvas.slice_xyz(k))
        base = np.where(canvas.labels[k][lung] == LEFT_LUNG, patient.lung_hu[0], patient.lung_hu[1])
        uneven = np.sin(x / waves[0] + z / 40) + np.sin(y / waves[1]) * np.sin(z / waves[2])
        hu[k][lung] = base + patient.gravity_hu * sign * y + patchy * uneven


def paint_trees(canvas: Canvas, patient: Patient, rng: np.random.Generator, hu: Floats) -> None:
    """Grow vessels and bronchi from the root of each lung towards random targets.

    Args:
        canvas: painted organs.
        patient: the anatomy.
        rng: source of chance.
        hu: float32 [K, J, I], changed in place.
    """
    size = float(rng.uniform(0.65, 1.15))
    # A coarse grid shows no fine twigs, and painting them is most of the work.
    twigs = 420 if canvas.voxel_mm < 1.2 else 150
    if twigs > 200:
        size *= 0.9
    for label, sign in ((LEFT_LUNG, 1), (RIGHT_LUNG, -1)):
        targets = _targets(canvas, rng, label, twigs)
        if len(targets) < 5:
            continue
        root = np.array((sign * 40.0, 12.0, -16.0))
        for path, radii in _tree(root, targets, size):
            _vessel(canvas, hu, path, radii, patient.contrast_hu * 0.9 + 5)
        for path, radii in _tree(
            root + np.array((0.0, 4.0, -6.0)), targets[: twigs // 10], size * 1.35
        ):
            _vessel(canvas, hu, path, [1.5 * r + 0.5 for r in radii], -250.0)
            _vessel(canvas, hu, path, radii, -985.0)


def _targets(
    canvas: Canvas, rng: np.random.Generator, label: int, count: int
) -> NDArray[np.float64]:
    """Random points of one lung in the patient frame, float64 [n, 3], n at most `count`."""
    size = canvas.labels.size
    tries = rng.integers(0, size, 60 * count)
    picks = tries[canvas.labels.reshape(-1)[tries] == label][:count]
    where = zip(*np.unravel_index(picks, canvas.shape), strict=True)
    points = [canvas.point(int(k), int(j), int(i)) for k, j, i in where]
    return np.array(points).reshape(-1, 3)


def _tree(
    root: NDArray[np.float64], targets: NDArray[np.float64], size: float
) -> list[tuple[list[Point], list[float]]]:
    """Join targets to the nearest node nearer to the root; radii follow Murray's law.

    Source: C. D. Murray, The physiological principle of minimum work, PNAS 12 (1926): the cube of
    a vessel's radius is the sum of the cubes of its branches.
    """
    order = np.argsort(np.linalg.norm(targets - root, axis=1))
    nodes = np.vstack([root, targets[order]])
    count = len(nodes)
    parent = np.zeros(count, int)
    ends = np.ones(count)
    for n in range(1, count):
        gap = np.linalg.norm(nodes[:n] - nodes[n], axis=1)
        # A detour through the parent is weighed against the straight way from the root.
        reach = gap + 0.35 * np.linalg.norm(nodes[:n] - root, axis=1)
        parent[n] = int(np.argmin(reach))
    for n in range(count - 1, 0, -1):
        ends[parent[n]] += ends[n]
    runs = []
    for n in range(1, count):
        a, b = nodes[parent[n]], nodes[n]
        thick, thin = size * ends[n] ** (1 / 3), size * max(ends[n] - 1, 1) ** (1 / 3)
        bend = 0.12 * np.linalg.norm(b - a) * np.sin(np.arange(3) * 2.4 + n)
        middle = (a + b) / 2 + bend
        path = [(float(p[0]), float(p[1]), float(p[2])) for p in (a, middle, b)]
        runs.append((path, [float(thick), float((thick + thin) / 2), float(thin)]))
    return runs


def _vessel(
    canvas: Canvas, hu: Floats, path: list[Point], radii: list[float], value: float
) -> None:
    """Blend a tube into lung tissue; one thinner than a voxel only tints it."""
    for where, distance, radius in canvas.tube_blocks(
        path, [max(r, canvas.voxel_mm) for r in radii]
    ):
        true_radius = float(np.mean(radii))
        edge = np.clip((radius - distance) / canvas.voxel_mm + 0.5, 0, 1)
        share = edge * min(1.0, (true_radius / max(true_radius, canvas.voxel_mm)) ** 2)
        share *= canvas.tissue[where] == Tissue.LUNG
        hu[where] += share * (value - hu[where])


def paint_disease(
    canvas: Canvas, patient: Patient, rng: np.random.Generator, hu: Floats, amount: float = 1.0
) -> None:
    """Nodules, tumours, consolidations, haze, emphysema and bullae.

    Args:
        canvas: painted organs.
        patient: the anatomy.
        rng: source of chance.
        hu: float32 [K, J, I], changed in place.
        amount: multiplies how many there are; 0 leaves the lungs healthy.
    """
    spots = {label: _targets(canvas, rng, label, 40) for label in (LEFT_LUNG, RIGHT_LUNG)}
    everywhere = np.vstack(list(spots.values()))
    if not len(everywhere) or amount <= 0:
        return

    def some(chance: float, most: int) -> range:
        return range(int(rng.integers(1, most + 1)) if rng.random() < chance * amount else 0)

    def spot() -> Point:
        p = everywhere[int(rng.integers(len(everywhere)))]
        return (float(p[0]), float(p[1]), float(p[2]))

    def blend(at: Point, r: float, value: float, share: float) -> None:
        found = canvas.ellipsoid_mask(at, _radii(r, rng), float(rng.uniform(0, 3)))
        if found is not None:
            where, inside, _, _ = found
            weight = share * (inside & (canvas.tissue[where] == Tissue.LUNG))
            hu[where] += weight * (value - hu[where])

    def dense(at: Point, r: float, value: float) -> None:
        _solid(canvas, hu, at, _radii(r, rng), tilt_rad=float(rng.uniform(0, 3)), value=value)

    for _ in some(0.30, 3):
        # Haze, which is still lung.
        r = float(rng.uniform(15, 55))
        blend(spot(), r, float(rng.uniform(-720, -450)), float(rng.uniform(0.3, 0.9)))
    for _ in some(0.30, 25):
        # Emphysema and bullae.
        r = float(rng.uniform(4, 30))
        blend(spot(), r, float(rng.uniform(-990, -940)), float(rng.uniform(0.5, 1)))
    for _ in some(0.35, 8):
        dense(spot(), float(rng.uniform(2, 8)), 40)
    for _ in some(0.30, 2):
        dense(spot(), float(rng.uniform(8, 36)), patient.contrast_hu * 0.3 + 25)
    for _ in some(0.22, 2):
        # Collapsed lung, where it lies lowest.
        side = 1 if rng.random() < 0.5 else -1
        back = -0.75 if patient.prone else 0.75
        height = patient.dome_z[0] + float(rng.uniform(-60, 60))
        at = (side * 0.6 * patient.chest_x, back * patient.chest_y, height)
        dense(at, float(rng.uniform(15, 45)), 20)


def _radii(r: float, rng: np.random.Generator) -> Point:
    a, b, c = rng.uniform(0.7, 1.3, 3) * r
    return float(a), float(b), float(c)


def _solid(
    canvas: Canvas, hu: Floats, at: Point, radii: Point, *, tilt_rad: float, value: float
) -> None:
    """A solid lesion. Enclosed by lung it keeps the label; touching the pleura it loses it."""
    rim = 1.0 + 2.5 / min(radii)
    shell = (radii[0] * rim, radii[1] * rim, radii[2] * rim)
    found = canvas.ellipsoid_mask(at, shell, tilt_rad)
    core = canvas.ellipsoid_mask(at, radii, tilt_rad)
    if found is None or core is None:
        return
    touches = bool((found[1] & (canvas.labels[found[0]] == 0)).any())
    where, inside, _, _ = core
    inside = inside & np.isin(canvas.tissue[where], (Tissue.LUNG, Tissue.FISSURE))
    hu[where][inside] = value
    if touches:
        canvas.put(Tissue.CONSOLIDATION, where, inside)
    else:
        canvas.tissue[where][inside] = Tissue.TUMOUR
