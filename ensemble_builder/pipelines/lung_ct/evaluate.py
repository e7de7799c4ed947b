"""Measure the bundle: Dice per lung on phantoms it has not seen, and on real series.

`python -m ensemble_builder.pipelines.lung_ct.evaluate [--real FOLDER ...]` runs inference.json in
this process. A real series is compared with the classical reference, a phantom with the truth.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ensemble_builder.phantoms import Acquisition, Patient, ThoraxPhantom, thorax_phantom
from ensemble_builder.phantoms.canvas import Pose
from ensemble_builder.phantoms.thorax import random_phantom
from ensemble_builder.pipelines.lung_ct.bundle import LungBundle
from ensemble_builder.pipelines.lung_ct.classical import lung_labels
from ensemble_builder.pipelines.lung_ct.data import read_dicom

_HARD_SEED = 500


@dataclass(frozen=True)
class Score:
    """How one volume went.

    Attributes:
        name: what it was.
        dice: left, right; nan where neither reference nor result has that lung.
        volume_ml: left, right, of the reference.
        time_s: from HU to labels.
    """

    name: str
    dice: tuple[float, float]
    volume_ml: tuple[float, float]
    time_s: float


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8], label: int) -> float:
    """Dice of one label, 0 to 1; nan where both are empty."""
    a, b = found == label, truth == label
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def score(
    name: str,
    bundle: LungBundle,
    hu: NDArray[np.int16],
    affine_lps: NDArray[np.float64],
    truth: NDArray[np.uint8],
) -> Score:
    """Segment `hu` [K, J, I] and compare with `truth` [K, J, I]."""
    started = time.perf_counter()
    found = bundle.labels(hu, affine_lps)
    spent = time.perf_counter() - started
    voxel_ml = abs(float(np.linalg.det(affine_lps[:3, :3]))) / 1000
    return Score(
        name,
        (dice(found, truth, 1), dice(found, truth, 2)),
        (float((truth == 1).sum()) * voxel_ml, float((truth == 2).sum()) * voxel_ml),
        spent,
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


def evaluate(bundle: LungBundle, real: list[Path], count: int = 24) -> list[Score]:
    """Score real series, the hard phantoms and `count` random ones.

    Raises:
        ValueError: if a folder holds no usable chest CT.
    """
    out = []
    for folder in real:
        volume = read_dicom(folder)
        truth = lung_labels(volume.hu, volume.affine_lps)
        out.append(score(str(folder), bundle, volume.hu, volume.affine_lps, truth))
    for name, p in hard_phantoms().items():
        out.append(score(name, bundle, p.hu, p.affine_lps, p.labels))
    for seed in range(count):
        p = random_phantom(seed)
        out.append(score(f"random phantom {seed}", bundle, p.hu, p.affine_lps, p.labels))
    return out


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the built-in lung network.")
    parser.add_argument("--real", nargs="*", default=[], help="folders of real chest CT (DICOM)")
    parser.add_argument("--weights", help="a state dict in place of models/model.pt")
    parser.add_argument("--count", type=int, default=24, help="how many random phantoms")
    given = parser.parse_args(argv)
    bundle = LungBundle(weights=Path(given.weights) if given.weights else None)
    scores = evaluate(bundle, [Path(f) for f in given.real], given.count)
    table = Table("volume", "Dice left", "Dice right", "mL left", "mL right", "s")
    for s in scores:
        table.add_row(
            s.name[-48:],
            *(f"{d:.4f}" for d in s.dice),
            *(f"{v:.0f}" for v in s.volume_ml),
            f"{s.time_s:.1f}",
        )
    console = Console(width=110)
    console.print(table)
    pairs = [(d, v) for s in scores for d, v in zip(s.dice, s.volume_ml, strict=True)]
    lungs = [d for d, v in pairs if v > 50]
    console.print(f"lungs above 50 mL: mean {np.mean(lungs):.4f}, lowest {np.min(lungs):.4f}")


if __name__ == "__main__":
    main()
