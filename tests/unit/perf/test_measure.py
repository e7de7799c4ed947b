"""Figures and the machine they are from."""

from __future__ import annotations

import socket

import pytest

from perf.measure import Measurement, describe_machine


def test_the_median_ignores_one_slow_repetition() -> None:
    """A single hiccup of a shared machine doesn't change the figure."""
    assert Measurement("x", (1.0, 2.0, 90.0)).median_s == 2.0


def test_the_spread_is_the_middle_half_and_the_whole_range() -> None:
    """Both are there: how steady it is, and how bad it gets."""
    found = Measurement("x", (5.0, 1.0, 2.0, 3.0, 4.0))
    assert found.quartiles_s == (2.0, 4.0)
    assert found.range_s == (1.0, 5.0)


def test_a_single_repetition_has_no_spread() -> None:
    """One figure is its own quartiles."""
    assert Measurement("x", (2.0,)).quartiles_s == (2.0, 2.0)


def test_nothing_measured_is_an_error() -> None:
    """A table never shows a figure that nobody measured."""
    with pytest.raises(ValueError, match="'x' was measured not even once"):
        Measurement("x", ())


def test_the_machine_is_described_without_its_name() -> None:
    """A report can be shown around: what the machine is like, not which one it is."""
    words = describe_machine()
    assert "cores" in words["processor"]
    assert "GiB" in words["memory"]
    assert socket.gethostname() not in " ".join(words.values())
