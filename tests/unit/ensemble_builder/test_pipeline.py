"""From a pipeline to Triton models: names, bytes, contract, and bundles that can't be had."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from ensemble_builder.build import build
from ensemble_builder.bundle import Options
from ensemble_builder.errors import PipelineError
from ensemble_builder.pipeline import code_of, find_pipeline, plan_pipeline
from ensemble_builder.plan import Model
from ensemble_builder.verify.pipeline import BuiltPipeline, pipeline_reference
from tests.support.bundles import a_segmentation_bundle
from tests.support.pipelines import a_pipeline, a_threshold_bundle
from tests.support.volumes import an_oblique_volume
from tests.support.zoo import compose, step

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:monai")

NODES = """
  spot: {bundle: ./bright}
  around: {region_of: spot, labels: [2], margin_mm: 6}
  closer: {bundle: ./bright, image: around}
  all:
    merge: [spot, closer]
    overlap: last
    segments:
      - {of: spot, label: 1, to: 1, name: Spot}
      - {of: closer, label: 2, to: 2, name: Core, colour_rgb: [9, 8, 7]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline beside its bundle."""
    found = tmp_path_factory.mktemp("pipeline")
    a_threshold_bundle(found / "bright", channels=1)
    a_pipeline(found, NODES)
    return found


@pytest.fixture(scope="module")
def models(folder: Path) -> tuple[Model, ...]:
    """What the pipeline becomes."""
    return plan_pipeline(folder / "two.yaml")


def content(model: Model, name: str) -> str:
    """A generated file as text."""
    found = model.files[name]
    assert isinstance(found, bytes)
    return found.decode()


def config_of(model: Model) -> pb.ModelConfig:
    """A model's config as Triton reads it."""
    return text_format.Parse(content(model, "config.pbtxt"), pb.ModelConfig())


def names(models: Sequence[Model]) -> list[str]:
    """In the order in which they are written."""
    return [model.name for model in models]


def test_nodes_that_take_the_same_bundle_share_its_models(models: Sequence[Model]) -> None:
    """Three models serve both nodes; the ensemble calls them twice and comes last."""
    assert names(models) == [
        "two_spot_preprocess",
        "two_spot_inferer",
        "two_spot_postprocess",
        "two_around",
        "two_paste_uint8",
        "two_all",
        "two",
    ]
    steps = [step.model_name for step in config_of(models[-1]).ensemble_scheduling.step]
    assert steps.count("two_spot_inferer") == 2


def test_the_contract_has_one_table_and_every_members_weights(models: Sequence[Model]) -> None:
    """Client and gateway read of the ensemble what it gives and where it came from."""
    contract = json.loads(config_of(models[-1]).parameters["contract"].string_value)
    (output,) = contract["outputs"]
    table = [(row["label"], row["name"], row["colour_rgb"]) for row in output["segments"]]
    assert table == [(1, "Spot", None), (2, "Core", [9, 8, 7])]
    assert (contract["input"]["kind"], contract["input"]["modality"]) == ("volume", "CT")
    weights = contract["weights"]
    assert weights["spot.sha256"] == weights["closer.sha256"] != weights["sha256"]


def test_joints_lie_beside_their_rules(models: Sequence[Model]) -> None:
    """model.py names a class and nothing else; what differs is data beside it."""
    around = next(model for model in models if model.name == "two_around")
    assert "runtime.joints import Region" in content(around, "1/model.py")
    assert json.loads(content(around, "1/region.json"))["labels"] == [2]


def test_building_again_changes_no_byte(folder: Path, tmp_path: Path) -> None:
    """The same file and bundles give the same repository."""
    first = list(build(folder / "two.yaml", tmp_path))
    again = list(build(folder / "two.yaml", tmp_path))
    assert all(changed for _, changed in first)
    assert not any(changed for _, changed in again)


def test_another_name_names_all_of_its_models(folder: Path) -> None:
    """--name makes a second pipeline of one file, beside the first."""
    found = names(plan_pipeline(folder / "two.yaml", Options(name="other")))
    assert all(name.startswith("other") for name in found)


def test_a_built_in_pipeline_shares_the_built_in_bundles_models() -> None:
    """A server that has lung_ct and thorax_multi holds lung_ct's models once."""
    file = find_pipeline("thorax_multi")
    assert file is not None
    assert names(plan_pipeline(file)) == [
        "lung_ct_preprocess",
        "lung_ct_inferer",
        "lung_ct_postprocess",
        "thorax_ct_preprocess",
        "thorax_ct_inferer",
        "thorax_ct_postprocess",
        "thorax_multi_all",
        "thorax_multi",
    ]


def test_what_a_pipeline_runs_is_known_before_it_runs(folder: Path) -> None:
    """The file itself and each bundle beside it, so that a changed one can be refused."""
    assert code_of(folder / "two.yaml") == (folder / "two.yaml", folder / "bright")
    assert code_of(folder / "bright") == (folder / "bright",)


def test_what_is_no_pipeline_is_left_to_others(folder: Path) -> None:
    """A bundle's name or folder, or nothing at all."""
    assert [find_pipeline(given) for given in ("lung_ct", folder / "bright", "none")] == [None] * 3


@pytest.mark.parametrize(
    ("bundle", "expected"),
    [
        (
            "./absent",
            "two.yaml:3: './absent' is neither a bundle beside this file nor built in "
            "(chest_xray, lung_ct, thorax_ct)",
        ),
        ("./broken", "two.yaml:3: broken: "),
    ],
)
def test_bundles_that_cannot_be_had_are_named_with_their_line(
    tmp_path: Path, bundle: str, expected: str
) -> None:
    """The bundle's own sentence, after the pipeline's file and line."""
    a_segmentation_bundle(tmp_path / "broken", without=("inferer",))
    file = a_pipeline(tmp_path, f"  spot: {{bundle: {bundle}}}", output="spot")
    with pytest.raises(PipelineError) as caught:
        plan_pipeline(file)
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(expected)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (
            compose(
                step("AsDiscreted", argmax=True),
                step("CopyItemsd", names="again"),
                step("SaveImaged", ["pred", "again"]),
            ),
            r"gives 2 label maps \(PRED, AGAIN\), and a pipeline takes one",
        ),
        (
            compose(step("AsDiscreted", argmax=True), step("Resized", spatial_size=[9, 9, 9])),
            "gives its label map on other voxels than the image's",
        ),
    ],
)
def test_a_bundle_that_a_pipeline_can_t_take_is_refused_with_the_reason(
    tmp_path: Path, after: dict[str, Any], reason: str
) -> None:
    """A label map is there, but not the one that other nodes could use."""
    before = compose(step("LoadImaged", "image", ensure_channel_first=True))
    parts = {"preprocessing": before, "postprocessing": after}
    a_segmentation_bundle(tmp_path / "spot", changed=parts)
    file = a_pipeline(tmp_path, "  spot: {bundle: ./spot}", output="spot")
    with pytest.raises(PipelineError, match=rf"two.yaml:3: './spot' {reason}"):
        plan_pipeline(file)


def test_what_had_nothing_to_do_is_not_proven(folder: Path, tmp_path: Path) -> None:
    """Two results with nothing in them are equal, too: the certificate says which."""
    list(build(folder / "two.yaml", tmp_path))
    built = BuiltPipeline.find(tmp_path, "two")
    assert built is not None
    volume = an_oblique_volume((12, 20, 24))
    _, idle = pipeline_reference(built, volume.request())
    assert idle == ()
    mask, idle = pipeline_reference(built, replace(volume, image=volume.image * 0 - 1000).request())
    assert not mask.any()
    assert idle == (
        "region 'around': 'spot' has none of its labels",
        "merge 'all': 'spot' has none of its labels",
        "merge 'all': 'closer' has none of its labels",
    )


def test_names_that_would_meet_are_refused(folder: Path) -> None:
    """A node that makes the name of another node's model."""
    nodes = NODES.replace("around", "paste_uint8")
    file = a_pipeline(folder, nodes, name="clash")
    with pytest.raises(PipelineError, match="two models would be called 'clash_paste_uint8'"):
        plan_pipeline(file)


def test_values_on_the_command_line_belong_into_the_file(folder: Path) -> None:
    """They can't say which bundle they mean."""
    with pytest.raises(PipelineError, match="stand in its YAML"):
        plan_pipeline(folder / "two.yaml", Options(overrides={"inferer#overlap": 0.1}))


@pytest.mark.parametrize("name", ["Bad Name", "MASK", "two-b", "n" * 70])
def test_a_name_that_is_none_is_refused(folder: Path, name: str) -> None:
    """As in the file."""
    with pytest.raises(PipelineError, match=r"can't be called.*lower_snake"):
        plan_pipeline(folder / "two.yaml", Options(name=name))


def test_a_runtime_that_is_none_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    """Loading the model would find out."""
    a_threshold_bundle(tmp_path / "bright", channels=1)
    file = a_pipeline(tmp_path, "  spot: {bundle: ./bright, runtime: torchh}", output="spot")
    with pytest.raises(PipelineError, match=r"two.yaml:3: runtime 'torchh' is not one of auto"):
        plan_pipeline(file)


@pytest.mark.parametrize("text", ["? [a, b]\n: c", "{a: b}: c", "x: !!bool maybe", "x: !!int ''"])
def test_yaml_that_python_can_t_hold_is_said_in_a_sentence(tmp_path: Path, text: str) -> None:
    """Keys that are lists, and tags that lie."""
    file = tmp_path / "odd.yaml"
    file.write_text(f"pipeline: odd\nnodes:\n  {text}\n", encoding="utf-8")
    with pytest.raises(PipelineError, match=r"odd.yaml"):
        plan_pipeline(file)
