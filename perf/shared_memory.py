"""One request through shared memory: for the tutorial's model, and for ours by the same road."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, shared_memory

from perf.workers import PeerFailed


class SharedMemoryClient:
    """Keeps one region registered; a context manager."""

    def __init__(self, grpc_url: str, size_bytes: int) -> None:
        self._client = triton.InferenceServerClient(
            grpc_url, channel_args=[("grpc.enable_http_proxy", 0)]
        )
        self._size_bytes = size_bytes
        self._name = f"tritome_bench_{uuid.uuid4().hex[:12]}"

    def __enter__(self) -> SharedMemoryClient:
        self._region = shared_memory.create_shared_memory_region(
            self._name, f"/{self._name}", self._size_bytes
        )
        self._client.register_system_shared_memory(self._name, f"/{self._name}", self._size_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.unregister_system_shared_memory(self._name)
        shared_memory.destroy_shared_memory_region(self._region)
        self._client.close()

    def computes_on_gpu(self, model: str) -> bool:
        """Whether Triton has put a model's instances (KIND_AUTO) on a GPU."""
        found = self._client.get_model_config(model, as_json=True)["config"]
        return any(group.get("kind") == "KIND_GPU" for group in found["instance_group"])

    def ask(
        self,
        model: str,
        request: Mapping[str, NDArray[Any]],
        output: str,
        dtype: Any,
        shape: tuple[int, ...],
        *,
        timeout_s: float = 1800.0,
    ) -> NDArray[Any]:
        """Writes the inputs, waits, and gives a view of the output in the region.

        Raises:
            PeerFailed: Triton answers with an error.
        """
        inputs, place = [], 0
        for name, value in request.items():
            tensor = triton.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
            shared_memory.set_shared_memory_region(self._region, [value], offset=place)
            tensor.set_shared_memory(self._name, value.nbytes, offset=place)
            inputs.append(tensor)
            place += -(-value.nbytes // 4096) * 4096
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        wanted = triton.InferRequestedOutput(output)
        wanted.set_shared_memory(self._name, size, offset=place)
        try:
            self._client.infer(model, inputs, outputs=[wanted], client_timeout=timeout_s)
        except InferenceServerException as error:
            msg = f"{model}: {error.message()}"
            raise PeerFailed(msg) from error
        found: NDArray[Any] = shared_memory.get_contents_as_numpy(
            self._region, dtype, list(shape), offset=place
        )
        return found
