"""The UIDs of results: the same job, the same object."""

from __future__ import annotations

import re

from dicom_gateway.encode.identity import (
    result_series_uid,
    result_uid,
    stand_in_frame_of_reference_uid,
)

JOB = "8d0b6f2c55f34a3fa2a1a8f4f2f7c1de"


def test_a_retry_gives_the_same_uid() -> None:
    """Fixed for good: changing the scheme would send old results again as new ones."""
    assert result_uid(JOB, "MASK") == "2.25.305746198786917689685813776311537689338"
    assert result_uid(JOB, "MASK", 0) == result_uid(JOB, "MASK")


def test_everything_else_gives_another_uid() -> None:
    """Job, output, number and kind of UID each make a difference."""
    uids = {
        result_uid(JOB, "MASK"),
        result_uid(JOB, "MASK", 1),
        result_uid(JOB, "OTHER"),
        result_uid("0" * 32, "MASK"),
        result_series_uid(JOB, "MASK"),
        result_series_uid(JOB, "OTHER"),
        stand_in_frame_of_reference_uid(JOB),
    }
    assert len(uids) == 7


def test_they_are_valid_uids() -> None:
    """Components without leading zeros, at most 64 characters (PS3.5 9.1)."""
    for number in range(50):
        uid = result_uid(JOB, "MASK", number)
        assert len(uid) <= 64
        assert re.fullmatch(r"2\.25\.[1-9][0-9]*", uid)
