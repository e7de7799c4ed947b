"""A real inference through each pipeline, as the only proof that the server computes.

A server whose stub was killed still calls itself ready (FACTS: 2.51 does), so readiness
says nothing; a small synthetic volume goes all the way through instead.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ensemble_builder.contract import PARAMETER, Contract

SHAPE_KJI = (24, 48, 48)
SPACING_MM = (5.0, 5.0, 5.0)


LOOPBACK_CHANNEL = [
    # Loopback never goes through a proxy of the site, and a server that comes back is
    # noticed in a second: gRPC's own patience grows to two minutes.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]
"""How every client of ours reaches a tritonserver on this machine."""


@dataclass(frozen=True, slots=True)
class Beat:
    """The outcome of one heartbeat.

    Attributes:
        pipelines: The pipelines that answered rightly.
        failure: What went wrong, or None.
        dead_model: The model whose stub died, where the server says so.
        busy: Nothing was wrong but the time or the memory of the moment.
    """

    pipelines: tuple[str, ...]
    failure: str | None = None
    dead_model: str | None = None
    busy: bool = False


class Heart:
    """Asks one server over gRPC.

    Args:
        grpc_url: host:port.
        server_id: What the server was started with as `--id`, where it knows that flag: another
            one on the same port is not ours. Empty where any will do.
    """

    def __init__(self, grpc_url: str, server_id: str = "") -> None:
        self._client = triton.InferenceServerClient(grpc_url, channel_args=LOOPBACK_CHANNEL)
        self._server_id = server_id
        self._expected: frozenset[str] = frozenset()

    def close(self) -> None:
        """Closes the channel."""
        self._client.close()

    def ready(self) -> bool:
        """True when our server has loaded its models (which proves nothing later on)."""
        try:
            if not self._client.is_server_ready(client_timeout=2):
                return False
            name = self._client.get_server_metadata(client_timeout=2).name
        except InferenceServerException:
            return False
        return self._server_id in ("", name)

    def contracts(self) -> tuple[Contract, ...]:
        """The contracts of all loaded pipelines.

        Raises:
            InferenceServerException: the server doesn't answer.
            ValueError: a contract that isn't one.
        """
        found = []
        for model in self._client.get_model_repository_index(client_timeout=10).models:
            if model.state != "READY":
                continue  # the index lists every folder: also what was built since the start
            config: Any = self._client.get_model_config(model.name, client_timeout=10).config
            if PARAMETER in config.parameters:
                text = config.parameters[PARAMETER].string_value
                found.append(Contract.model_validate(json.loads(text)))
        return tuple(found)

    def beat(self, timeout_s: float) -> Beat:
        """One inference through each pipeline; one that once answered must go on to."""
        passed: list[str] = []
        try:
            for contract in self.contracts():
                self._infer(contract, timeout_s)
                passed.append(contract.pipeline)
        except InferenceServerException as error:
            text, status = str(error.message()), str(error.status())
            busy = status.endswith(("DEADLINE_EXCEEDED", "UNAVAILABLE")) or "Deadline" in text
            dead = _dead_model(text)
            return Beat(tuple(passed), text, dead, busy=busy and dead is None)
        except ValueError as error:
            return Beat(tuple(passed), f"a contract can't be read: {error}")
        missing = self._expected - set(passed)
        if missing:
            return Beat(tuple(passed), f"no longer served: {', '.join(sorted(missing))}")
        self._expected = frozenset(passed)
        return Beat(tuple(passed))

    def reload(self, model: str) -> None:
        """Unloads and loads a model whose stub died.

        Load is asked for at once: waiting for the unload to finish would wait for ever, the
        dead stub never says goodbye.
        """
        self._client.unload_model(model, client_timeout=30)
        self._client.load_model(model, client_timeout=180)

    def _infer(self, contract: Contract, timeout_s: float) -> None:
        values = {
            "IMAGE": _test_volume(),
            "RESCALE": np.tile([1.0, 0.0], (SHAPE_KJI[0], 1)),
            "AFFINE": np.diag([*SPACING_MM, 1.0]),
        }
        inputs = []
        for name, value in values.items():
            tensor = triton.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
            tensor.set_data_from_numpy(value)
            inputs.append(tensor)
        result = self._client.infer(contract.pipeline, inputs, client_timeout=timeout_s)
        for output in contract.outputs:
            answer = result.as_numpy(output.name)
            if answer is None or (output.kind == "labelmap" and answer.shape != SHAPE_KJI):
                msg = f"{contract.pipeline} answers the heartbeat with a wrong {output.name}"
                raise InferenceServerException(msg)


def _test_volume() -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """A small block of soft tissue in air: never all zero, the same each time."""
    volume = np.full(SHAPE_KJI, -1000, np.int16)
    k, j, i = SHAPE_KJI
    volume[k // 6 : -k // 6, j // 6 : -j // 6, i // 6 : -i // 6] = 40
    return volume


def _dead_model(text: str) -> str | None:
    """The model named in the python backend's complaint about its stub."""
    found = re.search(r"[Ss]tub process '([a-z0-9_]+?)_\d+_\d+' is not healthy", text)
    return found.group(1) if found else None
