"""The common segment table of a merge: what each member's labels become, and what that is called.

In: a merge as the pipeline's YAML has it, and its members' tables. Out: the merged table and, for
each member, which label becomes which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ensemble_builder.contract import SegmentRow
from ensemble_builder.errors import PipelineError
from ensemble_builder.spec import MergedSegment, MergeNode, Place

ErrorAt = Callable[[Place, str], PipelineError]
"""Place in the file and a sentence -> the error that says both."""

_CODES = ("category", "type", "type_modifier", "anatomic_region", "colour_rgb")
_MAY_BE_NONE = frozenset({"type_modifier", "anatomic_region", "colour_rgb"})


@dataclass(frozen=True, slots=True)
class MergedTable:
    """What a merge makes of its members' labels.

    Attributes:
        segments: The common table, by label.
        labels: Member -> (its label, the merged one) pairs.
    """

    segments: tuple[SegmentRow, ...]
    labels: Mapping[str, tuple[tuple[int, int], ...]]


def merged_table(
    place: Place, node: MergeNode, tables: Mapping[str, tuple[SegmentRow, ...]], error: ErrorAt
) -> MergedTable:
    """Makes the common table.

    Args:
        place: Of the merge in the file.
        node: The merge.
        tables: Member -> its own segments.
        error: Makes errors that name file and line.

    Raises:
        PipelineError: a row names no segment of a member's, two segments have one name, a member
            gives nothing, or the priorities don't name each label once.
    """
    rows = node.segments or tuple(
        MergedSegment(of=member, label=row.label, to=n)
        for n, (member, row) in enumerate(
            ((m, row) for m in node.merge for row in tables[m]), start=1
        )
    )
    places = [
        (*place, "segments", n) if node.segments else (*place, "merge") for n in range(len(rows))
    ]
    labels: dict[str, list[tuple[int, int]]] = {member: [] for member in node.merge}
    found: dict[int, SegmentRow] = {}
    stated: dict[int, frozenset[str]] = {}
    for where, row in zip(places, rows, strict=True):
        own = _own_segment(where, row, tables, error)
        if row.label in {label for label, _ in labels[row.of]}:
            raise error(where, f"label {row.label} of '{row.of}' has a row already; keep one")
        labels[row.of].append((row.label, row.to))
        _add(where, row, own, found, stated, error)
    for member, given in labels.items():
        if not given:
            raise error(
                (*place, "merge"),
                f"'{member}' is merged, but no row under segments takes a label of it; add one, "
                "or take it out of the merge",
            )
    _check_names(place, found, error)
    _check_priority(place, node, set(found), error)
    return MergedTable(
        tuple(found[label] for label in sorted(found)),
        {member: tuple(given) for member, given in labels.items()},
    )


def _own_segment(
    where: Place,
    row: MergedSegment,
    tables: Mapping[str, tuple[SegmentRow, ...]],
    error: ErrorAt,
) -> SegmentRow:
    if row.of not in tables:
        raise error(where, f"'{row.of}' is not merged here; merged are {_listed(tables)}")
    for segment in tables[row.of]:
        if segment.label == row.label:
            return segment
    known = ", ".join(f"{s.label} ({s.name})" for s in tables[row.of])
    raise error(where, f"'{row.of}' has no label {row.label}; it has {known}")


def _add(  # noqa: PLR0917
    where: Place,
    row: MergedSegment,
    own: SegmentRow,
    found: dict[int, SegmentRow],
    stated: dict[int, frozenset[str]],
    error: ErrorAt,
) -> None:
    """Adds a row, or joins it to the one that has its label already.

    Args:
        where: Place of the row.
        row: What the file says.
        own: The member's segment.
        found: The table so far.
        stated: What the first row of each label says itself.
        error: Makes errors.
    """
    said = frozenset(key for key in (*_CODES, "name") if key in row.model_fields_set)
    # An explicit null takes away what the member's own segment has.
    changes = {
        key: value
        for key in said
        if (value := getattr(row, key)) is not None or key in _MAY_BE_NONE
    }
    ours = own.model_copy(update={**changes, "label": row.to})
    there = found.get(row.to)
    if there is None:
        found[row.to] = ours
        stated[row.to] = said
        return
    first = stated[row.to]
    if there.name != (row.name or (there.name if "name" in first else ours.name)):
        raise error(
            where,
            f"label {row.to} is '{there.name}' already; give the first row of this label the name "
            "of what is joined and the others none, or this row another number under 'to'",
        )
    if said - {"name"}:
        raise error(
            where,
            f"label {row.to} has a row already, and what it is belongs there: move "
            f"{_listed(sorted(said - {'name'}))} to the first row of this label",
        )
    differing = [key for key in _CODES if getattr(own, key) != getattr(there, key)]
    unsaid = [key for key in differing if key not in first]
    if needed := [key for key in unsaid if key not in _MAY_BE_NONE]:
        raise error(
            where,
            f"'{own.name}' of '{row.of}' is joined to label {row.to}, '{there.name}', and they "
            f"differ in {_listed(needed)}: say on the first row of this label what both are",
        )
    # A left and a right lung together are neither.
    found[row.to] = there.model_copy(update=dict.fromkeys(unsaid))


def _check_names(place: Place, found: Mapping[int, SegmentRow], error: ErrorAt) -> None:
    seen: dict[str, int] = {}
    for label, row in found.items():
        if row.name in seen:
            raise error(
                place,
                f"labels {seen[row.name]} and {label} of this merge are both called "
                f"'{row.name}'; name them apart under segments, or join them",
            )
        seen[row.name] = label


def _check_priority(place: Place, node: MergeNode, labels: set[int], error: ErrorAt) -> None:
    if node.overlap == "priority" and sorted(node.priority) != sorted(labels):
        raise error(
            (*place, "priority"),
            f"priority must name each label of this merge once ({_listed(sorted(labels))}), "
            f"not {list(node.priority)}",
        )


def _listed(items: Iterable[object]) -> str:
    return ", ".join(str(item) for item in items)
