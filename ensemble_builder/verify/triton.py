"""A running Triton, asked over plain gRPC: step by step, and as the ensemble."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ensemble_builder.errors import ParityError
from ensemble_builder.runtime.recipe import Recipe
from ensemble_builder.runtime.state import decode_state
from ensemble_builder.server.heartbeat import LOOPBACK_CHANNEL
from ensemble_builder.verify.monai import Stages
from ensemble_builder.verify.source import Request, StoredVolume

_CHANNEL = [
    *LOOPBACK_CHANNEL,
    # An X of a whole volume passes the four megabytes that gRPC allows by itself.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]


def served(grpc_url: str, pipeline: str, volume: StoredVolume) -> NDArray[Any]:
    """The mask that a running Triton gives of one volume: [K, J, I]."""
    return ask(grpc_url, pipeline, volume.request())["MASK"]


def served_stages(grpc_url: str, pipeline: str, recipe: Recipe, request: Request) -> Stages:
    """Runs a pipeline's three steps one by one, then the ensemble; its outputs are kept.

    Raises:
        ParityError: Triton refuses, or the ensemble gives other outputs than its last step.
    """
    inputs = dict(request)
    first = ask(grpc_url, f"{pipeline}_preprocess", inputs)
    extras = {name: value for name, value in first.items() if name.startswith("X")}
    second = ask(grpc_url, f"{pipeline}_inferer", extras)
    carried = {one.tensor: first[one.tensor] for one in recipe.carried}
    last = ask(grpc_url, f"{pipeline}_postprocess", {**second, "TRACE": first["TRACE"], **carried})
    whole = ask(grpc_url, pipeline, inputs)
    for name, value in last.items():
        if value.shape != whole[name].shape or not np.array_equal(
            value, whole[name], equal_nan=value.dtype.kind == "f"
        ):
            msg = f"the ensemble '{pipeline}' gives another {name} than its steps one by one"
            raise ParityError(msg)
    state = decode_state(first["TRACE"].reshape(-1)[0].decode("utf-8"))
    image = state.images.get(recipe.network_key)
    return Stages(
        x=first["X"],
        x_affine=None if image is None else np.asarray(image.affine, dtype=np.float64),
        y=second["Y"],
        outputs={one.tensor: whole[one.tensor] for one in recipe.outputs},
    )


def ask(
    grpc_url: str, model: str, request: Mapping[str, NDArray[Any]], wanted: Iterable[str] = ()
) -> dict[str, NDArray[Any]]:
    """One request; every output, or the wanted ones.

    Raises:
        ParityError: Triton refuses it.
    """
    inputs = []
    for name, value in request.items():
        datatype = "BYTES" if value.dtype == np.object_ else np_to_triton_dtype(value.dtype)
        tensor = triton.InferInput(name, list(value.shape), datatype)
        tensor.set_data_from_numpy(np.ascontiguousarray(value))
        inputs.append(tensor)
    names = list(wanted)
    outputs = [triton.InferRequestedOutput(name) for name in names] or None
    client = triton.InferenceServerClient(grpc_url, channel_args=_CHANNEL)
    try:
        answer = client.infer(model, inputs, outputs=outputs)
        found = [one.name for one in answer.get_response().outputs]
        return {name: answer.as_numpy(name) for name in found}
    except InferenceServerException as error:
        msg = f"Triton refuses a request to '{model}': {error.message()}"
        raise ParityError(msg) from error
    finally:
        client.close()
