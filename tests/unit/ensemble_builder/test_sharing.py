"""Two pipelines in one repository: what they may share, and whose name is whose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ensemble_builder.build import build
from ensemble_builder.errors import RepositoryError
from ensemble_builder.repository import roll_to, served_version
from ensemble_builder.verify import pipeline
from ensemble_builder.verify.pipeline import BuiltPipeline
from tests.support.bundles import a_segmentation_bundle
from tests.support.pipelines import a_pipeline, a_threshold_bundle

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles of different networks."""
    found = tmp_path_factory.mktemp("sharing")
    a_threshold_bundle(found / "bright", channels=1)
    a_segmentation_bundle(found / "other")
    return found


def built(file: Path, repository: Path) -> None:
    """Whatever it takes."""
    list(build(file, repository))


def files_of(repository: Path) -> dict[str, bytes]:
    """All of it."""
    return {str(p): p.read_bytes() for p in sorted(repository.rglob("*")) if p.is_file()}


def test_two_ways_to_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    """Pipeline head, node neck_spot; pipeline head_neck, node spot: the first keeps its models."""
    node = "  {}: {{bundle: ./{}}}"
    first = a_pipeline(folder, node.format("neck_spot", "bright"), output="neck_spot", name="head")
    second = a_pipeline(folder, node.format("spot", "other"), output="spot", name="head_neck")
    repository = tmp_path / "repository"
    built(first, repository)
    before = files_of(repository)
    with pytest.raises(RepositoryError, match=r"head_neck_spot_.*of the pipeline 'head'"):
        built(second, repository)
    assert files_of(repository) == before
    built(first, repository)  # itself it may build again


def test_a_bundle_s_own_pipeline_takes_no_models_from_a_node_of_that_name(
    folder: Path, tmp_path: Path
) -> None:
    """Pipeline lung, node spot, and a bundle called lung_spot; either way round."""
    a_segmentation_bundle(folder / "lung_spot")
    pipeline = a_pipeline(folder, "  spot: {bundle: ./bright}", output="spot", name="lung")
    for number, files in enumerate(
        ((pipeline, folder / "lung_spot"), (folder / "lung_spot", pipeline))
    ):
        repository = tmp_path / str(number)
        built(files[0], repository)
        with pytest.raises(RepositoryError, match="give the pipeline or its node another name"):
            built(files[1], repository)


def test_a_joint_s_name_is_no_pipeline_s(folder: Path, tmp_path: Path) -> None:
    """Pipeline x merges in its node y; pipeline x_y would take that model's place, and back."""
    nodes = "  a: {bundle: ./bright}\n  y: {merge: [a], overlap: first}"
    joined = a_pipeline(folder, nodes, output="y", name="x")
    other = a_pipeline(folder, "  z: {bundle: ./bright}", output="z", name="x_y")
    for number, files in enumerate(((joined, other), (other, joined))):
        repository = tmp_path / str(number)
        built(files[0], repository)
        with pytest.raises(RepositoryError, match="'x_y' is a model of the pipeline"):
            built(files[1], repository)


def test_what_two_pipelines_take_alike_is_shared(tmp_path: Path) -> None:
    """A built-in bundle alone, and in a pipeline: in whatever order."""
    nodes = "  lungs: {bundle: lung_ct}\n  all: {merge: [lungs], overlap: first}"
    pipeline = a_pipeline(tmp_path, nodes)
    repository = tmp_path / "repository"
    built(pipeline, repository)
    built(Path("lung_ct"), repository)
    built(pipeline, repository)
    steps = json.loads((repository / "two" / "1" / "steps.json").read_text(encoding="utf-8"))
    assert "lung_ct_inferer" in steps


def test_what_was_rolled_back_to_is_what_is_verified(folder: Path, tmp_path: Path) -> None:
    """Not the newest version, which nobody gets."""
    nodes = "  a: {{bundle: ./bright}}\n  all: {{merge: [a], overlap: {}}}"
    repository = tmp_path / "repository"
    for overlap in ("first", "last"):
        built(a_pipeline(folder, nodes.format(overlap), name="roll"), repository)
    assert served_version(repository / "roll") == 2
    roll_to(repository, "roll", 1)
    found = BuiltPipeline.find(repository, "roll")
    assert found is not None
    assert found.spec.nodes["all"].overlap == "first"  # type: ignore[union-attr] # a merge
    assert {"roll", "roll_all", "roll_a_inferer"} <= set(found.steps)


@pytest.mark.parametrize("largest", [255, 32767, 32768, 40000, 65535])
def test_labels_are_fed_to_the_reference_s_next_network_as_they_are(largest: int) -> None:
    """Large ones don't fit into int16; the runtime shifts, and so does what it is held against."""
    mask = np.zeros((3, 2, 2), np.uint16 if largest > 255 else np.uint8)
    mask[1, 0, 1], mask[2, 1, 1] = 7, largest
    image = pipeline._Image(np.zeros((3, 2, 2), np.int16), np.ones((3, 2)), np.eye(4), "image")
    stored, rescale = pipeline._stored("a", image, {}, {"a": (mask, "image")})
    assert stored.dtype == np.int16
    assert np.array_equal(stored * rescale[:, :1, None] + rescale[:, 1:, None], mask)
