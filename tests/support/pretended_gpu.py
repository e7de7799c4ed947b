"""A GPU for machines that have none: tensors that say `cuda:0`, computed on the CPU.

In: nothing. Out: a context in which `torch.device("cuda:0")` works. As on a GPU, numpy can't look
at such tensors and they don't mix with the CPU's. What crosses between the two is counted, so a
test can say that a volume stays where it is. No kernel of CUDA's runs: whether one exists for a
datatype, and what it rounds to, only a GPU says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from monai.data import MetaTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten

GPU = torch.device("cuda:0")
_CPU = torch.device("cpu")

_CROSSES = {aten._to_copy.default, aten.copy_.default, torch.Tensor.copy_}
_plain = torch.Tensor
_FETCHES = {_plain.__float__, _plain.__int__, _plain.__index__, _plain.item, _plain.tolist}
_GUARDED = {
    _plain.__getitem__,
    _plain.__setitem__,
    _plain.contiguous,
    _plain.copy_,
    _plain.nonzero,
}
"""These want a real GPU before anybody is asked."""
_TAKES_INDICES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
"""Whose indices CUDA fetches from the CPU by itself."""


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU.

    Attributes:
        held: The same on the CPU.
        fetched: Bytes of what was fetched from there by any, one number for each wait.
    """

    fetched: ClassVar[list[int]] = []

    __slots__ = ("held",)  # not in its __dict__: MONAI copies that from tensor to tensor
    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnGpu:
        """Shares the memory of `held`."""
        found: OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=GPU,
        )
        found.held = held
        return found

    def __init__(self, *_: object, **__: object) -> None:
        """Made by `__new__`."""

    def __repr__(self, **_: object) -> str:
        """Its values, and where it pretends to be."""
        return f"on a GPU: {self.held!r}"

    def as_subclass(self, cls: type[torch.Tensor]) -> Any:
        """Plain, or with MONAI's metadata."""
        return OnGpu.__new__(_GpuMetaTensor if issubclass(cls, MetaTensor) else OnGpu, self.held)

    def fetch(self) -> torch.Tensor:
        """The same on the CPU, counted."""
        OnGpu.fetched.append(self.held.numel() * self.held.element_size())
        return self.held

    def untyped_storage(self) -> torch.UntypedStorage:
        """Its memory."""
        return self.held.untyped_storage()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in _GUARDED:
                return _on_what_is_held(func, cls, *args)
            if func in _FETCHES:
                return func(args[0].fetch())
            found = func(*args, **(kwargs or {}))
        if (
            not issubclass(cls, MetaTensor)
            or func in torch.overrides.get_default_nowrap_functions()
        ):
            return found
        return tree_map(lambda v: v.as_subclass(cls) if type(v) is OnGpu else v, found)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        msg = "outside of a_gpu() there is none"
        raise RuntimeError(msg)


class _GpuMetaTensor(MetaTensor, OnGpu):  # type: ignore[misc]
    """MONAI's tensor with metadata, on a GPU."""


class PretendedGpu(TorchDispatchMode):
    """Computes what is asked of the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        leaves = [v for v in given if isinstance(v, torch.Tensor)]
        ours = [v for v in leaves if isinstance(v, OnGpu)]
        devices = [v for v in given if isinstance(v, torch.device)]
        asked = devices[0] if devices else GPU if ours else _CPU
        if not ours and asked.type == "cpu":
            return func(*args, **kwargs)
        if func._can_decompose():  # in inference mode they come as they are
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        _refuse_mixed(func, args, leaves)
        to_cpu = asked.type == "cpu" or (
            func is aten.copy_.default and not isinstance(args[0], OnGpu)
        )
        if to_cpu or func is aten._local_scalar_dense.default:
            for one in ours:
                one.fetch()
        held_args, held_kwargs = tree_map(_held, (args, kwargs))
        if "device" in kwargs:
            held_kwargs["device"] = _CPU
        done = func(*held_args, **held_kwargs)
        written = _written(func, args, kwargs)
        if written is not None:
            return written
        if to_cpu:
            return done
        return tree_map(lambda v: OnGpu(v) if isinstance(v, torch.Tensor) else v, done)


class Event:
    """A mark in the GPU's work, all of which is done at once."""

    def record(self, stream: object) -> None:
        """The mark is set."""

    def synchronize(self) -> None:
        """It is passed."""


@contextmanager
def a_gpu() -> Iterator[list[int]]:
    """While it lasts there is a `cuda:0`; gives `OnGpu.fetched`, emptied."""
    OnGpu.fetched.clear()
    internals: Any = torch._C
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: device)
        patch.setattr(torch.cuda, "Event", Event)
        before = internals._only_lift_cpu_tensors()
        internals._set_only_lift_cpu_tensors(True)  # numbers become tensors where we see it
        try:
            with PretendedGpu():
                yield OnGpu.fetched
        finally:
            internals._set_only_lift_cpu_tensors(before)


def _on_what_is_held(func: Any, cls: Any, *args: Any) -> Any:
    tensors = [v for v in args if isinstance(v, torch.Tensor)]
    _refuse_mixed(func, args, tensors)
    if func is _plain.copy_:
        if not isinstance(args[0], OnGpu):
            return func(args[0], args[1].fetch())
        func(args[0].held, _held(args[1]))
        return args[0]
    found = func(*tree_map(_held, args))
    return None if found is None else OnGpu(found).as_subclass(cls)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


def _refuse_mixed(func: Any, args: Any, leaves: list[torch.Tensor]) -> None:
    strange = [v for v in leaves if not isinstance(v, OnGpu) and v.ndim]
    if not strange or len(strange) == len(leaves) or func in _CROSSES:
        return
    if (func in _TAKES_INDICES or func in _GUARDED) and isinstance(args[0], OnGpu):
        return
    msg = f"{func}: some tensors are on the GPU, others on the CPU"
    raise RuntimeError(msg)


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation writes to, and gives back; None where it makes something new."""
    places = [r.alias_info for r in func._schema.returns]
    if not places or any(one is None or not one.is_write for one in places):
        return None
    found = []
    for one in places:
        for n, argument in enumerate(func._schema.arguments):
            info = argument.alias_info
            if info is not None and info.is_write and info.before_set == one.before_set:
                found.append(args[n] if n < len(args) else kwargs[argument.name])
                break
    return found[0] if len(found) == 1 else tuple(found)
