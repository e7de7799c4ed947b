"""The built-in radiograph bundle: honest about itself, and right on drawings it never saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemble_builder.phantoms.radiograph import FINDINGS, radiograph
from ensemble_builder.pipelines.chest_xray.bundle import BUNDLE_ROOT, ChestXrayBundle
from ensemble_builder.pipelines.chest_xray.evaluate import area_under_curve, evaluate
from ensemble_builder.pipelines.chest_xray.train import train
from ensemble_builder.pipelines.training.inference import read_config

WEIGHTS = BUNDLE_ROOT / "models" / "model.pt"
LEAST_AREA = 0.8
"""Of each finding, on few drawings; docs/README.md has the figures on many."""


@pytest.fixture(scope="module")
def bundle() -> ChestXrayBundle:
    """The shipped bundle."""
    return ChestXrayBundle()


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """The shipped metadata."""
    found: dict[str, Any] = json.loads((BUNDLE_ROOT / "configs" / "metadata.json").read_text())
    return found


def test_the_weights_are_small_and_plain() -> None:
    """At most 1 MB, a state dict that fits the network, without any pickled code."""
    assert WEIGHTS.stat().st_size <= 1_000_000
    state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    network = read_config(BUNDLE_ROOT).get_parsed_content("network_def")
    assert {n: v.shape for n, v in network.state_dict().items()} == {
        n: v.shape for n, v in state.items()
    }


def test_it_says_what_it_is(metadata: dict[str, Any]) -> None:
    """No medical device, and trained on drawings."""
    assert "not a medical device" in metadata["intended_use"]
    assert "generated drawings" in metadata["intended_use"]


def test_every_score_has_a_name_and_a_code(metadata: dict[str, Any]) -> None:
    """In the order of the network's channels, which is that of the phantoms' findings."""
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    names = [row["name"].lower() for row in metadata["classes"]]
    assert names == list(channels.values()) == [name.replace("_", " ") for name in FINDINGS]
    assert all(row["code"]["scheme_designator"] == "SCT" for row in metadata["classes"])


def test_findings_score_higher_where_they_are(bundle: ChestXrayBundle) -> None:
    """On drawings of other sizes and bit depths than it was trained on."""
    areas = evaluate(bundle, 48)
    assert areas.keys() == set(FINDINGS)
    assert min(areas.values()) >= LEAST_AREA, areas


def test_size_and_depth_hardly_change_a_score(bundle: ChestXrayBundle) -> None:
    """Each image is scaled by its own values, so a detector's range doesn't matter."""
    made = radiograph(11, (320, 280), bits_stored=12)
    scores = bundle.scores(made.pixels)
    np.testing.assert_allclose(bundle.scores(made.pixels.astype(np.int64) * 16), scores, atol=1e-4)
    np.testing.assert_allclose(bundle.scores(made.pixels - 20.0), scores, atol=1e-4)


def test_a_negative_image_is_another_image(bundle: ChestXrayBundle) -> None:
    """So polarity must be put right before, as the gateway does."""
    pixels = radiograph(12, (200, 180), bits_stored=12).pixels.astype(np.int64)
    assert np.abs(bundle.scores(pixels) - bundle.scores(4095 - pixels)).max() > 0.05


def test_training_repeats_itself(tmp_path: Path) -> None:
    """The same seed paints the same drawings and gives the same weights."""
    first, second = (
        train(seed=1, out=tmp_path / f"{n}.pt", phantoms=6, iterations=2) for n in range(2)
    )
    one, other = (torch.load(path, weights_only=True) for path in (first, second))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_the_area_counts_pairs_in_the_right_order() -> None:
    """Three of four pairs in order, and a tie by half."""
    scores = np.array([0.9, 0.4, 0.5, 0.1], np.float32)
    assert area_under_curve(scores, np.array([True, True, False, False])) == 0.75
    level = np.array([0.5, 0.5], np.float32)
    assert area_under_curve(level, np.array([True, False])) == 0.5
