"""Measures a built-in bundle: Dice per label on phantoms that it has not seen and on real series.

In: a bundle in this process and what is true of each volume. Out: scores, and a table of them. A
phantom knows its truth; a real series is compared with a classical reference.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ensemble_builder.phantoms import Acquisition, Patient, ThoraxPhantom, thorax_phantom
from ensemble_builder.phantoms.canvas import Pose
from ensemble_builder.phantoms.thorax import random_phantom
from ensemble_builder.pipelines.training.examples import Target
from ensemble_builder.pipelines.training.inference import InProcess

_HARD_SEED = 500


@dataclass(frozen=True)
class Score:
    """How one volume went; one entry per label.

    Attributes:
        name: what it was.
        dice: nan where neither reference nor result has that label.
        volume_ml: of the reference.
        time_s: from HU to labels.
    """

    name: str
    dice: tuple[float, ...]
    volume_ml: tuple[float, ...]
    time_s: float


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8], label: int) -> float:
    """Dice of one label, 0 to 1; nan where both are empty."""
    a, b = found == label, truth == label
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def score(
    name: str,
    bundle: InProcess,
    hu: NDArray[np.int16],
    affine_lps: NDArray[np.float64],
    *,
    truth: NDArray[np.uint8],
    labels: tuple[int, ...],
) -> Score:
    """Segment `hu` [K, J, I] and compare its `labels` with `truth` [K, J, I]."""
    started = time.perf_counter()
    found = bundle.labels(hu, affine_lps)
    spent = time.perf_counter() - started
    voxel_ml = abs(float(np.linalg.det(affine_lps[:3, :3]))) / 1000
    return Score(
        name,
        tuple(dice(found, truth, label) for label in labels),
        tuple(float((truth == label).sum()) * voxel_ml for label in labels),
        spent,
    )


def phantom_scores(bundle: InProcess, target: Target, count: int) -> list[Score]:
    """Score the hard phantoms and `count` random ones."""
    labels = tuple(range(1, len(target.mirrored) + 1))
    named = [
        *hard_phantoms().items(),
        *((f"random phantom {seed}", random_phantom(seed)) for seed in range(count)),
    ]
    return [
        score(name, bundle, p.hu, p.affine_lps, truth=target.of_phantom(p), labels=labels)
        for name, p in named
    ]


def show(scores: list[Score], labels: tuple[str, ...], least_ml: float) -> None:
    """Print every score, and per label mean and lowest Dice of what is above `least_ml`."""
    table = Table("volume", *(f"Dice {n}" for n in labels), *(f"mL {n}" for n in labels), "s")
    for s in scores:
        table.add_row(
            s.name[-48:],
            *(f"{d:.4f}" for d in s.dice),
            *(f"{v:.0f}" for v in s.volume_ml),
            f"{s.time_s:.1f}",
        )
    console = Console(width=90 + 20 * len(labels))
    console.print(table)
    for n, label in enumerate(labels):
        there = [s.dice[n] for s in scores if s.volume_ml[n] > least_ml]
        console.print(
            f"{label} above {least_ml:.0f} mL, {len(there)} volumes: "
            f"mean {np.mean(there):.4f}, lowest {np.min(there):.4f}"
        )


def hard_phantoms() -> dict[str, ThoraxPhantom]:
    """Named phantoms at the edges of what scanners do; none was trained on."""
    seed = _HARD_SEED
    grid: tuple[int, int, int] = (100, 256, 256)
    step = (3.0, 1.5, 1.5)
    pose = Pose(offset_mm=(0.0, 0.0, 25.0))
    low = Pose(offset_mm=(0.0, 0.0, 130.0))

    def one(name: str, **given: object) -> tuple[str, ThoraxPhantom]:
        nonlocal seed
        seed += 1
        options: dict[str, object] = {
            "shape_kji": grid,
            "spacing_mm": step,
            "acquisition": Acquisition(pose=pose),
            "disease": 0.3,
        }
        return name, thorax_phantom(seed, **{**options, **given})  # type: ignore[arg-type]

    arms_down, obese = Patient(arms="down"), Patient(arms="down", fat=52.0, chest_x=138.0)
    return dict(
        [
            one("standard"),
            one("feet first, axes flipped", flip_kji=(True, True, True)),
            one("prone", patient=Patient(prone=True), flip_kji=(False, True, True)),
            one("slices of 0.7 mm", shape_kji=(420, 256, 256), spacing_mm=(0.7, 1.5, 1.5)),
            one("slices of 10 mm", shape_kji=(32, 256, 256), spacing_mm=(10.0, 1.5, 1.5)),
            one("arms down", patient=arms_down),
            one("large patient", patient=obese, spacing_mm=(3.0, 1.95, 1.95)),
            one(
                "child",
                acquisition=Acquisition(pose=Pose(0.6, offset_mm=(0.0, 0.0, 15.0))),
                spacing_mm=(2.0, 1.1, 1.1),
            ),
            one(
                "noise", acquisition=Acquisition(pose=pose, noise_hu=90, noise_width=0, sharpen=0.8)
            ),
            one("padding", acquisition=Acquisition(pose=pose, pad_hu=-3024)),
            one("small field of view", spacing_mm=(3.0, 1.15, 1.15)),
            one(
                "off centre and turned",
                acquisition=Acquisition(pose=Pose(1.0, 0.2, (55.0, -40.0, 25.0), 7.0, 6.0)),
            ),
            one(
                "upper half",
                shape_kji=(50, 256, 256),
                acquisition=Acquisition(pose=Pose(offset_mm=(0.0, 0.0, -50.0))),
            ),
            one(
                "abdomen, lung bases only",
                shape_kji=(80, 256, 256),
                acquisition=Acquisition(pose=low),
            ),
            one("head to pelvis", shape_kji=(260, 256, 256), patient=arms_down),
            one("effusion on the left", patient=Patient(effusion=(100.0, 0.0))),
            one(
                "dense lungs, high dome",
                patient=Patient(lung_hu=(-690.0, -700.0), dome_z=(-50, -40)),
            ),
            one("much disease", disease=3.0),
        ]
    )
