"""Measure the bundle: Dice per lung on phantoms it has not seen, and on real series.

`python -m ensemble_builder.pipelines.lung_ct.evaluate [--real FOLDER ...]` runs inference.json in
this process. A real series is compared with the classical reference, a phantom with the truth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ensemble_builder.pipelines.lung_ct.bundle import LungBundle
from ensemble_builder.pipelines.lung_ct.classical import lung_labels
from ensemble_builder.pipelines.lung_ct.data import LUNGS
from ensemble_builder.pipelines.training.examples import read_dicom
from ensemble_builder.pipelines.training.measure import Score, phantom_scores, score, show


def evaluate(bundle: LungBundle, real: list[Path], count: int = 24) -> list[Score]:
    """Score real series, the hard phantoms and `count` random ones.

    Raises:
        ValueError: if a folder holds no usable chest CT.
    """
    out = []
    for folder in real:
        volume = read_dicom(folder)
        truth = lung_labels(volume.hu, volume.affine_lps)
        name, hu, affine = str(folder), volume.hu, volume.affine_lps
        out.append(score(name, bundle, hu, affine, truth=truth, labels=(1, 2)))
    return out + phantom_scores(bundle, LUNGS, count)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the built-in lung network.")
    parser.add_argument("--real", nargs="*", default=[], help="folders of real chest CT (DICOM)")
    parser.add_argument("--weights", help="a state dict in place of models/model.pt")
    parser.add_argument("--count", type=int, default=24, help="how many random phantoms")
    given = parser.parse_args(argv)
    bundle = LungBundle(weights=Path(given.weights) if given.weights else None)
    show(evaluate(bundle, [Path(f) for f in given.real], given.count), ("left", "right"), 50)


if __name__ == "__main__":
    main()
