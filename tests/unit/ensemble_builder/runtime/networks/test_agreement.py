"""The figures of a comparison, and the windows it is made on."""

from __future__ import annotations

import pytest
import torch

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks.agreement import TOLERANCES, agreement, check
from ensemble_builder.runtime.networks.examples import comparison_windows, example_windows
from ensemble_builder.runtime.networks.protocol import NetworkOptions

WINDOWS = torch.zeros(1, 1, 4, 4)


def test_equal_predictions_agree_wholly():
    """No voxel differs, by nothing."""
    found = agreement(WINDOWS, torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4) * 0)
    same = agreement(WINDOWS, torch.ones(1, 2, 4, 4), torch.ones(1, 2, 4, 4))
    assert (same.same, same.off) == (1.0, 0.0)
    assert found.same < 1.0


def test_one_channel_is_decided_by_its_sign():
    """An argmax over one channel would call everything equal."""
    eager = torch.full((1, 1, 4, 4), 0.1)
    found = agreement(WINDOWS, eager, -eager)
    assert found.same == 0.0


def test_differences_count_against_the_range_of_the_predictions():
    """A thousandth of the range, whatever the numbers are."""
    eager = torch.linspace(-50, 50, 32).reshape(1, 2, 4, 4)
    ours = eager.clone()
    ours[0, 0, 0, 0] += 0.1
    assert agreement(WINDOWS, eager, ours).off == pytest.approx(1e-3, rel=1e-3)


def test_predictions_that_hardly_vary_are_not_measured_against_nothing():
    """The last digits of float32 are no difference."""
    eager = torch.full((1, 2, 4, 4), 1000.0)
    eager[0, 1] += 1e-3
    ours = eager + torch.tensor(1e-4)
    assert agreement(WINDOWS, eager, ours).within(TOLERANCES["f32"])


@pytest.mark.parametrize(
    ("eager", "ours", "sentence"),
    [
        ((1, 2, 4, 4), (1, 2, 4, 5), r"it gives \[1, 2, 4, 5\] where eager gives \[1, 2, 4, 4\]"),
        ((1, 2, 4, 4), None, "it gives values that are no finite numbers"),
        (None, (1, 2, 4, 4), "eager itself gives no finite numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused(eager, ours, sentence):
    """Other shapes and numbers that are none."""
    broken = torch.full((1, 2, 4, 4), float("nan"))
    with pytest.raises(ConversionError, match=sentence):
        agreement(
            WINDOWS,
            broken if eager is None else torch.zeros(eager),
            broken if ours is None else torch.zeros(ours),
        )


def test_a_batch_that_fails_is_named():
    """By its shape and the kind of error."""

    def broken(windows: torch.Tensor) -> torch.Tensor:
        raise IndexError

    with pytest.raises(ConversionError, match=r"it fails on windows 1x1x4x4 \(IndexError\)"):
        check(broken, [(WINDOWS, WINDOWS)], "f32")


def test_example_windows_are_the_same_each_time_and_never_constant():
    """Smooth, different from each other, in two and three dimensions."""
    for window in ((1, 16, 16, 16), (4, 33, 17), (3, 5, 6, 7)):
        one, other = example_windows(window, 2), example_windows(window, 2)
        assert torch.equal(one, other)
        assert one.shape == (2, *window)
        assert not torch.equal(one[0], one[1])
        assert all(float(image.std()) > 0.05 for image in one.reshape(-1, *window[1:]))


def test_batches_and_free_sizes_are_compared_where_they_occur():
    """One window alone otherwise."""
    example = example_windows((1, 8, 12))
    options = NetworkOptions(most_windows=4, free_axes=(1,))
    shapes = [list(one.shape) for one in comparison_windows(example, options)]
    assert shapes == [[1, 1, 8, 12], [2, 1, 8, 12], [1, 1, 8, 24]]
    assert len(comparison_windows(example, NetworkOptions())) == 1
