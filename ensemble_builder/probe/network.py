"""The network on torch's meta device: what shape it would give, without computing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from ensemble_builder.errors import BundleError
from ensemble_builder.probe.words import Failed, missing_package, said
from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.loading import (
    root_cause,
)


def predicted(
    bundle: BundleConfig,
    network: torch.nn.Module,
    x: torch.Tensor,
    done: Mapping[Any, Any],
    extra_keys: Sequence[str] | Mapping[str, str],
) -> tuple[Any, tuple[int, ...]]:
    """What the inferer gives of X, and the shape of one window."""
    shapes = _ShapeNetwork(network)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    try:
        if isinstance(extra_keys, Mapping):
            kwargs = {name: torch.as_tensor(done[k])[None] for name, k in extra_keys.items()}
        else:
            args = tuple(torch.as_tensor(done[k])[None] for k in extra_keys)
    except KeyError as error:
        msg = (
            f"evaluator: prepare_batch wants '{error.args[0]}', which the preprocessing doesn't "
            "give"
        )
        raise Failed(2, msg) from error
    try:
        with torch.inference_mode():
            y = bundle.inferer()(x[None], shapes, *args, **kwargs)
    except BundleError as error:
        raise Failed(4, str(error)) from error
    except Exception as error:
        cause = root_cause(error)
        missing = missing_package(cause)
        if missing:
            raise BundleError(missing) from error
        msg = (
            "inferer: the network can't take what the preprocessing gives, "
            f"{list(x.shape)}: {said(cause)}"
        )
        raise Failed(3, msg) from error
    return y, shapes.window


class _ShapeNetwork:
    """Stands for the network: random numbers of the shape that it would give."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network
        tensors = [*network.named_parameters(), *network.named_buffers()]
        self._meta = {name: tensor.detach().to("meta") for name, tensor in tensors}
        self._seen: dict[tuple[int, ...], Any] = {}
        self.window: tuple[int, ...] = ()

    def __call__(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        plain = windows.as_subclass(torch.Tensor)
        self.window = tuple(plain.shape[1:])
        shape = tuple(plain.shape)
        if shape not in self._seen:
            self._seen[shape] = self._outputs(plain, args, kwargs)
        generator = torch.Generator().manual_seed(sum(shape))
        return tree_map_only(
            torch.Tensor, lambda one: torch.randn(one.shape, generator=generator), self._seen[shape]
        )

    def _outputs(self, windows: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            with torch.device("meta"):
                return torch.func.functional_call(
                    self._network,
                    self._meta,
                    (windows.to("meta"), *(_to_meta(one) for one in args)),
                    {name: _to_meta(one) for name, one in kwargs.items()},
                )
        except Exception:  # noqa: BLE001 - not every network runs on the meta device
            return self._network(windows, *args, **kwargs)


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def not_one_tensor(place: str, y: Any) -> str:
    """The sentence for a network or transform that gives a dictionary, a tuple, ..."""
    found = f"a {type(y).__name__}"
    if isinstance(y, Mapping):
        found += f" with {', '.join(repr(str(key)) for key in list(y)[:4])}"
    elif isinstance(y, list | tuple):
        found += f" of {len(y)}"
    return (
        f"{place}: gives {found}, and one tensor can be served; wrap the network so that it "
        "returns the one you need (detection heads aren't supported yet)"
    )
