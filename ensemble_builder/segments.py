"""What each label, mask and score of a bundle means: from its metadata, or from its channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ensemble_builder.contract import ClassRow, Code, SegmentRow
from ensemble_builder.errors import BundleError

LARGEST_LABEL = 65535
"""MASK is UINT8, or UINT16 where labels need it."""

TISSUE = Code(value="85756007", scheme_designator="SCT", meaning="Tissue")
"""What a segment is when its bundle names it but gives no code."""

_PLACE = "configs/metadata.json"


def segments_of(
    metadata: Mapping[str, Any], classes: Mapping[int, str], labels: Mapping[int, int]
) -> tuple[SegmentRow, ...]:
    """The bundle's own `segments` table, or one row per label that its channels make.

    Args:
        metadata: The bundle's.
        classes: Names of the network's channels, from `channel_def`.
        labels: Label -> channel, as probing found them.

    Raises:
        BundleError: a table that can't be read, is empty, or doesn't tell labels apart.
    """
    stated = metadata.get("segments")
    try:
        if stated is not None:
            rows = tuple(SegmentRow.model_validate(row) for row in stated)
        else:
            known = _known(classes, labels)
            only_one = set(known.values()) == {0}
            rows = tuple(
                SegmentRow(
                    label=label,
                    name=_name(classes, label, channel, only_one=only_one),
                    category=TISSUE,
                    type=TISSUE,
                )
                for label, channel in sorted(known.items())
            )
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(str(part) for part in found["loc"])
        msg = f"{_PLACE}: a row of segments: {where}: {found['msg']}"
        raise BundleError(msg) from error
    except (TypeError, ValueError, AttributeError) as error:
        msg = f"{_PLACE}: segments can't be read: {error}"
        raise BundleError(msg) from error
    if not rows:
        msg = f"{_PLACE}: names no segment; list them under 'segments', or outputs' channel_def"
        raise BundleError(msg)
    numbers = [row.label for row in rows]
    if max(numbers) > LARGEST_LABEL or len(set(numbers)) != len(numbers):
        msg = f"{_PLACE}: labels must be different and at most {LARGEST_LABEL}, not {numbers}"
        raise BundleError(msg)
    return rows


def segments_of_masks(
    metadata: Mapping[str, Any], classes: Mapping[int, str], channels: int
) -> tuple[SegmentRow, ...]:
    """One row for each mask, the first is label 1; none where the bundle doesn't name them all.

    Args:
        metadata: The bundle's; its own `segments` table wins.
        classes: Names of the network's channels, from `channel_def`.
        channels: How many masks there are.

    Raises:
        BundleError: a table that can't be read or has not one row for each mask.
    """
    if "segments" not in metadata and set(classes) != set(range(channels)):
        return ()
    rows = segments_of(metadata, {n + 1: name for n, name in classes.items()}, {})
    if [row.label for row in rows] != list(range(1, channels + 1)):
        msg = f"{_PLACE}: segments must have the labels 1 to {channels} in order, one for each mask"
        raise BundleError(msg)
    return rows


def classes_of(
    metadata: Mapping[str, Any], channels: Mapping[int, str], count: int
) -> tuple[str | ClassRow, ...]:
    """What each score, or each of the network's channels, is called.

    Args:
        metadata: The bundle's; its own `classes` table, with codes, wins.
        channels: Names from `channel_def`.
        count: How many there are.

    Raises:
        BundleError: a table that can't be read or is longer or shorter.
    """
    stated = metadata.get("classes")
    if stated is None:
        return tuple(channels.get(n) or f"class {n}" for n in range(count))
    try:
        rows = tuple(ClassRow.model_validate(row) for row in stated)
    except (ValidationError, TypeError) as error:
        msg = f"{_PLACE}: classes can't be read; each is a name and, if you have one, a code"
        raise BundleError(msg) from error
    if len(rows) != count:
        msg = f"{_PLACE}: classes has {len(rows)} rows and the network gives {count}"
        raise BundleError(msg)
    return rows


def _known(classes: Mapping[int, str], labels: Mapping[int, int]) -> dict[int, int]:
    """Labels that channels make; those that `channel_def` names where probing saw none."""
    return dict(labels) or {number: number for number in classes if number > 0}


def _name(classes: Mapping[int, str], label: int, channel: int, *, only_one: bool) -> str:
    # A network of one channel (a sigmoid) is often described as if it had one for the
    # background, too: then the second name is that of label 1.
    named = classes.get(label if only_one and label in classes else channel)
    return (named or f"Label {label}")[:64]
