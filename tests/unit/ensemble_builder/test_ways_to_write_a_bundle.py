"""Bundles that say the usual things in unusual ways."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.networks.nets import UNet

from ensemble_builder.bundle import Options, find_bundle, read_bundle
from ensemble_builder.errors import BundleError
from ensemble_builder.plan import plan
from ensemble_builder.runtime.weights import network_with_weights
from tests.support.bundles import NETWORK, a_segmentation_bundle
from tests.support.zoo import a_bundle, compose, step

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
]
RANDOM = Options(random_weights=0)
LOAD = step("LoadImaged", "image", ensure_channel_first=True)
LABELS = step("AsDiscreted", argmax=True)


def _config(**changed: Any) -> dict[str, Any]:
    return {
        "network": {"_target_": "UNet", **NETWORK},
        "preprocessing": compose(LOAD, step("ScaleIntensityd", "image")),
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]},
        "postprocessing": compose(step("Activationsd", softmax=True), LABELS),
    } | changed


def _kinds(folder: Path) -> list[tuple[str, tuple[int, ...], bool]]:
    recipe = read_bundle(folder, RANDOM).recipe
    return [(one.kind, one.dims, one.on_input_grid) for one in recipe.outputs]


ONE_MASK = [("labelmap", (-1, -1, -1), True)]


def test_a_macro_brings_what_another_file_says(tmp_path: Path) -> None:
    """Its file is found in the bundle, wherever the command is given; readers in it go, too."""
    config = _config(
        preprocessing=compose("%configs/common.yaml::reading", "%scaling"),
        scaling=step("ScaleIntensityd", "image"),
        inferer="%common.yaml::window",
    )
    folder = a_bundle(tmp_path / "b", config)
    common = {"reading": {**LOAD, "reader": "ITKReader"}, "window": _config()["inferer"]}
    (folder / "configs" / "common.yaml").write_text(yaml.safe_dump(common), encoding="utf-8")
    assert _kinds(folder) == ONE_MASK


def test_a_reference_to_something_disabled_is_left_out(tmp_path: Path) -> None:
    """As the same transform would be where it stands in the list itself."""
    config = _config(
        several=[LOAD, {**step("RandFlipd", "image"), "_disabled_": True}],
        preprocessing=compose("@several#0", "@several#1"),
    )
    assert _kinds(a_bundle(tmp_path / "b", config)) == ONE_MASK


def test_parts_under_a_section_are_found_by_their_evaluator(tmp_path: Path) -> None:
    """Without an evaluator at the top, the only one further down says where the parts are."""
    config = _config()
    section = {key: config.pop(key) for key in ("preprocessing", "inferer", "postprocessing")}
    section["evaluator"] = {
        "_target_": "SupervisedEvaluator",
        "val_data_loader": {"dataset": {"transform": "@validate::preprocessing"}},
        "inferer": "@validate#inferer",
        "postprocessing": "@validate#postprocessing",
        "network": "@network",
    }
    assert _kinds(a_bundle(tmp_path / "b", {**config, "validate": section})) == ONE_MASK


def test_the_evaluator_says_what_runs(tmp_path: Path) -> None:
    """A part with MONAI's own id that the evaluator doesn't use is not what is served."""
    window = {"_target_": "SlidingWindowInferer", "roi_size": [24, 16, 8]}
    config = _config(evaluator={"_target_": "SupervisedEvaluator", "inferer": window})
    assert read_bundle(a_bundle(tmp_path / "b", config), RANDOM).recipe.window == (1, 24, 16, 8)


def test_the_number_of_channels_is_the_network_s(tmp_path: Path) -> None:
    """Whatever the metadata says, which here says nothing."""
    config = _config(network={"_target_": "UNet", **NETWORK, "in_channels": 6})
    (one,) = read_bundle(a_bundle(tmp_path / "b", config), RANDOM).recipe.inputs
    assert (one.layout, one.channels) == ("channels", 6)


def test_an_image_that_is_made_of_others_is_no_input(tmp_path: Path) -> None:
    """Metadata describes what the network takes; a request brings what is read."""
    names = ["t1", "t2"]
    config = _config(
        network={"_target_": "UNet", **NETWORK, "in_channels": 2},
        preprocessing=compose(
            step("LoadImaged", names, ensure_channel_first=True),
            step("ConcatItemsd", names, name="image"),
        ),
    )
    inputs = read_bundle(a_bundle(tmp_path / "b", config), RANDOM).recipe.inputs
    assert [one.key for one in inputs] == names


def test_what_the_config_writes_as_a_number_is_one(tmp_path: Path) -> None:
    """A prompt such as a class's number would otherwise be taken for points."""
    config = _config(
        dataset={"_target_": "Dataset", "data": "$[{'image': 'a.nii.gz', 'organ': 3}]"},
        preprocessing=compose(LOAD, step("ToTensord", "organ")),
    )
    inputs = read_bundle(a_bundle(tmp_path / "b", config), RANDOM).recipe.inputs
    assert [(one.key, one.layout) for one in inputs] == [("image", "volume"), ("organ", "value")]


def test_images_of_even_sizes_are_tried_as_well(tmp_path: Path) -> None:
    """A network that halves whole images, where nothing pads them, takes no other."""
    bundle = read_bundle(
        a_bundle(tmp_path / "b", _config(inferer={"_target_": "SimpleInferer"})), RANDOM
    )
    assert bundle.findings.example_shapes["IMAGE"] == (64, 96, 128)


def test_cuda_by_name_is_the_device_that_serves(tmp_path: Path) -> None:
    """A team's own machine had a GPU; a CPU serves the bundle, too."""
    config = _config(
        network_def={"_target_": "UNet", **NETWORK},
        network="$@network_def.to('cuda:0').cuda()",
        device="cuda",
    )
    assert _kinds(a_bundle(tmp_path / "b", config)) == ONE_MASK


def test_the_only_thing_that_can_be_a_part_is_it(tmp_path: Path) -> None:
    """Ids of a team's own are understood where nothing else could be meant."""
    config = _config()
    for part in ("preprocessing", "inferer", "postprocessing"):
        config[f"our_{part}"] = config.pop(part)
    assert _kinds(a_bundle(tmp_path / "b", config)) == ONE_MASK


def test_a_relative_path_begins_at_the_bundle_s_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the command is given, and wherever the server that serves it was started."""
    roi = "$__import__('json').loads(__import__('pathlib').Path('configs/window.json').read_text())"
    config = _config(inferer={"_target_": "SlidingWindowInferer", "roi_size": roi})
    folder = a_bundle(tmp_path / "b", config, scripts={"configs/window.json": "[24, 16, 8]"})
    monkeypatch.chdir(tmp_path)
    bundle = read_bundle(Path("b"), RANDOM)
    assert bundle.recipe.window == (1, 24, 16, 8)
    assert "1/bundle/configs/window.json" in plan(bundle)[0].files
    assert bundle.recipe.open(Path("b"), torch.device("cpu")).inferer().roi_size == [24, 16, 8]
    assert Path.cwd() == tmp_path != folder


def test_code_and_what_lies_beside_it_travels(tmp_path: Path) -> None:
    """Packages may be called models or data, too; images in a folder of data stay at home."""
    files = [
        *("scripts/__init__.py", "scripts/models/__init__.py", "scripts/models/net.py"),
        *("scripts/data/norm.py", "scripts/data/mean.npy", "models/parts.py"),
    ]
    stay = ["data/patient.nii.gz", "data/list.json", "eval/seg.csv", "scripts/models/old.pt"]
    folder = a_bundle(tmp_path / "b", _config(), scripts=dict.fromkeys([*files, *stay], ""))
    for model in plan(read_bundle(folder, RANDOM))[:3]:
        there = {name.removeprefix("1/bundle/") for name in model.files}
        assert there >= set(files)
        assert not there & set(stay)


def test_a_zip_of_a_bundle_s_content_has_the_zip_s_name(tmp_path: Path) -> None:
    """With a folder of its own it has that one's name: the same each time it is built."""
    folder = a_segmentation_bundle(tmp_path / "in" / "b")
    for where in (folder, folder.parent):
        name = shutil.make_archive(str(tmp_path / f"of_{where.name}"), "zip", where)
        found = find_bundle(name)
        assert found.name == ("of_b" if where == folder else "b")


def test_a_bundle_without_metadata_has_nameless_labels(tmp_path: Path) -> None:
    """Metadata only gives names; that there are none is said."""
    folder = a_segmentation_bundle(tmp_path / "b")
    (folder / "configs" / "metadata.json").unlink()
    bundle = read_bundle(folder)
    assert [(row.label, row.name) for row in bundle.segments] == [(1, "Label 1"), (2, "Label 2")]
    assert any("metadata.json" in note for note in bundle.notes)


@pytest.mark.parametrize("last", ["SqueezeDimd", "ToNumpyd"])
def test_labels_without_a_channel_axis_are_a_label_map(tmp_path: Path, last: str) -> None:
    """[I, J, K] on the input's grid isn't I masks of [J, K]."""
    post = compose(LABELS, step("SqueezeDimd", dim=0), step(last) if last != "SqueezeDimd" else "")
    post["transforms"] = [one for one in post["transforms"] if one]
    assert _kinds(a_bundle(tmp_path / "b", _config(postprocessing=post))) == ONE_MASK


def test_a_number_of_a_class_is_a_score(tmp_path: Path) -> None:
    """A classification that ends in argmax gives one number; that it is no score is said."""
    config = _config(
        network={
            "_target_": "DenseNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 3,
            "init_features": 4, "growth_rate": 2, "block_config": [1, 1],
        },
        preprocessing=compose(LOAD, step("Resized", "image", spatial_size=[32, 32, 32])),
        inferer={"_target_": "SimpleInferer"},
    )  # fmt: skip
    bundle = read_bundle(a_bundle(tmp_path / "b", config), RANDOM)
    assert [(one.kind, one.dims) for one in bundle.recipe.outputs] == [("scores", (1,))]
    assert any("of the network's 3 scores" in note for note in bundle.notes)


_LIST_OF_ONE = """
import torch


class Deep(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 2, 1)

    def forward(self, x):
        return [self.conv(x)]
"""


def test_a_list_of_one_prediction_is_that_prediction(tmp_path: Path) -> None:
    """Networks whose deep supervision is off give one; MONAI's sliding window unpacks it."""
    config = _config(network={"_target_": "scripts.deep.Deep"})
    folder = a_bundle(tmp_path / "b", config, scripts={"scripts/deep.py": _LIST_OF_ONE})
    assert _kinds(folder) == ONE_MASK


# Weights ------------------------------------------------------------------------------


def _state(seed: int = 5) -> Mapping[str, torch.Tensor]:
    torch.manual_seed(seed)
    return UNet(**NETWORK).state_dict()


def _with_prefix(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in _state().items()}


def _torchscript(path: Path) -> None:
    module = UNet(**NETWORK)
    module.load_state_dict(_state())
    jit: Any = torch.jit  # without types
    jit.script(module).save(str(path))


WEIGHTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "of several GPUs": (
        "model.pt",
        lambda path: torch.save({"state_dict": _with_prefix("module."), "epoch": 3}, path),
    ),
    "under a name of their own": (
        "model.pt",
        lambda path: torch.save({"network_weights": _state(), "init_args": {"a": 1}}, path),
    ),
    "with a loss's weights": (
        "model.pt",
        lambda path: torch.save({**_with_prefix("net."), "loss.weight": torch.ones(1)}, path),
    ),
    "in another file": ("best.pth", lambda path: torch.save(_state(), path)),
    "in TorchScript": ("model.ts", _torchscript),
}


@pytest.mark.parametrize("way", WEIGHTS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_are_found_however_they_were_saved(tmp_path: Path, way: str) -> None:
    """A state dict that has all of the network's weights, once, is the network's."""
    folder = a_segmentation_bundle(tmp_path / "b")
    (folder / "models" / "model.pt").unlink()
    name, save = WEIGHTS[way]
    save(folder / "models" / name)
    bundle = read_bundle(folder)
    assert bundle.recipe.weights.path == f"models/{name}"
    found = network_with_weights(
        bundle.recipe.open(folder, torch.device("cpu")), "network", bundle.recipe.weights, folder
    ).state_dict()
    assert all(torch.equal(found[key], value) for key, value in _state().items())


def test_of_two_sets_of_weights_none_is_guessed(tmp_path: Path) -> None:
    """A checkpoint with the weights and their moving average doesn't say which is meant."""
    folder = a_segmentation_bundle(tmp_path / "b")
    torch.save({"raw": _state(1), "average": _state(2)}, folder / "models" / "model.pt")
    with pytest.raises(BundleError, match="no weights for this network"):
        read_bundle(folder)
