"""Judges what a bundle's postprocessing gives: which outputs, and which label means what.

In: a reading of the inputs that works. Out: the outputs, and what must be carried from the
preprocessing to the postprocessing beside TRACE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.transforms import AsDiscreted, Compose

from ensemble_builder.errors import BundleError
from ensemble_builder.probe.inputs import Reading, missing_key
from ensemble_builder.probe.network import not_one_tensor
from ensemble_builder.probe.words import flat, said, transform_of
from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.loading import (
    root_cause,
    tensor_name,
)
from ensemble_builder.runtime.recipe import Carried, Output
from ensemble_builder.runtime.state import (
    State,
    decode_state,
    dictionary_of,
    encode_state,
    state_of,
)
from ensemble_builder.runtime.steps import Written

MANY_CHANNELS = 24
"""Above it only some channels are asked which label they stand for."""

DATATYPES = {
    torch.float32: "FP32", torch.float64: "FP64", torch.float16: "FP16", torch.uint8: "UINT8",
    torch.int16: "INT16", torch.int32: "INT32", torch.int64: "INT64", torch.bool: "BOOL",
}  # fmt: skip


def find_pred_key(bundle: BundleConfig, after: Compose) -> str:
    """MONAI's evaluator calls it `pred`; a bundle without one may have its own word."""
    keys = [str(k) for one in flat(after) for k in getattr(one, "keys", ()) or ()]
    evaluated = bool(bundle.components("SupervisedEvaluator"))
    return "pred" if evaluated or "pred" in keys or not keys else keys[0]


def run_after(
    after: Compose, apart: Compose, found: Reading, pred_key: str
) -> tuple[tuple[Carried, ...], dict[Any, Any]]:
    """Runs the postprocessing as it will be served: on stand-ins, or with tensors carried.

    Args:
        after: The postprocessing, of the config whose preprocessing ran.
        apart: The same of a config parsed anew, as another process has it.
        found: How the inputs are read.
        pred_key: Key of the prediction.

    Raises:
        BundleError: it fails, or only works beside the preprocessing.
    """
    state = _crossed(found)
    full = state_of(found.done, found.input_shape)
    y = found.y[0]
    try:
        wanted = _run(after, full, found, pred_key, y=y, tensors=_tensors(found))
    except Exception as error:
        cause = root_cause(error)
        msg = f"postprocessing: {transform_of(error)}{said(cause)}"
        missing = missing_key(cause)
        if missing:
            msg = (
                f"postprocessing: {transform_of(error)}wants '{missing}', which neither the "
                "preprocessing nor the network gives"
            )
        raise BundleError(msg) from error
    ways = ((), (found.network_key,), tuple(_tensors(found)))
    why = "its result is another one there"
    for keys in ways:
        tensors = {key: value for key, value in _tensors(found).items() if key in keys}
        try:
            done = _run(apart, state, found, pred_key, y=y, tensors=tensors)
        except Exception as error:  # noqa: BLE001 - then it needs more than that
            why = f"{transform_of(error)}{said(root_cause(error))}"
            continue
        if _same(done, wanted, after, pred_key):
            return tuple(_carried(key, value, found) for key, value in tensors.items()), done
    msg = (
        "postprocessing: needs something that the preprocessing keeps in an object, and it runs in "
        f"another process ({why}); let the preprocessing put it into the data dictionary"
    )
    raise BundleError(msg)


def _crossed(found: Reading) -> State:
    return decode_state(encode_state(state_of(found.done, found.input_shape)))


def _tensors(found: Reading) -> dict[str, torch.Tensor]:
    return {str(k): v for k, v in found.done.items() if isinstance(v, torch.Tensor)}


def _carried(key: str, value: torch.Tensor, found: Reading) -> Carried:
    datatype = DATATYPES.get(value.dtype)
    if datatype is None:
        msg = f"postprocessing: reads '{key}' of {value.dtype}, which Triton has no datatype for"
        raise BundleError(msg)
    if key == found.network_key and value.dtype == torch.float32:
        return Carried(key, "X", datatype, (value.shape[0], *[-1] * (value.ndim - 1)))
    return Carried(key, f"CARRIED_{tensor_name(key)}", datatype, tuple([-1] * value.ndim))


def _run(
    after: Compose,
    state: State,
    found: Reading,
    pred_key: str,
    *,
    y: torch.Tensor,
    tensors: Mapping[str, torch.Tensor],
) -> dict[Any, Any]:
    with torch.inference_mode():
        data = dictionary_of(found.network_key, pred_key, state, y.clone(), tensors)
        return cast(dict[Any, Any], after(data))


def _result_keys(after: Compose, pred_key: str) -> tuple[str, ...]:
    keys = [str(k) for one in flat(after) if isinstance(one, Written) for k in one.keys]
    return tuple(dict.fromkeys(keys)) or (pred_key,)


def _same(
    done: Mapping[Any, Any], wanted: Mapping[Any, Any], after: Compose, pred_key: str
) -> bool:
    for key in _result_keys(after, pred_key):
        one, other = _as_tensor(done.get(key)), _as_tensor(wanted.get(key))
        if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
            if type(one) is not type(other):
                return False
        elif one.shape != other.shape or not torch.equal(
            torch.as_tensor(one), torch.as_tensor(other)
        ):
            return False
    return True


def find_outputs(
    after: Compose, done: Mapping[Any, Any], pred_key: str, found: Reading
) -> tuple[Output, ...]:
    """What the postprocessing gives, in the order in which it is written.

    Args:
        after: The postprocessing.
        done: Its result.
        pred_key: Key of the prediction.
        found: How the inputs are read.

    Raises:
        BundleError: a result is never made, or is no tensor.
    """
    keys = _result_keys(after, pred_key)
    shape = found.input_shape
    outputs = []
    for key in keys:
        if key not in done:
            msg = f"postprocessing: writes '{key}' and never makes it"
            raise BundleError(msg)
        value = _as_tensor(done[key])
        if not isinstance(value, torch.Tensor):
            raise BundleError(not_one_tensor(f"postprocessing: '{key}'", value))
        if tuple(value.shape) in (shape, tuple(found.y.shape[2:])) and value.ndim > 1:
            value = value[None]  # a channel axis of one has been squeezed away
        outputs.append(_output(after, key, value, shape, alone=len(keys) == 1))
    return tuple(outputs)


def _as_tensor(value: Any) -> Any:
    return torch.as_tensor(value) if isinstance(value, np.ndarray | np.generic | float) else value


def _output(
    after: Compose, key: str, value: torch.Tensor, shape: tuple[int, ...], *, alone: bool
) -> Output:
    writers = [one for one in flat(after) if isinstance(one, Written) and key in one.keys]
    name = tensor_name(key)
    if value.ndim <= 1 or any(one.scores for one in writers):
        name = "SCORES" if alone else name
        return Output(key, name, "scores", "FP32", (value.numel(),), on_input_grid=False)
    on_grid = tuple(value.shape[1:]) == shape
    spatial = [-1] * (value.ndim - 1)
    channels = int(value.shape[0])
    cut = any(one.integer for one in writers)
    discrete = _is_discrete(after, key, value)
    if discrete and channels == 1:
        return Output(
            key, "MASK" if alone else name, "labelmap", "UINT8", tuple(spatial), on_grid, cut
        )
    dims = (channels, *spatial)
    if discrete:
        return Output(key, "MASKS" if alone else name, "masks", "UINT8", dims, on_grid, cut)
    return Output(key, "RESULT" if alone else name, "image", "FP32", dims, on_grid)


def _is_discrete(after: Compose, key: str, value: torch.Tensor) -> bool:
    """Random numbers went in: whole numbers come out only where something made them whole."""
    for one in flat(after):
        if isinstance(one, AsDiscreted) and key in one.keys:
            at = list(one.keys).index(key)
            if one.argmax[at] or one.threshold[at] is not None or one.rounding[at] is not None:
                return True
    plain = value.as_subclass(torch.Tensor)
    return not plain.is_floating_point() or bool((plain == plain.round()).all())


def find_labels(
    after: Compose,
    found: Reading,
    pred_key: str,
    outputs: Sequence[Output],
    carried: Sequence[Carried],
) -> dict[int, int]:
    """Which of the network's channels makes which label: one channel is lit up at a time."""
    labelmap = next((one for one in outputs if one.kind == "labelmap"), None)
    if labelmap is None:
        return {}
    tensors = _tensors(found)
    kept = {one.key: tensors[one.key] for one in carried}
    channels = int(found.y.shape[1])
    asked: Sequence[int] = range(channels)
    if channels > MANY_CHANNELS:
        asked = (1, channels // 2, channels - 1)
    labels: dict[int, int] = {}
    for channel in asked:
        y = torch.full_like(found.y[0], -20.0)
        y[channel] = 20.0
        try:
            done = _run(after, _crossed(found), found, pred_key, y=y, tensors=kept)
        except Exception:  # noqa: BLE001, S112 - an unlikely prediction may be too much for it
            continue
        values = torch.as_tensor(done[labelmap.key]).round().long()
        values = values[values > 0]
        if values.numel():
            labels.setdefault(int(values.mode().values), channel)
    if channels > MANY_CHANNELS and all(label == channel for label, channel in labels.items()):
        return {channel: channel for channel in range(1, channels)}
    return labels
