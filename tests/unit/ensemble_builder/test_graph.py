"""A pipeline as a typed graph: what is wired how, and which sentence refuses what doesn't fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ensemble_builder.contract import Code
from ensemble_builder.errors import PipelineError
from ensemble_builder.graph import Call, check_calls, inputs_of, order
from ensemble_builder.plan import Tensor
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.spec import read_spec
from ensemble_builder.wired import Member, Wired
from ensemble_builder.wiring import wire
from tests.support.pipelines import TISSUE, a_member, a_pipeline

LUNGS = a_member("lung_ct", "Left lung", "Right lung")
THORAX = a_member("thorax_ct", "Heart", "Aorta")
MEMBERS = {"lungs": LUNGS, "thorax": THORAX}

IN_A_REGION = """
  lungs: {bundle: lung_ct}
  chest: {region_of: lungs, labels: [1], margin_mm: 10}
  thorax: {bundle: thorax_ct, image: chest}
  all: {merge: [lungs, thorax], overlap: last}
"""


def wired(file: Path, members: dict[str, Member] | None = None) -> Wired:
    """The pipeline's wiring with made-up bundles."""
    return wire(read_spec(file), members or MEMBERS)


def refusal(file: Path, members: dict[str, Member] | None = None) -> str:
    """The sentence that refuses it, without the file's folder."""
    with pytest.raises(PipelineError) as caught:
        wired(file, members)
    return str(caught.value).replace(f"{file.parent}/", "")


def models(found: Wired) -> list[str]:
    """The models in the order of their calls."""
    return [call.model for call in found.calls]


def test_branches_wait_for_nothing_but_the_image(tmp_path: Path) -> None:
    """Two networks on one image each begin from the request; the merge takes both masks."""
    found = wired(a_pipeline(tmp_path))
    by_model = {call.model: call for call in found.calls}
    for name in ("lung_ct", "thorax_ct"):
        edges = {edge for _, edge in by_model[f"{name}_preprocess"].inputs}
        assert edges == {"IMAGE", "RESCALE", "AFFINE"}
    assert {edge for _, edge in by_model["two_all"].inputs} == {"lungs.MASK", "thorax.MASK"}
    assert [edge for _, edge in by_model["two_all"].outputs] == ["MASK"]
    assert found.modalities == {"image": "CT"}


def test_a_merge_without_a_table_numbers_all_segments(tmp_path: Path) -> None:
    """The members' segments one after the other, numbered from 1, under their own names."""
    found = wired(a_pipeline(tmp_path))
    assert [(row.label, row.name) for row in found.segments] == [
        (1, "Left lung"),
        (2, "Right lung"),
        (3, "Heart"),
        (4, "Aorta"),
    ]
    rule = json.loads(found.joints[0].rule)
    assert [one["table"] for one in rule["members"]] == [[[1, 1], [2, 2]], [[1, 3], [2, 4]]]


LEFT, RIGHT = (
    Code(value=value, scheme_designator="SCT", meaning=meaning)
    for value, meaning in (("7771000", "Left"), ("24028007", "Right"))
)
JOINED = """
  lungs: {{bundle: lung_ct}}
  all:
    merge: [lungs]
    overlap: first
    segments:
      - {{of: lungs, label: 1, to: 1, name: Lungs{first}}}
      - {{of: lungs, label: 2, to: 1{second}}}
"""
CODE = "{value: '7771000', scheme_designator: SCT, meaning: Left}"


def sided(type_of_second: Code = TISSUE) -> dict[str, Member]:
    """Two lungs, of which each has its side."""
    lungs = a_member("lung_ct", "Left lung", "Right lung")
    rows = zip(lungs.segments, (LEFT, RIGHT), (TISSUE, type_of_second), strict=True)
    segments = tuple(
        row.model_copy(update={"type_modifier": side, "type": kind}) for row, side, kind in rows
    )
    return {"lungs": replace(lungs, segments=segments)}


def test_left_and_right_joined_are_neither(tmp_path: Path) -> None:
    """The side of the first would be said of both."""
    (row,) = wired(a_pipeline(tmp_path, JOINED.format(first="", second="")), sided()).segments
    assert (row.name, row.type_modifier) == ("Lungs", None)


def test_a_code_can_be_taken_away(tmp_path: Path) -> None:
    """An explicit null is no silence."""
    nodes = """
  lungs: {bundle: lung_ct}
  all:
    merge: [lungs]
    overlap: first
    segments:
      - {of: lungs, label: 1, to: 1, type_modifier: null}
      - {of: lungs, label: 2, to: 2}
"""
    first, second = wired(a_pipeline(tmp_path, nodes), sided()).segments
    assert (first.type_modifier, second.type_modifier) == (None, RIGHT)


def test_what_the_first_row_says_of_both_is_said_of_both(tmp_path: Path) -> None:
    """The person who joins them knows."""
    nodes = JOINED.format(first=f", type_modifier: {CODE}", second="")
    (row,) = wired(a_pipeline(tmp_path, nodes), sided()).segments
    assert row.type_modifier == LEFT


@pytest.mark.parametrize(
    ("second", "kind", "sentence"),
    [
        (f", type_modifier: {CODE}", TISSUE, "move type_modifier to the first row"),
        ("", LEFT, "differ in type: say on the first row"),
    ],
)
def test_codes_that_would_be_lost_are_refused(
    tmp_path: Path, second: str, kind: Code, sentence: str
) -> None:
    """Of a later row, or of a member that is something else than the first."""
    with pytest.raises(PipelineError, match=sentence):
        wired(a_pipeline(tmp_path, JOINED.format(first="", second=second)), sided(kind))


def test_a_network_in_a_region_gets_the_part_and_its_mask_is_pasted_back(tmp_path: Path) -> None:
    """Region, the network's three models, paste, merge: each edge where it belongs."""
    found = wired(a_pipeline(tmp_path, IN_A_REGION))
    assert models(found) == [
        "lung_ct_preprocess",
        "lung_ct_inferer",
        "lung_ct_postprocess",
        "two_chest",
        "thorax_ct_preprocess",
        "thorax_ct_inferer",
        "thorax_ct_postprocess",
        "two_paste_uint8",
        "two_all",
    ]
    region, preprocess, paste = found.calls[3], found.calls[4], found.calls[7]
    assert {tensor.name: edge for tensor, edge in region.inputs} == {
        "MASK": "lungs.MASK",
        "IMAGE": "IMAGE",
        "RESCALE": "RESCALE",
        "AFFINE": "AFFINE",
    }
    assert {edge for _, edge in preprocess.inputs} == {
        "chest.IMAGE",
        "chest.RESCALE",
        "chest.AFFINE",
    }
    assert {tensor.name: edge for tensor, edge in paste.inputs} == {
        "MASK": "thorax.PART",
        "BOX": "chest.BOX",
    }


def test_a_mask_is_fed_as_a_channel(tmp_path: Path) -> None:
    """A list under image stacks image and mask for a network that takes two channels."""
    nodes = """
  lungs: {bundle: lung_ct}
  thorax: {bundle: thorax_ct, image: [image, lungs]}
"""
    two = a_member("thorax_ct", "Heart", inputs=(Input("image", "IMAGE", "channels", 2),))
    found = wired(a_pipeline(tmp_path, nodes, output="thorax"), {"lungs": LUNGS, "thorax": two})
    stack = next(call for call in found.calls if call.model == "two_thorax_input")
    assert {tensor.name: edge for tensor, edge in stack.inputs} == {
        "IMAGE_0": "IMAGE",
        "RESCALE_0": "RESCALE",
        "AFFINE_0": "AFFINE",
        "MASK_1": "lungs.MASK",
        "AFFINE": "AFFINE",
    }
    assert stack.outputs[0][0].dims == (2, -1, -1, -1)


def test_a_mask_is_fed_as_a_further_input(tmp_path: Path) -> None:
    """A key under inputs gives a network's second image the labels of an earlier one."""
    nodes = """
  lungs: {bundle: lung_ct}
  chest: {region_of: lungs}
  thorax: {bundle: thorax_ct, image: chest, inputs: {prior: lungs}}
"""
    taken = (Input("image", "IMAGE", "volume"), Input("prior", "PRIOR", "volume"))
    two = a_member("thorax_ct", "Heart", inputs=taken)
    found = wired(a_pipeline(tmp_path, nodes, output="thorax"), {"lungs": LUNGS, "thorax": two})
    feed = next(call for call in found.calls if call.model == "two_thorax_prior")
    # The mask lies on the whole grid: it is cut to the region like the image.
    assert ("BOX", "chest.BOX") in {(tensor.name, edge) for tensor, edge in feed.inputs}
    preprocess = next(call for call in found.calls if call.model == "thorax_ct_preprocess")
    assert ("PRIOR_AFFINE", "thorax.PRIOR.AFFINE") in {(t.name, e) for t, e in preprocess.inputs}


def test_edges_that_nobody_uses_are_left_out(tmp_path: Path) -> None:
    """Triton refuses an ensemble with an edge that leads nowhere."""
    nodes = """
  lungs: {bundle: lung_ct}
  gated: {region_of: lungs, crop: false, outside_value: -1024}
  thorax: {bundle: thorax_ct, image: gated}
"""
    found = wired(a_pipeline(tmp_path, nodes, output="thorax"))
    made = {edge for call in found.calls for _, edge in call.outputs}
    used = {edge for call in found.calls for _, edge in call.inputs}
    assert made - used == {"MASK"}


def test_several_inputs_have_tensors_of_their_own(tmp_path: Path) -> None:
    """The input called image keeps the plain names, another is called by its own."""
    more = "inputs:\n  image: {modality: MR}\n  flair: {modality: MR}\n"
    nodes = """
  a: {bundle: a}
  b: {bundle: b, image: flair}
  all: {merge: [a], overlap: first}
"""
    found = inputs_of(read_spec(a_pipeline(tmp_path, nodes, more=more)))
    assert [(one.tensor, one.rescale) for one in found] == [
        ("IMAGE", "RESCALE"),
        ("FLAIR", "FLAIR_RESCALE"),
    ]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (
            "  lungs: {bundle: lung_ct}\n  all: {merge: [lung], overlap: first}",
            "two.yaml:4: nodes.all.merge.0 names 'lung', which is neither an input nor a node; "
            "did you mean 'lungs'?",
        ),
        (
            "  lungs: {bundle: lung_ct, image: chest}\n  chest: {region_of: all}\n"
            "  all: {merge: [lungs], overlap: first}",
            "two.yaml:3: these nodes wait for one another in a circle: lungs -> chest -> all -> "
            "lungs; let one of them name something that comes before",
        ),
        (
            "  all: {merge: [all], overlap: first}",
            "two.yaml:3: these nodes wait for one another in a circle: all -> all; let one of "
            "them name something that comes before",
        ),
        (
            "  image: {bundle: lung_ct}\n  all: {merge: [image], overlap: first}",
            "two.yaml:3: node 'image' has the name of an input; give it another one",
        ),
        (
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct}\n"
            "  all: {merge: [lungs], overlap: first}",
            "two.yaml:4: nothing uses node 'thorax' on the way to the output 'all'; name it in a "
            "merge, or take it out",
        ),
        (
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct, image: lungs}\n"
            "  all: {merge: [thorax], overlap: first}",
            "two.yaml:4: nodes.thorax.image names 'lungs', which gives a mask; name an input or a "
            "region, or write a list to feed the mask as a channel",
        ),
        (
            "  all: {merge: [image], overlap: first}",
            "two.yaml:3: nodes.all.merge.0 names 'image', which gives an image; name a network or "
            "a merge",
        ),
        (
            "  lungs: {bundle: lung_ct}\n  all: {merge: [lungs, lungs], overlap: first}",
            "two.yaml:4: merge 'all' names a node twice; name each once",
        ),
    ],
)
def test_names_that_lead_nowhere_are_refused_before_bundles_are_read(
    tmp_path: Path, nodes: str, expected: str
) -> None:
    """Unknown, circular, clashing and dangling names: one sentence each, with its line."""
    file = a_pipeline(tmp_path, nodes)
    with pytest.raises(PipelineError) as caught:
        order(read_spec(file))
    assert str(caught.value) == f"{tmp_path}/{expected}"


def test_an_input_that_nothing_uses_is_refused(tmp_path: Path) -> None:
    """A request must not have to bring what no network looks at."""
    more = "inputs:\n  image: {}\n  flair: {}\n"
    expected = "two.yaml:9: no node uses the input 'flair'; take it out"
    assert refusal(a_pipeline(tmp_path, more=more)) == expected


def test_inputs_whose_tensors_clash_are_refused(tmp_path: Path) -> None:
    """An input called rescale would be the image's RESCALE."""
    nodes = (
        "  a: {bundle: a}\n  b: {bundle: b, image: rescale}\n  all: {merge: [a, b], overlap: first}"
    )
    more = "inputs:\n  image: {}\n  rescale: {}\n"
    expected = (
        "two.yaml:9: input 'rescale' and input 'image' would both be the tensor RESCALE; give the "
        "input another name"
    )
    assert refusal(a_pipeline(tmp_path, nodes, more=more)) == expected


@pytest.mark.parametrize(
    ("thorax", "nodes", "expected"),
    [
        (
            a_member("thorax_ct", "Heart", modality="MR"),
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct}\n"
            "  all: {merge: [lungs, thorax], overlap: first}",
            "two.yaml:4: 'thorax_ct' is made for MR, but the input 'image' is CT",
        ),
        (
            a_member("thorax_ct", gives_mask=False),
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct}\n"
            "  all: {merge: [lungs, thorax], overlap: first}",
            "two.yaml:4: 'thorax_ct' gives no label map of a volume, which a pipeline needs of "
            "each network",
        ),
        (
            a_member("thorax_ct", "Heart", inputs=(Input("image", "IMAGE", "channels", 4),)),
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct}\n"
            "  all: {merge: [lungs, thorax], overlap: first}",
            "two.yaml:4: 'thorax_ct' takes 4 channels, but 1 stand here; list 4 names under image",
        ),
        (
            a_member("thorax_ct", "Heart", inputs=(Input("image", "IMAGE", "gray"),)),
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct}\n"
            "  all: {merge: [lungs, thorax], overlap: first}",
            "two.yaml:4: 'thorax_ct' takes 2-D images; networks of a pipeline take volumes",
        ),
        (
            THORAX,
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct, inputs: {prior: lungs}}\n"
            "  all: {merge: [lungs, thorax], overlap: first}",
            "two.yaml:4: 'thorax_ct' has no further input 'prior'; it has none besides its image",
        ),
        (
            a_member(
                "thorax_ct",
                "Heart",
                inputs=(Input("image", "IMAGE", "volume"), Input("prior", "PRIOR", "volume")),
            ),
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct}\n"
            "  all: {merge: [lungs, thorax], overlap: first}",
            "two.yaml:4: 'thorax_ct' also needs 'prior'; say under inputs what feeds it",
        ),
        (
            THORAX,
            "  lungs: {bundle: lung_ct}\n  box: {region_of: lungs, labels: [1, 7]}\n"
            "  thorax: {bundle: thorax_ct, image: box}\n"
            "  all: {merge: [lungs, thorax], overlap: first}",
            "two.yaml:4: 'lungs' has no label 7; it has 1 (Left lung), 2 (Right lung)",
        ),
        (
            a_member("thorax_ct", "Right lung"),
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct}\n"
            "  all: {merge: [lungs, thorax], overlap: first}",
            "two.yaml:5: labels 2 and 3 of this merge are both called 'Right lung'; name them "
            "apart under segments, or join them",
        ),
        (
            THORAX,
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct}\n"
            "  all:\n    merge: [lungs, thorax]\n    overlap: first\n    segments:\n"
            "      - {of: lungs, label: 3, to: 1}",
            "two.yaml:9: 'lungs' has no label 3; it has 1 (Left lung), 2 (Right lung)",
        ),
        (
            THORAX,
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct}\n"
            "  all:\n    merge: [lungs, thorax]\n    overlap: first\n    segments:\n"
            "      - {of: lungs, label: 1, to: 1}\n      - {of: thorax, label: 1, to: 1}",
            "two.yaml:10: label 1 is 'Left lung' already; give the first row of this label the "
            "name of what is joined and the others none, or this row another number under 'to'",
        ),
        (
            THORAX,
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct}\n"
            "  all:\n    merge: [lungs, thorax]\n    overlap: first\n    segments:\n"
            "      - {of: lungs, label: 1, to: 1}",
            "two.yaml:6: 'thorax' is merged, but no row under segments takes a label of it; add "
            "one, or take it out of the merge",
        ),
        (
            THORAX,
            "  lungs: {bundle: lung_ct}\n  thorax: {bundle: thorax_ct}\n"
            "  all:\n    merge: [lungs, thorax]\n    overlap: priority\n    priority: [1, 2, 2]",
            "two.yaml:8: priority must name each label of this merge once (1, 2, 3, 4), not "
            "[1, 2, 2]",
        ),
    ],
)
def test_bundles_that_do_not_fit_are_refused(
    tmp_path: Path, thorax: Member, nodes: str, expected: str
) -> None:
    """Modality, layout, channels, labels and tables: one sentence each, with its line."""
    file = a_pipeline(tmp_path, nodes)
    assert refusal(file, {"lungs": LUNGS, "thorax": thorax}) == expected


def test_masks_of_different_inputs_are_not_merged(tmp_path: Path) -> None:
    """Each lies on the grid of its own image."""
    nodes = (
        "  a: {bundle: a}\n  b: {bundle: b, image: flair}\n  all: {merge: [a, b], overlap: first}"
    )
    more = "inputs:\n  image: {}\n  flair: {}\n"
    members = {"a": a_member("a", "one"), "b": a_member("b", "two")}
    assert refusal(a_pipeline(tmp_path, nodes, more=more), members) == (
        "two.yaml:5: 'b' lies on the grid of 'flair', 'a' on that of 'image'; masks that are "
        "merged lie on one grid"
    )


def test_joined_labels_take_the_first_rows_name_and_codes(tmp_path: Path) -> None:
    """Both lungs become one segment that has a name of its own."""
    nodes = """
  lungs: {bundle: lung_ct}
  all:
    merge: [lungs]
    overlap: first
    segments:
      - {of: lungs, label: 1, to: 300, name: Lungs}
      - {of: lungs, label: 2, to: 300}
"""
    found = wired(a_pipeline(tmp_path, nodes))
    assert [(row.label, row.name) for row in found.segments] == [(300, "Lungs")]
    assert found.mask.datatype == "UINT16"


IMAGE = Tensor("IMAGE", "INT16", (-1, -1, -1))
MASK = Tensor("MASK", "UINT8", (-1, -1, -1))


def test_edges_are_checked_by_type() -> None:
    """Datatype and dims of both ends must agree; each edge is made once and leads to something."""
    wide = Tensor("MASK", "UINT16", (-1, -1, -1))
    flat = Tensor("IMAGE", "INT16", (-1, -1))

    def complaint(*calls: Call) -> str:
        with pytest.raises(PipelineError) as caught:
            check_calls(calls, [IMAGE], [MASK])
        return str(caught.value)

    good = Call("a", ((IMAGE, "IMAGE"),), ((MASK, "MASK"),))
    check_calls([good], [IMAGE], [MASK])
    assert complaint(Call("a", ((IMAGE, "IMAGE"),), ((wide, "MASK"),))) == (
        "the edge MASK: a gives UINT16 [-1, -1, -1], but the answer takes UINT8 [-1, -1, -1]"
    )
    assert complaint(Call("a", ((flat, "IMAGE"),), ((MASK, "MASK"),))) == (
        "the edge IMAGE: the request gives INT16 [-1, -1, -1], but a takes INT16 [-1, -1]"
    )
    assert complaint(Call("a", ((IMAGE, "OTHER"),), ((MASK, "MASK"),))) == (
        "a needs the edge OTHER, which nothing makes"
    )
    assert complaint(good, Call("b", (), ((MASK, "MASK"),))) == (
        "the edge MASK is made by both a and b"
    )
    assert complaint() == "the answer needs the edge MASK, which nothing makes"
    circle = (
        Call("a", ((MASK, "two"),), ((MASK, "one"),)),
        Call("b", ((MASK, "one"),), ((MASK, "two"), (MASK, "MASK"))),
    )
    assert complaint(*circle) == "these models wait for one another in a circle: a, b"


def test_a_further_input_called_input_gets_an_edge_of_its_own(tmp_path: Path) -> None:
    """The first input's edge has that name already."""
    further = (Input("image", "IMAGE", "channels", 1), Input("input", "INPUT", "channels", 1))
    members = {"lungs": a_member("lung_ct", "Lung", inputs=further)}
    nodes = "  lungs: {bundle: lung_ct, image: [image], inputs: {input: image}}"
    found = wired(a_pipeline(tmp_path, nodes, output="lungs"), members)
    edges = [edge for call in found.calls for _, edge in call.outputs]
    assert len(set(edges)) == len(edges)
    assert len({joint.name for joint in found.joints}) == len(found.joints)
