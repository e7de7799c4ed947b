"""The peers of the bench beside our ensemble, on one real server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ensemble_builder.samples import oblique_affine_lps
from perf.peers.case import Volume
from perf.peers.compare import BINARY, COLD, JSON, OURS, OURS_TORCH, TUTORIAL, WARM, compare
from tests.support.bundles import a_segmentation_bundle

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
]

# Without the ITKReader of the usual test bundle: the process per study really reads a file.
BEFORE = {
    "_target_": "Compose",
    "transforms": [
        {"_target_": "LoadImaged", "keys": "@image_key"},
        {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
        {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [3.0, 3.0, 4.0]},
    ],
}


def a_volume() -> Volume:
    """Noise on a few smooth shapes, straight axes."""
    rng = np.random.default_rng(3)
    k, j, i = np.meshgrid(*(np.linspace(-3, 3, n) for n in (24, 60, 72)), indexing="ij")
    values = 600 * np.sin(k) * np.cos(2 * j) + 300 * np.sin(3 * i) + rng.normal(0, 20, k.shape)
    affine = np.diag([1.5, 1.5, 2.5, 1.0])
    affine[:3, 3] = oblique_affine_lps()[:3, 3].round()
    rescale = np.tile([1.0, -100.0], (24, 1))
    return Volume("shapes", values.astype(np.int16), rescale, affine)


def test_everyone_gives_monais_labels(tmp_path: Path) -> None:
    """Before a clock counts: the same bundle, volume and weights give the same labels."""
    bundle = a_segmentation_bundle(tmp_path / "small", changed={"preprocessing": BEFORE})
    found = compare(bundle, a_volume(), turns=1)
    assert set(found.seconds) == {OURS, OURS_TORCH, TUTORIAL, WARM, BINARY, JSON, COLD}
    assert [len(seconds) for seconds in found.seconds.values()] == [1] * 7
    exact = {who: n for who, n in found.different.items() if who != OURS}
    assert exact == dict.fromkeys(exact, 0)
    assert found.different[OURS] <= 1e-3 * found.voxels
    assert set(found.devices) == set(found.seconds)
    assert found.name(OURS) in {"tritome (OpenVINO)", "tritome (torch by default)"}
