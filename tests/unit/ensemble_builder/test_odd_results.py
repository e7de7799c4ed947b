"""Results that a bundle gives in an unusual way: turned, elsewhere, under odd names or numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemble_builder.bundle import Bundle, Options, read_bundle
from ensemble_builder.errors import BundleError
from ensemble_builder.plan import contract_of
from ensemble_builder.runtime.forward import preprocess
from ensemble_builder.runtime.fusion import run
from ensemble_builder.runtime.loading import input_affine
from ensemble_builder.runtime.placing import InputGrid
from ensemble_builder.runtime.results import result
from ensemble_builder.runtime.state import decode_state, dictionary_of, encode_state, state_of
from ensemble_builder.samples import sample
from ensemble_builder.verify import Source, monai_stages
from ensemble_builder.verify.compare import compare_tensor
from tests.support.bundles import NETWORK
from tests.support.zoo import a_bundle, compose, step

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
]
RANDOM = Options(random_weights=0)
LOAD = step("LoadImaged", "image", ensure_channel_first=True)
RAS = step("Orientationd", "image", axcodes="RAS")
SOFTMAX, LABELS = step("Activationsd", softmax=True), step("AsDiscreted", argmax=True)
SIZE = ((20, 17, 13), (20, 20))


def a_bundle_of(
    folder: Path, before: list[Any], after: list[Any], *, channels: int = 3, **more: Any
) -> Bundle:
    """Read, with random weights."""
    config = {
        "network": {"_target_": "UNet", **NETWORK, "out_channels": channels},
        "preprocessing": compose(LOAD, *before, step("ScaleIntensityd", "image")),
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]},
        "postprocessing": compose(*after),
    }
    return read_bundle(a_bundle(folder, config, **more), RANDOM)


def served(bundle: Bundle, request: dict[str, Any], y: np.ndarray) -> np.ndarray:
    """What pre- and postprocessing make of a request, as two processes, with MONAI's own Y."""
    recipe = bundle.recipe
    config = recipe.open(bundle.folder, torch.device("cpu"))

    def tensor(name: str, _: torch.device) -> torch.Tensor:
        return torch.from_numpy(request[name])

    done, shape = preprocess(
        config.preprocessing(), recipe.inputs, tensor, torch.device("cpu"), check=False
    )
    state = state_of(done, InputGrid(shape, input_affine(recipe.inputs, tensor)))
    crossed = decode_state(encode_state(state))
    data = dictionary_of(recipe.network_key, recipe.pred_key, crossed, torch.from_numpy(y), {})
    output = recipe.outputs[0]
    pred = run(config.postprocessing(), data, recipe.pred_key)[output.key]
    return result(pred, output, crossed.grid).numpy()


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SRA"])
def test_a_result_that_was_never_turned_back_lies_on_the_image_all_the_same(
    tmp_path: Path, axcodes: str, flipped: bool
) -> None:
    """Voxel for voxel where MONAI's file has them by its affine; in whatever order slices come."""
    turned = step("Orientationd", "image", axcodes=axcodes)
    bundle = a_bundle_of(tmp_path / "b", [turned], [SOFTMAX, LABELS])
    assert bundle.recipe.outputs[0].on_input_grid
    request = dict(sample(bundle.recipe.inputs, *SIZE))
    if flipped:
        request["AFFINE"] = request["AFFINE"] @ np.diag([1.0, 1.0, -1.0, 1.0])
    found = monai_stages(Source.of(bundle), request)
    mask = served(bundle, request, found.y)
    assert mask.shape == request["IMAGE"].shape
    assert np.array_equal(mask, found.outputs["MASK"])
    # By position in the patient: MONAI's Y lies on X, whose affine says where.
    labels = found.y.argmax(axis=0)
    here, there = np.argwhere(labels > 0), np.argwhere(mask.transpose(2, 1, 0) > 0)
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ request["AFFINE"]
    places = [
        np.round(np.c_[voxels, np.ones(len(voxels))] @ affine.T, 3)
        for voxels, affine in ((here, found.x_affine), (there, to_ras))
    ]
    assert {tuple(place) for place in places[0]} == {tuple(place) for place in places[1]}


def test_a_result_on_other_voxels_is_said_to_be(tmp_path: Path) -> None:
    """Another spacing and no inverse: the gateway refuses it by name."""
    spacing = step("Spacingd", "image", pixdim=[3.0, 3.0, 3.0])
    bundle = a_bundle_of(tmp_path / "b", [spacing], [SOFTMAX, LABELS])
    assert not bundle.recipe.outputs[0].on_input_grid


def test_a_result_that_has_lost_its_affine_counts_by_its_shape_where_nothing_was_moved(
    tmp_path: Path,
) -> None:
    """A bundle's own step on numpy arrays forgets where the image lies."""
    forget = step("Lambdad", "image", func="$lambda x: x.numpy() * 1.0", track_meta=False)
    kept = a_bundle_of(tmp_path / "a", [forget], [SOFTMAX, LABELS]).recipe.outputs[0]
    assert (kept.on_input_grid, kept.has_affine) == (True, False)
    moved = a_bundle_of(tmp_path / "b", [RAS, forget], [SOFTMAX, LABELS]).recipe.outputs[0]
    assert (moved.on_input_grid, moved.has_affine) == (False, False)


def test_a_network_of_one_channel_has_no_background(tmp_path: Path) -> None:
    """Its one label is the second name, where the first is the background's."""
    bundle = a_bundle_of(
        tmp_path / "b",
        [],
        [step("Activationsd", sigmoid=True), step("AsDiscreted", threshold=0.5)],
        channels=1,
        classes={"0": "background", "1": "tumour"},
    )
    (output,) = contract_of(bundle).outputs
    assert [(row.label, row.name) for row in output.segments] == [(1, "tumour")]


def test_labels_that_change_places_keep_their_names_among_many(tmp_path: Path) -> None:
    """Thirty classes, two of which are mapped onto each other."""
    mapped = step("MapLabelValued", orig_labels=[3, 5], target_labels=[5, 3])
    bundle = a_bundle_of(
        tmp_path / "b",
        [],
        [SOFTMAX, LABELS, mapped],
        channels=30,
        classes={str(n): f"c{n}" for n in range(30)},
    )
    (output,) = contract_of(bundle).outputs
    names = {row.label: row.name for row in output.segments}
    assert (names[3], names[5]) == ("c5", "c3")
    assert len(names) == 29


def test_large_labels_among_many_are_wide_enough(tmp_path: Path) -> None:
    """Also where none of those that are asked first is large."""
    labels = [n if n in (1, 15, 29) else 300 + n for n in range(1, 30)]
    mapped = step("MapLabelValued", orig_labels=list(range(1, 30)), target_labels=labels)
    bundle = a_bundle_of(tmp_path / "b", [], [SOFTMAX, LABELS, mapped], channels=30)
    (output,) = contract_of(bundle).outputs
    assert output.datatype == "UINT16"
    assert sorted(row.label for row in output.segments) == sorted(labels)


def test_no_two_tensors_have_one_name(tmp_path: Path) -> None:
    """A bundle may write its image beside its mask, or keys that look alike in Triton's words."""
    copied = step("CopyItemsd", "pred", names="pred_")
    written = step("SaveImaged", ["pred", "pred_", "image"], output_dir=".")
    bundle = a_bundle_of(tmp_path / "b", [], [copied, SOFTMAX, LABELS, written])
    names = [one.tensor for one in bundle.recipe.outputs]
    assert names == ["PRED", "PRED_OUT", "IMAGE_OUT"]


def test_a_negative_label_is_refused_when_building(tmp_path: Path) -> None:
    """Serving would find out with the first study."""
    ignored = step("MapLabelValued", orig_labels=[2], target_labels=[-1])
    with pytest.raises(BundleError, match=r"makes the label -1 under 'pred'.*MapLabelValued"):
        a_bundle_of(tmp_path / "b", [], [SOFTMAX, LABELS, ignored])


def test_no_number_is_no_difference_from_itself(tmp_path: Path) -> None:
    """An entropy of zero times minus infinity is NaN on both sides."""
    surprise = "$lambda p: (p * (p > 0.4) * (p * (p > 0.4)).log()).sum(0)[None]"
    entropy = step("Lambdad", func=surprise)
    bundle = a_bundle_of(tmp_path / "b", [], [SOFTMAX, entropy])
    assert bundle.recipe.outputs[0].kind == "image"
    values = np.array([1.0, np.nan, 2.0], dtype=np.float32)
    assert compare_tensor("postprocess", "P", values, values.copy()).different == 0
    other = np.array([1.0, 3.0, 2.0], dtype=np.float32)
    found = compare_tensor("postprocess", "P", values, other)
    assert (found.different, found.largest_difference) == (1, np.inf)


def test_an_expression_is_shown_as_it_is_written(tmp_path: Path) -> None:
    """Not from its last dot on."""
    config = {
        "network": {"_target_": "UNet", **NETWORK},
        "preprocessing": compose(LOAD),
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": compose(SOFTMAX, LABELS),
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "prepare_batch": "$lambda b, device, *_: (b['image'].to(device), None)",
        },
    }
    with pytest.raises(BundleError, match=r"prepare_batch is \$lambda b, device"):
        read_bundle(a_bundle(tmp_path / "b", config), RANDOM)


def test_a_file_s_own_metadata_is_asked_for_in_vain(tmp_path: Path) -> None:
    """The sentence says what an image comes with instead."""
    wanting = step("Lambdad", "image", func="$lambda x: x * float(x.meta['pixdim'][1])")
    with pytest.raises(BundleError, match="'pixdim' of a file's own metadata"):
        a_bundle_of(tmp_path / "b", [wanting], [SOFTMAX, LABELS])
