"""A pipeline's YAML: what is read, and which sentence says what is wrong where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from clients.cli import app
from ensemble_builder.bundle import BUILT_IN
from ensemble_builder.errors import PipelineError
from ensemble_builder.spec import (
    SCHEMA_FILE,
    MergeNode,
    NetworkNode,
    RegionNode,
    json_schema,
    main,
    read_spec,
    schema_text,
)
from tests.support.pipelines import a_pipeline

EVERYTHING = """
  lungs:
    bundle: lung_ct
    overrides: {inferer.roi_size: [64, 64, 64]}
    runtime: torch
  chest: {region_of: lungs, labels: [1, 2], margin_mm: 20, outside_value: -1024}
  heart:
    bundle: ./heart
    image: [chest, lungs]
    inputs: {prior: lungs}
    config: inference_fast
  all:
    merge: [heart, lungs]
    overlap: priority
    priority: [2, 1]
    segments:
      - {of: heart, label: 1, to: 1, name: Heart, colour_rgb: [200, 0, 0]}
      - of: lungs
        label: 1
        to: 2
        type: {value: "39607008", scheme_designator: SCT, meaning: Lung}
"""


def sentence(file: Path) -> str:
    """What reading the file complains of, without the file's folder."""
    with pytest.raises(PipelineError) as caught:
        read_spec(file)
    return str(caught.value).replace(f"{file.parent}/", "")


def test_every_kind_of_node_is_read(tmp_path: Path) -> None:
    """Networks, regions and merges come out with what the file says of them."""
    spec = read_spec(a_pipeline(tmp_path, EVERYTHING)).spec
    lungs, chest, heart, merged = spec.nodes.values()
    assert isinstance(lungs, NetworkNode)
    assert lungs.channels == ("image",)
    assert lungs.overrides == {"inferer.roi_size": [64, 64, 64]}
    assert isinstance(chest, RegionNode)
    assert (chest.labels, chest.margin_mm, chest.crop) == ((1, 2), 20.0, True)
    assert isinstance(heart, NetworkNode)
    assert heart.channels == ("chest", "lungs")
    assert isinstance(merged, MergeNode)
    assert merged.priority == (2, 1)
    assert merged.segments is not None
    assert merged.segments[1].type is not None
    assert merged.segments[1].type.meaning == "Lung"


def test_a_spec_is_frozen(tmp_path: Path) -> None:
    """Nothing changes a pipeline that was read."""
    spec = read_spec(a_pipeline(tmp_path)).spec
    with pytest.raises(ValueError, match="frozen"):
        spec.version = "2"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (
            "  lungs: {bundle: lung_ct, imge: image}",
            "two.yaml:3: nodes.lungs.imge is no key that a pipeline has here; did you mean "
            "'image'?",
        ),
        (
            "  lungs: {bundle: lung_ct}\n  box:\n    region_of: lungs\n    colour: red",
            "two.yaml:6: nodes.box.colour is no key that a pipeline has here; known are crop, "
            "labels, margin_mm, outside_value, region_of, when_empty",
        ),
        (
            "  lungs:\n    bundle: lung_ct\n  lungs:\n    bundle: thorax_ct",
            "two.yaml:5: 'lungs' stands here for the second time, first in line 3; give one of "
            "them another name",
        ),
        (
            "  lungs: lung_ct",
            "two.yaml:3: nodes.lungs is no node: give it a 'bundle' (a network), a 'region_of' "
            "(a part of the image) or a 'merge' (several masks as one)",
        ),
        (
            "  Lungs: {bundle: lung_ct}",
            "two.yaml:3: nodes.Lungs is 'Lungs', expected a short name in lower_snake, such as "
            "left_lung",
        ),
        (
            "  all:\n    merge: [lungs]\n    overlap: mine",
            "two.yaml:5: nodes.all.overlap: input should be 'first', 'last', 'priority' or "
            "'refuse'",
        ),
        (
            "  all:\n    merge: [lungs]\n    overlap: first\n    priority: [1]",
            "two.yaml:4: nodes.all: overlap: priority and a list under priority go together",
        ),
        (
            "  all:\n    merge: [a]\n    overlap: first\n    segments:\n      - {of: a, label: 1}",
            "two.yaml:7: nodes.all.segments.0.to is missing",
        ),
        (
            "  box: {region_of: lungs, crop: false}",
            "two.yaml:3: nodes.box: a region that neither crops nor has an outside_value changes "
            "nothing",
        ),
        (
            "  box: {region_of: lungs, margin_mm: -3}",
            "two.yaml:3: nodes.box.margin_mm: input should be greater than or equal to 0",
        ),
        (
            "  lungs: {bundle: 7}",
            "two.yaml:3: nodes.lungs.bundle: input should be a valid string",
        ),
        (
            "  box: {region_of: lungs, labels: [yes]}",
            "two.yaml:3: nodes.box.labels.0: input should be a valid integer",
        ),
        (
            "  box: {region_of: lungs, crop: 1}",
            "two.yaml:3: nodes.box.crop: input should be a valid boolean",
        ),
        (
            "  box: {region_of: lungs, outside_value: true}",
            "two.yaml:3: nodes.box.outside_value: input should be a valid number",
        ),
        ("  - lungs", "two.yaml:3: nodes must have keys and values, as 'key: value'"),
        (
            "  lungs: {bundle: [",
            "two.yaml:5: is no YAML: expected ',' or ']', but got '<stream end>'",
        ),
    ],
)
def test_wrong_files_are_refused_with_line_and_sentence(
    tmp_path: Path, nodes: str, expected: str
) -> None:
    """One sentence says the line, the key, and what is wrong with it."""
    assert sentence(a_pipeline(tmp_path, nodes)) == expected


def test_files_that_hold_no_pipeline_are_refused(tmp_path: Path) -> None:
    """Nothing, something empty, something that unfolds without end, and no text."""
    file = tmp_path / "odd.yaml"
    assert sentence(file) == "odd.yaml: can't be read: No such file or directory"
    file.write_text("", "utf-8")
    assert "is empty" in sentence(file)
    file.write_bytes(b"\xff\xfe\x00")
    assert "is no text in UTF-8" in sentence(file)
    ten = ", ".join(["*a"] * 10)
    layers = [f"{b}: &{b} [{ten.replace('a', a)}]" for a, b in zip("abcde", "bcdef", strict=True)]
    file.write_text("\n".join(["a: &a [1, 1, 1]", *layers]), "utf-8")
    assert "use fewer aliases" in sentence(file)
    file.write_text("a: &a [*a]", "utf-8")
    assert "use fewer aliases" in sentence(file)
    file.write_text("pipeline: !!python/object:os.system {}\nnodes: {}\noutput: a", "utf-8")
    assert "is no YAML" in sentence(file)


def test_the_schema_in_the_repository_is_the_codes() -> None:
    """`python -m ensemble_builder.spec > ensemble_builder/schema/pipeline.schema.json` is due
    whenever this fails.
    """
    assert SCHEMA_FILE.read_text("utf-8") == schema_text()


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m ensemble_builder.spec` prints it."""
    main()
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_the_command_prints_the_schema() -> None:
    """`tritome build --schema` needs no bundle."""
    done = CliRunner().invoke(app, ["build", "--schema"])
    assert (done.exit_code, done.output) == (0, schema_text())


@pytest.mark.parametrize(
    ("nodes", "valid"), [(EVERYTHING, True), ("  box: {region: lungs}", False)]
)
def test_the_schema_and_the_reader_agree(tmp_path: Path, nodes: str, valid: bool) -> None:
    """An editor that knows the schema marks what `tritome build` would refuse."""
    file = a_pipeline(tmp_path, nodes)
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    raw = yaml.safe_load(file.read_text("utf-8"))
    assert Draft202012Validator(schema).is_valid(raw) is valid
    if not valid:
        sentence(file)


@pytest.mark.parametrize(
    "file", sorted(BUILT_IN.glob("*/pipeline.yaml")), ids=lambda f: f.parent.name
)
def test_built_in_pipelines_follow_the_schema(file: Path) -> None:
    """Each built-in pipeline is valid by the published schema, and named like its folder."""
    raw = yaml.safe_load(file.read_text("utf-8"))
    assert list(Draft202012Validator(json_schema()).iter_errors(raw)) == []
    assert read_spec(file).spec.pipeline == file.parent.name
