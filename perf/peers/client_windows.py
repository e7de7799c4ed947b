"""The sliding window in the client: one HTTP request for each batch of windows.

MONAI's own transforms and inferer run in the client, as in MONAI Deploy's App SDK with a
remote model; Triton has the network only. Tensors travel as binary, or as JSON.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from perf.peers.bundle_run import InOneProcess, answer_volumes
from perf.peers.case import NETWORK_MODEL, Case

_TIMEOUT_S = 1800.0


class RemoteNetwork:
    """A network behind Triton's HTTP port."""

    def __init__(self, http_url: str, *, binary: bool) -> None:
        import tritonclient.http as triton  # noqa: PLC0415

        self._triton, self._binary = triton, binary
        self._client = triton.InferenceServerClient(
            http_url, network_timeout=_TIMEOUT_S, connection_timeout=_TIMEOUT_S
        )

    def __call__(self, windows: Any) -> Any:
        """[N, C, *roi] -> [N, C_out, *roi]."""
        import torch  # noqa: PLC0415

        values = np.ascontiguousarray(windows.as_subclass(torch.Tensor).numpy())
        tensor = self._triton.InferInput("WINDOWS", list(values.shape), "FP32")
        tensor.set_data_from_numpy(values, binary_data=self._binary)
        wanted = self._triton.InferRequestedOutput("PREDICTION", binary_data=self._binary)
        answer = self._client.infer(NETWORK_MODEL, [tensor], outputs=[wanted])
        return torch.from_numpy(np.array(answer.as_numpy("PREDICTION"), dtype=np.float32))


def serve_client(pipe: Connection, case: Case, http_url: str, binary: bool) -> None:
    """A client that stays; a volume in, seconds and labels out."""
    answer_volumes(pipe, InOneProcess(case, network=RemoteNetwork(http_url, binary=binary)))
