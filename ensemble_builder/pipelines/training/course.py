"""One run of training, on a CPU, from a seed.

In: a bundle's folder, its configs/train.json and what its network shall learn. Out:
models/model.pt, a plain state dict. Killed in between, the last checkpoint there remains.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ensemble_builder.pipelines.training.augment import random_crop
from ensemble_builder.pipelines.training.examples import Example, Target, phantom_examples
from ensemble_builder.pipelines.training.inference import read_config

TRAINING_SEEDS = 10_000
"""Phantoms below this seed are never trained on: they are for tests and measurements."""
_CHECKPOINT_EVERY = 200


def soft_dice_and_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of every label but the background plus cross-entropy, for soft targets.

    Args:
        logits: float32 [N, C, X, Y, Z].
        targets: float32 like `logits`, shares that add up to 1.

    Returns:
        A scalar.
    """
    log_p = torch.log_softmax(logits, dim=1)
    cross_entropy = -(targets * log_p).sum(1).mean()
    p, t = log_p[:, 1:].exp(), targets[:, 1:]
    axes = (2, 3, 4)
    # |p - t| in place of products: with soft targets its optimum is p = t.
    apart = (p - t).abs().sum(axes)
    both = p.sum(axes) + t.sum(axes)
    dice = 1 - apart / (both + 50)
    return cross_entropy + (1 - dice).mean()


def train(
    root: Path,
    target: Target,
    *,
    seed: int = 0,
    reals: Callable[[float], list[Example]] | None = None,
    out: Path | None = None,
    start: Path | None = None,
    iterations: int | None = None,
    learning_rate: float | None = None,
) -> Path:
    """Train and save the weights.

    Args:
        root: the bundle whose configs say network, grid and hyperparameters.
        target: what the network learns of a phantom.
        seed: fixes phantoms, crops and the first weights.
        reals: gives labelled real series for the network's voxel edge in mm.
        out: where the weights go; models/model.pt by default.
        start: weights to go on from, in place of seeded ones.
        iterations: in place of the number in train.json.
        learning_rate: in place of the number in train.json.

    Returns:
        The file written.
    """
    weights = out or root / "models" / "model.pt"
    settings = read_config(root, "train")
    steps = iterations or int(settings["iterations"])
    if learning_rate:
        settings["learning_rate"] = learning_rate
    network, grid_mm, hu_range = _from_inference(root, seed)
    if start:
        network.load_state_dict(torch.load(start, map_location="cpu", weights_only=True))
    started, running = time.monotonic(), 0.0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        TimeRemainingColumn(),
    ) as progress:
        task = progress.add_task("training", total=steps, note="painting phantoms")
        course = Course(
            network,
            target,
            reals(grid_mm) if reals else [],
            settings,
            seed=seed,
            steps=steps,
            grid_mm=grid_mm,
            hu_range=hu_range,
        )
        for step in range(steps):
            loss = course.step()
            running = 0.98 * running + 0.02 * loss if step else loss
            progress.update(task, advance=1, note=f"loss {running:.4f}")
            if (step + 1) % _CHECKPOINT_EVERY == 0 or step + 1 == steps:
                _save(course.averaged, weights)
                pace = (time.monotonic() - started) / (step + 1)
                progress.console.print(f"step {step + 1} loss {running:.4f} {pace:.2f} s/step")
    return weights


def _from_inference(root: Path, seed: int) -> tuple[nn.Module, float, tuple[float, float]]:
    """Network with seeded weights, voxel edge and HU range, as inference.json has them."""
    parser = read_config(root)
    named = {step["_target_"]: step for step in parser["preprocessing"]["transforms"]}
    scale = named["ScaleIntensityRanged"]
    torch.manual_seed(seed)
    network: nn.Module = parser.get_parsed_content("network_def")
    return (
        network,
        float(named["Spacingd"]["pixdim"][0]),
        (float(scale["a_min"]), float(scale["a_max"])),
    )


class Course:
    """One run of training: network, its running average, and a pool of examples that grows."""

    def __init__(
        self,
        network: nn.Module,
        target: Target,
        reals: list[Example],
        settings: ConfigParser,
        *,
        seed: int,
        steps: int,
        grid_mm: float,
        hu_range: tuple[float, float],
    ) -> None:
        """Prepare `steps` steps; hyperparameters are the names in train.json."""
        # Channels last halves the time of 3-D convolutions on a CPU with bfloat16.
        self.network: nn.Module = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.network.train()
        self.averaged = copy.deepcopy(self.network)
        self._reals, self._settings, self._seed = reals, settings, seed
        self._target = target
        self._grid_mm, self._hu_range = grid_mm, hu_range
        self._rng = np.random.default_rng((seed, 1))
        self._crops = [(int(x), int(y), int(z)) for x, y, z in settings["crops"]]
        rate = float(settings["learning_rate"])
        self._optimiser = torch.optim.AdamW(
            network.parameters(), lr=rate, weight_decay=float(settings["weight_decay"])
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, rate, total_steps=steps, pct_start=0.1
        )
        self._done = self._painted = 0
        self._pool: list[Example] = []
        self._paint(int(settings["first_phantoms"]))

    def step(self) -> float:
        """Learn from one batch; returns its loss.

        Raises:
            ArithmeticError: if the loss is no longer a number.
        """
        settings, rng = self._settings, self._rng
        if self._done and self._done % int(settings["steps_per_phantom"]) == 0:
            self._paint(1)
        self._optimiser.zero_grad()
        total = 0.0
        for _ in range(int(settings["batch_size"])):
            seen = bool(self._reals) and rng.random() < float(settings["real_share"])
            pool = self._reals if seen else self._pool
            image, targets = random_crop(
                pool[int(rng.integers(len(pool)))],
                rng,
                shape=self._crops[int(rng.integers(len(self._crops)))],
                grid_mm=self._grid_mm,
                hu_range=self._hu_range,
                mirror_share=float(settings["mirror_share"]),
            )
            image = image.to(memory_format=torch.channels_last_3d)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = self.network(image)
            loss = soft_dice_and_cross_entropy(logits.float(), targets)
            loss = loss / int(settings["batch_size"])
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if not math.isfinite(total):
            raise ArithmeticError(f"the loss at step {self._done} is {total}")
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self._optimiser.step()
        self._schedule.step()
        self._done += 1
        # Early on the average must forget the random start.
        keep = min(float(settings["averaging"]), self._done / (self._done + 10))
        with torch.no_grad():
            pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
            for mean, now in pairs:
                mean.lerp_(now, 1 - keep)
        return total

    def _paint(self, count: int) -> None:
        """Add phantoms to the pool, the oldest leaving it when it is full."""
        first = TRAINING_SEEDS * (self._seed + 1) + self._painted
        self._pool += phantom_examples(self._target, first, count, self._grid_mm)
        self._pool = self._pool[-int(self._settings["phantoms_kept"]) :]
        self._painted += count


def _save(network: nn.Module, target: Path) -> None:
    """Write a plain state dict in the default memory format, never half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().clone().contiguous() for name, value in network.state_dict().items()
    }
    part = target.with_suffix(".part")
    torch.save(state, part)
    part.replace(target)
