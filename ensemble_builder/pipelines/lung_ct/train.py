"""Train the lung network: `python -m ensemble_builder.pipelines.lung_ct.train --seed 0`.

In: a seed, the hyperparameters of configs/train.json and, if you have one, a folder with a real
chest CT. Out: models/model.pt, a plain state dict. Killed in between, the last checkpoint beside
it remains.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ensemble_builder.pipelines.lung_ct.bundle import BUNDLE_ROOT
from ensemble_builder.pipelines.lung_ct.data import LUNGS, real_example
from ensemble_builder.pipelines.training import course
from ensemble_builder.pipelines.training.examples import Example


def train(
    bundle_root: str | os.PathLike[str] = BUNDLE_ROOT,
    *,
    seed: int = 0,
    real: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    iterations: int | None = None,
    learning_rate: float | None = None,
) -> Path:
    """Train and save the weights.

    Args:
        bundle_root: the bundle whose configs say network, grid and hyperparameters.
        seed: fixes phantoms, crops and the first weights.
        real: folders of DICOM, separated by the system's path separator; labelled classically.
        out: where the weights go; models/model.pt by default.
        start: weights to go on from, in place of seeded ones.
        iterations: in place of the number in train.json.
        learning_rate: in place of the number in train.json.

    Returns:
        The file written.

    Raises:
        ValueError: if a folder holds no usable chest CT.
    """
    folders = [Path(p) for p in str(real).split(os.pathsep)] if real else []

    def reals(grid_mm: float) -> list[Example]:
        return [real_example(folder, grid_mm) for folder in folders]

    return course.train(
        Path(bundle_root),
        LUNGS,
        seed=seed,
        reals=reals,
        out=Path(out) if out else None,
        start=Path(start) if start else None,
        iterations=iterations,
        learning_rate=learning_rate,
    )


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the built-in lung network.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", help="folder of a real chest CT (DICOM), labelled classically")
    parser.add_argument("--out", help="file for the weights; models/model.pt by default")
    parser.add_argument("--start", help="weights to go on from, in place of seeded ones")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--learning-rate", type=float)
    given = parser.parse_args(argv)
    done = train(
        seed=given.seed,
        real=given.real,
        out=given.out,
        start=given.start,
        iterations=given.iterations,
        learning_rate=given.learning_rate,
    )
    print(f"weights: {done}")


if __name__ == "__main__":
    main()
