"""Measure the bundle: Dice per structure on phantoms it has not seen, and airways on real series.

`python -m ensemble_builder.pipelines.thorax_ct.evaluate [--real FOLDER ...]` runs inference.json in
this process. A phantom is compared with its truth. For a real series there is a reference for the
airways alone, which a threshold grown from the windpipe finds; the rest needs a person's eye.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console

from ensemble_builder.pipelines.lung_ct.classical import airway_lumen
from ensemble_builder.pipelines.thorax_ct.data import AIRWAYS, NAMES, THORAX
from ensemble_builder.pipelines.training.examples import read_dicom
from ensemble_builder.pipelines.training.inference import InProcess
from ensemble_builder.pipelines.training.measure import phantom_scores, score, show

BUNDLE_ROOT = Path(__file__).parent


def airway_dice(bundle: InProcess, folder: Path) -> float:
    """Dice of the airways of a real series against the classical reference.

    Raises:
        ValueError: if the folder holds no usable chest CT.
    """
    volume = read_dicom(folder)
    truth = np.where(airway_lumen(volume.hu, volume.affine_lps), AIRWAYS, 0).astype(np.uint8)
    name, hu, affine = folder.name, volume.hu, volume.affine_lps
    return score(name, bundle, hu, affine, truth=truth, labels=(AIRWAYS,)).dice[0]


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the built-in thorax network.")
    parser.add_argument("--real", nargs="*", default=[], help="folders of real chest CT (DICOM)")
    parser.add_argument("--weights", help="a state dict in place of models/model.pt")
    parser.add_argument("--count", type=int, default=24, help="how many random phantoms")
    given = parser.parse_args(argv)
    bundle = InProcess(BUNDLE_ROOT, Path(given.weights) if given.weights else None)
    for folder in map(Path, given.real):
        Console().print(f"{folder.name}: airways {airway_dice(bundle, folder):.4f}")
    show(phantom_scores(bundle, THORAX, given.count), NAMES, 3)


if __name__ == "__main__":
    main()
