"""`tritome route`: why a rule takes a series or doesn't, without a gateway."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from clients.commands import route
from clients.errors import ClientError
from tests.support.bench import a_contract_text
from tests.support.dicom import CANARY, CORONAL, a_ct_series, write_series

RULES = [
    {
        "name": "chest",
        "called": "AI",
        "where": [
            {"tag": "PatientName", "matches": CANARY},
            {"tag": "BodyPartExamined", "equals": "CHEST"},
            {"slice-thickness-mm": {"at-most": 3}},
        ],
        "pipelines": ["lung_ct"],
    },
    {"name": "thin", "called": "AI", "choose": "thinnest", "pipelines": ["thin_ct"]},
    {
        "name": "pair",
        "called": "AI",
        "roles": {
            "flat": {"where": [{"plane": "axial"}]},
            "side": {"where": [{"plane": "sagittal"}]},
        },
        "pipelines": ["pair_ct"],
    },
]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gateway.yaml with rules, of a gateway that has seen two contracts."""
    monkeypatch.setattr(route.out, "width", 200)
    document = {
        "dicom": {
            "scp": {
                "ae-titles": [{"ae-title": "AI"}, {"ae-title": "MR", "pipelines": ["brain_mr"]}],
                "reject-unknown-sources": False,
            }
        },
        "store": {"folder": "store"},
        "routing": {
            "rules": RULES,
            "priorities": [{"priority": "immediate", "calling": "ER_*"}],
        },
    }
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    seen = tmp_path / "store" / "contracts"
    seen.mkdir(parents=True)
    for name, modality in (("lung_ct", "CT"), ("pair_ct", "CT"), ("brain_mr", "MR")):
        (seen / f"{name}.json").write_text(a_contract_text(name, modality), encoding="utf-8")
    return path


def explained(
    capsys: pytest.CaptureFixture[str], folder: Path, config: Path, **options: object
) -> str:
    """What is printed."""
    options.setdefault("called", "AI")
    route.explain(folder, config, **options)  # type: ignore[arg-type]
    return capsys.readouterr().out


def line_with(text: str, *words: str) -> str:
    """The one line that holds all the words."""
    (line,) = [line for line in text.splitlines() if all(word in line for word in words)]
    return line


def test_each_condition_is_shown_with_what_was_found(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The thick series fails by its thickness; the patient's name is masked, and holds."""
    write_series(tmp_path / "dicom", a_ct_series(3, spacing_mm=5.0))

    text = explained(capsys, tmp_path / "dicom", config)

    assert line_with(text, "slice thickness is at most 3 mm").split()[-2:] == ["5", "no"]
    assert line_with(text, "BodyPartExamined").split()[-2:] == ["CHEST", "yes"]
    assert line_with(text, "PatientName").split()[-2:] == ["(masked)", "yes"]
    assert CANARY not in text


def test_values_are_shown_to_who_asks(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a person's own screen."""
    write_series(tmp_path / "dicom", a_ct_series(3))

    text = explained(capsys, tmp_path / "dicom", config, show_values=True)

    assert "CANARY^SECRET^PERSON" in line_with(text, "PatientName")


def test_what_takes_the_series_is_said_last(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pipeline, rule, priority; what only Triton knows is said to be unknown."""
    write_series(tmp_path / "dicom", a_ct_series(3))

    text = explained(capsys, tmp_path / "dicom", config, calling="ER_1")

    assert line_with(text, "-> lung_ct (rule chest)").endswith(
        "priority immediate, to no destination"
    )
    assert "what thin_ct wants isn't known here" in text
    assert "Its priority is immediate, by routing.priorities." in text


def test_choices_within_the_study_are_explained(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The thinnest of two, and a role that nothing fills."""
    (tmp_path / "store" / "contracts" / "thin_ct.json").write_text(
        a_contract_text("thin_ct"), encoding="utf-8"
    )
    thick = a_ct_series(3, spacing_mm=5.0)
    study = str(thick[0].StudyInstanceUID)
    thin = a_ct_series(3, spacing_mm=1.0, orientation=CORONAL, study_instance_uid=study)
    write_series(tmp_path / "dicom" / "a", thick)
    write_series(tmp_path / "dicom" / "b", thin)

    text = explained(capsys, tmp_path / "dicom", config)

    assert f"it takes series {thin[0].SeriesInstanceUID}" in text
    assert "is thinner (3 slices, 1 mm, this one 3 slices, 5 mm)" in text
    assert "rule pair lacks a series for side: its job will fail, before a person" in text


def test_a_modality_that_the_pipeline_does_not_want_is_told(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the contract that the gateway has seen."""
    write_series(tmp_path / "dicom", a_ct_series(3))

    text = explained(capsys, tmp_path / "dicom", config, called="MR")

    assert "no pipeline of AE title MR wants modality CT; brain_mr wants MR" in text


@pytest.mark.parametrize(
    ("called", "sentence"),
    [
        (None, "say with --called which one of the AE titles of gateway.yaml: AI, MR"),
        ("LUNG", "'LUNG' is not among the AE titles of gateway.yaml: AI, MR"),
    ],
)
def test_the_ae_title_must_be_one_of_ours(
    config: Path, tmp_path: Path, called: str | None, sentence: str
) -> None:
    """They are listed."""
    with pytest.raises(ClientError) as error:
        route.explain(tmp_path, config, called=called)

    assert str(error.value) == sentence


def test_an_empty_folder_is_named(config: Path, tmp_path: Path) -> None:
    """So is one that doesn't exist."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClientError, match="no DICOM files under"):
        route.explain(tmp_path / "empty", config, called="AI")
    with pytest.raises(ClientError, match="doesn't exist"):
        route.explain(tmp_path / "absent", config, called="AI")


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """As long lines as it needs."""
    route.print_schema()

    assert "routing" in json.loads(capsys.readouterr().out)["properties"]
