"""The road alone: a volume to Triton and a mask back, through shared memory, gRPC and HTTP.

In: how large a volume. Out: one measurement for each road, in turns, on a model that does next
to nothing. Starts a tritonserver of its own; nothing survives.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_builder.server import TritonServer
from perf.measure import Measurement
from perf.shared_memory import SharedMemoryClient

ROADS = ("shared memory", "gRPC", "HTTP")
_MODELS = Path(__file__).with_name("models")
_TIMEOUT_S = 600.0


class WrongMask(Exception):
    """A road brought something else than the model gave."""


def measure(shape_kji: tuple[int, int, int], *, repetitions: int) -> list[Measurement]:
    """Takes each road in turn, once more to warm up.

    Args:
        shape_kji: Of the volume.
        repetitions: How often each road is counted.

    Raises:
        WrongMask: a road lost something on the way.
        BuilderError: there is no tritonserver, or it does not start.
    """
    rng = np.random.default_rng(7)
    image = rng.integers(-1024, 2000, shape_kji, dtype=np.int16)
    seconds: dict[str, list[float]] = {road: [] for road in ROADS}
    with tempfile.TemporaryDirectory(prefix="tritome-transport-") as place:
        repository = Path(place, "repository")
        version = repository / "transport" / "1"
        version.mkdir(parents=True)
        shutil.copy2(_MODELS / "transport.py", version / "model.py")
        shutil.copy2(_MODELS / "transport.pbtxt", repository / "transport" / "config.pbtxt")
        log = Path(place, "triton.log")
        with (
            TritonServer(repository, log=log, watch=False) as server,
            SharedMemoryClient(server.grpc_url, 3 * image.size + (1 << 16)) as region,
        ):
            asked: dict[str, Callable[[], NDArray[Any]]] = {
                "shared memory": lambda: region.ask(
                    "transport", {"IMAGE": image}, "MASK", np.uint8, image.shape
                ),
                "gRPC": lambda: _inline("grpc", server.grpc_url, image),
                "HTTP": lambda: _inline("http", server.http_url, image),
            }
            for turn in range(repetitions + 1):
                for road in ROADS:
                    image[0, 0, 0] = turn
                    started = time.perf_counter()
                    mask = asked[road]()
                    took_s = time.perf_counter() - started
                    if mask.shape != image.shape or int(mask[0, 0, 0]) != turn:
                        msg = f"{road}: the mask isn't the one that the model gave"
                        raise WrongMask(msg)
                    if turn:
                        seconds[road].append(took_s)
    name = f"transport, {' x '.join(map(str, shape_kji))}"
    return [Measurement.of(f"{name}: {road}", seconds[road], 3 * image.size) for road in ROADS]


def _inline(protocol: str, url: str, image: NDArray[np.int16]) -> NDArray[Any]:
    """The volume in the request, the mask in the answer."""
    if protocol == "grpc":
        import tritonclient.grpc as triton  # noqa: PLC0415

        unlimited = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_http_proxy", 0),
        ]
        client = triton.InferenceServerClient(url, channel_args=unlimited)
    else:
        import tritonclient.http as triton  # noqa: PLC0415

        client = triton.InferenceServerClient(
            url, network_timeout=_TIMEOUT_S, connection_timeout=_TIMEOUT_S
        )
    tensor = triton.InferInput("IMAGE", list(image.shape), "INT16")
    tensor.set_data_from_numpy(image)
    try:
        answer = client.infer("transport", [tensor])
        mask: NDArray[Any] = answer.as_numpy("MASK")
        return mask
    finally:
        client.close()
