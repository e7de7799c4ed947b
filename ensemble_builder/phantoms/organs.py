"""Organs, bones and limbs, painted over the trunk.

In: a canvas with a painted trunk. Out: the same canvas with a heart on the left, a liver on the
right, gas where people have gas, and airways that are not lung. Each function paints one region.
"""

from __future__ import annotations

import numpy as np

from ensemble_builder.phantoms.canvas import Canvas, Point, Structure, Tissue
from ensemble_builder.phantoms.patient import Patient

_ABDOMEN = (Tissue.FAT, Tissue.MEDIASTINUM, Tissue.MUSCLE)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def paint_mediastinum(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Fat between the lungs, heart, great vessels, gullet; they take the lung's place."""
    half, depth = patient.mediastinum_x, 0.55 * patient.chest_y
    top = patient.apex_z
    canvas.ellipsoid(Tissue.MEDIASTINUM, (0, 4, -10), (half, depth, 85))
    # The thoracic inlet, where the mediastinum fills all between the lung tips.
    inlet = _between(rng, 19, 33)
    canvas.ellipsoid(Tissue.MEDIASTINUM, (0, 4, top), (inlet, 38, 55))
    canvas.ellipsoid(Tissue.MUSCLE, (0, 16, top + 10), (26, 30, 40), only=(Tissue.MEDIASTINUM,))
    if rng.random() < 0.25:
        canvas.ellipsoid(
            Tissue.GLAND, (0, -0.62 * patient.chest_y, 10), (_between(rng, 8, 20), 10, 40)
        )
    rx, ry, rz = patient.heart
    shift = _between(rng, -8, 12)
    centre = (24 + shift, -0.30 * patient.chest_y, patient.dome_z[1] + 0.62 * rz)
    tilt = _between(rng, 0.3, 0.8)
    canvas.ellipsoid(Tissue.MEDIASTINUM, centre, (rx + 7, ry + 6, rz + 5), tilt)
    with canvas.belonging_to(Structure.HEART):
        canvas.ellipsoid(Tissue.HEART, centre, (rx, ry, rz), tilt)
        canvas.ellipsoid(
            Tissue.BLOOD, (centre[0] + 20, centre[1] - 2, centre[2] - 6), (26, 17, 26), tilt
        )
        canvas.ellipsoid(
            Tissue.BLOOD, (centre[0] - 24, centre[1] - 8, centre[2]), (18, 22, 28), tilt
        )
        canvas.ellipsoid(Tissue.BLOOD, (2, 14, -34), (36, 16, 20))
    aorta, wide = _between(rng, 10, 17), _between(rng, 13, 21)
    arch_z = _between(rng, 28, 48)
    spine_y = spine_axis_y(patient, 0.0)
    descend: Point = (_between(rng, 18, 34), spine_y - 26, arch_z - 20)
    with canvas.belonging_to(Structure.AORTA):
        canvas.tube(
            Tissue.BLOOD,
            [
                (4, -22, -45),
                (-16, -24, -10),
                (-14, -18, arch_z - 14),
                (6, 0, arch_z),
                (22, 18, arch_z - 2),
                descend,
                (descend[0] - 4, spine_y - 24, -80),
                (6, spine_y - 26, -200),
                (4, spine_y - 26, -400),
            ],
            [wide, wide, wide - 1, aorta + 2, aorta + 1, aorta, aorta, aorta - 2, aorta - 3],
        )
    pulmonary = _between(rng, 10, 16)
    canvas.tube(
        Tissue.BLOOD,
        [(14, -32, -42), (20, -22, -14), (8, -4, -12), (-30, 6, -14), (-46, 8, -20)],
        [pulmonary + 2, pulmonary, pulmonary, pulmonary - 2, 8],
    )
    canvas.tube(
        Tissue.BLOOD, [(20, -16, -10), (34, 4, -4), (48, 14, -14)], [pulmonary, pulmonary - 1, 8]
    )
    canvas.tube(Tissue.BLOOD, [(-26, -14, 60), (-27, -14, -10), (-24, -10, -50)], [8.0, 9.0, 11.0])
    _give_back_to_heart(canvas, centre, (rx, ry, rz), tilt)
    for side in (-1, 1):
        canvas.ellipsoid(Tissue.MEDIASTINUM, (side * 46, 10, -18), (15, 15, _between(rng, 14, 26)))
        # Vessels of the neck and the arm leave the arch upwards.
        canvas.tube(
            Tissue.BLOOD,
            [(side * 8, 0, arch_z), (side * 24, -4, 75), (side * 30, 0, 170)],
            [6.0, 6.5, 4.5],
        )
        canvas.tube(
            Tissue.BLOOD,
            [(side * 22, -8, 70), (side * 60, -14, top), (side * 130, 0, top - 10)],
            [6.0, 6.0, 5.0],
        )
    gullet_y = spine_y - 30
    canvas.tube(
        Tissue.GUT_WALL,
        [(4, gullet_y, 160), (4, gullet_y, 20), (12, gullet_y - 6, -110)],
        [8.0] * 3,
    )
    if rng.random() < 0.5:
        z = _between(rng, -90, 110)
        canvas.ellipsoid(
            Tissue.GUT_GAS,
            (5, gullet_y - 1, z),
            (_between(rng, 2, 9), _between(rng, 2, 7), _between(rng, 10, 50)),
        )
    if rng.random() < 0.08:
        # A hiatal hernia: stomach with gas behind the heart.
        canvas.ellipsoid(Tissue.GUT_WALL, (12, gullet_y - 14, -75), (34, 26, 30))
        canvas.ellipsoid(Tissue.GUT_GAS, (12, gullet_y - 20, -75), (28, 16, 24))
    for _ in range(int(rng.integers(0, 5))):
        node = _between(rng, 3, 9)
        spot = (_between(rng, -30, 34), _between(rng, -10, 30), _between(rng, -40, 70))
        canvas.ellipsoid(Tissue.GLAND, spot, (node, node, node * 1.3))


def _give_back_to_heart(canvas: Canvas, centre: Point, radii: Point, tilt_rad: float) -> None:
    """As far as they lie in the heart, the roots of its vessels are the heart's."""
    found = canvas.ellipsoid_mask(centre, radii, tilt_rad)
    if found is None:
        return
    where, inside, _, _ = found
    vessel = (canvas.tissue[where] == Tissue.BLOOD) & (canvas.structures[where] == Structure.NONE)
    canvas.structures[where][inside & vessel] = Structure.HEART


def paint_airways(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Throat, windpipe and main bronchi with their walls; their air is no lung."""
    r = patient.trachea_r
    # An aorta pushes the windpipe to the right, often until only its wall parts it from the lung.
    y, x = _between(rng, 0, 20), _between(rng, -20, 6)
    wall = _between(rng, 0.9, 2.6)
    bronchus = r * _between(rng, 0.62, 0.85)
    spread = _between(rng, 0.85, 1.3)
    runs: list[tuple[list[Point], list[float]]] = [
        (
            [(x / 2, y - 14, 160), (x, y - 6, 95), (x, y, 40), (0, y + 4, 2)],
            [r, r, r, r * 1.05],
        ),
        (
            [(0, y + 4, 2), (20, y + 8, -13 * spread), (46, y + 16, -24 * spread)],
            [bronchus, bronchus * 0.95, bronchus * 0.75],
        ),
        (
            [(0, y + 4, 2), (-16, y + 8, -13 * spread), (-36, y + 12, -30 * spread)],
            [bronchus * 1.1, bronchus * 1.1, bronchus * 0.85],
        ),
        ([(-24, y + 9, -18), (-46, y + 10, -10)], [bronchus * 0.75, bronchus * 0.5]),
        ([(46, y + 16, -24 * spread), (60, y + 26, -46)], [bronchus * 0.7, bronchus * 0.45]),
        ([(-36, y + 12, -30 * spread), (-50, y + 26, -58)], [bronchus * 0.8, bronchus * 0.5]),
    ]
    for points, radii in runs:
        canvas.tube(Tissue.AIRWAY_WALL, points, [v + wall for v in radii])
    with canvas.belonging_to(Structure.AIRWAYS):
        for points, radii in runs:
            canvas.tube(Tissue.AIRWAY, points, radii)
    if rng.random() < 0.15:
        # A tube in the windpipe.
        canvas.tube(
            Tissue.METAL if rng.random() < 0.2 else Tissue.DISC,
            [(x + 1, y - 6, 110), (x, y, 40)],
            [2.0, 2.0],
        )


def spine_axis_y(patient: Patient, z: float) -> float:
    """The y of the centre of the vertebral bodies at height `z`, mm."""
    _, half_y, y0 = patient.cavity(z)
    return float(np.interp(z, (-300, 60, 140), (patient.chest_y - 28, y0 + half_y - 14, 34)))


def paint_bones(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Spine, breastbone, collarbones and shoulder blades."""
    pitch = _between(rng, 22, 28)
    size = _between(rng, 0.85, 1.15)
    z = -420.0
    while z < patient.apex_z + 150:
        y = spine_axis_y(patient, z)
        neck = z > patient.apex_z + 5
        shrink = 0.72 if neck else 1.0
        w, d = 19 * size * shrink, 15.5 * size * shrink
        canvas.ellipsoid(Tissue.MUSCLE, (0, y + 6, z), (w + 7, d + 5, pitch * 0.75))
        with canvas.belonging_to(Structure.SPINE):
            canvas.ellipsoid(Tissue.DISC, (0, y, z + pitch / 2), (w, d, pitch * 0.45))
            canvas.ellipsoid(Tissue.CORTEX, (0, y, z), (w, d, pitch * 0.5))
            canvas.ellipsoid(Tissue.MARROW, (0, y, z), (w - 2.5, d - 2.5, pitch * 0.44))
            canvas.ellipsoid(Tissue.CORTEX, (0, y + d + 12, z), (15, 12, pitch * 0.34))
        # The canal is no bone.
        canvas.ellipsoid(Tissue.FLUID, (0, y + d + 8, z), (9.5, 7.5, pitch * 0.6))
        with canvas.belonging_to(Structure.SPINE):
            canvas.ellipsoid(Tissue.CORTEX, (0, y + d + 28, z - 8), (3.5, 17, pitch * 0.3))
        for side in (-1, 1):
            canvas.ellipsoid(
                Tissue.MUSCLE,
                (side * 26, y + d + 22, z),
                (21, 15, pitch),
                only=(Tissue.FAT, Tissue.MUSCLE, Tissue.SKIN),
            )
            if not neck:
                spot = (side * 25.0, y + d + 8, z + 4)
                with canvas.belonging_to(Structure.SPINE):
                    canvas.ellipsoid(Tissue.CORTEX, spot, (15, 4.5, 5), side * 0.5)
        z += pitch
    front = -patient.chest_y
    for low, high, back in ((-95, 30, 0.0), (30, 72, 8.0)):
        middle, half = (low + high) / 2, (high - low) / 2 + 6
        canvas.ellipsoid(Tissue.CORTEX, (0, front - 6 + 2 * back, middle), (19, 7.5, half))
        canvas.ellipsoid(Tissue.MARROW, (0, front - 6 + 2 * back, middle), (16.5, 5, half - 3))
    top = patient.apex_z
    reach = 150.0 if patient.arms != "up" else 118.0
    lift = 2.0 if patient.arms != "up" else 30.0
    for side in (-1, 1):
        collar: list[Point] = [
            (side * 18, -36, top - 22),
            (side * 70, -42, top - 4),
            (side * reach, 0, top + lift),
        ]
        canvas.tube(Tissue.CORTEX, collar, [7.5, 6.0, 7.0])
        canvas.tube(Tissue.MARROW, collar, [5.0, 3.5, 4.5])
        blade_x = patient.cavity(40)[0] + (4 if patient.arms != "up" else 22)
        tilt = side * _between(rng, 0.6, 1.1)
        for thick, tissue in ((4.5, Tissue.CORTEX), (1.8, Tissue.MARROW)):
            canvas.ellipsoid(
                tissue,
                (side * blade_x * 0.92, 0.62 * patient.chest_y, 25),
                (42, thick, 62),
                -tilt,
                only=(Tissue.MUSCLE, Tissue.FAT, Tissue.CORTEX),
            )
    if rng.random() < 0.08:
        spot = (_between(rng, 50, 90), front - 6, _between(rng, 20, 60))
        canvas.ellipsoid(Tissue.METAL, spot, (16, 4, 14))


def paint_abdomen(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Liver right, spleen and stomach left, kidneys, and bowel with gas wherever it likes."""
    left, right = patient.dome_z
    wide, deep = patient.chest_x, patient.chest_y
    only = _ABDOMEN
    canvas.ellipsoid(
        Tissue.LIVER, (-0.46 * wide, -6, right - 72), (0.62 * wide, 0.92 * deep, 90), only=only
    )
    canvas.ellipsoid(
        Tissue.LIVER,
        (0.05 * wide, -0.4 * deep, right - 62),
        (0.5 * wide, 0.42 * deep, 46),
        only=only,
    )
    canvas.ellipsoid(
        Tissue.SPLEEN, (0.68 * wide, 0.42 * deep, left - 62), (26, 42, 46), 0.5, only=only
    )
    for side in (-1, 1):
        spot = (side * 62.0, deep * 0.5, right - 150)
        canvas.ellipsoid(Tissue.KIDNEY, spot, (27, 25, 52), only=only)
        canvas.ellipsoid(Tissue.FAT, spot, (9, 9, 30), only=(Tissue.KIDNEY,))
        canvas.ellipsoid(Tissue.MUSCLE, (side * 34, deep * 0.62, right - 190), (24, 24, 110))
    up = -1 if patient.prone else 1
    _hollow(
        canvas,
        rng,
        (0.42 * wide + _between(rng, -14, 16), -0.2 * deep, left - _between(rng, 34, 62)),
        (_between(rng, 34, 62), _between(rng, 30, 56), _between(rng, 34, 62)),
        gas=_between(rng, 0.1, 0.95) if rng.random() < 0.8 else 0.0,
        up=up,
    )
    loops: list[Point] = []
    if rng.random() < 0.7:
        # The splenic flexure pushes up under the left dome, often with nothing but gas in it.
        loops += [
            (0.62 * wide, -0.1 * deep + 18 * i, left - _between(rng, 14, 46)) for i in range(3)
        ]
    if rng.random() < 0.15:
        # Colon between liver and diaphragm (Chilaiditi).
        loops += [(-0.6 * wide, -0.5 * deep, right - 40 - 20 * i) for i in range(2)]
    across = right - _between(rng, 110, 170)
    loops += [(x, -0.66 * deep, across + _between(rng, -15, 15)) for x in range(-90, 91, 36)]
    loops += [(side * 0.78 * wide, 0.0, across - 30 - 30 * i) for i in range(6) for side in (-1, 1)]
    for x, y, z in loops:
        r = _between(rng, 14, 29)
        spot = (x + _between(rng, -9, 9), y + _between(rng, -9, 9), z)
        _hollow(
            canvas,
            rng,
            spot,
            (r * _between(rng, 0.9, 1.5), r, r * _between(rng, 0.9, 1.3)),
            gas=float(rng.choice([0.0, 0.4, 0.7, 1.0])),
            up=up,
        )
    for _ in range(22):
        spot = (
            _between(rng, -75, 75),
            _between(rng, -0.7, 0.1) * deep,
            across - _between(rng, 30, 230),
        )
        _hollow(canvas, rng, spot, (15, 13, 15), gas=float(rng.choice([0, 0, 0, 0.5])), up=up)
    if rng.random() < 0.06:
        # Free air under the diaphragm.
        side = int(rng.integers(2))
        sign = 1 if side == 0 else -1
        canvas.ellipsoid(
            Tissue.GUT_GAS,
            (sign * 0.5 * wide, -0.4 * deep * up, patient.dome_z[side] - 14),
            (40, 26, 9),
            only=(Tissue.FAT, Tissue.LIVER, Tissue.GUT_WALL),
        )


def _hollow(
    canvas: Canvas, rng: np.random.Generator, centre: Point, radii: Point, *, gas: float, up: int
) -> None:
    """A loop of gut whose upper share `gas` (0 to 1) is gas; `up` is -1 for a prone patient."""
    only = (*_ABDOMEN, Tissue.LIVER, Tissue.SPLEEN, Tissue.GUT_WALL, Tissue.GUT_CONTENT)
    canvas.ellipsoid(Tissue.GUT_WALL, centre, radii, only=only)
    wall = float(rng.uniform(1.5, 4.0))
    inner = (radii[0] - wall, radii[1] - wall, radii[2] - wall)
    found = canvas.ellipsoid_mask(centre, inner)
    if found is None:
        return
    where, inside, _, y = found
    inside = inside & (canvas.tissue[where] == Tissue.GUT_WALL)
    canvas.put(Tissue.GUT_CONTENT, where, inside)
    level = centre[1] * up + inner[1] * (2 * gas - 1)
    canvas.put(Tissue.GUT_GAS, where, inside & (y * up < level))


def paint_limbs(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Arms, breasts, neck and head, where they reach into the image."""
    _, half_y, y0 = patient.trunk(-20.0)
    if patient.breast:
        r = patient.breast
        for side in (-1, 1):
            droop = _between(rng, -20, 30)
            spot = (side * (0.5 * patient.chest_x + droop), y0 - half_y + 0.25 * r, -35)
            only = (Tissue.AIR, Tissue.FAT, Tissue.SKIN)
            canvas.ellipsoid(Tissue.SKIN, spot, (r * 1.15 + 2, r * 0.8 + 2, r * 1.1 + 2), only=only)
            canvas.ellipsoid(Tissue.FAT, spot, (r * 1.15, r * 0.8, r * 1.1), only=only)
            canvas.ellipsoid(Tissue.GLAND, spot, (r * 0.6, r * 0.4, r * 0.5), only=(Tissue.FAT,))
    shoulder_x = patient.trunk(patient.apex_z - 20)[0] - 42
    thick = 30 + 0.35 * patient.fat
    for side in (-1, 1):
        up = patient.arms == "up" or (patient.arms == "one" and side == 1)
        start: Point = (side * shoulder_x, 8, patient.apex_z - 34)
        if patient.arms == "none":
            continue
        if up:
            elbow: Point = (side * _between(rng, 120, 200), _between(rng, -50, 20), 330)
            path = [start, (side * (shoulder_x + 8), 0, patient.apex_z + 40), elbow]
        else:
            out = patient.trunk(-150)[0] + thick + _between(rng, -12, 25)
            path = [
                start,
                (side * (out + 4), 14, -90),
                (side * out, _between(rng, -20, 30), -240),
                (side * out * 0.95, _between(rng, -60, 20), -460),
            ]
        # Skin and fat must not cut into the trunk's muscle.
        outside = (Tissue.AIR, Tissue.SKIN, Tissue.FAT)
        through = (*outside, Tissue.MUSCLE, Tissue.CORTEX)
        layers: tuple[tuple[Tissue, float, tuple[Tissue, ...]], ...] = (
            (Tissue.SKIN, thick + 2, (Tissue.AIR,)),
            (Tissue.FAT, thick, outside),
            (Tissue.MUSCLE, thick - 4 - 0.25 * patient.fat, through),
            (Tissue.CORTEX, 12.0, through),
            (Tissue.MARROW, 7.0, through),
        )
        for tissue, r, over in layers:
            canvas.tube(tissue, path, [r] * len(path), over)
        canvas.ellipsoid(Tissue.CORTEX, start, (25, 25, 25))
        canvas.ellipsoid(Tissue.MARROW, start, (22, 22, 22))
    _head(canvas, patient, rng)


def _head(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    """Neck above the shoulders, and a head with throat, mouth and sinuses full of air."""
    base = patient.apex_z + 60
    if float(canvas.z.max()) < base - 40:
        return
    fat = 0.3 * patient.fat
    neck: list[Point] = [(0, 10, base - 12), (0, 12, base + 60)]
    for tissue, r in ((Tissue.SKIN, 58 + fat), (Tissue.FAT, 56 + fat), (Tissue.MUSCLE, 52.0)):
        soft = (Tissue.AIR, Tissue.SKIN, Tissue.FAT)
        canvas.tube(tissue, neck, [r, r], () if tissue == Tissue.MUSCLE else soft)
    head = (0.0, -4.0, base + 125.0)
    for tissue, grow in (
        (Tissue.SKIN, 9),
        (Tissue.FAT, 7),
        (Tissue.CORTEX, 4),
        (Tissue.BRAIN, -4),
    ):
        canvas.ellipsoid(tissue, head, (72 + grow, 92 + grow, 108 + grow))
    canvas.ellipsoid(Tissue.MUSCLE, (0, -48, base + 62), (56, 48, 52))
    canvas.ellipsoid(Tissue.CORTEX, (0, -62, base + 40), (48, 34, 12))
    canvas.ellipsoid(Tissue.MUSCLE, (0, -52, base + 44), (38, 30, 16))
    for i in range(8):
        z = base - 30 + i * 20
        canvas.ellipsoid(Tissue.CORTEX, (0, 34, z), (15, 13, 9))
        canvas.ellipsoid(Tissue.FLUID, (0, 54, z), (9, 8, 11))
    wide = _between(rng, 6, 15)
    canvas.tube(
        Tissue.AIRWAY,
        [(0, 0, base - 10), (0, -2, base + 30), (0, 2, base + 80)],
        [patient.trachea_r, wide, wide + 3],
    )
    canvas.ellipsoid(Tissue.AIRWAY, (0, -50, base + 70), (_between(rng, 4, 26), 34, 9))
    canvas.ellipsoid(Tissue.AIRWAY, (0, -48, base + 96), (13, 40, 17))
    for side in (-1, 1):
        canvas.ellipsoid(Tissue.AIRWAY, (side * 28, -52, base + 94), (14, 17, 17))
