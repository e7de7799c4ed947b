import json

import numpy as np
import pytest
import torch

from ensemble_builder.phantoms import thorax_phantom
from ensemble_builder.pipelines.lung_ct.bundle import BUNDLE_ROOT, LungBundle, read_config
from ensemble_builder.pipelines.lung_ct.classical import lung_labels
from ensemble_builder.pipelines.lung_ct.data import LUNGS
from ensemble_builder.pipelines.training.augment import random_crop
from ensemble_builder.pipelines.training.course import soft_dice_and_cross_entropy
from ensemble_builder.pipelines.training.examples import phantom_examples
from ensemble_builder.pipelines.training.measure import dice

WEIGHTS = BUNDLE_ROOT / "models" / "model.pt"


@pytest.fixture(scope="module")
def bundle():
    """The shipped bundle."""
    return LungBundle()


@pytest.fixture(scope="module")
def phantom():
    """A phantom that was not trained on."""
    return thorax_phantom(900, shape_kji=(60, 112, 112), spacing_mm=(6.0, 3.4, 3.4), disease=0.3)


@pytest.fixture(scope="module")
def metadata():
    """The shipped metadata."""
    return json.loads((BUNDLE_ROOT / "configs" / "metadata.json").read_text())


def test_weights_are_small():
    """The weights take at most 2 MB of the repository."""
    assert WEIGHTS.stat().st_size <= 2_000_000


def test_weights_load_as_plain_tensors():
    """The weights are a plain state dict that fits the network, without any pickled code."""
    state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)
    network = read_config(BUNDLE_ROOT).get_parsed_content("network_def")
    assert {n: v.shape for n, v in network.state_dict().items()} == {
        n: v.shape for n, v in state.items()
    }
    assert all(v.isfinite().all() for v in state.values())


def test_metadata_says_that_it_is_no_medical_device(metadata):
    """The intended use rules out medical use."""
    assert "not a medical device" in metadata["intended_use"]


def test_segments_agree_with_the_networks_channels(metadata):
    """Every channel but the background has a coded segment of the same name."""
    channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    named = {str(s["label"]): s["name"].lower() for s in metadata["segments"]}
    assert {k: v for k, v in channels.items() if k != "0"} == named


def test_window_in_metadata_is_the_inferers(metadata):
    """The patch size in the metadata is the sliding window's."""
    shape = metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    assert shape == list(read_config(BUNDLE_ROOT)["inferer"]["roi_size"])


@pytest.mark.parametrize("flips", [(False, False, False), (True, True, True)])
def test_bundle_finds_the_lungs_of_an_unseen_phantom(bundle, flips):
    """On a phantom that was not trained on, each lung's Dice is above 0.9, however axes run."""
    phantom = thorax_phantom(
        901, shape_kji=(48, 96, 96), spacing_mm=(7.0, 4.0, 4.0), disease=0.3, flip_kji=flips
    )
    found = bundle.labels(phantom.hu, phantom.affine_lps)
    assert phantom.hu.shape == found.shape
    assert dice(found, phantom.labels, 1) > 0.9
    assert dice(found, phantom.labels, 2) > 0.9


def test_a_mirrored_patient_changes_sides(bundle, phantom):
    """Sides go by the patient's place in space: mirrored voxels get the other label."""
    plain = bundle.labels(phantom.hu, phantom.affine_lps)
    mirrored = bundle.labels(phantom.hu[:, :, ::-1], phantom.affine_lps)[:, :, ::-1]
    swapped = np.array([0, 2, 1], np.uint8)[mirrored]
    assert dice(swapped, plain, 1) > 0.95
    assert dice(swapped, plain, 2) > 0.95


def test_classical_reference_agrees_with_the_truth(phantom):
    """On a phantom with known lungs the classical method reaches a Dice of 0.93 per lung."""
    found = lung_labels(phantom.hu, phantom.affine_lps)
    assert dice(found, phantom.labels, 1) > 0.93
    assert dice(found, phantom.labels, 2) > 0.93


def test_classical_reference_refuses_other_planes():
    """A volume whose slices are not axial is refused."""
    with pytest.raises(ValueError, match="axial"):
        lung_labels(np.zeros((4, 4, 4), np.int16), np.eye(4)[[2, 1, 0, 3]])


def test_mirrored_crops_swap_labels():
    """In a mirrored crop the left lung is still on the left half of the image."""
    example = phantom_examples(LUNGS, 902, 1, 6.0)[0]
    for mirror in (0.0, 1.0):
        _, targets = random_crop(
            example,
            np.random.default_rng(0),
            shape=(80, 80, 64),
            grid_mm=6.0,
            hu_range=(-1024, 400),
            mirror_share=mirror,
        )
        left, right = (targets[0, n].sum((1, 2)) for n in (1, 2))
        place = torch.arange(80.0)
        assert (left * place).sum() / left.sum() > (right * place).sum() / right.sum()


def test_targets_add_up_to_one():
    """Background and lungs share every voxel fully."""
    example = phantom_examples(LUNGS, 903, 1, 6.0)[0]
    image, targets = random_crop(
        example,
        np.random.default_rng(1),
        shape=(64, 64, 64),
        grid_mm=6.0,
        hu_range=(-1024, 400),
        mirror_share=0.3,
    )
    assert torch.allclose(targets.sum(1), torch.ones(1, 64, 64, 64), atol=0.02)
    assert float(image.min()) >= 0 and float(image.max()) <= 1


def test_loss_is_least_at_the_soft_target():
    """Predicting the shares themselves costs less than predicting whole voxels."""
    shares = torch.tensor([0.6, 0.3, 0.1]).reshape(1, 3, 1, 1, 1).expand(1, 3, 4, 4, 4)
    exact = soft_dice_and_cross_entropy(shares.log(), shares)
    whole = soft_dice_and_cross_entropy(
        torch.tensor([9.0, 0, 0]).reshape(1, 3, 1, 1, 1) + 0 * shares, shares
    )
    assert exact < whole
