"""A real inference through each pipeline, as the only proof that the server computes.

A server whose stub was killed still calls itself ready (FACTS: 2.51 does), so readiness
says nothing; a small synthetic volume goes all the way through instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ensemble_builder.contract import PARAMETER, Contract, NamedInput, OutputPart
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.samples import sample

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
        """One inference through each pipeline; one that once answered must go on to.

        Unless somebody has unloaded it, as `tritome models` does.
        """
        passed: list[str] = []
        try:
            for contract in self.contracts():
                self._infer(contract, timeout_s)
                passed.append(contract.pipeline)
            missing = self._expected - set(passed)
            missing -= self._unloaded() if missing else set()
        except InferenceServerException as error:
            text, status = str(error.message()), str(error.status())
            busy = status.endswith(("DEADLINE_EXCEEDED", "UNAVAILABLE")) or "Deadline" in text
            dead = _dead_model(text)
            return Beat(tuple(passed), text, dead, busy=busy and dead is None)
        except ValueError as error:
            return Beat(tuple(passed), f"a contract can't be read: {error}")
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

    def _unloaded(self) -> set[str]:
        index = self._client.get_model_repository_index(client_timeout=10).models
        return {m.name for m in index if m.state == "UNLOADING" or m.reason == "unloaded"}

    def _infer(self, contract: Contract, timeout_s: float) -> None:
        values = example_request(contract)
        inputs = []
        for name, value in values.items():
            tensor = triton.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
            tensor.set_data_from_numpy(value)
            inputs.append(tensor)
        result = self._client.infer(contract.pipeline, inputs, client_timeout=timeout_s)
        for output in contract.outputs:
            answer = result.as_numpy(output.name)
            if answer is None or not _fits(answer.shape, output, values):
                msg = f"{contract.pipeline} answers the heartbeat with a wrong {output.name}"
                raise InferenceServerException(msg)


def example_request(contract: Contract) -> dict[str, NDArray[Any]]:
    """A small request of the shapes that the builder tried: Triton tensor -> array."""
    inputs = [
        Input(
            one.name,
            one.tensors.get("image") or one.tensors["values"],
            one.layout,
            _channels(one),
            "FP32" if one.datatype == "FP32" and one.layout != "value" else "INT16",
        )
        for one in contract.inputs
    ]
    shapes = {one.layout: one.example_shape for one in contract.inputs}
    volume = shapes.get("volume") or shapes.get("channels", ())[1:]
    picture = shapes.get("gray") or shapes.get("rgb", ())[:2]
    return sample(inputs, volume or None, picture or None)


def _channels(one: NamedInput) -> int:
    if one.layout == "channels":
        return one.dims[0]
    return one.dims[-1] if one.layout in ("rgb", "points") else 1


def _fits(shape: tuple[int, ...], output: OutputPart, values: Mapping[str, NDArray[Any]]) -> bool:
    """Whether an answer has the contract's dims and, where it says so, the input's grid."""
    if len(shape) != len(output.dims):
        return False
    if any(stated not in (-1, n) for stated, n in zip(output.dims, shape, strict=True)):
        return False
    if output.kind != "labelmap" or not output.on_input_grid:
        return True
    first = next(iter(values.values()))
    return shape in (first.shape, first.shape[-len(shape) :], first.shape[: len(shape)])


def _dead_model(text: str) -> str | None:
    """The model named in the python backend's complaint about its stub."""
    found = re.search(r"[Ss]tub process '([a-z0-9_]+?)_\d+_\d+' is not healthy", text)
    return found.group(1) if found else None
