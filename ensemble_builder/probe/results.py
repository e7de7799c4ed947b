"""Judges what a bundle's postprocessing gives: which outputs, and which label means what.

In: a reading of the inputs that works. Out: the outputs, and what must be carried from the
preprocessing to the postprocessing beside TRACE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, Invertd

from ensemble_builder.errors import BundleError
from ensemble_builder.probe.inputs import Reading, missing_key
from ensemble_builder.probe.network import not_one_tensor
from ensemble_builder.probe.words import flat, said, transform_of
from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.fusion import differing
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.runtime.loading import (
    root_cause,
    tensor_name,
)
from ensemble_builder.runtime.placing import InputGrid, onto_grid
from ensemble_builder.runtime.recipe import Carried, Output
from ensemble_builder.runtime.results import LARGEST_LABEL
from ensemble_builder.runtime.state import (
    State,
    decode_state,
    dictionary_of,
    encode_state,
    state_of,
)
from ensemble_builder.runtime.steps import Written

MANY_CHANNELS = 24
"""Above it only some channels are asked which label they stand for, where none can be changed."""

_NUMBERS_STAY = frozenset(
    {
        "Activationsd",
        "AsDiscreted",
        "EnsureTyped",
        "FillHolesd",
        "Identityd",
        "Invertd",
        "KeepLargestConnectedComponentd",
        "RemoveSmallObjectsd",
        "ToTensord",
        "Written",
    }
)
"""What gives a channel no other number than its place."""

_MOVING = ("monai.transforms.spatial", "monai.transforms.croppad")
"""Where MONAI keeps transforms that put voxels elsewhere."""

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
    full = state_of(found.done, found.grid)
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
    return decode_state(encode_state(state_of(found.done, found.grid)))


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
        elif differing(other, one) is not None:
            return False
    return True


def find_outputs(
    before: Compose, after: Compose, done: Mapping[Any, Any], pred_key: str, found: Reading
) -> tuple[Output, ...]:
    """What the postprocessing gives, in the order in which it is written.

    Args:
        before: The preprocessing.
        after: The postprocessing.
        done: Its result.
        pred_key: Key of the prediction.
        found: How the inputs are read.

    Raises:
        BundleError: a result is never made, or is no tensor.
    """
    keys = _result_keys(after, pred_key)
    shape = found.grid.shape
    outputs = []
    for key in keys:
        if key not in done:
            msg = f"postprocessing: writes '{key}' and never makes it"
            raise BundleError(msg)
        value = _as_tensor(done[key])
        affine = _affine_of(value, found.grid)
        if not isinstance(value, torch.Tensor):
            raise BundleError(not_one_tensor(f"postprocessing: '{key}'", value))
        if tuple(value.shape) in (shape, tuple(found.y.shape[2:])) and value.ndim > 1:
            value = value[None]  # a channel axis of one has been squeezed away
        plain = value.as_subclass(torch.Tensor)
        if affine is None and found.grid.affine is not None:
            on_grid = tuple(plain.shape[1:]) == shape and (
                _is_inverted(after, key) or not _moves(before)
            )
        else:
            on_grid = onto_grid(plain, affine, found.grid) is not None
        one = _output(after, key, plain, on_grid=on_grid, alone=len(keys) == 1)
        outputs.append(replace(one, has_affine=affine is not None))
    return _named_apart(outputs, found.inputs)


def _named_apart(outputs: Sequence[Output], inputs: Sequence[Input]) -> tuple[Output, ...]:
    """No two tensors of an ensemble under one name, and none under that of an input or edge."""
    taken = {"X", "Y", "TRACE"}
    for one in inputs:
        taken |= {one.tensor, one.rescale, one.affine} if one.is_stored else {one.tensor}
    named = []
    for output in outputs:
        name, number = output.tensor, 1
        while name in taken:
            name = f"{output.tensor}_OUT{number if number > 1 else ''}"
            number += 1
        taken.add(name)
        named.append(replace(output, tensor=name))
    return tuple(named)


def _affine_of(value: Any, grid: InputGrid) -> torch.Tensor | None:
    """Where a result says it lies; None where the bundle has lost that on the way."""
    if not isinstance(value, MetaTensor):
        return None
    affine = value.affine.double().cpu()
    nothing = torch.eye(4, dtype=torch.float64)  # what MONAI makes of no affine
    is_lost = torch.equal(affine, nothing) and not (
        grid.affine is None or torch.equal(grid.affine, nothing)
    )
    return None if is_lost else affine


def _is_inverted(after: Compose, key: str) -> bool:
    return any(isinstance(one, Invertd) and key in one.keys for one in flat(after))


def _moves(before: Compose) -> bool:
    return any(type(one).__module__.startswith(_MOVING) for one in flat(before))


def _as_tensor(value: Any) -> Any:
    return torch.as_tensor(value) if isinstance(value, np.ndarray | np.generic | float) else value


def _output(after: Compose, key: str, value: torch.Tensor, *, on_grid: bool, alone: bool) -> Output:
    writers = [one for one in flat(after) if isinstance(one, Written) and key in one.keys]
    name = tensor_name(key)
    if value.ndim <= 1 or any(one.scores for one in writers):
        name = "SCORES" if alone else name
        return Output(key, name, "scores", "FP32", (value.numel(),), on_input_grid=False)
    spatial = [-1] * (value.ndim - 1)
    channels = int(value.shape[0])
    cut = any(one.integer for one in writers)
    discrete = _is_discrete(after, key, value)
    if discrete:
        _refuse_odd_labels(key, value)
    if discrete and channels == 1:
        return Output(
            key, "MASK" if alone else name, "labelmap", "UINT8", tuple(spatial), on_grid, cut
        )
    dims = (channels, *spatial)
    if discrete:
        return Output(key, "MASKS" if alone else name, "masks", "UINT8", dims, on_grid, cut)
    return Output(key, "RESULT" if alone else name, "image", "FP32", dims, on_grid)


def _refuse_odd_labels(key: str, value: torch.Tensor) -> None:
    low, high = (float(one) for one in torch.aminmax(value)) if value.numel() else (0.0, 0.0)
    if low < 0 or high > LARGEST_LABEL["UINT16"]:
        odd = low if low < 0 else high
        msg = (
            f"postprocessing: makes the label {odd:g} under '{key}', and a label map has labels "
            f"from 0 to {LARGEST_LABEL['UINT16']}; map it to one of these (MapLabelValued)"
        )
        raise BundleError(msg)


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
    if channels > MANY_CHANNELS and all(type(one).__name__ in _NUMBERS_STAY for one in flat(after)):
        some = _labels_of(after, found, pred_key, labelmap, kept, (1, channels // 2, channels - 1))
        if all(label == channel for label, channel in some.items()):
            return {channel: channel for channel in range(1, channels)}
    return _labels_of(after, found, pred_key, labelmap, kept, range(channels))


def _labels_of(  # noqa: PLR0917 - the postprocessing, and what it is given
    after: Compose,
    found: Reading,
    pred_key: str,
    labelmap: Output,
    kept: Mapping[str, torch.Tensor],
    asked: Sequence[int],
) -> dict[int, int]:
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
    return labels
