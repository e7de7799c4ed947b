"""Carries MONAI's `applied_operations` from the preprocess to the postprocess model.

`Invertd` needs the list of operations that the preprocessing recorded on the image. It
crosses from one process to the other as JSON in which everything that JSON can't say is
tagged with its type: tensors, arrays, tuples, enums, dtypes. A naive JSON would turn
`src_affine` into a list, and `Spacingd`'s inverse fails on that.

The postprocess model may be called by anyone who reaches Triton, so decoding builds plain
values only: no pickle, no import, no name looked up outside a fixed list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import torch
from monai.utils import TraceKeys, enums

_TAG = "__type__"
_DTYPES = {str(d): d for d in (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
)}  # fmt: skip


class TraceError(ValueError):
    """A trace holds something that can't cross, or isn't a trace at all."""


def encode_trace(applied_operations: Sequence[Mapping[str, Any]]) -> str:
    """Writes the recorded operations as type-tagged JSON.

    Every operation's `id` becomes "none", recursively: it is the address of a transform in
    this process, and MONAI's inverse skips the comparison for "none".

    Raises:
        TraceError: an operation recorded something that has no tag here.
    """
    return json.dumps(encode(list(applied_operations)), separators=(",", ":"))


def decode_trace(text: str) -> list[dict[str, Any]]:
    """Reads what `encode_trace` wrote; every value has its type again.

    Raises:
        TraceError: the text is no trace.
    """
    try:
        operations = decode(json.loads(text))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        msg = "TRACE is not what the preprocess model writes"
        raise TraceError(msg) from error
    if not isinstance(operations, list) or not all(isinstance(op, dict) for op in operations):
        msg = "TRACE is not a list of operations"
        raise TraceError(msg)
    return operations


def encode(value: Any) -> Any:
    """A value as JSON can say it, types in tags.

    Raises:
        TraceError: it holds something that has no tag here.
    """
    if isinstance(value, Enum):  # before str: MONAI's enums are strings too
        return {_TAG: "enum", "class": type(value).__name__, "name": value.name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, torch.Tensor):
        plain = value.detach().as_subclass(torch.Tensor).cpu()
        data = plain.to(torch.float64) if plain.dtype == torch.bfloat16 else plain
        return {_TAG: "tensor", "dtype": str(plain.dtype), "data": data.tolist()}
    if isinstance(value, np.ndarray):
        return {_TAG: "ndarray", "dtype": value.dtype.str, "data": value.tolist()}
    if isinstance(value, torch.dtype):
        return {_TAG: "dtype", "name": str(value)}
    if isinstance(value, tuple):  # torch.Size is one
        return {_TAG: "tuple", "items": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {
            str(key.value if isinstance(key, Enum) else key): (
                TraceKeys.NONE.value if key == TraceKeys.ID else encode(item)
            )
            for key, item in value.items()
        }
    msg = f"an applied operation holds a {type(value).__name__}, which can't leave the process"
    raise TraceError(msg)


def decode(value: Any) -> Any:
    """What `encode` was given.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: `encode` never wrote this.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = value.get(_TAG)
    if tag is None:
        return {key: decode(item) for key, item in value.items()}
    if tag == "tuple":
        return tuple(decode(item) for item in value["items"])
    if tag == "tensor":
        return torch.tensor(value["data"], dtype=_DTYPES[value["dtype"]])
    if tag == "ndarray":
        dtype = np.dtype(value["dtype"])
        if dtype.hasobject:
            msg = "an array of objects"
            raise ValueError(msg)
        return np.array(value["data"], dtype=dtype)
    if tag == "dtype":
        return _DTYPES[value["name"]]
    if tag == "enum":
        kind = getattr(enums, value["class"])
        if not (isinstance(kind, type) and issubclass(kind, Enum)):
            msg = "not one of MONAI's enums"
            raise TypeError(msg)
        return kind[value["name"]]
    msg = f"unknown tag {tag!r}"
    raise ValueError(msg)
