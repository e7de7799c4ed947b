"""Broken and unsupported bundles, as the person at the command line meets them."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.cli import main
from tests.support.bundles import NETWORK, a_segmentation_bundle
from tests.support.zoo import a_bundle, compose, step

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
]


def tritome(*arguments: str) -> int:
    """Runs the command in this process, as many imports as it has; returns the exit code."""
    before, sys.argv = sys.argv, ["tritome", *arguments]
    try:
        main()
    except SystemExit as done:
        return int(done.code or 0)
    finally:
        sys.argv = before
    return 0


Make = Callable[[Path], list[str]]
"""A folder to work in -> what comes after `tritome build`."""


def _changed(**changed: Any) -> Make:
    return lambda folder: [str(a_segmentation_bundle(folder / "b", changed=changed))]


def _without(*keys: str) -> Make:
    return lambda folder: [str(a_segmentation_bundle(folder / "b", without=keys))]


def _pre(*transforms: Any) -> dict[str, Any]:
    return compose(step("LoadImaged", "image", ensure_channel_first=True), *transforms)


def _no_weights(folder: Path) -> list[str]:
    bundle = a_segmentation_bundle(folder / "b")
    (bundle / "models" / "model.pt").unlink()
    return [str(bundle)]


def _other_weights(folder: Path) -> list[str]:
    bundle = a_segmentation_bundle(folder / "b")
    torch.save({"conv.weight": torch.zeros(3)}, bundle / "models" / "model.pt")
    return [str(bundle)]


def _weights_of(content: bytes) -> Make:
    def make(folder: Path) -> list[str]:
        bundle = a_segmentation_bundle(folder / "b")
        (bundle / "models" / "model.pt").write_bytes(content)
        return [str(bundle)]

    return make


def _weights_left_in_the_zoo(folder: Path) -> list[str]:
    arguments = _no_weights(folder)
    (folder / "b" / "large_files.yml").write_text("large_files: []", encoding="utf-8")
    return arguments


def _only_a_searched_architecture(folder: Path) -> list[str]:
    loader = {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"}
    changed = {"arch_path": "$@bundle_root + '/models/searched.pt'", "handlers": [loader]}
    bundle = a_segmentation_bundle(folder / "b", changed={"bundle_root": ".", **changed})
    (bundle / "models" / "model.pt").rename(bundle / "models" / "searched.pt")
    return [str(bundle)]


def _two_bundles_in_a_zip(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "zoo.zip", "w") as archive:
        for name in ("spleen", "lung"):
            archive.writestr(f"models/{name}/configs/inference.json", "{}")
    return [str(folder / "zoo.zip")]


def _half_of_the_weights(folder: Path) -> list[str]:
    loader = {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'"}
    bundle = a_segmentation_bundle(
        folder / "b", changed={"bundle_root": ".", "handlers": [{**loader, "strict": False}]}
    )
    path = bundle / "models" / "model.pt"
    state = torch.load(path, weights_only=True)
    torch.save(dict(list(state.items())[::2]), path)
    return [str(bundle)]


def _a_config_of_a_bundle(name: str) -> Make:
    def make(folder: Path) -> list[str]:
        configs = a_segmentation_bundle(folder / "b") / "configs"
        (configs / "inference.yaml").write_bytes((configs / "inference.json").read_bytes())
        return [str(configs / name)]

    return make


def _a_pickle(folder: Path) -> list[str]:
    bundle = a_segmentation_bundle(folder / "b")
    torch.save({"model": Path("/")}, bundle / "models" / "model.pt")
    return [str(bundle)]


def _broken_json(folder: Path) -> list[str]:
    bundle = a_segmentation_bundle(folder / "b")
    (bundle / "configs" / "inference.json").write_text('{"preprocessing": ', encoding="utf-8")
    return [str(bundle)]


def _broken_metadata(folder: Path) -> list[str]:
    bundle = a_segmentation_bundle(folder / "b")
    (bundle / "configs" / "metadata.json").write_text("{", encoding="utf-8")
    return [str(bundle)]


def _a_part_in_another_file(folder: Path) -> list[str]:
    bundle = a_segmentation_bundle(folder / "b", without=("inferer",))
    (bundle / "configs" / "common.yaml").write_text("inferer: {}", encoding="utf-8")
    return [str(bundle)]


def _two_weights(folder: Path) -> list[str]:
    bundle = a_segmentation_bundle(folder / "b")
    for name in ("best.pt", "last.pt"):
        (bundle / "models" / name).write_bytes(b"")
    (bundle / "models" / "model.pt").unlink()
    return [str(bundle)]


def _memory_of_an_object(folder: Path) -> list[str]:
    scripts = """
from monai.transforms import MapTransform


class Halved(MapTransform):
    def __call__(self, data):
        self.size = data["image"].shape[1:]
        return {**data, "image": data["image"][:, ::2, ::2, ::2]}


class Doubled(MapTransform):
    def __init__(self, keys, before):
        super().__init__(keys)
        self.before = before

    def __call__(self, data):
        return {**data, "pred": data["pred"].new_zeros(1, *self.before.size)}
"""
    config = {
        "network": {"_target_": "UNet", **NETWORK},
        "half": step("scripts.size.Halved", "image"),
        "preprocessing": _pre("@half"),
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]},
        "postprocessing": compose(step("scripts.size.Doubled", before="@half")),
    }
    bundle = a_bundle(folder / "b", config, scripts={"scripts/size.py": scripts})
    return [str(bundle), "--random-weights", "0"]


def _only_training(folder: Path) -> list[str]:
    bundle = a_bundle(
        folder / "b", {"trainer": {"_target_": "SupervisedTrainer"}, "loss": {}}, name="train.json"
    )
    return [str(bundle), "--config", "train.json", "--random-weights", "0"]


def _dict_outputs(folder: Path) -> list[str]:
    network = """
import torch


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 2, 1)

    def forward(self, x):
        return {"seg": self.conv(x), "boxes": x}
"""
    config = {
        "network": {"_target_": "scripts.two.Two"},
        "preprocessing": _pre(),
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": compose(step("AsDiscreted", argmax=True)),
    }
    bundle = a_bundle(folder / "b", config, scripts={"scripts/two.py": network})
    return [str(bundle), "--random-weights", "0"]


def _empty_zip(folder: Path) -> list[str]:
    with zipfile.ZipFile(folder / "b.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    return [str(folder / "b.zip")]


def _changed_since(folder: Path) -> list[str]:
    bundle = a_segmentation_bundle(folder / "b")
    tritome("build", str(bundle), "-o", str(folder / "first"))
    path = bundle / "configs" / "inference.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    return [str(bundle)]


def _cycle(folder: Path) -> list[str]:
    return [
        str(a_segmentation_bundle(folder / "b", changed={"a": "@b", "b": "@a", "inferer": "@a"}))
    ]


REFUSED: dict[str, tuple[Make, str]] = {
    "no such folder": (lambda folder: [str(folder / "nothing")], "neither a folder with configs/"),
    "a zip of something else": (_empty_zip, "has no folder with configs/"),
    "no preprocessing": (_without("preprocessing"), "'preprocessing'"),
    "no inferer": (_without("inferer"), "'inferer'"),
    "no network": (_without("network", "network_def"), "'network_def'"),
    "a wrong reference": (_changed(inferer="@infererr"), "infererr"),
    "references in a circle": (_cycle, "inferer: refers to itself in a circle"),
    "absent weights": (_no_weights, r"models/model\.pt is missing"),
    "weights of another network": (_other_weights, "no weights for this network"),
    "half of the weights": (_half_of_the_weights, "lacks .* which would be random"),
    "a pointer in place of weights": (
        _weights_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        "git lfs pull",
    ),
    "a page in place of weights": (_weights_of(b"<html>not found</html>"), "download .* again"),
    "weights left in the zoo": (_weights_left_in_the_zoo, "monai.bundle download_large_files"),
    "something else than the weights": (_only_a_searched_architecture, r"models/model\.pt is miss"),
    "several bundles in a zip": (_two_bundles_in_a_zip, r"has 2 bundles in it \(lung, spleen\)"),
    "weights that are code": (_a_pickle, "not unpickled"),
    "an unknown transform": (
        _changed(preprocessing=_pre(step("Sharpend", "image"))),
        "there is no 'Sharpend' in MONAI",
    ),
    "an unknown network": (_changed(network_def={"_target_": "UNett"}), "UNett"),
    "broken JSON": (_broken_json, r"inference\.json can't be read"),
    "broken metadata": (_broken_metadata, r"metadata\.json can't be read"),
    "a part in another file": (
        _a_part_in_another_file,
        r"common\.yaml has: merge them with --config common\.yaml --config inference\.json",
    ),
    "two files of weights": (_two_weights, r"models/best\.pt, models/last\.pt"),
    "transforms of arrays": (
        _changed(preprocessing=compose({"_target_": "LoadImage"})),
        "transforms of dictionaries",
    ),
    "a transform that remembers": (_memory_of_an_object, "'Halved' object has no attribute 'size'"),
    "a macro that leads nowhere": (_changed(inferer="%other.yaml::inferer"), "%macro names"),
    "an expression that isn't one": (
        _changed(inferer={"_target_": "SlidingWindowInferer", "roi_size": "$[8, 8,, 8]"}),
        r"in the expression '\[8, 8,, 8\]'",
    ),
    "a training config": (_only_training, "config for training"),
    "a random transform": (
        _changed(preprocessing=_pre(step("RandFlipd", "image", prob=0.5))),
        "RandFlipd is random",
    ),
    "a ground truth": (
        _changed(preprocessing=compose(step("LoadImaged", ["image", "label"]))),
        "reads 'label'",
    ),
    "outputs in a dictionary": (_dict_outputs, "gives a dict with 'seg', 'boxes'"),
    "several networks at once": (
        _changed(evaluator={"_target_": "EnsembleEvaluator", "networks": []}),
        "EnsembleEvaluator",
    ),
    "an evaluator of its own": (
        _changed(evaluator={"_target_": "scripts.engine.OurEvaluator"}),
        "nobody can know what OurEvaluator does",
    ),
    "an evaluator that trains": (
        _changed(evaluator={"_target_": "SupervisedEvaluator", "mode": "train"}),
        "mode is 'train'",
    ),
    "a reader that exchanges axes": (
        _changed(
            preprocessing=compose(
                step("LoadImaged", "image", reader="PILReader", reverse_indexing=False)
            )
        ),
        "reverse_indexing",
    ),
    "a random transform at the end": (
        _changed(postprocessing=compose(step("RandGaussianNoised", prob=1.0))),
        "postprocessing: RandGaussianNoised is random",
    ),
    "its own prepare_batch": (
        _changed(
            evaluator={"_target_": "SupervisedEvaluator", "prepare_batch": "$lambda *a, **k: None"}
        ),
        "prepare_batch",
    ),
    "too few channels": (
        _changed(preprocessing=_pre(step("RepeatChanneld", "image", repeats=7))),
        "the network can't take",
    ),
    "a setting nowhere": (
        lambda folder: [str(a_segmentation_bundle(folder / "b")), "--set", "inferrer.overlap=0.1"],
        "has no 'inferrer'",
    ),
    "a setting that nothing reads": (
        lambda folder: [str(a_segmentation_bundle(folder / "b")), "--set", "overlap=0.1"],
        "did you mean inferer::overlap",
    ),
    "a config in place of its bundle": (
        _a_config_of_a_bundle("inference.json"),
        "did you mean .*/b",
    ),
    "a YAML config in place of its bundle": (
        _a_config_of_a_bundle("inference.yaml"),
        r"config of one bundle.*--config inference\.yaml",
    ),
    "the folder of a bundle's folder": (
        lambda folder: [str(a_segmentation_bundle(folder / "twice" / "b").parent)],
        "did you mean .*/twice/b",
    ),
    "a config that isn't there": (
        lambda folder: [str(a_segmentation_bundle(folder / "b")), "--config", "infer.json"],
        "no such file in the bundle",
    ),
    "changed since it was built": (_changed_since, "--trust"),
}


@pytest.fixture(autouse=True)
def _a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("what", REFUSED)
def test_one_sentence_says_what_to_do(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the bundle, the key and the reason; nothing is written, no traceback."""
    make, reason = REFUSED[what]
    arguments = make(tmp_path)
    capsys.readouterr()
    assert tritome("build", *arguments, "-o", str(tmp_path / "repository")) == 1
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1, said
    assert re.search(reason, errors[0]), errors[0]
    assert "Traceback" not in said
    assert len(errors[0]) < 700
    assert not (tmp_path / "repository").exists()


def test_reading_a_bundle_says_once_that_it_is_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its digest is recorded the first time; the same bytes need no word again."""
    bundle = str(a_segmentation_bundle(tmp_path / "b"))
    assert tritome("inspect", bundle) == 0
    assert "A bundle is code" in capsys.readouterr().err
    assert tritome("inspect", bundle) == 0
    assert "A bundle is code" not in capsys.readouterr().err
    known = json.loads((tmp_path / "home/tritome/trusted_bundles.json").read_text("utf-8"))
    assert list(known) == [bundle]


def test_a_folder_that_is_no_bundle_is_not_looked_through(tmp_path: Path) -> None:
    """It may be a whole disk, named by mistake; nothing of it is recorded as let run."""
    a_segmentation_bundle(tmp_path / "disk" / "b")
    assert tritome("inspect", str(tmp_path / "disk")) == 1
    assert not (tmp_path / "home").exists()


def test_a_build_says_what_the_gateway_would_say_of_each_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the first study would: a mask that isn't brought back can't be placed."""
    bundle = a_segmentation_bundle(
        tmp_path / "b",
        changed={"postprocessing": compose(step("AsDiscreted", argmax=True))},
        metadata={"network_data_format": {"inputs": {"image": {"modality": "whatever"}}}},
    )
    assert tritome("build", str(bundle), "-o", str(tmp_path / "repository")) == 0
    said = capsys.readouterr().err
    assert "The gateway can't use it yet: output MASK of 'b' has a grid of its own" in said
    assert "calls the modality 'whatever'" in said
    served = str(a_segmentation_bundle(tmp_path / "c"))
    assert tritome("build", served, "-o", str(tmp_path / "repository")) == 0
    assert "can't use it" not in capsys.readouterr().err
