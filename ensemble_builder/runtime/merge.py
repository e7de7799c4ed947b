"""Merging: several masks of one grid as one, by a declared rule.

In: label maps and a rule that says what each of their labels becomes and who wins where several
claim a voxel. Out: one label map with the labels of the common segment table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from ensemble_builder.runtime.volumes import InputError

MERGE_FILE = "merge.json"

SLAB_VOXELS = 4_000_000
"""Merged at a time: what is needed besides the masks stays small."""

Overlap = Literal["first", "last", "priority", "refuse"]

DATATYPES = {"UINT8": torch.uint8, "UINT16": torch.uint16}
"""Triton's words for what a merged mask may be."""


@dataclass(frozen=True, slots=True)
class MergeMember:
    """One mask that is merged.

    Attributes:
        name: Of the node, for the sentences.
        tensor: Of the model's input.
        table: (label in the mask, label in the merged one); others become background.
    """

    name: str
    tensor: str
    table: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class MergeRule:
    """What a merge does.

    Attributes:
        name: Of the node.
        members: In the order that `first` and `last` mean.
        overlap: Who gets a voxel that several claim.
        priority: Every label of the merged mask, the strongest first.
        datatype: Of the merged mask.
    """

    name: str
    members: tuple[MergeMember, ...]
    overlap: Overlap
    priority: tuple[int, ...] = ()
    datatype: str = "UINT8"

    def to_json(self) -> str:
        """The rule as it lies beside model.py."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str) -> MergeRule:
        """Reads what `to_json` wrote."""
        raw = json.loads(text)
        members = tuple(
            MergeMember(one["name"], one["tensor"], tuple((a, b) for a, b in one["table"]))
            for one in raw["members"]
        )
        return MergeRule(**{**raw, "members": members, "priority": tuple(raw["priority"])})


def merge(masks: Sequence[torch.Tensor], rule: MergeRule) -> torch.Tensor:
    """One mask of several.

    Args:
        masks: uint8 or uint16 [K, J, I], one for each member; never written to.
        rule: What their labels become, and who wins.

    Returns:
        [K, J, I] of the rule's datatype.

    Raises:
        InputError: masks of different shapes, or an overlap where the rule refuses it.
    """
    first = masks[0]
    for member, mask in zip(rule.members, masks, strict=True):
        if mask.ndim != 3:
            msg = f"{member.tensor} must be [K, J, I], not {list(mask.shape)}"
            raise InputError(msg)
        if mask.shape != first.shape:
            msg = (
                f"{member.tensor} is {list(mask.shape)}, but {rule.members[0].tensor} is "
                f"{list(first.shape)}; masks that are merged lie on one grid"
            )
            raise InputError(msg)
    tables = [_table(m, mask) for m, mask in zip(rule.members, masks, strict=True)]
    rank = _rank(rule, first.device)
    out = torch.empty(first.shape, dtype=DATATYPES[rule.datatype], device=first.device)
    overlaps: dict[tuple[str, str], int] = {}
    for slab in _slabs(first):
        claims = [
            table[mask[slab].reshape(-1).to(torch.int32)]
            for table, mask in zip(tables, masks, strict=True)
        ]
        if rule.overlap == "refuse":
            _count_overlaps(claims, rule, overlaps)
        out[slab] = _winners(claims, rule, rank).reshape(out[slab].shape).to(out.dtype)
    if overlaps:
        (a, b), count = next(iter(overlaps.items()))
        msg = (
            f"'{a}' and '{b}' both claim {count} voxels, and the merge '{rule.name}' refuses "
            "overlaps; choose another overlap rule in the pipeline where they may"
        )
        raise InputError(msg)
    return out


def _slabs(mask: torch.Tensor) -> Iterator[slice]:
    """Runs of slices of about SLAB_VOXELS."""
    step = max(1, SLAB_VOXELS // max(1, mask.shape[1] * mask.shape[2]))
    for start in range(0, mask.shape[0], step):
        yield slice(start, start + step)


def _table(member: MergeMember, mask: torch.Tensor) -> torch.Tensor:
    """Merged label of each label a mask can hold: int32 [256] or [65536]."""
    table = torch.zeros(256 if mask.dtype == torch.uint8 else 65536, dtype=torch.int32)
    for label, to in member.table:
        if label < len(table):
            table[label] = to
    return table.to(mask.device)


def _rank(rule: MergeRule, device: torch.device) -> torch.Tensor | None:
    """How strong each merged label is, int32; background is weakest. None without priority."""
    if rule.overlap != "priority":
        return None
    rank = torch.zeros(max(rule.priority) + 1, dtype=torch.int32)
    for n, label in enumerate(rule.priority):
        rank[label] = len(rule.priority) - n
    return rank.to(device)


def _winners(
    claims: list[torch.Tensor], rule: MergeRule, rank: torch.Tensor | None
) -> torch.Tensor:
    """The label of each voxel of a slab, int32."""
    ordered = claims[::-1] if rule.overlap == "last" else claims
    out = ordered[0]
    for claim in ordered[1:]:
        stronger = out == 0 if rank is None else rank[claim] > rank[out]
        out = torch.where(stronger, claim, out)
    return out


def _count_overlaps(
    claims: list[torch.Tensor], rule: MergeRule, overlaps: dict[tuple[str, str], int]
) -> None:
    """Adds up where two members want different labels for one voxel."""
    for b in range(1, len(claims)):
        for a in range(b):
            both = (claims[a] != 0) & (claims[b] != 0) & (claims[a] != claims[b])
            count = int(both.sum())
            if count:
                pair = (rule.members[a].name, rule.members[b].name)
                overlaps[pair] = overlaps.get(pair, 0) + count
