"""Measure the bundle: area under the ROC curve of each finding, on radiographs it has not seen.

`python -m ensemble_builder.pipelines.chest_xray.evaluate` runs inference.json in this process on
generated radiographs of other sizes and bit depths than those it was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ensemble_builder.phantoms.radiograph import FINDINGS, radiograph
from ensemble_builder.pipelines.chest_xray.bundle import ChestXrayBundle

SHAPES = ((168, 148), (512, 421), (300, 330), (256, 224))
"""Rows and columns; one is square-ish, as a bedside image."""


def area_under_curve(scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """The chance that a positive scores above a negative; ties count half.

    Args:
        scores: [N].
        truth: [N], with at least one True and one False.
    """
    positive, negative = scores[truth], scores[~truth]
    above = (positive[:, None] > negative[None, :]).mean()
    level = (positive[:, None] == negative[None, :]).mean()
    return float(above + level / 2)


def evaluate(bundle: ChestXrayBundle, count: int = 400) -> dict[str, float]:
    """Finding -> area under the curve, over `count` unseen radiographs."""
    scores, truth = [], []
    for seed in track(range(count), "scoring radiographs"):
        one = radiograph(seed, SHAPES[seed % len(SHAPES)])
        scores.append(bundle.scores(one.pixels))
        truth.append(one.findings)
    found, real = np.stack(scores), np.array(truth)
    return {name: area_under_curve(found[:, n], real[:, n]) for n, name in enumerate(FINDINGS)}


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the built-in radiograph network.")
    parser.add_argument("--weights", help="a state dict in place of models/model.pt")
    parser.add_argument("--count", type=int, default=400, help="how many radiographs")
    given = parser.parse_args(argv)
    bundle = ChestXrayBundle(weights=Path(given.weights) if given.weights else None)
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Finding")
    table.add_column("AUC", justify="right")
    for name, area in evaluate(bundle, given.count).items():
        table.add_row(name, f"{area:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
