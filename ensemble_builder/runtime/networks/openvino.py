"""OpenVINO on the CPU: several times faster than eager torch there, and the default there."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import torch

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks.joined import joined
from ensemble_builder.runtime.networks.norms import with_accurate_norms
from ensemble_builder.runtime.networks.protocol import NetworkOptions

LARGEST_IN_STREAMS = 128**3
"""Voxels of a window above which one is computed at a time, by all cores: each stream has memory
of its own for what lies between the layers."""

LARGEST_PREDICTION_IN_STREAMS = 32 * LARGEST_IN_STREAMS
"""The same for the numbers of a prediction, of which each stream has one: 256 MiB of them."""

MOST_STREAMS = 4

Outputs = Future[torch.Tensor]


class OpenVINONetwork:
    """A torch module converted without ONNX between; any number of axes.

    Windows are computed one by one, each in one of a few streams that share the cores: a shape
    that is known beforehand and threads that seldom wait for each other take a fifth less time
    than batches do.

    Attributes:
        one_by_one: Windows needn't be given in batches.
        in_flight: How many windows should be asked for before the first is awaited.
    """

    one_by_one = True

    def __init__(
        self,
        module: torch.nn.Module,
        example: torch.Tensor,
        options: NetworkOptions,
        prediction: torch.Tensor,
    ) -> None:
        """Converts and compiles.

        Args:
            module: In eval mode, on the CPU.
            example: float32 [1, C, *roi].
            options: Of them, `precision`, `free_axes` and `many_windows`.
            prediction: What eager gives for the example; only its size counts.

        Raises:
            ConversionError: OpenVINO isn't here, or can't take the network.
        """
        if example.device.type != "cpu":
            msg = "OpenVINO computes on the CPU, this instance has a GPU"
            raise ConversionError(msg)
        try:
            import openvino  # noqa: PLC0415 - only where it is used
        except ImportError as error:
            msg = "OpenVINO isn't installed (pip install openvino)"
            raise ConversionError(msg) from error
        shape: list[int] = [1, *example.shape[1:]]
        for axis in options.free_axes:
            shape[2 + axis] = -1
        streams = _streams(example, options, prediction)
        hints: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": options.precision}
        hints |= {"NUM_STREAMS": streams} if streams > 1 else {"PERFORMANCE_HINT": "LATENCY"}
        try:
            with torch.no_grad(), warnings.catch_warnings(), _root_logger_as_it_was():
                warnings.simplefilter("ignore")  # torch.jit.trace's, about python control flow
                accurate = with_accurate_norms(module)
                model = openvino.convert_model(accurate, example_input=example)
            model.reshape(shape)
            # Always said: left alone it takes bf16 on CPUs that have it.
            self._compiled = openvino.Core().compile_model(model, "CPU", hints)
            requests = [self._compiled.create_infer_request() for _ in range(streams)]
        except Exception as error:  # whatever its frontend raises
            msg = f"the network doesn't convert ({type(error).__name__})"
            raise ConversionError(msg) from error
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for one in requests:
            self._idle.put(one)
        self._pool = ThreadPoolExecutor(streams, thread_name_prefix="window")
        self.in_flight = streams + 1  # one waits, so that no stream does

    def submit(self, windows: torch.Tensor) -> Outputs:
        """Asks for the predictions of [N, C, *roi] without waiting for them.

        Keep the windows unchanged until the result is there.
        """
        plain = windows.as_subclass(torch.Tensor)
        return joined([self._pool.submit(self._compute, part) for part in torch.split(plain, 1)])

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """float32 [N, C, *roi] -> float32 [N, C_out, *roi]."""
        return self.submit(windows).result()

    def rest(self) -> None:
        """Gives back what lies between the layers; the next window takes it again."""
        self._compiled.release_memory()

    def _compute(self, window: torch.Tensor) -> torch.Tensor:
        request = self._idle.get()
        try:
            # The output is copied: the request writes its next one to the same memory.
            outputs = request.infer(
                [window.contiguous().numpy()], share_inputs=True, share_outputs=False
            )
        finally:
            self._idle.put(request)
        return torch.from_numpy(outputs[0])


def _streams(example: torch.Tensor, options: NetworkOptions, prediction: torch.Tensor) -> int:
    cores = len(os.sched_getaffinity(0))
    too_large = (
        example[0, 0].numel() > LARGEST_IN_STREAMS
        or prediction.numel() > LARGEST_PREDICTION_IN_STREAMS
    )
    if not options.many_windows or too_large or cores == 1:
        return 1
    return min(MOST_STREAMS, max(2, cores // 4))


@contextlib.contextmanager
def _root_logger_as_it_was() -> Iterator[None]:
    """OpenVINO's converter mutes the root logger, and where it fails leaves it mute."""
    root = logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:] = filters
        root.handlers[:] = handlers
