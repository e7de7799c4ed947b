"""A network in a Triton model of its own, called by BLS with several windows in flight.

Windows of one study, and of all studies that are computed at the same time, meet in that
model's queue, where Triton merges them into batches. Works inside the Python backend only.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from ensemble_builder.errors import ModelFailed
from ensemble_builder.runtime.networks.joined import joined
from ensemble_builder.runtime.recipe import NetworkModel

BATCHES_AHEAD = 2
"""How many full batches of one study may wait at the network: one computes, one stands ready."""


class TritonNetwork:
    """Asks another model of the same server.

    A thread waits for each request: that is what the Python backend's own `async_exec` does
    (it needs an event loop, and MONAI's inferers know none), and waiting threads cost nothing.
    """

    def __init__(
        self, model: NetworkModel, device: torch.device, windows_per_batch: int = 1
    ) -> None:
        """Calls nothing yet: the model may be loaded after this one.

        Args:
            model: Which model, and what its tensors are called.
            device: Where windows are and predictions should be.
            windows_per_batch: How many windows the caller gives at a time.
        """
        self._model = model
        self._device = device
        self._memory = (
            pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_GPU, device.index or 0)
            if device.type == "cuda"
            else pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
        )
        ahead = BATCHES_AHEAD * model.most_windows
        self.in_flight = max(1, -(-ahead // windows_per_batch))
        """How many of the caller's batches should be asked for before the first is awaited."""
        self._pool = ThreadPoolExecutor(ahead, thread_name_prefix="window")

    def submit(self, windows: torch.Tensor) -> Future[torch.Tensor]:
        """Asks for the predictions of [N, C, *roi] without waiting for them.

        Each window is a request of its own, as requests merge only where they fit whole beside
        each other. Keep the windows unchanged until the result is there.
        """
        parts = torch.split(self._ready(windows), 1)
        return joined([self._pool.submit(self._ask, part) for part in parts])

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """float32 [N, C, *roi] -> float32 [N, C_out, *roi]; the N windows are asked for at once.

        Raises:
            ModelFailed: the model gave an error for one of them.
        """
        return self.submit(windows).result()

    def _ready(self, windows: torch.Tensor) -> torch.Tensor:
        plain = windows.detach().as_subclass(torch.Tensor).to(torch.float32).contiguous()
        if plain.device.type == "cuda":
            # Triton reads them on a stream of its own.
            torch.cuda.current_stream(plain.device).synchronize()
        return plain

    def _ask(self, windows: torch.Tensor) -> torch.Tensor:
        model = self._model
        request = pb_utils.InferenceRequest(
            model_name=model.name,
            requested_output_names=[model.output],
            inputs=[pb_utils.Tensor.from_dlpack(model.input, windows)],
            preferred_memory=self._memory,
        )
        response = request.exec(decoupled=False)  # lets other threads run while it waits
        if response.has_error():
            error = response.error()
            msg = f"the network in {model.name} gave no answer: {error.message()}"
            raise ModelFailed(msg, error.code())
        found: Any = pb_utils.get_output_tensor_by_name(response, model.output)
        prediction: torch.Tensor = torch.utils.dlpack.from_dlpack(found.to_dlpack())
        return prediction.to(self._device)
