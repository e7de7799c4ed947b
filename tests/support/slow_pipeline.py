"""A pipeline whose windows take their time and write down when they began.

Comes in: a folder. Goes out: a model repository with `slow`, and what its windows wrote.
Survives a crash: the lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydicom import Dataset

from ensemble_builder.build import build
from ensemble_builder.bundle import Options
from tests.support.bundles import a_segmentation_bundle
from tests.support.dicom import a_ct_series
from tests.support.zoo import compose, step

WINDOWS = 14
"""Of a study of `a_slow_series`."""

_NETWORK = """
import time

import torch


class Slow(torch.nn.Module):
    def __init__(self, seconds, log):
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 3, 1)
        self.seconds, self.log = seconds, log

    def forward(self, x):
        if x.device.type != "meta":
            with open(self.log, "a") as file:
                file.write(f"{time.time()} {'marked' if x.max() > 0 else 'plain'}\\n")
            time.sleep(self.seconds)
        return self.conv(x)
"""


@dataclass(frozen=True)
class SlowPipeline:
    """What was built, and its windows."""

    repository: Path
    log: Path

    def windows(self, *, since_s: float = 0.0) -> list[tuple[float, str]]:
        """When each window began (seconds since the epoch), and which kind of study it was of."""
        if not self.log.exists():
            return []
        lines = [line.split() for line in self.log.read_text(encoding="ascii").splitlines()]
        return [(float(at), kind) for at, kind in lines if float(at) > since_s]


def a_slow_pipeline(folder: Path, *, window_s: float = 0.5) -> SlowPipeline:
    """Builds it; its network can't be hurried."""
    log = folder / "windows.log"
    keys = "@image_key"
    bundle = a_segmentation_bundle(
        folder / "slow",
        spacing_mm=(3.0, 3.0, 3.0),
        changed={
            "imports": ["$import scripts.slow"],
            "network_def": {"_target_": "scripts.slow.Slow", "seconds": window_s, "log": str(log)},
            "preprocessing": compose(
                step("LoadImaged", keys, reader="ITKReader"),
                step("EnsureChannelFirstd", keys),
                step("Orientationd", keys, axcodes="RAS"),
                step("Spacingd", keys, pixdim=[3.0, 3.0, 3.125]),
            ),
            "inferer": {
                "_target_": "SlidingWindowInferer",
                "roi_size": [16, 16, 8],
                "sw_batch_size": 1,
                "overlap": 0.0,
            },
        },
    )
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "__init__.py").write_text("", encoding="ascii")
    (bundle / "scripts" / "slow.py").write_text(_NETWORK, encoding="ascii")
    torch.manual_seed(0)
    state = {f"conv.{k}": v for k, v in torch.nn.Conv3d(1, 3, 1).state_dict().items()}
    torch.save(state, bundle / "models" / "model.pt")
    repository = folder / "repository"
    repository.mkdir()
    list(build(bundle, repository, Options(runtime="torch")))
    log.unlink(missing_ok=True)
    return SlowPipeline(repository, log)


def a_slow_series(*, marked: bool = False) -> list[Dataset]:
    """A study of `WINDOWS` windows; those of a marked one are told apart."""
    pixels = np.full((14, 32, 32), 3000 if marked else 0, dtype=np.int16)
    return a_ct_series(14, spacing_mm=25.0, pixels=pixels)
