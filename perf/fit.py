"""Straight lines through measurements, and whether something grows that should not.

In: numbers. Out: slopes, how well a line describes them, and the most that a slope may be.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

BLOCKS = 10
"""What lies close together in time isn't independent; medians of this many blocks nearly are."""
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Line:
    """y = intercept + slope * x, by least squares.

    Attributes:
        r_squared: Share of the variance that the line explains; 1 where nothing varies.
        residuals: y - line, in the order of x.
        slope_error: Standard error of the slope; infinite with two points.
        largest_share: The largest residual as a share of what the line says there.
    """

    intercept: float
    slope: float
    r_squared: float
    residuals: tuple[float, ...]
    slope_error: float
    largest_share: float

    def at(self, x: float) -> float:
        """What the line says."""
        return self.intercept + self.slope * x


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Fits one.

    Raises:
        ValueError: fewer than two different x.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    spread = float(((xs - xs.mean()) ** 2).sum()) if len(xs) else 0.0
    if spread == 0:
        msg = "a line needs two different points"
        raise ValueError(msg)
    slope = float(((xs - xs.mean()) * (ys - ys.mean())).sum()) / spread
    intercept = float(ys.mean() - slope * xs.mean())
    fitted = intercept + slope * xs
    residuals = ys - fitted
    left, whole = float((residuals**2).sum()), float(((ys - ys.mean()) ** 2).sum())
    error = math.sqrt(left / (len(xs) - 2) / spread) if len(xs) > 2 else math.inf
    shares = np.abs(residuals) / np.maximum(np.abs(fitted), 1e-12)
    return Line(
        intercept,
        slope,
        1 - left / whole if whole > 0 else 1.0,
        tuple(float(one) for one in residuals),
        error,
        float(shares.max()),
    )


def bend(x: Sequence[float], y: Sequence[float]) -> float | None:
    """How much steeper the upper half is than the whole: 1 for a straight line.

    The slope through the larger half of x, over the slope through all. Something that grows
    faster than linearly has more than 1, whatever its constant part. None where the larger half
    is a single x.

    Raises:
        ValueError: fewer than two different x.
    """
    order = np.argsort(np.asarray(x, dtype=float), kind="stable")
    xs, ys = np.asarray(x, dtype=float)[order], np.asarray(y, dtype=float)[order]
    whole = line(list(xs), list(ys)).slope
    upper = xs >= (xs.min() + xs.max()) / 2
    if np.ptp(xs[upper]) == 0:
        return None
    return line(list(xs[upper]), list(ys[upper])).slope / whole


@dataclass(frozen=True, slots=True)
class Growth:
    """Whether a quantity grows from one study to the next.

    Attributes:
        early: Median of the first tenth after the warm-up.
        late: Median of the last tenth.
        slope: By study.
        upper: The slope is less than this, with a confidence of 95 %.
    """

    early: float
    late: float
    slope: float
    upper: float


def growth(values: Sequence[float], warm_up: int) -> Growth:
    """From one value after each study.

    Args:
        values: In the order of the studies.
        warm_up: How many at the beginning don't count: caches fill, pools reach their size.

    Raises:
        ValueError: fewer than three remain.
    """
    kept = list(values[warm_up:])
    if len(kept) < 3:
        msg = f"{len(values)} studies with a warm-up of {warm_up} leave too few to judge"
        raise ValueError(msg)
    blocks = [list(block) for block in np.array_split(np.asarray(kept), min(BLOCKS, len(kept)))]
    medians = [float(statistics.median(block)) for block in blocks]
    middles, begun = [], 0
    for block in blocks:
        middles.append(begun + (len(block) - 1) / 2)
        begun += len(block)
    fitted = line(middles, medians)
    certain = float(stats.t.ppf(CONFIDENCE, len(blocks) - 2))
    upper = fitted.slope + certain * fitted.slope_error
    return Growth(medians[0], medians[-1], fitted.slope, upper)
