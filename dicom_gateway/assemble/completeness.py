"""Is a series complete? By evidence first, by the clock only last.

In: how long ago the last instance came, whether its association is still open, and what
the slice positions say. Out: a `Verdict` with its reasons, for the job's story. Pure, apart
from `gather`, which reads headers; nothing survives a crash: the same question is simply
asked again.

A series whose positions have a hole is waited for longer; when nothing more comes it is
called complete all the same, with the reason, and `geometry.arrange` then refuses it by name,
so that it ends in front of a person instead of waiting for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    """What the slice positions of a series say.

    Attributes:
        instances: How many instances there are.
        placed: How many of them have a position and an orientation.
        gaps: Holes between them.
    """

    instances: int
    placed: int
    gaps: tuple[Gap, ...] = ()


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
    """

    positions: Positions
    since_last_arrival_s: float
    association_open: bool
    since_association_ended_s: float | None = None
    broken_off: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Complete or not, why, and when to ask again."""

    complete: bool
    reasons: tuple[str, ...]
    recheck_after_s: float | None = None


def gather(series: Series, read: Callable[[Path], Header] = read_header) -> Positions:
    """Reads the positions of a series.

    Args:
        series: With whatever has come so far.
        read: Gives a header by path; a caller that asks often passes a cached one.
    """
    stacks: dict[tuple[float, ...], list[float]] = {}
    usable = [instance for instance in series.instances if not instance.conflicts]
    placed = 0
    for instance in usable:
        try:
            header = read(instance.path)
        except UnusableSeries:
            continue  # assembling will name it; it says nothing about gaps
        if not is_position(header.position_lps_mm) or not is_orientation(header.orientation):
            continue
        assert header.position_lps_mm is not None
        assert header.orientation is not None
        placed += 1
        normal = normal_of(header.orientation)
        key = tuple(round(float(cosine), 2) + 0.0 for cosine in normal)
        along = sum(p * float(n) for p, n in zip(header.position_lps_mm, normal, strict=True))
        stacks.setdefault(key, []).append(along)
    gaps = [gap for stack in stacks.values() for gap in find_gaps(_distinct(stack))]
    return Positions(instances=len(usable), placed=placed, gaps=tuple(gaps))


def judge(evidence: Evidence, settings: CompletenessSettings) -> Verdict:
    """Complete, or when to ask again."""
    positions = evidence.positions
    quiet_s = evidence.since_last_arrival_s
    came = f"{positions.instances} instance(s), the last {quiet_s:.1f} s ago"
    if not positions.instances:
        return Verdict(False, ("no usable instance yet",), settings.quiet_s)

    if positions.gaps:
        shown = ", ".join(str(gap) for gap in positions.gaps[:5])
        if quiet_s >= settings.give_up_s:
            return Verdict(True, (came, f"gave up waiting: slices missing {shown}"))
        return Verdict(False, (came, f"slices missing {shown}"), settings.give_up_s - quiet_s)

    if evidence.association_open:
        needed_s, why = settings.quiet_s, "the association is still open"
    else:
        needed_s, why = settings.after_release_s, "the association has ended"
        if evidence.broken_off:
            # As long as for one that is open: the peer may come back with the rest.
            needed_s, why = settings.quiet_s, "an association was aborted or lost"
        if evidence.since_association_ended_s is not None:
            quiet_s = min(quiet_s, evidence.since_association_ended_s)
    evenly = (
        f"{positions.placed} position(s) without a gap"
        if positions.placed
        else "no positions to go by"
    )
    if quiet_s >= needed_s:
        return Verdict(True, (came, why, evenly))
    return Verdict(False, (came, why, evenly), needed_s - quiet_s)


def _distinct(along_mm: list[float]) -> list[float]:
    kept: list[float] = []
    for position in sorted(along_mm):
        if not kept or position - kept[-1] >= SAME_POSITION_MM:
            kept.append(position)
    return kept
