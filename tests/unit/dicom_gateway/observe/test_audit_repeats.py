"""What strangers cause again and again is told once, and then as a number."""

from __future__ import annotations

from dicom_gateway.observe.audit_repeats import PLACES, WINDOW_S, Repeats


def test_what_comes_again_within_the_time_is_one_number():
    """Of each address and reason; then it is told anew."""
    now_s = [1000.0]
    repeats = Repeats(lambda: now_s[0])

    assert [repeats.is_first("10.0.0.9", "unknown") for _ in range(5)] == [True] + [False] * 4
    assert repeats.is_first("10.0.0.9", "full")
    assert repeats.is_first("10.0.0.8", "unknown")
    assert repeats.over() == []
    now_s[0] += WINDOW_S
    assert [(one.address, one.reason, one.times) for one in repeats.over()] == [
        ("10.0.0.9", "unknown", 4)
    ]
    assert repeats.over() == []
    assert repeats.is_first("10.0.0.9", "unknown")


def test_many_addresses_are_not_told_apart():
    """Who has a whole network of them writes no more than who has some."""
    repeats = Repeats()

    told = sum(repeats.is_first(f"2001:db8::{number:x}", "unknown") for number in range(1000))

    assert told == PLACES + 1
    assert [(one.address, one.times) for one in repeats.over(all_of_them=True)] == [
        ("", 1000 - told)
    ]
