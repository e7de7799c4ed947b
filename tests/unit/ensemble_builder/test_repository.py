"""What `tritome build` writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from ensemble_builder.build import build
from ensemble_builder.bundle import Options
from ensemble_builder.contract import PARAMETER, Contract
from ensemble_builder.errors import BundleError, RepositoryError
from ensemble_builder.repository import (
    roll_to,
    served_version,
    steps_of_version,
    versions_of,
)
from ensemble_builder.verify import Source
from tests.support.bundles import a_segmentation_bundle

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:monai")


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }


def _config(repository: Path, model: str) -> pb.ModelConfig:
    text = (repository / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, pb.ModelConfig())


def test_the_checked_in_repository_is_what_the_builder_writes(
    tmp_path: Path, repository_root: Path
) -> None:
    """Building the built-in pipelines again changes no byte of model_repository/."""
    list(build("lung_ct", tmp_path))
    list(build("thorax_multi", tmp_path))
    assert _files(repository_root / "model_repository") == _files(tmp_path)


def test_files_that_the_config_names_travel_along(tmp_path: Path) -> None:
    """Whatever their kind, in every model; example images in folders of their own stay."""
    changed = {"statistics": "$@bundle_root + '/configs/statistics.npy'", "data": "sample.npy"}
    bundle = a_segmentation_bundle(tmp_path / "b", changed=changed)
    (bundle / "configs" / "statistics.npy").write_bytes(b"numbers")
    (bundle / "sampledata").mkdir()
    (bundle / "sampledata" / "sample.npy").write_bytes(b"an image")
    list(build(bundle, tmp_path / "repository"))
    found = _files(tmp_path / "repository")
    for step in ("preprocess", "inferer", "postprocess"):
        assert found[f"b_{step}/1/bundle/configs/statistics.npy"] == b"numbers"
    assert not [name for name in found if name.endswith("sample.npy")]


def test_the_inferer_has_as_many_instances_as_a_person_says(tmp_path: Path) -> None:
    """Two where nobody says anything, so that a study that can't wait finds one free."""
    bundle = a_segmentation_bundle(tmp_path / "b")
    counts = []
    for options in (Options(), Options(instances=3)):
        list(build(bundle, tmp_path / "repository", options, replace=True))
        inferer = _config(tmp_path / "repository", "b_inferer")
        counts.append(inferer.instance_group[0].count)
    assert counts == [2, 3]


def test_four_models_one_of_them_the_ensemble(tmp_path: Path) -> None:
    """Three python models and the ensemble that joins them, each with a config Triton parses."""
    bundle = a_segmentation_bundle(tmp_path / "two_labels")
    written = [model.name for model, _ in build(bundle, tmp_path / "repository")]
    steps = ["two_labels_preprocess", "two_labels_inferer", "two_labels_postprocess"]
    assert written == [*steps, "two_labels"]
    for step in steps:
        assert _config(tmp_path / "repository", step).backend == "python"
    ensemble = _config(tmp_path / "repository", "two_labels")
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == steps
    assert [(t.name, list(t.dims)) for t in ensemble.output] == [("MASK", [-1, -1, -1])]
    assert ensemble.input[0].data_type == pb.TYPE_INT16


def test_the_contract_is_in_the_ensemble_s_config(tmp_path: Path) -> None:
    """Any client reads from Triton's own config what the pipeline takes and gives."""
    bundle = a_segmentation_bundle(tmp_path / "b")
    list(build(bundle, tmp_path / "repository"))
    text = _config(tmp_path / "repository", "b").parameters[PARAMETER].string_value
    contract = Contract.model_validate(json.loads(text))
    assert contract.pipeline == "b"
    assert contract.version == "0.3.1"
    assert contract.intended_use == "no medical use"
    assert [s.name for s in contract.outputs[0].segments] == ["one", "two"]


def test_building_again_touches_nothing(tmp_path: Path) -> None:
    """An equal model is left as it is, so a server need not load it again."""
    bundle, repository = a_segmentation_bundle(tmp_path / "b"), tmp_path / "repository"
    assert [changed for _, changed in build(bundle, repository)] == [True] * 4
    before = {p: p.stat().st_ino for p in repository.rglob("*")}
    assert [changed for _, changed in build(bundle, repository)] == [False] * 4
    assert before == {p: p.stat().st_ino for p in repository.rglob("*")}


def test_a_step_is_no_pipeline(tmp_path: Path) -> None:
    """Whoever names it to load or to roll back is told so, and not that it has no version."""
    (tmp_path / "b_inferer" / "1").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="b_inferer is a step of a pipeline"):
        steps_of_version(tmp_path / "b_inferer", 1)


def test_a_change_adds_a_version_and_going_back_is_one_call(tmp_path: Path) -> None:
    """Every version keeps its own files and config; rolling back chooses it by name."""
    bundle, repository = a_segmentation_bundle(tmp_path / "b"), tmp_path / "repository"
    list(build(bundle, repository, Options(runtime="torch")))
    first = _files(repository / "b_inferer" / "1")
    list(build(bundle, repository, Options(runtime="openvino")))
    assert versions_of(repository / "b") == [1, 2]
    assert _files(repository / "b_inferer" / "1") == first
    assert steps_of_version(repository / "b", 2)["b_inferer"] == 2
    roll_to(repository, "b", 1)
    assert served_version(repository / "b_inferer") == 1
    assert Source.in_repository(repository, "b").recipe.runtime == "torch"
    assert list(_config(repository, "b").version_policy.specific.versions) == [1]
    roll_to(repository, "b", 2)
    assert not _config(repository, "b").version_policy.specific.versions
    with pytest.raises(RepositoryError, match=r"no version 7 \(there is 1, 2\)"):
        roll_to(repository, "b", 7)


def test_replacing_leaves_one_version(tmp_path: Path) -> None:
    """What is checked in has no history of its own."""
    bundle, repository = a_segmentation_bundle(tmp_path / "b"), tmp_path / "repository"
    list(build(bundle, repository, Options(runtime="torch")))
    list(build(bundle, repository, Options(runtime="openvino"), replace=True))
    assert versions_of(repository / "b_inferer") == [1]
    assert sorted(p.name for p in repository.iterdir()) == [
        "b",
        "b_inferer",
        "b_postprocess",
        "b_preprocess",
    ]


def test_a_repository_that_can_t_be_written_says_so(tmp_path: Path) -> None:
    """The message names the folder; nothing is half written."""
    bundle = a_segmentation_bundle(tmp_path / "b")
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(RepositoryError, match="file can't be written"):
        list(build(bundle, tmp_path / "file"))


def test_an_unknown_runtime_is_refused(tmp_path: Path) -> None:
    """The message lists the runtimes there are."""
    with pytest.raises(BundleError, match="auto, torch, openvino"):
        list(build("lung_ct", tmp_path, Options(runtime="tensorflow")))
