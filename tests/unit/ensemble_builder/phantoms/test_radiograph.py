"""Made-up radiographs: the same for a seed, and with what was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from ensemble_builder.phantoms.radiograph import FINDINGS, radiograph

NOTHING = (False,) * len(FINDINGS)


def test_a_seed_gives_the_same_image() -> None:
    """So that training and tests can be repeated; another seed is another chest."""
    one, again = radiograph(3, (90, 80)), radiograph(3, (90, 80))
    np.testing.assert_array_equal(one.pixels, again.pixels)
    assert one.findings == again.findings
    assert (one.pixels != radiograph(4, (90, 80)).pixels).any()


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_pixels_fill_their_bits_and_no_more(bits: int) -> None:
    """What Bits Stored says is what the values use."""
    made = radiograph(5, (120, 100), bits_stored=bits)
    assert made.bits_stored == bits
    assert made.pixels.max() < 2**bits
    assert made.pixels.max() > 2 ** (bits - 1)


@pytest.mark.parametrize("finding", range(len(FINDINGS)))
def test_what_is_asked_for_is_painted_and_nothing_else(finding: int) -> None:
    """The truth says so, and only an enlarged heart is wider than half the chest."""
    asked = tuple(n == finding for n in range(len(FINDINGS)))
    for seed in range(6):
        made = radiograph(seed, (128, 112), findings=asked)
        assert made.findings == asked
        assert (made.chest.heart_share > 0.5) is (FINDINGS[finding] == "cardiomegaly")


def test_fluid_hides_the_base_of_a_lung() -> None:
    """Where the right lung's base is, a chest full of fluid is brighter than one without."""
    base = (slice(70, 84), slice(18, 40))
    brighter = 0
    for seed in range(8):
        pictures = []
        for fluid in (False, True):
            made = radiograph(seed, (128, 112), findings=(False, fluid, False, False))
            side = made.pixels if made.chest.sides[1] < 0 else made.pixels[:, ::-1]
            pictures.append(side / np.percentile(side, 90))
        brighter += bool(pictures[1][base].mean() > pictures[0][base].mean())
    assert brighter >= 6


def test_large_images_are_as_large_as_asked() -> None:
    """A detector's size, painted smaller and enlarged."""
    made = radiograph(1, (700, 611))
    assert made.pixels.shape == (700, 611)
    assert made.spacing_mm[0] == pytest.approx(0.6, abs=0.15)
