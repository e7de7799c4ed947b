"""The sliding window in slabs gives MONAI's own bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer

from ensemble_builder.errors import Cancelled
from ensemble_builder.runtime import window_slab
from ensemble_builder.runtime.windows import sliding_window

EXAMPLES = int(os.environ.get("TRITOME_FUZZ", "40"))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def a_network(axes: int, channels: int, seed: int) -> torch.nn.Module:
    """A convolution whose output depends on its surroundings."""
    torch.manual_seed(seed)
    kind = torch.nn.Conv3d if axes == 3 else torch.nn.Conv2d
    return kind(1, channels, 3, padding=1).eval()


def labels(part: torch.Tensor) -> torch.Tensor:
    """What a reduction gives: narrow labels."""
    return part.argmax(0, keepdim=True).to(torch.uint8)


@st.composite
def inferers(draw: st.DrawFn, axes: int) -> SlidingWindowInferer:
    """Any settings that a bundle may have."""
    roi = [draw(st.sampled_from([4, 7, 8, 13, -1])) for _ in range(axes)]
    overlap = st.sampled_from([0.0, 0.25, 0.5, 0.8])
    settings_ = {
        "roi_size": draw(st.sampled_from([roi, 8])),
        "sw_batch_size": draw(st.integers(1, 5)),
        "overlap": draw(st.one_of(overlap, st.lists(overlap, min_size=axes, max_size=axes))),
        "mode": draw(st.sampled_from(["constant", "gaussian"])),
        "sigma_scale": draw(st.sampled_from([0.125, 0.3])),
        "padding_mode": draw(st.sampled_from(["constant", "replicate", "reflect"])),
        "device": draw(st.sampled_from([None, "cpu"])),
        "sw_device": draw(st.sampled_from([None, "cpu"])),
        "cpu_thresh": draw(st.sampled_from([None, 100])),
        "cache_roi_weight_map": draw(st.booleans()) and min(roi) > 0,
    }
    if settings_["padding_mode"] == "constant":
        settings_["cval"] = draw(st.sampled_from([0.0, -2.5]))
    if draw(st.booleans()):
        settings_["buffer_steps"] = draw(st.integers(1, 3))
        settings_["buffer_dim"] = draw(st.integers(-axes, axes - 1))
    if settings_["roi_size"] == 8:
        settings_["cache_roi_weight_map"] = False
    return SlidingWindowInferer(**settings_)


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_the_same_bits_as_monai(data: st.DataObject) -> None:
    """Whatever the settings: the same scores without a reduction, the same labels with one."""
    axes = data.draw(st.sampled_from([2, 3]))
    inferer = data.draw(inferers(axes))
    # Reflection needs more voxels than it adds.
    size = [data.draw(st.integers(7, 21)) for _ in range(axes)]
    network = a_network(axes, data.draw(st.integers(1, 5)), data.draw(st.integers(0, 9)))
    x = torch.randn(1, 1, *size)
    with torch.no_grad():
        expected = inferer(inputs=x, network=network)
        assert torch.equal(expected, sliding_window(inferer, x, network))
        reduced = sliding_window(inferer, x, network, reduce=labels)
    assert torch.equal(labels(expected[0])[None], reduced)
    assert reduced.dtype == torch.uint8


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_of_a_volume(axis: int) -> None:
    """A SliceInferer runs a 2-D network over the slices of a volume, here too."""
    inferer = SliceInferer(roi_size=(8, 11), spatial_dim=axis, sw_batch_size=3, overlap=0.3)
    network, x = a_network(2, 4, 1), torch.randn(1, 1, 12, 15, 18)
    with torch.no_grad():
        expected = inferer(inputs=x, network=network)
        assert torch.equal(expected, sliding_window(inferer, x, network))


def test_metadata_stays() -> None:
    """A MetaTensor comes out where one went in."""
    x = MetaTensor(torch.randn(1, 1, 9, 9, 9), affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))
    inferer = SlidingWindowInferer((4, 4, 4))
    with torch.no_grad():
        expected = inferer(inputs=x, network=a_network(3, 2, 0))
        found = sliding_window(inferer, x, a_network(3, 2, 0), reduce=labels)
    assert isinstance(found, MetaTensor)
    assert torch.equal(expected.affine, found.affine)
    assert found.dtype == torch.uint8


def test_only_a_slab_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of all channels is ever as large as the volume."""
    sizes: list[int] = []
    zeros = torch.zeros

    def watched(*shape: Any, **options: Any) -> torch.Tensor:
        made = zeros(*shape, **options)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(window_slab.torch, "zeros", watched)
    x = torch.randn(1, 1, 64, 8, 8)
    with torch.no_grad():
        sliding_window(SlidingWindowInferer((8, 8, 8)), x, a_network(3, 6, 0), reduce=labels)
    assert max(sizes) <= 6 * 8 * 8 * 16


class Several:
    """A network that works on several batches at once."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.waiting, self.most, self.in_flight = network, 0, 0, 3
        self.one_by_one = False

    def submit(self, batch: torch.Tensor) -> Future[torch.Tensor]:
        """Computes when the answer is asked for."""
        network = self

        class Later(Future[torch.Tensor]):
            def result(self, timeout: float | None = None) -> torch.Tensor:
                network.waiting -= 1
                return network.network(batch)

        self.waiting += 1
        self.most = max(self.most, self.waiting)
        return Later()


def test_batches_in_flight() -> None:
    """A network with `submit` gets as many batches as it wants; the result stays the same."""
    inferer = SlidingWindowInferer((8, 8, 8), sw_batch_size=2, overlap=0.5)
    network, x = a_network(3, 3, 2), torch.randn(1, 1, 20, 20, 20)
    several = Several(network)
    with torch.no_grad():
        expected = inferer(inputs=x, network=network)
        assert torch.equal(expected, sliding_window(inferer, x, several))
    assert several.most == 3


@pytest.mark.parametrize("steps", [None, 2])
def test_windows_one_by_one(steps: int | None) -> None:
    """A network that computes windows singly gets them so, whatever the bundle's batch is."""
    inferer = SlidingWindowInferer(
        (8, 8, 8), sw_batch_size=4, overlap=0.5, mode="gaussian", buffer_steps=steps
    )
    network, x = a_network(3, 3, 2), torch.randn(1, 1, 20, 20, 20)
    several = Several(network)
    several.one_by_one = True
    sizes = []
    network.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    with torch.no_grad():
        expected = inferer(inputs=x, network=network)
        sizes.clear()
        assert torch.allclose(expected, sliding_window(inferer, x, several), atol=1e-6)
    assert set(sizes) == {1}
    assert several.most == 3


@pytest.mark.parametrize("inferer", [SlidingWindowInferer((4, 4, 4)), SimpleInferer()])
def test_cancelling_stops_the_windows(inferer: Any) -> None:
    """Once nobody waits, the next batch isn't computed."""
    asked = iter([False, False, True])
    calls = 0

    def network(batch: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return batch.clone()

    x = torch.randn(1, 1, 8, 8, 8)
    if isinstance(inferer, SimpleInferer):
        asked = iter([True])
    with pytest.raises(Cancelled):
        sliding_window(inferer, x, network, cancelled=lambda: next(asked))
    assert calls == (0 if isinstance(inferer, SimpleInferer) else 2)


class Louder(SlidingWindowInferer):
    """A bundle's own inferer."""

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Something of its own."""
        return 2 * super().__call__(inputs, network, *args, **kwargs)


@pytest.mark.parametrize(
    "inferer",
    [Louder((4, 4, 4)), SimpleInferer(), SlidingWindowInferer((4, 4, 4), with_coord=True)],
)
def test_what_is_not_known_is_monais(inferer: Any) -> None:
    """Another inferer runs as it is; only the reduction is ours."""
    x = torch.randn(1, 1, 9, 9, 9)

    def network(batch: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.cat([batch, batch.square()], 1)

    expected = inferer(inputs=x, network=network)
    assert torch.equal(labels(expected[0])[None], sliding_window(inferer, x, network, labels))


@pytest.mark.parametrize("shrink", [False, True])
def test_other_outputs_are_monais(shrink: bool) -> None:
    """Several outputs, and outputs of another size, are stitched by MONAI."""
    inferer = SlidingWindowInferer((4, 4, 4))
    x = torch.randn(1, 1, 8, 8, 8)

    def network(batch: torch.Tensor) -> Any:
        return batch[..., ::2, ::2, ::2].clone() if shrink else (batch * 2, batch * 3)

    expected, found = inferer(inputs=x, network=network), sliding_window(inferer, x, network)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
