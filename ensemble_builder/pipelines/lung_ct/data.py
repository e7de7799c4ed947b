"""What the lung network learns: both lungs of a phantom, or of a real series labelled classically.

In: a folder of DICOM. Out: an example whose labels come from `classical`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_builder.phantoms import ThoraxPhantom
from ensemble_builder.pipelines.lung_ct.classical import lung_labels
from ensemble_builder.pipelines.training.examples import (
    Example,
    Target,
    make_example,
    read_dicom,
)


def _lungs(phantom: ThoraxPhantom) -> NDArray[np.uint8]:
    return phantom.labels


LUNGS = Target(_lungs, mirrored=(2, 1))
"""1 left lung, 2 right lung; a mirror swaps them."""


def real_example(folder: Path, grid_mm: float) -> Example:
    """Read a real series and label it by the classical method.

    Raises:
        ValueError: as `read_dicom`, or if no lungs are found.
    """
    volume = read_dicom(folder)
    labels = lung_labels(volume.hu, volume.affine_lps)
    if not labels.any():
        raise ValueError(f"no lungs found in {folder.name}")
    direction = np.diag(volume.affine_lps)[:3]
    flips = tuple(axis for axis in range(3) if direction[2 - axis] < 0)
    k, j, i = (float(v) for v in np.linalg.norm(volume.affine_lps[:3, :3], axis=0)[::-1])
    # Half the columns and rows are plenty for a grid of several millimetres.
    thin = (slice(None), slice(None, None, 2), slice(None, None, 2))
    hu, labels = (np.ascontiguousarray(np.flip(a, flips)[thin]) for a in (volume.hu, labels))
    return make_example(hu, labels, (k, 2 * j, 2 * i), grid_mm, LUNGS.mirrored)
