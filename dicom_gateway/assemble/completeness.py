"""Is a series complete? By evidence first, by the clock only last.

In: what the slice positions and the counts say, whether the associations that brought it have
ended and how, what a PACS or a person says, and how long ago the last instance came. Out: a
`Verdict` with its reasons, for the story of the series and its jobs. Pure, apart from
`gather`, which reads headers; nothing survives a crash: the same question is simply asked
again.

The evidence, the strongest first: a person's word; a count by whoever sends it; a hole between
the slice positions, or a part that is missing for certain; the association's end, in order or
not; counts in the data, which are often careless. How long it was quiet is only asked with
what those leave open. The order in which instances came makes no difference.

A series that lacks something is waited for longer; when nothing more comes it is called
complete all the same, with the reason, so that it ends in front of a person instead of
waiting for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dicom_gateway.assemble import counts
from dicom_gateway.assemble.counts import Expected
from dicom_gateway.assemble.geometry import (
    SAME_POSITION_MM,
    Gap,
    find_gaps,
    is_orientation,
    is_position,
    normal_of,
)
from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.config import CompletenessSettings
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.records import Series


@dataclass(frozen=True, slots=True)
class Positions:
    """What the headers of a series say.

    Attributes:
        instances: How many instances there are.
        placed: How many of them have a position and an orientation.
        gaps: Holes between them.
        frames: How many frames the multi-frame objects among them have; each such object
            is whole in itself.
        expected: How many there should be, as the data states it.
    """

    instances: int
    placed: int
    gaps: tuple[Gap, ...] = ()
    frames: int = 0
    expected: tuple[Expected, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that `judge` goes by.

    Attributes:
        since_last_arrival_s: Since the last instance of this series was kept.
        association_open: True while any association that brought instances is open.
        since_association_ended_s: Since the last of them ended; None when that isn't known
            (after a restart of the gateway, say).
        broken_off: One of them was aborted or lost: its peer meant to send more, and a
            beginning has no gap either.
        stated: How many there are where it comes from, as a PACS stated it: (count, source).
        by_hand: A person has declared it complete.
    """

    positions: Positions
    since_last_arrival_s: float
    association_open: bool
    since_association_ended_s: float | None = None
    broken_off: bool = False
    stated: tuple[tuple[int, str], ...] = ()
    by_hand: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Complete or not, why, and when to ask again.

    Attributes:
        reasons: What decided it first; these change only with the evidence.
        came: What has come, and how long ago.
        recheck_after_s: None where only news can change it.
    """

    complete: bool
    reasons: tuple[str, ...]
    recheck_after_s: float | None = None
    came: str = ""

    @property
    def text(self) -> str:
        """All of it in one line."""
        return "; ".join(part for part in (*self.reasons, self.came) if part)


def gather(series: Series, read: Callable[[Path], Header] = read_header) -> Positions:
    """Reads the positions and counts of a series.

    Args:
        series: With whatever has come so far.
        read: Gives a header by path; a caller that asks often passes a cached one.
    """
    stacks: dict[tuple[float, ...], list[float]] = {}
    usable = [instance for instance in series.instances if not instance.conflicts]
    stated = []
    placed = frames = 0
    for instance in usable:
        try:
            header = read(instance.path)
        except UnusableSeries:
            continue  # assembling will name it; it says nothing about gaps
        stated.append(header.counts)
        if header.number_of_frames > 1:
            frames += header.number_of_frames
            continue
        normal = _normal(header.orientation)
        if normal is None or not is_position(header.position_lps_mm):
            continue
        assert header.position_lps_mm is not None
        placed += 1
        key = tuple(round(cosine, 2) + 0.0 for cosine in normal)
        along = sum(p * n for p, n in zip(header.position_lps_mm, normal, strict=True))
        stacks.setdefault(key, []).append(along)
    places = [_places(stack) for stack in stacks.values()]
    return Positions(
        instances=len(usable),
        placed=placed,
        gaps=tuple(gap for stack in places for gap in find_gaps([at for at, _ in stack])),
        frames=frames,
        expected=counts.expected(stated, [count for stack in places for _, count in stack]),
    )


@lru_cache(maxsize=1024)
def _normal(orientation: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Unit normal of a plane that is one; asked for again and again, of few planes."""
    if not is_orientation(orientation):
        return None
    assert orientation is not None
    return tuple(float(cosine) for cosine in normal_of(orientation))


def judge(evidence: Evidence, settings: CompletenessSettings) -> Verdict:
    """Complete, or when to ask again."""
    positions = evidence.positions
    quiet_s = evidence.since_last_arrival_s
    came = f"{positions.instances} instance(s), the last {quiet_s:.1f} s ago"
    if not positions.instances:
        return Verdict(False, ("no usable instance yet",), settings.quiet_s)
    # Fewer than there are: it was counted before these came, and says nothing of the rest.
    stated = [
        Expected(count, positions.instances, source, is_firm=True)
        for count, source in evidence.stated
        if count >= positions.instances
    ]
    told = [*stated, *positions.expected]
    missing = _missing(positions, stated)
    if evidence.by_hand:
        return Verdict(True, ("a person has declared it complete", *missing), None, came)
    if stated and all(one.is_met for one in stated) and not _parts_missing(positions):
        # Whoever sends it has counted: nothing more will come, and a hole is the series' own.
        return Verdict(True, (*map(str, stated), *missing), None, came)
    if missing:
        if quiet_s >= settings.give_up_s:
            return Verdict(True, (f"gave up waiting: {'; '.join(missing)}",), None, came)
        return Verdict(False, missing, settings.give_up_s - quiet_s, came)

    met = [str(one) for one in told if one.is_met]
    short = [str(one) for one in told if not one.is_met]
    needed_s, why = settings.after_release_s, "the association has ended"
    if evidence.association_open:
        needed_s, why = settings.quiet_s, "the association is still open"
    elif evidence.broken_off:
        # As long as for one that is open: the peer may come back with the rest.
        needed_s, why = settings.quiet_s, "an association was aborted or lost"
    if short:
        needed_s = settings.quiet_s
    elif met:
        needed_s = settings.after_release_s
    if not evidence.association_open and evidence.since_association_ended_s is not None:
        quiet_s = min(quiet_s, evidence.since_association_ended_s)
    reasons = (*met, *short, _what_the_places_say(positions), why)
    if quiet_s >= needed_s:
        return Verdict(True, reasons, None, came)
    return Verdict(False, reasons, needed_s - quiet_s, came)


def _missing(positions: Positions, stated: list[Expected]) -> tuple[str, ...]:
    """What is missing for certain."""
    missing = [str(one) for one in stated if not one.is_met]
    missing += [str(one) for one in _parts_missing(positions)]
    if positions.gaps:
        shown = ", ".join(str(gap) for gap in positions.gaps[:5])
        more = f" and {len(positions.gaps) - 5} more places" if len(positions.gaps) > 5 else ""
        missing.append(f"slices missing {shown}{more}")
    return tuple(missing)


def _parts_missing(positions: Positions) -> list[Expected]:
    return [one for one in positions.expected if one.is_firm and not one.is_met]


def _what_the_places_say(positions: Positions) -> str:
    if positions.placed:
        return f"{positions.placed} position(s) without a gap"
    if positions.frames:
        return f"{positions.frames} frame(s) of whole multi-frame objects"
    return "no positions to go by"


def _places(along_mm: list[float]) -> list[tuple[float, int]]:
    """Distinct positions in rising order, and how many instances lie at each."""
    places: list[tuple[float, int]] = []
    for position in sorted(along_mm):
        if places and position - places[-1][0] < SAME_POSITION_MM:
            places[-1] = (places[-1][0], places[-1][1] + 1)
        else:
            places.append((position, 1))
    return places
