"""A series that holds several volumes is taken apart; each part gets a name.

In: the frames of a series in any order. Out: `Part`s, always the same ones in the same
order, and notes of what was left out. Pure.

First by what can't lie in one volume: orientation, grid, frame of reference, and stacks that
lie apart. Then, while several frames share a place, or lie between each other's, by what differs
among them: kind of image, echo, diffusion, tube voltage, time, acquisition. Values that a whole
volume shares (an echo time) group by themselves. Values that change from slice to slice (an
acquisition time) can only put the frames at each place in order: the n-th of each place make the
n-th volume, if every place has the same number, and if no two of these volumes share what tells
frames of one place apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dicom_gateway.assemble import traits
from dicom_gateway.assemble.frames import Frame
from dicom_gateway.assemble.geometry import evenness
from dicom_gateway.assemble.stack import (
    SAME_POSITION_MM,
    SPACING_TOLERANCE_MM,
    known_as,
    normal_of,
    orientations,
    refuse_other_objects,
    refuse_unplaced,
)
from dicom_gateway.assemble.traits import Trait
from dicom_gateway.errors import UnusableSeries

_PHYSICS = (
    traits.VOLTAGE,
    traits.KERNEL,
    traits.FLIP_ANGLE,
    traits.INVERSION_TIME,
    traits.THICKNESS,
    traits.ORIGIN,
)

_SHARED = (
    traits.KIND,
    traits.ECHO_TIME,
    traits.ECHO,
    traits.B_VALUE,
    traits.DIRECTION,
    *_PHYSICS,
    traits.TIME_POINT,
    traits.INDEX,
    traits.STACK,
    traits.ACQUISITION,
)
"""What all frames of one volume have alike, in the order in which it is tried."""

_NEVER_MIXED = (
    traits.KIND,
    traits.ECHO_TIME,
    traits.ECHO,
    traits.B_VALUE,
    traits.DIRECTION,
    *_PHYSICS,
)
"""How an image was made; an order of images that puts two ways into one volume is the wrong one."""

_RANKED = (traits.TRIGGER, traits.ACQUIRED, traits.CONTENT, traits.NUMBER)
"""What may change from slice to slice; Instance Number, only the order of things, is last."""

LONGEST_SCAN_H = 12
"""Times of day that are further apart, without a date, are of before and after midnight."""

COMPLETE_FRACTION = 0.5
"""A value that not even half of the places have doesn't make a volume."""

RUN = "pass"
"""The trait of slices that follow each other in number and in place."""

LONGEST_SEAM = 2
"""By so many slices one slab may reach into the next, and still go on from there."""


@dataclass(frozen=True, slots=True)
class Part:
    """The frames of one volume, and its name for a person."""

    name: str
    frames: tuple[Frame, ...]


def split(
    frames: Sequence[Frame], *, by_stack: bool = False
) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """Takes a series apart.

    Frames that can't be told apart stay together; whoever stacks them refuses them by name.

    Args:
        frames: Of one series.
        by_stack: Frames of two stacks (Stack ID) go into two volumes, wherever they lie.

    Returns:
        The parts, and a sentence for each thing that was left out.

    Raises:
        UnusableSeries: no_pixel_data, unsupported_object, no_geometry; (several_orientations)
            when no part has two slices.
    """
    frames = sorted(frames, key=lambda frame: (frame.sop_instance_uid, frame.number))
    refuse_other_objects(frames)
    notes = []
    scouts = localizers_among(frames)
    if scouts:
        frames = [frame for frame in frames if not frame.header.is_localizer]
        notes.append(f"{len(scouts)} localizer image(s) left out")
    refuse_unplaced(frames)
    grids = _by_grid(frames)
    lonely = [grid for grid in grids if len(grid) < 2]
    if lonely and len(lonely) == len(grids):
        msg = (
            f"the series has {len(grids)} images that lie in {len(grids)} different planes, as a "
            "localizer has; send a series of cross-sections"
        )
        raise UnusableSeries(msg, code="several_orientations")
    if lonely:
        grids = [grid for grid in grids if len(grid) > 1]
        notes.append(f"{len(lonely)} single image(s) of another orientation or size left out")
    parts = []
    names = _grid_names(grids) if len(grids) > 1 else [""]
    for grid, plane in zip(grids, names, strict=True):
        for stack, stacked in _by_stack(grid) if by_stack else [("", grid)]:
            for words, members in _by_traits(stacked, _SHARED):
                name = ", ".join(word for word in (plane, stack, *words) if word)
                parts.append(Part(name, tuple(members)))
    return _told_apart(parts), tuple(notes)


def localizers_among(frames: Sequence[Frame]) -> list[Frame]:
    """Localizers beside other images; none where there is nothing else."""
    found = [frame for frame in frames if frame.header.is_localizer]
    return found if len(found) < len(frames) else []


def has_several_stacks(frames: Sequence[Frame]) -> bool:
    """Whether the frames themselves say that they are of several stacks, each of some slices."""
    counts = Counter(_value(frame, traits.STACK) for frame in frames)
    return len(counts) > 1 and None not in counts and min(counts.values()) > 1


def interleaved_by(frames: Sequence[Frame]) -> str:
    """What tells volumes apart whose slices lie between each other's, in a word; "" for nothing.

    As of two passes over one body, each from where the table happened to be: no two slices share
    a place, and mixed they would be of neither.

    Args:
        frames: Of one grid.
    """
    told = _interleaving(frames, _along(frames), _SHARED)
    return "" if told is None else told[0]


def _by_stack(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    groups: dict[Trait | None, list[Frame]] = {}
    for frame in frames:
        groups.setdefault(_value(frame, traits.STACK), []).append(frame)
    ordered = sorted(groups, key=lambda value: _order(value, groups[value]))
    count = len(ordered)
    return [
        (_word(traits.STACK, value, rank, count) if count > 1 else "", groups[value])
        for rank, value in enumerate(ordered, start=1)
    ]


def _by_grid(frames: Sequence[Frame]) -> list[list[Frame]]:
    """What could lie in one volume together; the largest first."""
    groups: dict[tuple[object, ...], list[Frame]] = {}
    spacings: list[tuple[float, ...]] = []
    for orientation, members in orientations(frames):
        for frame in members:
            header = frame.header
            assert frame.pixel_spacing_mm is not None  # else it was refused as unplaced
            spacing = spacings[known_as(frame.pixel_spacing_mm, spacings, SPACING_TOLERANCE_MM)]
            place = (orientation, header.frame_of_reference_uid or "")
            grid = (header.rows or 0, header.columns or 0, spacing)
            groups.setdefault((*place, *grid), []).append(frame)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [members for _, members in ordered]


def _grid_names(grids: Sequence[Sequence[Frame]]) -> list[str]:
    names = []
    for grid in grids:
        assert grid[0].orientation is not None
        normal = np.abs(normal_of(grid[0].orientation))
        plane = ("sagittal", "coronal", "axial")[int(normal.argmax())]
        names.append(plane if normal.max() > 0.9 else f"oblique {plane}")
    sizes = [f"{grid[0].header.rows}x{grid[0].header.columns}" for grid in grids]
    return [
        name if names.count(name) == 1 else f"{name} {size}"
        for name, size in zip(names, sizes, strict=True)
    ]


def _by_traits(
    frames: Sequence[Frame], wanted: Sequence[str]
) -> list[tuple[tuple[str, ...], Sequence[Frame]]]:
    """Words and frames of each volume among frames of one grid."""
    along = _along(frames)
    places = _places(along)
    counts = Counter(places)
    if len(counts) < 2:
        return [((), frames)]
    if max(counts.values()) == 1:
        told = _interleaving(frames, along, wanted)
        return [((), frames)] if told is None else _grouped(frames, *told, wanted)
    for number, name in enumerate(wanted):
        values = [_value(frame, name) for frame in frames]
        if not _tell_apart(places, values):
            continue
        at: dict[Trait | None, set[int]] = {}
        for value, place in zip(values, places, strict=True):
            at.setdefault(value, set()).add(place)
        if min(map(len, at.values())) >= COMPLETE_FRACTION * len(counts):
            return _grouped(frames, name, values, wanted[number + 1 :])
    for name in _RANKED:
        ranked = _ranked(frames, places, name)
        if ranked is not None and not _mixes(ranked, frames, places):
            count = len(ranked)
            return [((f"time point {n} of {count}",), one) for n, one in enumerate(ranked, 1)]
    return [((), frames)]


def _grouped(
    frames: Sequence[Frame], name: str, values: Sequence[Trait | None], further: Sequence[str]
) -> list[tuple[tuple[str, ...], Sequence[Frame]]]:
    """Words and frames of each volume, where the values of a trait tell them apart.

    Args:
        frames: Of one grid.
        name: The trait.
        values: Of each frame.
        further: What may tell the frames of one value apart.
    """
    groups: dict[Trait | None, list[Frame]] = {}
    for frame, value in zip(frames, values, strict=True):
        groups.setdefault(value, []).append(frame)
    found = []
    ordered = sorted(groups, key=lambda value: _order(value, groups[value]))
    for rank, value in enumerate(ordered, start=1):
        word = _word(name, value, rank, len(ordered))
        parts = _by_traits(groups[value], further)
        found += [((word, *words), members) for words, members in parts]
    return found


def _interleaving(
    frames: Sequence[Frame], along: NDArray[np.float64], wanted: Sequence[str]
) -> tuple[str, list[Trait | None]] | None:
    """What tells stacks apart that reach through each other, and its value for each frame."""
    if evenness(np.sort(along)) == 1.0:
        return None
    for name in wanted:
        values = [_value(frame, name) for frame in frames]
        if _evenness_apart(along, values):
            return name, values
    runs = _runs(frames, along)
    # Nothing but the order says so: then it must be beyond doubt.
    return (RUN, runs) if _evenness_apart(along, runs) == 1.0 else None


def _runs(frames: Sequence[Frame], along: NDArray[np.float64]) -> list[Trait | None]:
    """Of each frame the number of its run: as they were numbered, all in one direction."""
    order = sorted(range(len(frames)), key=lambda n: _value(frames[n], traits.NUMBER) or 0.0)
    numbers: list[Trait | None] = [1.0] * len(frames)
    run, direction = 1.0, 0.0
    for before, n in pairwise(order):
        step = float(np.sign(along[n] - along[before]))
        if direction and step != direction:
            run, step = run + 1.0, 0.0
        numbers[n], direction = run, step
    return numbers


def _order(
    value: Trait | None, frames: Sequence[Frame]
) -> tuple[bool, float, tuple[int, int, str]]:
    """Numbers by size; words in the order in which the scanner wrote the images."""
    first = min((one.header.instance_number, one.number, one.sop_instance_uid) for one in frames)
    return value is None, value if isinstance(value, float) else 0.0, first


def _ranked(frames: Sequence[Frame], places: Sequence[int], name: str) -> list[list[Frame]] | None:
    """The n-th frame of each place, if every place has the same number of different ones."""
    at: dict[int, list[tuple[Trait, int, Frame]]] = {}
    if name in (traits.ACQUIRED, traits.CONTENT) and _over_midnight(frames, name):
        return None
    for order, (frame, place) in enumerate(zip(frames, places, strict=True)):
        value = _value(frame, name)
        if value is None:
            return None
        at.setdefault(place, []).append((value, order, frame))
    count = len(at[places[0]])
    volumes: list[list[Frame]] = [[] for _ in range(count)]
    for found in at.values():
        values = [value for value, _, _ in found]
        one_kind = len({type(value) for value in values}) == 1
        if len(found) != count or len(set(values)) != count or not one_kind:
            return None
        for rank, (_, _, frame) in enumerate(sorted(found)):
            volumes[rank].append(frame)
    return volumes


def _over_midnight(frames: Sequence[Frame], name: str) -> bool:
    """Times of day without a date, which say nothing of what came first over midnight."""
    times = [str(_value(frame, name) or "").partition(".")[0] for frame in frames]
    hours = [int(time[:2]) for time in times if len(time) <= 6 and time[:2].isdigit()]
    return bool(hours) and max(hours) - min(hours) >= LONGEST_SCAN_H


def _mixes(
    volumes: Sequence[Sequence[Frame]], frames: Sequence[Frame], places: Sequence[int]
) -> bool:
    """Whether images that were made in the same way lie in two of these volumes."""
    for name in _NEVER_MIXED:
        if not _tell_apart(places, [_value(frame, name) for frame in frames]):
            continue
        has = [{_value(frame, name) for frame in volume} for volume in volumes]
        if sum(len(values) for values in has) > len(set().union(*has)):
            return True
    return False


def _along(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Positions along the normal of the first frame, millimetres."""
    assert frames[0].orientation is not None
    positions = np.array([frame.position_lps_mm for frame in frames], dtype=np.float64)
    return positions @ normal_of(frames[0].orientation)


def _places(along: NDArray[np.float64]) -> list[int]:
    """A number for each place along the normal; the same for frames at the same place."""
    order = np.argsort(along, kind="stable")
    numbers = np.empty(len(along), dtype=int)
    numbers[order] = np.cumsum(np.diff(along[order], prepend=along[order[0]]) >= SAME_POSITION_MM)
    return [int(number) for number in numbers]


def _tell_apart(places: Sequence[int], values: Sequence[Trait | None]) -> bool:
    seen: dict[int, set[Trait | None]] = {}
    for place, value in zip(places, values, strict=True):
        seen.setdefault(place, set()).add(value)
    return any(len(found) > 1 for found in seen.values())


def _evenness_apart(along: NDArray[np.float64], values: Sequence[Trait | None]) -> float:
    """How even the least even of the stacks is that the values tell apart.

    0 where they don't reach through each other, or are no more even than all slices together:
    those that were acquired in packages lie between each other's too, and are evenly spaced
    only together.
    """
    stacks: dict[Trait | None, list[float]] = {}
    for value, at in sorted(zip(values, along.tolist(), strict=True), key=lambda pair: pair[1]):
        stacks.setdefault(value, []).append(at)
    if len(stacks) < 2 or min(map(len, stacks.values())) <= LONGEST_SEAM:
        return 0.0
    reached, deepest = -np.inf, 0
    for stack in stacks.values():  # in the order in which they begin
        deepest = max(deepest, int(np.searchsorted(stack, reached)))
        reached = max(reached, stack[-1])
    apart = min(map(evenness, stacks.values()))
    return apart if deepest > LONGEST_SEAM and apart > evenness(np.sort(along)) else 0.0


def _value(frame: Frame, name: str) -> Trait | None:
    if name == traits.NUMBER:
        return frame.header.instance_number * 1e6 + frame.number
    return dict(frame.traits).get(name)


_IN_WORDS = {
    traits.ECHO_TIME: "echo time {:g} ms",
    traits.B_VALUE: "b={:g} s/mm2",
    traits.VOLTAGE: "{:g} kV",
    traits.FLIP_ANGLE: "flip angle {:g} degrees",
    traits.INVERSION_TIME: "inversion time {:g} ms",
    traits.THICKNESS: "slices of {:g} mm",
    traits.ECHO: "echo {:g}",
    traits.ACQUISITION: "acquisition {:g}",
}


def _word(name: str, value: Trait | None, rank: int, count: int) -> str:
    """What a person reads; no time of day, no date."""
    if value is None:
        return f"without {name}"
    if name in _IN_WORDS:
        return _IN_WORDS[name].format(value)
    if name in (traits.KIND, traits.ORIGIN):
        # Code strings; whatever else a writer puts there stays out of the log.
        return re.sub(r"[^A-Z0-9_/ +-]", "", str(value))[:48].strip() or f"kind {rank} of {count}"
    return f"{name} {rank} of {count}"


def _told_apart(parts: Sequence[Part]) -> tuple[Part, ...]:
    """No two parts under one name."""
    names = Counter(part.name for part in parts)
    seen: Counter[str] = Counter()
    told = []
    for part in parts:
        name = part.name
        if names[name] > 1:
            seen[name] += 1
            name = f"{name or 'volume'} ({seen[name]} of {names[name]})"
        told.append(Part(name, part.frames))
    return tuple(told)
