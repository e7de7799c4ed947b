"""Figures and the machine they are from."""

from __future__ import annotations

import socket

import pytest

from perf.measure import Measurement, describe_machine


def test_the_median_ignores_one_slow_repetition() -> None:
    """A single hiccup of a shared machine doesn't change the figure."""
    assert Measurement.of("x", (1.0, 2.0, 90.0)).median_s == 2.0


def test_the_spread_is_made_of_durations_that_really_happened() -> None:
    """The nearest rank is taken, and the order doesn't matter; the median is in the middle."""
    found = Measurement.of("x", (10.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0))
    assert (found.p25_s, found.median_s, found.p90_s) == (3.0, 5.5, 9.0)
    assert found.repetitions == 10


def test_of_two_repetitions_neither_is_the_median() -> None:
    """The faster one would flatter whoever has the larger spread."""
    assert Measurement.of("x", (3.0, 1.0)).median_s == 2.0


def test_a_single_repetition_has_no_spread() -> None:
    """One figure is its own percentiles."""
    found = Measurement.of("x", (2.0,))
    assert (found.p25_s, found.median_s, found.p90_s) == (2.0, 2.0, 2.0)


def test_nothing_measured_is_an_error() -> None:
    """A table never shows a figure that nobody measured."""
    with pytest.raises(ValueError, match="'x' was measured not even once"):
        Measurement.of("x", ())


def test_the_machine_is_described_without_its_name() -> None:
    """A report can be shown around: what the machine is like, not which one it is."""
    words = describe_machine()
    assert "cores" in words["processor"]
    assert "GiB" in words["memory"]
    assert socket.gethostname() not in " ".join(words.values())
