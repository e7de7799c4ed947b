"""Is what Triton serves what MONAI computes? One process against the served ensemble.

`monai.py` is MONAI alone: the bundle's own transforms, inferer and eager network, one after
the other in this process, without anything that was written for serving but the removal of
file I/O. `triton.py` asks a running server, step by step and as a whole. `compare.py` counts
what differs, `run.py` does all of it and `certificate.py` writes it down.
"""

from ensemble_builder.verify.compare import (
    Parity,
    StageParity,
    compare,
    compare_stages,
    dice,
)
from ensemble_builder.verify.monai import Stages, monai_stages, reference
from ensemble_builder.verify.source import Source, StoredVolume
from ensemble_builder.verify.triton import served, served_stages

__all__ = [
    "Parity",
    "Source",
    "StageParity",
    "Stages",
    "StoredVolume",
    "compare",
    "compare_stages",
    "dice",
    "monai_stages",
    "reference",
    "served",
    "served_stages",
]
