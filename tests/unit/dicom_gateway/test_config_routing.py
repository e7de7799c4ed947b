"""The routing section of gateway.yaml: what is told when it is wrong, and its schema."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from dicom_gateway.config import GatewaySettings, load_settings
from dicom_gateway.config_routing import Choice, parse_tag_path
from dicom_gateway.errors import ConfigurationError

GOOD = """dicom:
  scp:
    ae-titles:
      - ae-title: AI
    reject-unknown-sources: false
routing:
  priorities:
    - {priority: immediate, calling: "ER_*"}
  rules:
    - name: chest
      called: AI
      where:
        - {tag: BodyPartExamined, equals: CHEST}
        - {plane: [axial, oblique]}
        - {slice-thickness-mm: {at-most: 3}}
        - any-of: [{kernel: "B[67]"}, {slices: {at-least: 40}}]
      choose: thinnest
      pipelines: [lung_ct]
    - name: pair
      roles:
        flat: {where: [{plane: axial}]}
        upright: {where: [{plane: coronal}], choose: thinnest}
      pipelines: [two_ct]
"""


def read(tmp_path: Path, text: str) -> GatewaySettings:
    """The settings of a gateway.yaml with this text."""
    path = tmp_path / "gateway.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def test_rules_are_read(tmp_path: Path) -> None:
    """One value stands for a list of one."""
    chest, pair = read(tmp_path, GOOD).routing.rules

    assert (chest.called, chest.choose) == (("AI",), Choice.THINNEST)
    assert chest.where[0].equals == ("CHEST",)
    assert pair.roles["flat"].choose is Choice.LARGEST


@pytest.mark.parametrize(
    ("good", "bad", "complaint"),
    [
        ("tag: BodyPartExamined", "tag: BodyPartExamind", "line 13: routing.rules.0.where.0.tag: "),
        ("tag: BodyPartExamined", "tag: BodyPartExamind", "did you mean 'BodyPartExamined'?"),
        ("equals: CHEST", "equls: CHEST", "line 13: routing.rules.0.where.0.equls: unknown key"),
        (", equals: CHEST", "", "say what the tag must be"),
        ("plane: [axial, oblique]", "plane: axal", "line 14: routing.rules.0.where.1.plane"),
        ("{at-most: 3}", "{}", "say which numbers"),
        ("{at-most: 3}", "{between: [3, 1]}", "write the smaller number first"),
        ('kernel: "B[67]"', 'kernel: "B[67"', "no valid pattern"),
        ("{slices: {at-least: 40}}", "{slices: {at-least: 40}, plane: axial}", "asks for one of"),
        ("choose: thinnest\n      pipe", "choose: thinest\n      pipe", "line 17: routing.rules.0"),
        ("pipelines: [two_ct]", "pipelines: []", "line 23: routing.rules.1.pipelines: list at"),
        ("      pipelines: [two_ct]\n", "", "routing.rules.1.pipelines: this key is missing"),
        ("called: AI", "called: A2", "line 11: routing.rules.0.called: no AE title"),
        ("pipelines: [lung_ct]", "pipelines: [a]\n      destinations: [x]", "line 19: routing."),
        ("name: pair", "name: chest", "two rules have the name 'chest'"),
        ("name: pair", "name: Pair of CTs", "line 19: routing.rules.1.name"),
        ("name: pair\n", "name: pair\n      choose: largest\n", "each role chooses for itself"),
        ('immediate, calling: "ER_*"', "immediate", "say which series it is for"),
        ("where: [{plane: axial}]", "where: []", "routing.rules.1.roles.flat.where: list at"),
        ("choose: thinnest}", "choose: every}", "a role takes one series"),
        ("      called: AI\n", "      called: AI\n      called: AI\n", "line 12: routing.rules.0."),
    ],
)
def test_a_mistake_is_told_with_line_and_key(
    tmp_path: Path, good: str, bad: str, complaint: str
) -> None:
    """And what to write instead."""
    assert good in GOOD

    with pytest.raises(ConfigurationError) as error:
        read(tmp_path, GOOD.replace(good, bad, 1))

    assert complaint in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/gateway.yaml: ")


def test_an_ae_title_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    """Neither pipelines nor a rule: its studies would all be ignored."""
    text = GOOD.replace("- ae-title: AI\n", "- ae-title: AI\n      - ae-title: B\n", 1)
    only_for_ai = text.replace("name: pair\n", "name: pair\n      called: AI\n", 1)

    with pytest.raises(ConfigurationError, match=r"line 5: dicom.*'B' leads nowhere"):
        read(tmp_path, only_for_ai)


def test_the_schema_accepts_what_is_right_and_refuses_extra_keys(tmp_path: Path) -> None:
    """Editors check a gateway.yaml by it."""
    schema = GatewaySettings.model_json_schema(by_alias=True)
    document = yaml.safe_load(GOOD)

    jsonschema.validate(document, schema)
    document["routing"]["ruels"] = []
    with pytest.raises(jsonschema.ValidationError, match="ruels"):
        jsonschema.validate(document, schema)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("SliceThickness", (0x00180050,)),
        ("(0018,0050)", (0x00180050,)),
        ("00180050", (0x00180050,)),
        ("RequestAttributesSequence.(0040,1003)", (0x00400275, 0x00401003)),
        ("(0029,1010)", (0x00291010,)),
    ],
)
def test_tags_are_keywords_or_numbers(text: str, path: tuple[int, ...]) -> None:
    """Nested by dots."""
    assert parse_tag_path(text) == path
