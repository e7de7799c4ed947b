"""Picks what computes a network, and proves it first.

A module in eval mode comes in; a callable goes out that computes the same. A conversion is
used only where it agrees with eager torch on this very machine, on fixed windows; where it
fails or differs, eager runs and the log says so with the figures.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks.agreement import TOLERANCES, Agreement, check
from ensemble_builder.runtime.networks.eager import EagerNetwork, eager_predictions, full_float32
from ensemble_builder.runtime.networks.examples import comparison_windows
from ensemble_builder.runtime.networks.protocol import Network, NetworkOptions

_log = logging.getLogger(__name__)


class OneSize:
    """A conversion for windows of the size it was compared on; eager takes all others."""

    def __init__(self, window: tuple[int, ...], converted: Network, eager: Network) -> None:
        self._window = window
        self._converted = converted
        self._eager = eager

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """[N, C, *roi] -> [N, C_out, *roi]."""
        if tuple(windows.shape[1:]) == self._window:
            return self._converted(windows)
        return self._eager(windows)


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A network that may be called, and how it came about.

    Attributes:
        network: What computes.
        runtime: Which runtime that is.
        precision: What it computes in.
        checks: What the comparisons with eager found; empty for eager itself.
        refused: Why what was asked for isn't used; empty where it is.
    """

    network: Network
    runtime: str
    precision: str
    checks: tuple[Agreement, ...] = ()
    refused: str = ""

    def __call__(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[N, C, *roi] -> [N, C_out, *roi], or [N, n]; eager torch takes further tensors too."""
        return cast(Callable[..., torch.Tensor], self.network)(windows, *args, **kwargs)

    def __str__(self) -> str:
        words = f"{self.runtime} {self.precision}"
        if self.refused:
            return f"{words}, because {self.refused}"
        if not self.checks:
            return words
        allowed = TOLERANCES[self.precision]
        return (
            f"{words} agrees with eager torch ({'; '.join(map(str, self.checks))}; allowed: "
            f"{100 * allowed.least_same:g} %, {allowed.largest_off:g})"
        )


def choose_network(
    module: torch.nn.Module,
    example: torch.Tensor,
    device: torch.device,
    options: NetworkOptions | None = None,
) -> LoadedNetwork:
    """A module in the runtime that the options name, or eager torch where that isn't equal.

    Args:
        module: In eval mode, with its weights; moved to the device.
        example: float32 [1, C, *roi], see `example_windows`.
        device: Where windows will be.
        options: What for; `triton` is no runtime of this process, see `networks.triton`.

    Raises:
        BundleError: the network gives something other than one tensor.
    """
    options = options or NetworkOptions()
    module = module.to(device)
    plain = replace(options, runtime="torch", precision="f32")
    eager = EagerNetwork(module, device, plain)
    runtime = options.runtime
    if runtime == "auto":
        runtime = "openvino" if device.type == "cpu" else "torch"
    if runtime == "torch" and options.precision == "f32":
        return LoadedNetwork(eager, "torch", "f32")
    try:
        network, checks = _proven(runtime, module, example.to(device), options, eager)
    except (ConversionError, torch.OutOfMemoryError) as error:
        reason = str(error) if isinstance(error, ConversionError) else "the GPU's memory is short"
        refused = f"{runtime} {options.precision} is not used: {reason}"
        _log.warning("eager torch computes this network in f32: %s", refused)
        return LoadedNetwork(eager, "torch", "f32", refused=refused)
    found = LoadedNetwork(network, runtime, options.precision, checks)
    _log.info("%s", found)
    return found


def _proven(
    runtime: str,
    module: torch.nn.Module,
    example: torch.Tensor,
    options: NetworkOptions,
    eager: EagerNetwork,
) -> tuple[Network, tuple[Agreement, ...]]:
    """A conversion for windows of any size where they vary, else for the example's size."""
    if options.free_axes:
        with contextlib.suppress(ConversionError):
            return _converted(runtime, module, example, options)
    fixed = replace(options, free_axes=())
    network, checks = _converted(runtime, module, example, fixed)
    if options.free_axes:
        network = OneSize(tuple(example.shape[1:]), network, eager)
    return network, checks


def _converted(
    runtime: str, module: torch.nn.Module, example: torch.Tensor, options: NetworkOptions
) -> tuple[Network, tuple[Agreement, ...]]:
    windows = comparison_windows(example, options)
    with full_float32():
        expected = [(batch, eager_predictions(module, batch)) for batch in windows]
    network = _conversion(runtime, module, options, expected[0])
    with torch.inference_mode(), full_float32():
        found = check(network, expected, options.precision)
    if hasattr(network, "rest"):  # perhaps for hours, until the first study
        network.rest()
    return network, found


def _conversion(
    runtime: str,
    module: torch.nn.Module,
    options: NetworkOptions,
    expected: tuple[torch.Tensor, torch.Tensor],
) -> Network:
    """Imported only where used: no machine has all of them."""
    example, prediction = expected
    if runtime == "torch":
        return EagerNetwork(module, example.device, options)
    if runtime == "openvino":
        from ensemble_builder.runtime.networks.openvino import OpenVINONetwork  # noqa: PLC0415

        return OpenVINONetwork(module, example, options, prediction)
    if runtime == "onnxruntime":
        from ensemble_builder.runtime.networks import onnxruntime  # noqa: PLC0415

        return onnxruntime.convert(module, example, options, prediction)
    if runtime == "tensorrt":
        from ensemble_builder.runtime.networks import tensorrt  # noqa: PLC0415

        return tensorrt.convert(module, example, options, prediction)
    if runtime == "torch_compile":
        from ensemble_builder.runtime.networks.compiled import CompiledNetwork  # noqa: PLC0415

        return CompiledNetwork(module, example, options)
    msg = "it computes in a model of its own, not in this process"
    raise ConversionError(msg)
