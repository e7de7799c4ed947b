"""MONAI's own inverse of the preprocessing, written down as steps instead of computed.

In: an `Invertd` and its data dictionary. Out: the steps (flip, permute, crop, pad, cast,
resample) that it would take, in order, with the very numbers it would use. The transforms
themselves run, on a stand-in that has the prediction's shape but the memory of one number; a
mode of PyTorch's dispatcher sees each operation on it. So nothing about any transform is known
here, and whatever does something else raises `NotRecorded`. Nothing outlives the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

MODES = ("bilinear", "nearest")
"""PyTorch's interpolation modes by their number; bicubic isn't recorded."""
PADDING_MODES = ("zeros", "border", "reflection")


class NotRecorded(RuntimeError):
    """The inverse does something that this module has no step for."""


@dataclass(frozen=True, slots=True)
class Flip:
    """Turns spatial axes around."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Permute:
    """New spatial axis n is old axis `order[n]`."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Crop:
    """Keeps `start:stop` of one spatial axis."""

    axis: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Pad:
    """Adds `before` and `after` (one number per spatial axis) voxels of one value."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float


@dataclass(frozen=True, slots=True)
class Cast:
    """Changes the dtype."""

    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Sample:
    """PyTorch's affine_grid and grid_sample.

    Attributes:
        theta: [1, n, n + 1], the normalized affine, in the dtype of the computation.
        size: Spatial size of the output.
        mode: bilinear or nearest.
        padding_mode: zeros, border or reflection.
    """

    theta: torch.Tensor
    size: tuple[int, ...]
    mode: str
    padding_mode: str
    align_corners: bool


Step = Flip | Permute | Crop | Pad | Cast | Sample


@dataclass(frozen=True, slots=True)
class _Node:
    """One tensor on the way: its steps so far."""

    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    batched: bool = False

    @property
    def lead(self) -> int:
        """How many axes come before the spatial ones."""
        return 2 if self.batched else 1

    def spatial(self, dim: int) -> int:
        """The spatial axis of a dimension.

        Raises:
            NotRecorded: it is the channel's or the batch's.
        """
        axis = dim % len(self.shape) - self.lead
        if axis < 0:
            msg = "an operation on the channel axis"
            raise NotRecorded(msg)
        return axis


@dataclass(frozen=True, slots=True)
class _Grid:
    """What affine_grid would have made."""

    theta: torch.Tensor
    size: tuple[int, ...]
    align_corners: bool


def record(
    compute: Callable[[torch.Tensor], Any], shape: tuple[int, ...], like: torch.Tensor
) -> tuple[tuple[Step, ...], Any]:
    """Runs `compute` on a stand-in and writes down what it does with it.

    Args:
        compute: Takes a tensor, gives whatever; `find` in it is up to the caller.
        shape: [C, *spatial] of the stand-in.
        like: Its dtype and device.

    Returns:
        The steps, and the stand-in's result (a tensor without memory, of the right shape).

    Raises:
        NotRecorded: something else is done than what there are steps for.
    """
    recorder = _Recorder(like.device)
    try:
        # In inference mode some operations would reach the recorder before they are taken
        # apart into those that it knows.
        with torch.inference_mode(mode=False), torch.no_grad():
            start = recorder.stand_in(_Node((), shape, like.dtype))
            with recorder:
                result = compute(start)
    except Exception as error:  # MONAI wraps what the recorder raises, and a bundle's code may fail
        msg = f"the inverse can't be recorded: {error.__cause__ or error}"
        raise NotRecorded(msg) from error
    if not isinstance(result, torch.Tensor):
        msg = "the result is no tensor"
        raise NotRecorded(msg)
    node = recorder.known(result)
    if not isinstance(node, _Node) or node.batched or tuple(result.shape) != node.shape:
        msg = "the result is not made from the input"
        raise NotRecorded(msg)
    return node.steps, result


def warm_up() -> None:
    """Loads what the first recording would load: a second that no request should wait for."""
    record(lambda tensor: tensor.flip(1), (1, 2, 2, 2), torch.zeros(1))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation; those on stand-ins are written down and not computed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self._nodes: dict[int, _Node | _Grid] = {}
        self._alive: list[torch.Tensor] = []  # so that no address is used twice

    def stand_in(self, node: _Node | _Grid) -> torch.Tensor:
        """A tensor of the node's shape with one number of memory."""
        if isinstance(node, _Grid):
            shape: tuple[int, ...] = (1, *node.size, len(node.size))
            dtype = node.theta.dtype
        else:
            shape, dtype = node.shape, node.dtype
        one = torch.zeros((), dtype=dtype, device=self._device)
        self._alive.append(one)
        self._nodes[one.untyped_storage().data_ptr()] = node
        return one.expand(shape)

    def known(self, value: Any) -> _Node | _Grid | None:
        """What is known of a tensor; None where it isn't a stand-in."""
        if not isinstance(value, torch.Tensor) or value.numel() == 0:
            return None
        return self._nodes.get(value.untyped_storage().data_ptr())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is aten.affine_grid_generator.default:
            theta, size, align_corners = args
            if size[0] != 1:
                msg = "a batch of grids"
                raise NotRecorded(msg)
            grid = _Grid(theta.detach().clone(), tuple(int(n) for n in size[2:]), align_corners)
            return self.stand_in(grid)
        seen = [n for v in tree_leaves((args, kwargs)) if (n := self.known(v)) is not None]
        if not seen:
            return func(*args, **kwargs)
        node = seen[0]
        if func in _SAME:
            return func(*args, **kwargs)
        if func in _SAMPLERS and isinstance(node, _Node):
            return self.stand_in(_sampled(node, seen[1:], args))
        device = kwargs.pop("device", None)
        if device is not None and torch.device(device).type != self._device.type:
            msg = "a move to another device"
            raise NotRecorded(msg)
        handler = _HANDLERS.get(func)
        if handler is None or len(seen) != 1 or not isinstance(node, _Node):
            msg = f"the operation {func}"
            raise NotRecorded(msg)
        return self.stand_in(handler(node, *args[1:], **kwargs))


_SAME = {aten.alias.default, aten.detach.default, aten.lift_fresh.default}
_SAMPLERS = {aten.grid_sampler_2d.default, aten.grid_sampler_3d.default}


def _sampled(node: _Node, others: list[Any], args: tuple[Any, ...]) -> _Node:
    mode, padding_mode, align_corners = args[2:5]
    grid = others[0] if len(others) == 1 else None
    if not isinstance(grid, _Grid) or not node.batched or mode >= len(MODES):
        msg = "a resampling that is not affine, or not linear or nearest"
        raise NotRecorded(msg)
    if grid.align_corners != align_corners or grid.theta.dtype != node.dtype:
        msg = "a grid that doesn't fit its resampling"
        raise NotRecorded(msg)
    step = Sample(
        grid.theta, grid.size, MODES[mode], PADDING_MODES[padding_mode], bool(align_corners)
    )
    return replace(node, steps=(*node.steps, step), shape=(*node.shape[:2], *grid.size))


def _cast(node: _Node, *, dtype: torch.dtype | None = None, **_: Any) -> _Node:
    dtype = dtype or node.dtype
    return replace(node, steps=(*node.steps, Cast(dtype)), dtype=dtype)


def _clone(node: _Node, **_: Any) -> _Node:
    return node


def _unsqueeze(node: _Node, dim: int) -> _Node:
    if dim != 0 or node.batched:
        msg = "a new axis"
        raise NotRecorded(msg)
    return replace(node, shape=(1, *node.shape), batched=True)


def _squeeze(node: _Node, dim: int | list[int]) -> _Node:
    if dim not in (0, [0]) or not node.batched:
        msg = "a squeezed axis"
        raise NotRecorded(msg)
    return replace(node, shape=node.shape[1:], batched=False)


def _flip(node: _Node, dims: list[int]) -> _Node:
    return replace(node, steps=(*node.steps, Flip(tuple(node.spatial(d) for d in dims))))


def _permute(node: _Node, dims: list[int]) -> _Node:
    dims = [d % len(node.shape) for d in dims]
    if dims[: node.lead] != list(range(node.lead)):
        msg = "a permutation of the channel axis"
        raise NotRecorded(msg)
    order = tuple(node.spatial(d) for d in dims[node.lead :])
    return replace(
        node, steps=(*node.steps, Permute(order)), shape=tuple(node.shape[d] for d in dims)
    )


def _transpose(node: _Node, a: int, b: int) -> _Node:
    dims = list(range(len(node.shape)))
    dims[a], dims[b] = dims[b], dims[a]
    return _permute(node, dims)


def _rot90(node: _Node, k: int = 1, dims: tuple[int, ...] | list[int] = (0, 1)) -> _Node:
    a, b = dims
    turns = k % 4
    if turns == 2:
        return _flip(node, [a, b])
    if turns == 0:
        return node
    return _transpose(_flip(node, [b if turns == 1 else a]), a, b)


def _slice(
    node: _Node, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1
) -> _Node:
    size = node.shape[dim]
    first, last, _ = slice(start, stop).indices(size)
    if step == 1 and (first, last) == (0, size):
        return node
    if step != 1 or last <= first:
        msg = "a slice with steps, or an empty one"
        raise NotRecorded(msg)
    crop = Crop(node.spatial(dim), first, last)
    shape = list(node.shape)
    shape[dim] = last - first
    return replace(node, steps=(*node.steps, crop), shape=tuple(shape))


def _pad(node: _Node, pad: list[int], value: float = 0) -> _Node:
    axes = len(node.shape)
    pairs = [(0, 0)] * axes
    for n in range(len(pad) // 2):
        pairs[axes - 1 - n] = (pad[2 * n], pad[2 * n + 1])
    if any(pair != (0, 0) for pair in pairs[: node.lead]) or min(pad, default=0) < 0:
        msg = "padding that crops, or of the channel axis"
        raise NotRecorded(msg)
    before = tuple(first for first, _ in pairs[node.lead :])
    after = tuple(last for _, last in pairs[node.lead :])
    shape = tuple(n + sum(pair) for n, pair in zip(node.shape, pairs, strict=True))
    return replace(node, steps=(*node.steps, Pad(before, after, float(value))), shape=shape)


_HANDLERS: dict[Any, Callable[..., _Node]] = {
    aten._to_copy.default: _cast,
    aten.clone.default: _clone,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.flip.default: _flip,
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.rot90.default: _rot90,
    aten.slice.Tensor: _slice,
    aten.constant_pad_nd.default: _pad,
}
