"""The contract as a record, and a sentence where it can't be one."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from dicom_gateway.errors import ContractMismatch
from dicom_gateway.infer import read_contract
from dicom_gateway.infer.contract import SeenContracts
from dicom_gateway.records import CodedConcept, ScoredClass

LUNG = {"value": "39607008", "scheme_designator": "SCT", "meaning": "Lung"}
ANATOMY = {
    "value": "91723000",
    "scheme_designator": "SCT",
    "meaning": "Anatomical Structure",
}
LEFT = {"value": "7771000", "scheme_designator": "SCT", "meaning": "Left"}


def a_document(**changes: Any) -> dict[str, Any]:
    """A contract of schema version 1 with one segment."""
    segment = {"label": 1, "name": "Left lung", "category": ANATOMY, "type": LUNG}
    return {
        "schema_version": 1,
        "builder_version": "0.1.0",
        "pipeline": "lung_ct",
        "version": "1.0.0",
        "description": "",
        "intended_use": "",
        "input": {"kind": "volume", "modality": "CT"},
        "outputs": [
            {
                "name": "MASK",
                "kind": "labelmap",
                "datatype": "UINT8",
                "dims": [-1, -1, -1],
                "segments": [
                    {
                        **segment,
                        "type_modifier": LEFT,
                        "anatomic_region": None,
                        "colour_rgb": [220, 90, 80],
                    }
                ],
            }
        ],
        "peak_bytes_per_voxel": 40.0,
        "weights": {"sha256": "ab", "license": "Apache-2.0", "source": "trained here"},
        **changes,
    }


def test_a_contract_becomes_a_record():
    """Every word of it arrives."""
    contract = read_contract(json.dumps(a_document()), "lung_ct")

    assert (contract.pipeline, contract.version, contract.modality) == ("lung_ct", "1.0.0", "CT")
    (output,) = contract.outputs
    assert (output.name, output.datatype, output.dims) == ("MASK", "UINT8", (-1, -1, -1))
    (segment,) = output.segments
    assert segment.type == CodedConcept("39607008", "SCT", "Lung")
    assert segment.type_modifier == CodedConcept("7771000", "SCT", "Left")
    assert segment.anatomic_region is None
    assert segment.colour_rgb == (220, 90, 80)
    assert contract.weights["license"] == "Apache-2.0"


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        (None, None),
        ("refuse", ()),
        ("resample", ("resample",)),
        (["resample", "split"], ("resample", "split")),
        ([], ()),
    ],
)
def test_a_contract_says_what_may_be_done_to_irregular_series(
    said: Any, allowed: tuple[str, ...] | None
) -> None:
    """One word or several; without the key the site decides."""
    taken = {"kind": "volume", "modality": "CT"} | ({} if said is None else {"irregular": said})
    assert read_contract(json.dumps(a_document(input=taken)), "lung_ct").irregular == allowed


def test_an_unknown_way_with_irregular_series_is_refused() -> None:
    """A typing mistake doesn't become a permission."""
    taken = {"kind": "volume", "modality": "CT", "irregular": "guess"}
    with pytest.raises(ContractMismatch, match="irregular"):
        read_contract(json.dumps(a_document(input=taken)), "lung_ct")


def test_the_builders_own_contract_is_read(repository_root: Path):
    """What the other half writes is what this half understands."""
    for path in sorted(repository_root.glob("model_repository/*/config.pbtxt")):
        from google.protobuf import text_format  # noqa: PLC0415 - only this test
        from tritonclient.grpc import model_config_pb2  # noqa: PLC0415

        config = text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())
        if "contract" in config.parameters:
            contract = read_contract(config.parameters["contract"].string_value, config.name)
            assert contract.pipeline == config.name
            assert contract.outputs


@pytest.mark.parametrize(
    ("version", "says", "remedy"),
    [
        (2, "has schema version 2", "update the gateway"),
        ("3.1", "has schema version 3", "update the gateway"),
        (0, "has schema version 0", "build the pipeline again"),
        (None, "names no schema version", "build the pipeline again"),
        (True, "names no schema version", "build the pipeline again"),
    ],
)
def test_another_major_version_is_refused_with_one_sentence(
    version: object, says: str, remedy: str
):
    """Which version it has, which one we speak, what to do."""
    with pytest.raises(ContractMismatch) as refusal:
        read_contract(json.dumps(a_document(schema_version=version)), "lung_ct")

    assert str(refusal.value) == (
        f"the contract of 'lung_ct' {says} and this gateway speaks 1; {remedy}"
    )


def test_a_later_minor_version_may_add_keys():
    """1.x is still 1."""
    document = a_document(schema_version="1.4", novelty={"of": "tomorrow"})

    assert read_contract(json.dumps(document), "lung_ct").pipeline == "lung_ct"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "carries no contract"),
        ("{", "is no JSON"),
        ("[]", "names no schema version"),
        (json.dumps(a_document(outputs=[])), "is wrong at outputs"),
        (json.dumps(a_document(input={"kind": "film", "modality": "CT"})), "at input.kind"),
    ],
)
def test_what_is_no_contract_is_refused_with_its_place(text: str, says: str):
    """The sentence names the pipeline and what is wrong."""
    with pytest.raises(ContractMismatch, match=says) as refusal:
        read_contract(text, "lung_ct")

    assert "lung_ct" in str(refusal.value)


def test_a_contract_once_seen_is_known_after_a_restart(tmp_path: Path):
    """Routing goes on while Triton is away."""
    SeenContracts(tmp_path / "contracts").keep("lung_ct", "the text")

    assert SeenContracts(tmp_path / "contracts").text("lung_ct") == "the text"
    assert SeenContracts(tmp_path / "contracts").text("spleen_ct") is None


def test_a_pipeline_name_never_leaves_the_folder(tmp_path: Path):
    """The name comes from a file that people write."""
    SeenContracts(tmp_path / "contracts").keep("../../evil", "the text")

    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path / "contracts"]


def test_two_threads_that_keep_the_same_contract_do_not_meet(tmp_path: Path):
    """The judge and the workers ask at the same moment; each time one whole file is there."""
    seen = SeenContracts(tmp_path / "contracts")
    texts = [f'{{"version": "{number}"}}' * 200 for number in range(40)]
    failures: list[BaseException] = []
    together = threading.Barrier(4)

    def keep() -> None:
        try:
            for text in texts:
                together.wait(60)
                seen.keep("lung_ct", text)
        except (OSError, threading.BrokenBarrierError) as error:
            failures.append(error)
            together.abort()

    threads = [threading.Thread(target=keep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert [path.name for path in (tmp_path / "contracts").iterdir()] == ["lung_ct.json"]
    assert SeenContracts(tmp_path / "contracts").text("lung_ct") == texts[-1]


def test_two_processes_on_one_folder_do_not_take_each_other_s_file_away(tmp_path: Path):
    """Each writes beside under a name of its own: two keepers stand for them."""
    keepers = [SeenContracts(tmp_path / "contracts") for _ in range(4)]
    failures: list[OSError] = []

    def keep(mine: SeenContracts) -> None:
        try:
            for number in range(40):
                mine.keep("lung_ct", f"version {number}")
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=keep, args=(one,)) for one in keepers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert SeenContracts(tmp_path / "contracts").text("lung_ct") == "version 39"


def test_an_empty_file_is_a_contract_never_seen(tmp_path: Path):
    """What a power cut may leave of it."""
    (tmp_path / "lung_ct.json").touch()

    assert SeenContracts(tmp_path).text("lung_ct") is None


def test_a_contract_that_cannot_be_kept_is_remembered_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A full disk ends neither the judge nor a job."""
    (tmp_path / "contracts").write_text("a file where the folder should be", encoding="ascii")
    seen = SeenContracts(tmp_path / "contracts")

    seen.keep("lung_ct", "the contract")

    assert seen.text("lung_ct") == "the contract"
    assert "contract_not_kept" in capsys.readouterr().err
    assert SeenContracts(tmp_path / "contracts").text("lung_ct") is None


def test_scores_bring_their_classes_with_codes_where_there_are_any():
    """A name by itself, or a name with the finding's code."""
    effusion = {"value": "60046008", "scheme_designator": "SCT", "meaning": "Pleural effusion"}
    scores = {
        "name": "SCORES",
        "kind": "scores",
        "datatype": "FP32",
        "dims": [2],
        "classes": ["normal", {"name": "effusion", "code": effusion}],
        "on_input_grid": False,
    }
    [output] = read_contract(json.dumps(a_document(outputs=[scores])), "chest").outputs
    assert output.classes == (
        ScoredClass("normal"),
        ScoredClass("effusion", CodedConcept("60046008", "SCT", "Pleural effusion")),
    )


def test_what_a_request_brings_is_read():
    """Each input with its layout, its channels' names and its tensors."""
    brought = {
        "name": "image",
        "layout": "channels",
        "modality": "MR",
        "channels": ["t1", "flair"],
        "tensors": {"image": "IMAGE", "rescale": "RESCALE", "affine": "AFFINE"},
        "datatype": "INT16",
        "dims": [2, -1, -1, -1],
        "example_shape": [2, 37, 46, 53],
    }
    [one] = read_contract(json.dumps(a_document(inputs=[brought])), "brain").inputs
    assert (one.name, one.layout, one.channels) == ("image", "channels", ("t1", "flair"))
    assert one.tensors["rescale"] == "RESCALE"


def test_masks_become_a_label_map_each():
    """They may overlap, so each is a label map of its own with one segment."""
    core, whole = (
        {"label": n, "name": name, "category": ANATOMY, "type": LUNG}
        for n, name in ((1, "core"), (2, "whole"))
    )
    masks = {
        "name": "MASKS",
        "kind": "masks",
        "datatype": "UINT8",
        "dims": [2, -1, -1, -1],
        "segments": [core, whole],
    }
    contract = read_contract(json.dumps(a_document(outputs=[masks])), "brain")
    first, second = contract.labelmaps
    assert (first.name, second.name) == ("MASKS_1", "MASKS_2")
    assert [segment.name for segment in second.segments] == ["whole"]
    assert [segment.label for segment in second.segments] == [1]
    assert second.dims == (-1, -1, -1)
