"""The largest components by runs, against MONAI's own transform."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import KeepLargestConnectedComponentd

from ensemble_builder.runtime import components
from ensemble_builder.runtime.components import is_keep_largest, keep_largest
from ensemble_builder.runtime.recording import NotRecorded

EXAMPLES = int(os.environ.get("TRITOME_FUZZ", "60"))


def some_labels(seed: int, size: tuple[int, ...], density: float, channels: int) -> torch.Tensor:
    """Specks and clumps of the labels 0 to 3, in DICOM's order of memory."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(channels, *size[::-1], generator=generator)
    labels = torch.randint(1, 4 if channels == 1 else 2, noise.shape, generator=generator)
    labels = torch.where(noise < density, labels, 0).to(torch.uint8)
    return labels.permute(0, *range(labels.ndim - 1, 0, -1))


def monais(transform: Any, labels: torch.Tensor) -> torch.Tensor:
    """What MONAI leaves of them."""
    done = transform({"pred": labels.to(torch.float32).contiguous()})["pred"]
    return torch.as_tensor(done).as_subclass(torch.Tensor)


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_the_same_labels_as_monai(data: st.DataObject) -> None:
    """Any labels and options: equal, or left to MONAI because two are equally large."""
    size = tuple(data.draw(st.integers(1, 12)) for _ in range(data.draw(st.sampled_from([2, 3]))))
    channels = data.draw(st.sampled_from([1, 1, 3]))
    labels = some_labels(
        data.draw(st.integers(0, 9999)), size, data.draw(st.floats(0.0, 0.9)), channels
    )
    chosen = data.draw(st.sampled_from([None, [1], [1, 2], [2, 3, 7]]))
    if channels > 1:
        chosen = data.draw(st.sampled_from([[0], [1, 2]]))
    transform = KeepLargestConnectedComponentd(
        "pred",
        applied_labels=chosen,
        independent=channels > 1 or data.draw(st.booleans()),
        connectivity=data.draw(st.sampled_from([None, *range(1, len(size) + 1)])),
        num_components=data.draw(st.integers(1, 3)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "SLAB_VOXELS", data.draw(st.sampled_from([1, 50, 10_000])))
        try:
            actual = keep_largest(transform, labels)
        except NotRecorded as reason:
            assert "one size" in str(reason)
            return
    assert actual.dtype == labels.dtype
    assert actual.stride() == labels.stride()
    assert torch.equal(monais(transform, labels), actual.to(torch.float32))


def test_what_is_given_stays_as_it_is() -> None:
    """The labels may be the server's memory: what goes, goes from a copy."""
    labels = some_labels(1, (9, 9, 9), 0.2, 1)
    before = labels.clone()
    done = keep_largest(KeepLargestConnectedComponentd("pred"), labels)
    assert torch.equal(before, labels)
    assert int((done != labels).sum()) > 0


def test_one_component_costs_no_copy() -> None:
    """Where nothing goes, the same tensor comes back."""
    labels = torch.zeros(1, 5, 5, 5, dtype=torch.uint8)
    labels[0, 1:3, 1:3, 1:3] = 1
    assert keep_largest(KeepLargestConnectedComponentd("pred"), labels) is labels


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (torch.zeros(1, 4, 4, 4), {}),
        (torch.zeros(1, 4, dtype=torch.uint8), {}),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), {"applied_labels": [1], "independent": False}),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), {}),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), {"applied_labels": [0]}),
        (torch.zeros(1, 4, 4, dtype=torch.uint8)[..., ::2], {"applied_labels": [1]}),
        (torch.eye(4, dtype=torch.uint8)[None], {"connectivity": 1}),
    ],
)
def test_the_rest_is_monais(labels: torch.Tensor, options: dict[str, Any]) -> None:
    """Other tensors, unions of channels, the background, and components of one size."""
    with pytest.raises(NotRecorded):
        keep_largest(KeepLargestConnectedComponentd("pred", **options), labels)


def test_noise_is_monais(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many runs would need more memory than voxels do."""
    monkeypatch.setattr(components, "MOST_RUNS", 10)
    with pytest.raises(NotRecorded, match="noise"):
        keep_largest(KeepLargestConnectedComponentd("pred"), some_labels(1, (9, 9, 9), 0.5, 1))


def test_only_the_transform_itself_is_known() -> None:
    """A transform of the same name on other keys isn't taken for it."""
    assert is_keep_largest(KeepLargestConnectedComponentd("pred"), "pred")
    assert not is_keep_largest(KeepLargestConnectedComponentd(["pred", "label"]), "pred")
