"""What the parts of a bench share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom

from clients.infer import stored_volume
from perf.stage import FULL, QUICK, USUAL, Plan, Stage, read_volume

_PLAN = Plan((4, 16, 20), rounds=1, instances=1, rows=1)


def a_stage(folder: Path) -> Stage:
    """With a chest so small that painting it takes no time."""
    return Stage(_PLAN, folder, folder, folder, (), say=lambda _: None)


def test_the_chest_and_its_study_are_the_same_volume(tmp_path: Path) -> None:
    """Who reads DICOM and who takes tensors measure the same voxels, in Hounsfield units."""
    stage = a_stage(tmp_path)
    stored, rescale, affine = stored_volume(stage.study)
    read = stored * rescale[:, :1, None] + rescale[:, 1:, None]
    np.testing.assert_array_equal(stage.chest.hounsfield(), read)
    np.testing.assert_allclose(stage.chest.affine_lps, affine, atol=1e-4)
    assert pydicom.dcmread(next(stage.study.iterdir())).Modality == "CT"


def test_a_saved_volume_is_read_as_it_was(tmp_path: Path) -> None:
    """A process of its own gets the very same, under the same name."""
    stage = a_stage(tmp_path)
    path = stage.saved(stage.chest)
    assert stage.saved(stage.chest) == path
    read = read_volume(path)
    assert read.name == stage.chest.name == "chest of 4 slices"
    np.testing.assert_array_equal(read.image, stage.chest.image)
    np.testing.assert_array_equal(read.affine_lps, stage.chest.affine_lps)


def test_every_size_covers_a_whole_chest() -> None:
    """And its arena holds two volumes and their masks."""
    for plan in (QUICK, USUAL, FULL):
        covered = [n * mm for n, mm in zip(plan.shape_kji, plan.spacing_mm, strict=True)]
        np.testing.assert_allclose(covered, (320, 400, 400))
        assert plan.arena_bytes >= 6 * np.prod(plan.shape_kji)
