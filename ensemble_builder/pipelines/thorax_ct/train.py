"""Train the thorax network: `python -m ensemble_builder.pipelines.thorax_ct.train --seed 0`.

In: a seed and the hyperparameters of configs/train.json; phantoms only, no patient's data. Out:
models/model.pt, a plain state dict. Killed in between, the last checkpoint there remains.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from ensemble_builder.pipelines.thorax_ct.data import THORAX
from ensemble_builder.pipelines.training import course
from ensemble_builder.pipelines.training.inference import read_config

BUNDLE_ROOT = Path(__file__).parent


def train(
    bundle_root: str | os.PathLike[str] = BUNDLE_ROOT,
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    iterations: int | None = None,
) -> Path:
    """Train in the stages of train.json and save the weights.

    Args:
        bundle_root: the bundle whose configs say network, grid and hyperparameters.
        seed: of the first stage; each later one has the next. Fixes phantoms and crops.
        out: where the weights go; models/model.pt by default.
        iterations: of every stage, in place of the numbers in train.json.

    Returns:
        The file written.
    """
    root = Path(bundle_root)
    weights = Path(out) if out else root / "models" / "model.pt"
    for n, stage in enumerate(read_config(root, "train")["stages"]):
        course.train(
            root,
            THORAX,
            seed=seed + n,
            out=weights,
            start=weights if n else None,
            iterations=iterations or int(stage["iterations"]),
            learning_rate=float(stage["learning_rate"]),
        )
    return weights


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the built-in thorax network.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="file for the weights; models/model.pt by default")
    parser.add_argument("--iterations", type=int, help="of every stage, for a trial")
    parser.add_argument("--threads", type=int, default=1, help="the weights shipped used 1")
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    print(f"weights: {train(seed=given.seed, out=given.out, iterations=given.iterations)}")


if __name__ == "__main__":
    main()
