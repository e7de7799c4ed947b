"""The built-in thorax_ct: its weights, its words, and what it finds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from ensemble_builder.phantoms import ThoraxPhantom, thorax_phantom
from ensemble_builder.pipelines.lung_ct.classical import airway_lumen
from ensemble_builder.pipelines.thorax_ct.data import AIRWAYS, NAMES, THORAX
from ensemble_builder.pipelines.thorax_ct.train import BUNDLE_ROOT
from ensemble_builder.pipelines.training.augment import random_crop
from ensemble_builder.pipelines.training.examples import phantom_examples
from ensemble_builder.pipelines.training.inference import InProcess, read_config
from ensemble_builder.pipelines.training.measure import dice

WEIGHTS = BUNDLE_ROOT / "models" / "model.pt"

LEAST_DICE = {"heart": 0.85, "aorta": 0.65, "airways": 0.6, "spine": 0.65}
"""On one coarse phantom; evaluate.py has the figures over many."""


@pytest.fixture(scope="module")
def phantom() -> ThoraxPhantom:
    """A phantom that was not trained on."""
    return thorax_phantom(900, shape_kji=(60, 112, 112), spacing_mm=(6.0, 3.4, 3.4), disease=0.3)


@pytest.fixture(scope="module")
def metadata() -> Any:
    """The shipped metadata."""
    return json.loads((BUNDLE_ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))


def test_weights_are_small_plain_tensors_that_fit() -> None:
    """At most 2 MB, without any pickled code, every value a number."""
    assert WEIGHTS.stat().st_size <= 2_000_000
    state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    network = read_config(BUNDLE_ROOT).get_parsed_content("network_def")
    network.load_state_dict(state)
    assert all(value.isfinite().all() for value in state.values())


def test_metadata_says_what_it_is_and_what_it_is_not(metadata: Any) -> None:
    """No medical device; segments, channels and window as the configs have them."""
    assert "not a medical device" in metadata["intended_use"]
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    named = {str(row["label"]): row["name"].lower() for row in metadata["segments"]}
    assert {n: name for n, name in channels.items() if n != "0"} == named
    assert len(named) == len(NAMES)
    shape = metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    assert shape == list(read_config(BUNDLE_ROOT)["inferer"]["roi_size"])


def test_every_structure_is_found_on_an_unseen_phantom(phantom: ThoraxPhantom) -> None:
    """Each label lies where the phantom has it."""
    found = InProcess(BUNDLE_ROOT).labels(phantom.hu, phantom.affine_lps)
    reached = {n: dice(found, phantom.structures, 1 + i) for i, n in enumerate(NAMES)}
    assert {name: d for name, d in reached.items() if not d > LEAST_DICE[name]} == {}


def test_the_classical_airways_are_the_phantoms(phantom: ThoraxPhantom) -> None:
    """What real series are measured with finds air that is truly airway."""
    found = airway_lumen(phantom.hu, phantom.affine_lps)
    truth = phantom.structures == AIRWAYS
    assert found.any()
    assert (found & truth).sum() > 0.7 * found.sum()


def test_crops_have_a_share_for_each_structure() -> None:
    """Background and four structures share every voxel fully."""
    example = phantom_examples(THORAX, 904, 1, 6.0)[0]
    image, targets = random_crop(
        example,
        np.random.default_rng(1),
        shape=(64, 64, 64),
        grid_mm=6.0,
        hu_range=(-1024, 400),
        mirror_share=1.0,
    )
    assert image.shape == (1, 1, 64, 64, 64)
    assert targets.shape == (1, 5, 64, 64, 64)
    assert torch.allclose(targets.sum(1), torch.ones(1, 64, 64, 64), atol=0.02)
