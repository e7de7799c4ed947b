"""MONAI's sliding window with a slab of memory instead of two whole volumes.

In: a bundle's own `SlidingWindowInferer` (or `SliceInferer`), the network and its input. Out:
what the inferer would give, bit for bit, reduced on the way where the caller wants labels
only. Windows are taken in MONAI's order and batches, so each voxel's sum is made in the same
order; windows move along the first axis (along `buffer_dim` where it buffers), and what no
later window touches is finished, reduced and written out. An inferer that isn't known, and a
network that gives something else than one tensor of the window's size, get MONAI's own code.
Nothing survives the call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type

from ensemble_builder.errors import Cancelled
from ensemble_builder.runtime.window_plan import WindowPlan, plan_windows
from ensemble_builder.runtime.window_slab import Reduce, Slab

BATCHES_IN_FLIGHT = 2
"""Window batches that a network with `submit` works on at once, unless it has `in_flight`; and
those that a GPU is given before the first of them is computed."""


class _OtherOutput(Exception):
    """The network gives something that isn't stitched here."""


def sliding_window(
    inferer: Any,
    x: torch.Tensor,
    network: Any,
    reduce: Reduce | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Any:
    """`inferer(inputs=x, network=network)`, then `reduce` on each item of the batch.

    Args:
        inferer: The bundle's own.
        x: [1, C, *spatial].
        network: Called with a batch of windows. Where it has `submit`, that is called instead,
            and gives a `concurrent.futures.Future` of the same; as many batches are in flight
            as its `in_flight` says (2 where it says nothing). With `one_by_one` it is called
            for single windows, and `in_flight` counts these.
        reduce: Makes labels of channels, [C, ...] -> [C', ...], slab by slab; None keeps all.
        cancelled: Asked between batches.

    Returns:
        [1, C', *spatial] on the inferer's device, with the metadata of `x` where it has some.

    Raises:
        Cancelled: `cancelled` said so.
    """
    plan = plan_windows(inferer, x)
    if plan is not None:
        try:
            return _stitch(plan, network, reduce, cancelled)
        except _OtherOutput:
            pass  # one batch computed in vain, known only now
    done = inferer(inputs=x, network=_asked(network, cancelled, x.device))
    if reduce is None or not isinstance(done, torch.Tensor):
        return done
    reduced = torch.stack([reduce(item) for item in done.as_subclass(torch.Tensor)])
    return _like(reduced, x, done.device)


def _stitch(
    plan: WindowPlan, network: Any, reduce: Reduce | None, cancelled: Callable[[], bool] | None
) -> Any:
    slab: Slab | None = None
    buffer: Slab | None = None
    foreign = hasattr(network, "submit")
    even = bool((plan.weights == 1).all())  # then a product changes nothing
    for (first, last), output in _outputs(plan, network, cancelled):
        if not isinstance(output, torch.Tensor) or tuple(output.shape[2:]) != plan.roi:
            raise _OtherOutput
        if slab is None:
            slab = Slab(plan, output.shape[1], reduce)
        windows = plan.windows[first:last]
        if plan.buffers:
            if buffer is None:
                end = next(n for n in plan.buffers if n > first)
                buffer = Slab(plan, output.shape[1], None, first, end)
            buffer.add_weighted(windows, output if even else output * plan.weights)
            if last in plan.buffers:
                slab.advance(plan.windows[buffer.first][plan.axis])
                slab.add_slab(buffer)
                buffer = None
        else:
            # In place as in MONAI, but for memory that is perhaps the server's and not ours.
            if even:
                weighted = output
            elif foreign:
                weighted = (output * plan.weights).to(output.dtype)
            else:
                weighted = output.mul_(plan.weights)
            slab.advance(windows[0][plan.axis])
            slab.add_weighted(windows, weighted.to(plan.device))
            del weighted
        del output
    assert slab is not None
    return _like(slab.finish(), plan.original, plan.device)


def _outputs(
    plan: WindowPlan, network: Any, cancelled: Callable[[], bool] | None
) -> Iterator[tuple[tuple[int, int], Any]]:
    """What the network gives for each batch, in order."""
    submit = getattr(network, "submit", None)
    depth = max(1, int(getattr(network, "in_flight", BATCHES_IN_FLIGHT))) if submit else 1
    waiting: deque[tuple[tuple[int, int], Any]] = deque()
    keep_pace = _pace(plan.window_device)

    def taken() -> tuple[tuple[int, int], Any]:
        batch, answer = waiting.popleft()
        found = answer.result() if isinstance(answer, Future) else answer
        if plan.slice_axis is not None and isinstance(found, torch.Tensor):
            found = found.unsqueeze(plan.slice_axis + 2)
        return batch, found

    batches = plan.batches
    if getattr(network, "one_by_one", False):
        batches = tuple((n, n + 1) for n in range(len(plan.windows)))
    try:
        for batch in batches:
            _ask(cancelled)
            places = [
                (slice(0, 1), slice(None), *plan.place(w)) for w in plan.windows[slice(*batch)]
            ]
            # One window isn't copied, as in MONAI.
            data = plan.inputs[places[0]]
            if len(places) > 1:
                data = torch.cat([plan.inputs[place] for place in places])
            data = data.to(plan.window_device)
            if plan.slice_axis is not None:
                data = data.squeeze(plan.slice_axis + 2)
            waiting.append((batch, submit(data) if submit else network(data)))
            del data
            keep_pace()
            if len(waiting) >= depth:
                yield taken()
        while waiting:
            _ask(cancelled)
            yield taken()
    finally:
        for _, answer in waiting:
            if isinstance(answer, Future):
                answer.cancel()


def _like(result: torch.Tensor, x: torch.Tensor, device: torch.device) -> Any:
    """With the metadata of the input, as MONAI gives it."""
    if not isinstance(x, MetaTensor):
        return result.to(device)
    meta = MetaTensor([]).copy_meta_from(x, copy_attr=False)
    dtype = result.dtype
    return convert_to_dst_type(result, meta, dtype=dtype, device=device)[0]


def _ask(cancelled: Callable[[], bool] | None) -> None:
    if cancelled is not None and cancelled():
        msg = "the request was cancelled between two batches of windows"
        raise Cancelled(msg)


def _pace(device: torch.device) -> Callable[[], None]:
    """Called after each batch: waits on a GPU until all but the last two are computed.

    A GPU takes work as fast as it is handed over, a whole study ahead; what it has taken can
    neither pause for a more urgent request nor end.
    """
    marks: deque[torch.cuda.Event] = deque()

    def keep_pace() -> None:
        # Not a blocking one: who watches the server takes a stub that sleeps for one that hangs.
        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
        mark.record(torch.cuda.current_stream(device))
        marks.append(mark)
        if len(marks) > BATCHES_IN_FLIGHT:
            marks.popleft().synchronize()

    return keep_pace if device.type == "cuda" else lambda: None


def _asked(network: Any, cancelled: Callable[[], bool] | None, device: torch.device) -> Any:
    """The network, which asks first whether anyone still waits."""
    if cancelled is None:
        return network
    keep_pace = _pace(device)

    def compute(*args: Any, **kwargs: Any) -> Any:
        _ask(cancelled)
        found = network(*args, **kwargs)
        keep_pace()
        return found

    return compute
