"""Lines through measurements, and what grows that should not."""

from __future__ import annotations

import math
import random

import pytest

from perf.fit import bend, growth, line

_SLICES = [50, 100, 200, 300, 450, 600]


def test_a_line_is_found_again() -> None:
    """Its slope, its constant part, and that nothing is left over."""
    found = line(_SLICES, [2 + 0.01 * x for x in _SLICES])
    assert found.slope == pytest.approx(0.01)
    assert found.intercept == pytest.approx(2)
    assert found.r_squared == pytest.approx(1)
    assert found.largest_share == pytest.approx(0, abs=1e-9)
    assert found.at(1000) == pytest.approx(12)


def test_the_largest_distance_is_a_share_of_the_line() -> None:
    """One point that is a tenth too high shows as somewhat less than that: the line follows it."""
    y = [10.0, 10.0, 11.0, 10.0, 10.0]
    found = line([1, 2, 3, 4, 5], y)
    assert found.slope == pytest.approx(0)
    assert found.largest_share == pytest.approx(0.8 / 10.2)


def test_one_place_gives_no_line() -> None:
    """Two different numbers of slices are needed."""
    with pytest.raises(ValueError, match="two different points"):
        line([5, 5, 5], [1, 2, 3])


def test_what_is_quadratic_bends() -> None:
    """A line doesn't, whatever its constant part."""
    assert bend(_SLICES, [5 + 0.01 * x for x in _SLICES]) == pytest.approx(1)
    bent = bend(_SLICES, [5 + 1e-5 * x * x for x in _SLICES])
    assert bent is not None
    assert bent > 1.4
    assert bend([50, 100, 600], [1, 2, 3]) is None  # a single one in the larger half


def _steps(studies: int, every: int, size: float) -> list[float]:
    chance = random.Random(3)
    return [100 + size * (n // every) + chance.gauss(0, 0.3) for n in range(studies)]


def test_a_leak_shows_above_its_noise() -> None:
    """A hundred kilobytes for each study, seen with certainty."""
    found = growth([100 + 0.1 * n + (n % 3) for n in range(200)], warm_up=40)
    assert found.slope == pytest.approx(0.1, rel=0.05)
    assert found.upper > 0.1
    assert found.late > found.early + 10


def test_a_leak_in_steps_is_a_leak() -> None:
    """A heap grows by pieces, not evenly."""
    assert 100 * growth(_steps(200, every=25, size=4.0), warm_up=40).upper > 15


def test_what_stands_still_is_told_from_a_leak() -> None:
    """Noise alone stays below a megabyte in a hundred studies."""
    assert 100 * growth(_steps(200, every=25, size=0.0), warm_up=40).upper < 1


def test_the_warm_up_is_no_leak() -> None:
    """Caches that fill at the beginning don't count."""
    values = [min(n, 30) * 5.0 for n in range(200)]
    assert growth(values, warm_up=40).upper == pytest.approx(0)
    assert growth(values, warm_up=0).upper > 0.1


def test_too_few_studies_are_refused() -> None:
    """With the reason."""
    with pytest.raises(ValueError, match="too few to judge"):
        growth([1.0] * 10, warm_up=8)


def test_three_studies_can_be_judged() -> None:
    """Not precisely."""
    assert math.isfinite(growth([1.0, 1.0, 1.0], warm_up=0).upper)
