"""A SEG beside plain highdicom."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from perf.seg import CHECKED, OURS, SEGMENTS, THEIRS, a_mask, measure


def test_both_say_the_same_and_the_share_is_shown(tmp_path: Path) -> None:
    """Three rows of as many rounds as wanted; the comparison of contents has passed."""
    found = measure(tmp_path / "seg", (6, 24, 40), 2)
    title = "SEG, 6 x 24 x 40, 5 segments: "
    assert [one.name.removeprefix(title) for one in found.measurements] == [OURS, THEIRS, CHECKED]
    assert [one.repetitions for one in found.measurements] == [2, 2, 2]
    (share,) = found.shown
    assert (share.wanted, share.at_most, share.n) == (0.5, True, 2)


def test_each_segment_is_in_the_mask() -> None:
    """Nothing is measured on an empty one, in a grid that is no square either."""
    assert set(np.unique(a_mask((6, 24, 40)))) == set(range(SEGMENTS + 1))
