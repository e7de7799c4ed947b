"""What changed between two reports, and whether it is more than noise.

In: this report's measurements and another report's `bench.json`. Out: one line for each name
that both have. A change counts where it is more than `LEAST_CHANGE` and neither median lies
within the other's spread (25th to 90th percentile), which takes three repetitions at least.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perf.measure import Measurement

LEAST_CHANGE = 0.05
FEWEST_REPETITIONS = 3


class NoReport(Exception):
    """The file isn't a report of the bench; the message says what it should be."""


@dataclass(frozen=True, slots=True)
class Change:
    """One measurement of two reports.

    Attributes:
        ratio: This median to the other one; below 1 is faster.
        verdict: faster, slower, or within noise.
    """

    name: str
    ratio: float
    verdict: str


def read_measurements(path: Path) -> list[Measurement]:
    """The measurements of a `bench.json`, or of the one in a folder.

    Raises:
        NoReport: the file isn't there or isn't one.
    """
    path = path / "bench.json" if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return [Measurement(**one) for one in document["measurements"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} is no bench.json of an earlier run (--against FILE or its folder)"
        raise NoReport(msg) from error


def changes(now: Sequence[Measurement], before: Sequence[Measurement]) -> list[Change]:
    """One for each name that both have, in the order of this report."""
    earlier = {one.name: one for one in before}
    return [_change(one, earlier[one.name]) for one in now if one.name in earlier]


def _change(now: Measurement, before: Measurement) -> Change:
    ratio = now.median_s / before.median_s if before.median_s > 0 else 1.0
    counted = min(now.repetitions, before.repetitions) >= FEWEST_REPETITIONS
    apart = not (before.p25_s <= now.median_s <= before.p90_s) and not (
        now.p25_s <= before.median_s <= now.p90_s
    )
    if not counted or not apart or abs(ratio - 1) <= LEAST_CHANGE:
        return Change(now.name, ratio, "within noise")
    return Change(now.name, ratio, "faster" if ratio < 1 else "slower")
