"""The lung bundle in one process: HU to left and right lung."""

from __future__ import annotations

from pathlib import Path

from ensemble_builder.pipelines.training.inference import InProcess, read_config

__all__ = ["BUNDLE_ROOT", "LungBundle", "read_config"]

BUNDLE_ROOT = Path(__file__).parent


class LungBundle(InProcess):
    """Gives uint8 [K, J, I]: 0 background, 1 left lung, 2 right lung."""

    def __init__(self, bundle_root: Path = BUNDLE_ROOT, weights: Path | None = None) -> None:
        super().__init__(bundle_root, weights)
