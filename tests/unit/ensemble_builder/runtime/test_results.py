"""From the postprocessing's tensors to the contract's outputs."""

from __future__ import annotations

import pytest
import torch

from ensemble_builder.runtime.placing import InputGrid
from ensemble_builder.runtime.recipe import Output
from ensemble_builder.runtime.results import result

MASK = Output("pred", "MASK", "labelmap", "UINT8", (-1, -1, -1))


def a_grid(*shape: int) -> InputGrid:
    """Of an image that nothing is known of but its shape."""
    return InputGrid(shape, None)


def test_a_label_map_goes_back_to_slices() -> None:
    """[1, I, J, K] labels become uint8 [K, J, I]."""
    labels = torch.zeros(1, 4, 3, 2)
    labels[0, 3, 1, 0] = 7
    mask = result(labels, MASK, a_grid(4, 3, 2))
    assert mask.dtype == torch.uint8
    assert mask.shape == (2, 3, 4)
    assert mask.nonzero().tolist() == [[0, 1, 3]]


def test_a_photograph_s_mask_is_rows_and_columns() -> None:
    """[1, W, H] labels become uint8 [H, W]."""
    flat = Output("pred", "MASK", "labelmap", "UINT8", (-1, -1))
    assert result(torch.ones(1, 5, 3), flat, a_grid(5, 3)).shape == (3, 5)


@pytest.mark.parametrize(
    "pred", [torch.zeros(2, 4, 3, 2), torch.full((1, 2, 2, 2), 300.0), torch.full((1, 1, 1, 1), -1)]
)
def test_what_is_no_label_map_is_refused(pred: torch.Tensor) -> None:
    """Two channels, or labels past the datatype, are a fault of the bundle, not a wrong mask."""
    with pytest.raises(RuntimeError, match="postprocessing"):
        result(pred, MASK, a_grid(*pred.shape[1:]))


def test_a_mask_on_another_grid_is_refused() -> None:
    """What was not brought back to the image's grid never leaves as if it were."""
    with pytest.raises(RuntimeError, match="grid"):
        result(torch.zeros(1, 4, 3, 2), MASK, a_grid(4, 3, 3))


def test_labels_between_two_are_rounded_unless_the_writer_cuts() -> None:
    """An interpolated 1.6 is label 2; a bundle that writes integers says 1."""
    pred = torch.full((1, 1, 1, 1), 1.6)
    cutting = Output("pred", "MASK", "labelmap", "UINT8", (-1, -1, -1), cut=True)
    assert int(result(pred, MASK, a_grid(1, 1, 1))) == 2
    assert int(result(pred, cutting, a_grid(1, 1, 1))) == 1


def test_labels_without_a_channel_axis_go_back_to_slices() -> None:
    """A bundle may squeeze its one channel away, or leave an array instead of a tensor."""
    mask = result(torch.ones(4, 3, 2).numpy(), MASK, a_grid(4, 3, 2))
    assert mask.shape == (2, 3, 4)


def test_scores_stay_scores() -> None:
    """[n] float32, in the network's order."""
    scores = Output("pred", "SCORES", "scores", "FP32", (3,), on_input_grid=False)
    assert result(torch.tensor([0.1, 0.7, 0.2]), scores, a_grid()).tolist() == pytest.approx(
        [0.1, 0.7, 0.2]
    )
