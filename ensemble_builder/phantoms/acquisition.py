"""The scanner: pose, sharpness, noise, seams and padding.

In: attenuations on a finely sliced grid. Out: what a reconstruction of thicker slices would store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ensemble_builder.phantoms.canvas import Floats, Point, Pose

Region = Literal["chest", "long", "upper", "lower", "middle", "abdomen"]
# Where the image centre lies above the carina, and how long the scan is, mm.
_REGIONS: dict[Region, tuple[tuple[float, float], tuple[float, float]]] = {
    "chest": ((-70, -10), (270, 380)),
    "long": ((-160, 60), (420, 640)),
    "upper": ((40, 140), (130, 260)),
    "lower": ((-190, -90), (130, 260)),
    "middle": ((-60, 30), (80, 170)),
    "abdomen": ((-260, -180), (200, 320)),
}


@dataclass(frozen=True)
class Acquisition:
    """How one series was made.

    Attributes:
        pose: position and size of the patient.
        noise_hu: standard deviation of the noise.
        noise_width: width of the noise's grain in voxels; 0 is a sharp kernel.
        blur: width of the point spread in voxels, in the slice.
        sharpen: overshoot of an edge kernel, 0 for none.
        streak_hu: noise along x at the shoulders.
        pad_hu: value outside the circular field of view; None reconstructs the whole square.
        seams: (slice fraction, shift in voxels, step in HU) of the slabs of a stepped scan.
        offset_hu: error of the calibration.
    """

    pose: Pose = field(default_factory=Pose)
    noise_hu: float = 14.0
    noise_width: float = 0.7
    blur: float = 0.55
    sharpen: float = 0.0
    streak_hu: float = 0.0
    pad_hu: int | None = None
    seams: tuple[tuple[float, int, float], ...] = ()
    offset_hu: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator, centre_mm: Point = (0.0, 0.0, 30.0)) -> Acquisition:
        """Draw a protocol for an image whose centre lies `centre_mm` from where it should."""
        dx, dy = rng.normal(0, 14, 2)
        pose = Pose(
            scale=float(np.clip(rng.normal(1.0, 0.11), 0.68, 1.25)),
            rotation_rad=float(rng.normal(0, 0.07)),
            offset_mm=(centre_mm[0] + float(dx), centre_mm[1] + float(dy), centre_mm[2]),
            warp_mm=float(rng.uniform(1, 8)),
            breathing_mm=float(rng.uniform(2, 9)) if rng.random() < 0.25 else 0.0,
        )
        seams: tuple[tuple[float, int, float], ...] = ()
        if rng.random() < 0.12:
            seams = tuple(
                (float(rng.uniform(0, 1)), int(rng.integers(-3, 4)), float(rng.normal(0, 15)))
                for _ in range(int(rng.integers(1, 4)))
            )
        pads = (None, None, None, -1000, -1024, -2000, -3024)
        return cls(
            pose=pose,
            noise_hu=float(rng.choice([rng.uniform(3, 18), rng.uniform(15, 90)])),
            noise_width=float(rng.choice([0.0, rng.uniform(0.4, 1.2)])),
            blur=float(rng.uniform(0.3, 1.0)),
            sharpen=float(rng.choice([0.0, 0.0, rng.uniform(0.2, 0.9)])),
            streak_hu=float(rng.choice([0.0, 0.0, rng.uniform(10, 90)])),
            pad_hu=pads[int(rng.integers(len(pads)))],
            seams=seams,
            offset_hu=float(rng.normal(0, 8)),
        )


def draw_coverage(
    rng: np.random.Generator, region: Region | None = None
) -> tuple[float, float, float]:
    """Draw a scan range.

    Returns:
        Height of its centre above the carina, its length, and the width of its square field of
        view, in mm.
    """
    if region is None:
        names = list(_REGIONS)
        region = names[int(rng.choice(len(names), p=[0.48, 0.15, 0.09, 0.09, 0.08, 0.11]))]
    centre, length = _REGIONS[region]
    return (
        float(rng.uniform(*centre)),
        float(rng.uniform(*length)),
        float(rng.choice([rng.uniform(290, 360), rng.uniform(340, 430), rng.uniform(420, 510)])),
    )


def shift_slabs(volume: NDArray[np.generic], protocol: Acquisition) -> None:
    """Displace the slabs of a stepped scan in `volume` [K, J, I], image or labels, in place."""
    for at, shift, _ in protocol.seams:
        k = int(at * volume.shape[0])
        volume[k:] = np.roll(volume[k:], shift, axis=1 + (k % 2))


def scan(
    hu: Floats,
    protocol: Acquisition,
    rng: np.random.Generator,
    *,
    thin: int,
    shoulder: Floats,
) -> Floats:
    """Turn attenuations into an image.

    Args:
        hu: float32 [K * thin, J, I], painted attenuations; changed in place.
        protocol: how the series is made.
        rng: source of the noise.
        thin: painted slices per image slice; they are averaged, as a thick slice averages.
        shoulder: float32 [K], 0 to 1, how much the shoulders weaken the beam at each slice.

    Returns:
        HU, float32 [K, J, I].
    """
    if thin > 1:
        hu = hu.reshape(-1, thin, *hu.shape[1:]).mean(axis=1, dtype=np.float32)
    if protocol.blur:
        hu = ndimage.gaussian_filter(hu, (0.25, protocol.blur, protocol.blur), truncate=3)
    if protocol.sharpen:
        hu += protocol.sharpen * (hu - ndimage.gaussian_filter(hu, (0, 1.2, 1.2), truncate=2))
    shift_slabs(hu, protocol)
    for at, _, step in protocol.seams:
        hu[int(at * hu.shape[0]) :] += np.float32(step)
    if protocol.noise_hu:
        grain = rng.standard_normal(hu.shape, np.float32)
        if protocol.noise_width:
            width = protocol.noise_width
            grain = ndimage.gaussian_filter(grain, (0, width, width), truncate=2.5)
            grain /= max(float(grain[: 1 + hu.shape[0] // 8].std()), 1e-3)
        hu += np.float32(protocol.noise_hu) * grain * (1 + shoulder[:, None, None])
    if protocol.streak_hu and shoulder.any():
        streak = rng.standard_normal((*hu.shape[:2], 1), np.float32)
        streak = ndimage.gaussian_filter1d(streak, 1.0, axis=1)
        hu += np.float32(protocol.streak_hu) * streak * shoulder[:, None, None]
    hu += np.float32(protocol.offset_hu)
    np.clip(hu, -1024, 3071, out=hu)
    if protocol.pad_hu is not None:
        rows, columns = hu.shape[1:]
        v = (np.arange(rows) - (rows - 1) / 2)[:, None] / (rows / 2)
        u = (np.arange(columns) - (columns - 1) / 2)[None, :] / (columns / 2)
        hu[:, u * u + v * v > 1] = protocol.pad_hu
    return hu
