"""Several masks as one: what labels become, and who wins where several claim a voxel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ensemble_builder.runtime import merge as merging
from ensemble_builder.runtime.merge import MergeMember, MergeRule, Overlap, merge
from ensemble_builder.runtime.volumes import InputError

A = MergeMember("lungs", "MASK_LUNGS", ((1, 1), (2, 2)))
B = MergeMember("thorax", "MASK_THORAX", ((1, 3), (2, 4)))


def a_row(*labels: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """A mask of one row."""
    return torch.tensor([[labels]]).to(dtype)


def merged(rule: MergeRule, *masks: torch.Tensor) -> list[int]:
    """The merged mask of one row."""
    found: list[int] = merge(masks, rule).reshape(-1).to(torch.int32).tolist()
    return found


LUNGS = a_row(0, 1, 2, 0, 1, 2)
THORAX = a_row(0, 0, 0, 1, 1, 2)


@pytest.mark.parametrize(
    ("overlap", "priority", "expected"),
    [
        ("first", (), [0, 1, 2, 3, 1, 2]),
        ("last", (), [0, 1, 2, 3, 3, 4]),
        ("priority", (4, 1, 3, 2), [0, 1, 2, 3, 1, 4]),
    ],
)
def test_the_overlap_rule_says_who_wins(
    overlap: Overlap, priority: tuple[int, ...], expected: list[int]
) -> None:
    """The first, the last, or the label that stands first; a single claim always counts."""
    assert merged(MergeRule("all", (A, B), overlap, priority), LUNGS, THORAX) == expected


def test_overlaps_are_refused_by_name_where_the_rule_says_so() -> None:
    """The sentence names both members, how many voxels, and the merge."""
    rule = MergeRule("all", (A, B), "refuse")
    with pytest.raises(InputError) as caught:
        merged(rule, LUNGS, THORAX)
    assert str(caught.value) == (
        "'lungs' and 'thorax' both claim 2 voxels, and the merge 'all' refuses overlaps; choose "
        "another overlap rule in the pipeline where they may"
    )
    assert merged(rule, a_row(1, 0), a_row(0, 1)) == [1, 3]


def test_two_that_want_the_same_label_do_not_overlap() -> None:
    """Joined labels agree where both are found."""
    rule = MergeRule("all", (A, MergeMember("again", "MASK_AGAIN", ((1, 1),))), "refuse")
    assert merged(rule, a_row(1, 2), a_row(1, 0)) == [1, 2]


def test_labels_that_no_row_names_become_background() -> None:
    """Also those that a segment table doesn't have."""
    rule = MergeRule("all", (MergeMember("lungs", "MASK_LUNGS", ((2, 7),)),), "first")
    assert merged(rule, a_row(0, 1, 2, 255)) == [0, 0, 7, 0]


def test_wide_labels_come_in_and_go_out() -> None:
    """UINT16 on either side."""
    wide = MergeMember("many", "MASK_MANY", ((40000, 300), (1, 65535)))
    rule = MergeRule("all", (wide, A), "first", datatype="UINT16")
    found = merge([a_row(40000, 1, 0, dtype=torch.uint16), a_row(2, 2, 2)], rule)
    assert found.dtype == torch.uint16
    assert found.reshape(-1).to(torch.int32).tolist() == [300, 65535, 2]


@pytest.mark.parametrize("overlap", ["first", "last"])
def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch, overlap: Overlap) -> None:
    """A volume merged slice by slice is what it is merged as a whole."""
    rng = np.random.default_rng(1)
    masks = [torch.from_numpy(rng.integers(0, 3, (7, 5, 6), dtype=np.uint8)) for _ in range(2)]
    rule = MergeRule("all", (A, B), overlap)
    whole = merge(masks, rule)
    monkeypatch.setattr(merging, "SLAB_VOXELS", 31)
    assert torch.equal(whole, merge(masks, rule))


def test_masks_are_never_written_to() -> None:
    """They are the server's memory."""
    one, two = LUNGS.clone(), THORAX.clone()
    merged(MergeRule("all", (A, B), "last"), one, two)
    assert torch.equal(one, LUNGS)
    assert torch.equal(two, THORAX)


def test_masks_of_different_grids_are_refused_by_name() -> None:
    """The sentence names both tensors and their shapes."""
    rule = MergeRule("all", (A, B), "first")
    with pytest.raises(InputError, match=r"MASK_THORAX is .1, 1, 2., but MASK_LUNGS is .1, 1, 1."):
        merged(rule, a_row(1), a_row(1, 1))
    with pytest.raises(InputError, match=r"MASK_LUNGS must be .K, J, I., not .3."):
        merged(rule, torch.zeros(3, dtype=torch.uint8), a_row(1))


def test_a_rule_comes_back_as_it_was_written() -> None:
    """What lies beside model.py says all of it."""
    rule = MergeRule("all", (A, B), "priority", (2, 1, 4, 3), "UINT16")
    assert MergeRule.from_json(rule.to_json()) == rule
