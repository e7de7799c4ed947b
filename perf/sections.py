"""Three parts of a bench: the road alone, everything but the network, and the peers.

In: what to run on. Out: measurements, and what they should show (the issue's figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perf import outside, transport
from perf.measure import Measurement
from perf.peers.case import Volume
from perf.peers.compare import (
    BINARY,
    COLD,
    JSON,
    OURS,
    OURS_TORCH,
    TUTORIAL,
    WARM,
    compare,
)
from perf.report import Shown
from perf.stage import Say

TIMES = {COLD: 5.0, WARM: 3.0, TUTORIAL: 3.0, BINARY: 3.0, JSON: 6.0}
"""How many times longer each peer should take than our default runtime."""

SMALL_NETWORK = {"lung_ct": {WARM: 4.0, TUTORIAL: 4.0}}
"""The same where the network is the smallest part."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a part measured, and what it shows.

    Attributes:
        devices: Who computes where, and other words on the setting.
        pictures: SVGs that the report can't draw from the measurements, by name.
    """

    measurements: list[Measurement]
    shown: list[Shown]
    devices: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)


def the_road(shape_kji: tuple[int, int, int], repetitions: int) -> Found:
    """Shared memory beside gRPC and HTTP."""
    measured = transport.measure(shape_kji, repetitions=repetitions)
    ours, *others = (one.median_s for one in measured)
    shown = [
        Shown(
            f"transport: {road} takes this many times as long as shared memory",
            s / ours,
            4.0,
            n=repetitions,
        )
        for road, s in zip(transport.ROADS[1:], others, strict=True)
    ]
    return Found(measured, shown)


def outside_the_network(bundle: Path, volume: Path, repetitions: int) -> Found:
    """Our steps beside MONAI's own transforms."""
    found = outside.measure(bundle, volume, outside.SIDES, repetitions=repetitions)
    monai, ours = (side.name for side in outside.SIDES)
    name = f"{found.bundle}, {found.volume}, all but the network"
    peaks = ", ".join(f"{side} {found.peak_bytes(side) / 2**20:,.0f} MiB" for side in (monai, ours))
    shown = [
        Shown(
            f"{name}: times less time",
            found.median_s(monai) / found.median_s(ours),
            4.0,
            n=repetitions,
        ),
        Shown(
            f"{name}: times less processor time",
            found.cpu_s(monai) / found.cpu_s(ours),
            4.0,
            n=repetitions,
        ),
        Shown(
            f"{name}: passes with other labels",
            float(not found.equal()),
            0.0,
            at_most=True,
            n=repetitions,
        ),
    ]
    if found.peak_bytes(monai):  # a tiny volume fits into what the process holds anyway
        share = found.peak_bytes(ours) / found.peak_bytes(monai)
        words = f"{name}: share of the peak memory ({peaks})"
        shown.append(Shown(words, share, 1 / 3, at_most=True, n=repetitions))
    return Found(list(found.measurements()), shown, {name: "both sides on the CPU"})


def the_peers(bundle: Path, volume: Volume, turns: int, without: Sequence[str], say: Say) -> Found:
    """Everyone on one volume."""
    found = compare(bundle, volume, turns=turns, without=tuple(without), say=say)
    name = f"{found.bundle}, {found.volume}"
    times = TIMES | SMALL_NETWORK.get(found.bundle, {})
    shown = []
    for who in found.seconds:
        if who in times:
            shown += [
                Shown(
                    f"{name}: {who} takes this many times as long",
                    found.ratio(who),
                    times[who],
                    n=turns,
                ),
                Shown(
                    f"{name}: {who}, against our torch runtime",
                    found.ratio(who, OURS_TORCH),
                    1.0,
                    n=turns,
                ),
            ]
    for who, different in found.different.items():
        least = 1e-3 * found.voxels if who == OURS else 0.0
        shown.append(
            Shown(
                f"{name}: voxels of {found.name(who)} unlike MONAI's",
                different,
                least,
                at_most=True,
                n=turns,
            )
        )
    placed: dict[str, list[str]] = {}
    for who in found.seconds:
        placed.setdefault(found.devices[who], []).append(found.name(who))
    words = "; ".join(f"{', '.join(names)}: {place}" for place, names in placed.items())
    return Found(list(found.measurements()), shown, {name: words})
