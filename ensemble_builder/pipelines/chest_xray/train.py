"""Train the radiograph network: `python -m ensemble_builder.pipelines.chest_xray.train --seed 0`.

In: a seed and the hyperparameters of configs/train.json. Out: models/model.pt, a plain state
dict, written once at the end. It sees generated radiographs only (`phantoms.radiograph`).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from ensemble_builder.phantoms.radiograph import radiograph
from ensemble_builder.pipelines.chest_xray.bundle import BUNDLE_ROOT, prepared, without_io
from ensemble_builder.pipelines.training.course import TRAINING_SEEDS
from ensemble_builder.pipelines.training.inference import read_config


def train(
    bundle_root: str | os.PathLike[str] = BUNDLE_ROOT,
    *,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    phantoms: int | None = None,
    iterations: int | None = None,
) -> Path:
    """Trains and saves the weights.

    Args:
        bundle_root: The bundle whose configs say network, preprocessing and hyperparameters.
        seed: Fixes phantoms, batches and the first weights.
        out: Where the weights go; models/model.pt by default.
        phantoms: In place of the number in train.json.
        iterations: In place of the number in train.json.

    Returns:
        The file written.
    """
    root = Path(bundle_root)
    settings = read_config(root, "train")
    images, truth = examples(
        root,
        range(TRAINING_SEEDS, TRAINING_SEEDS + (phantoms or int(settings["phantoms"]))),
        tuple(settings["phantom_shape"]),
    )
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network: torch.nn.Module = read_config(root).get_parsed_content("network_def")
    steps = iterations or int(settings["iterations"])
    rate = float(settings["learning_rate"])
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=rate, weight_decay=float(settings["weight_decay"])
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    loss_of = torch.nn.BCEWithLogitsLoss()
    network.train()
    running = 0.0
    for step in track(range(steps), "training"):
        chosen = torch.from_numpy(rng.integers(len(images), size=int(settings["batch_size"])))
        loss = loss_of(network(_varied(images[chosen], rng)), truth[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        running = 0.98 * running + 0.02 * float(loss.detach()) if step else float(loss.detach())
        if (step + 1) % 200 == 0:
            print(f"step {step + 1} loss {running:.4f}", flush=True)
    weights = Path(out) if out else root / "models" / "model.pt"
    weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.clone() for name, value in network.state_dict().items()}, weights)
    return weights


def examples(
    bundle_root: Path, seeds: range, shape_ji: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Preprocessed phantoms float32 [N, 1, I, J] and their findings float32 [N, n]."""
    preprocessing = without_io(bundle_root, "preprocessing")
    images, truth = [], []
    for seed in track(seeds, "painting radiographs"):
        one = radiograph(seed, (shape_ji[0], shape_ji[1]))
        images.append(prepared(preprocessing, one.pixels))
        truth.append(torch.tensor(one.findings, dtype=torch.float32))
    return torch.stack(images), torch.stack(truth)


def _varied(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Turned, moved, stretched, brighter or darker: float32 like `images` [N, 1, I, J]."""
    n = len(images)

    def lots(low: float, high: float) -> torch.Tensor:
        drawn: NDArray[np.float64] = rng.uniform(low, high, size=n)
        return torch.from_numpy(drawn.astype(np.float32))

    angle, stretch = lots(-0.09, 0.09), 1 + lots(-0.08, 0.08)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = stretch * angle.cos(), -angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin(), (1 + lots(-0.08, 0.08)) * angle.cos()
    theta[:, 0, 2], theta[:, 1, 2] = lots(-0.08, 0.08), lots(-0.08, 0.08)
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(
        images, grid, padding_mode="border", align_corners=False
    )
    shape = (n, 1, 1, 1)
    curved = moved.clamp_min(1e-4) ** lots(0.7, 1.4).reshape(shape)
    noise = torch.from_numpy(rng.standard_normal(size=tuple(images.shape), dtype=np.float32))
    return curved * (1 + lots(-0.15, 0.15).reshape(shape)) + 0.02 * noise


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the built-in radiograph network.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="file for the weights; models/model.pt by default")
    parser.add_argument("--phantoms", type=int)
    parser.add_argument("--iterations", type=int)
    given = parser.parse_args(argv)
    done = train(
        seed=given.seed, out=given.out, phantoms=given.phantoms, iterations=given.iterations
    )
    print(f"weights: {done}")


if __name__ == "__main__":
    main()
