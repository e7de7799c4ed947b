"""What the numbers of a bundle's results mean, as the contract says it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble_builder.bundle import Options, read_bundle
from ensemble_builder.contract import ClassRow, Code
from ensemble_builder.errors import BundleError
from ensemble_builder.plan import contract_of, plan
from ensemble_builder.samples import sample
from ensemble_builder.verify import Source, monai_stages
from tests.support import zoo

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
]
RANDOM = Options(random_weights=0, runtime="torch")
EFFUSION = {"value": "60046008", "scheme_designator": "SCT", "meaning": "Pleural effusion"}


def _metadata(folder: Path, **more: object) -> Path:
    path = folder / "configs" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    return folder


def test_masks_are_named_by_their_channels(tmp_path: Path) -> None:
    """One segment for each mask, and the contrasts' names for whoever feeds it."""
    contract = contract_of(read_bundle(zoo.a_bundle_of_contrasts(tmp_path / "b"), RANDOM))
    (output,) = contract.outputs
    assert (output.name, output.kind) == ("MASKS", "masks")
    named = [(row.label, row.name) for row in output.segments]
    assert named == [(1, "Whole tumour"), (2, "Tumour core")]
    assert contract.inputs[0].channels == ("T1", "T1_Gd")


def test_a_table_that_lacks_a_mask_is_refused(tmp_path: Path) -> None:
    """Nobody could say what the other one shows."""
    row = {"label": 1, "name": "Whole tumour", "category": EFFUSION, "type": EFFUSION}
    folder = _metadata(zoo.a_bundle_of_contrasts(tmp_path / "b"), segments=[row])
    with pytest.raises(BundleError, match="labels 1 to 2"):
        read_bundle(folder, RANDOM)


def test_scores_carry_the_codes_that_the_bundle_states(tmp_path: Path) -> None:
    """Names alone stay names."""
    rows = [{"name": "normal"}, {"name": "effusion", "code": EFFUSION}, {"name": "nodule"}]
    folder = _metadata(zoo.a_radiograph_classifier(tmp_path / "b"), classes=rows)
    (output,) = contract_of(read_bundle(folder, RANDOM)).outputs
    assert output.classes == (
        ClassRow(name="normal"),
        ClassRow(name="effusion", code=Code.model_validate(EFFUSION)),
        ClassRow(name="nodule"),
    )


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [([{"name": "normal"}], "1 rows and the network gives 3"), ([{"nam": "x"}], "can't be read")],
)
def test_classes_that_do_not_fit_are_refused(
    tmp_path: Path, rows: list[object], sentence: str
) -> None:
    """A score under another finding's name would be a silently wrong result."""
    folder = _metadata(zoo.a_radiograph_classifier(tmp_path / "b"), classes=rows)
    with pytest.raises(BundleError, match=sentence):
        read_bundle(folder, RANDOM)


def test_a_bundle_can_be_built_for_floating_point_pixels(tmp_path: Path) -> None:
    """IMAGE is FP32 then, and what is computed is computed from the floats."""
    folder = zoo.a_radiograph_classifier(tmp_path / "b")
    whole = read_bundle(folder, RANDOM)
    floats = read_bundle(folder, Options(random_weights=0, runtime="torch", input_datatype="FP32"))
    assert contract_of(whole).inputs[0].datatype == "INT16"
    assert contract_of(floats).inputs[0].datatype == "FP32"
    assert "TYPE_FP32" in bytes(plan(floats)[-1].files["config.pbtxt"]).decode()  # type: ignore[arg-type]
    request = sample(floats.recipe.inputs)
    assert request["IMAGE"].dtype == "float32"
    rounded = {**request, "IMAGE": request["IMAGE"].round().astype("int16")}
    first = monai_stages(Source.of(floats), request).outputs["SCORES"]
    second = monai_stages(Source.of(whole), rounded).outputs["SCORES"]
    assert (first != second).any()
    assert abs(first - second).max() < 1e-3
