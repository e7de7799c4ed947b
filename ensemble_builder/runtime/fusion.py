"""A bundle's postprocessing, run in slabs where that gives the same labels.

`split` finds the leading transforms that can already run in the inferer step, so that narrow
labels cross to the next model instead of channels of FP32. `run` runs the rest: an `Invertd`
and what makes labels of its result as one step (`inverse.py`), largest components by their runs
(`components.py`), everything else as MONAI does.
Nothing is ever reordered, and what isn't recognised runs plainly. With TRITOME_CHECK_FUSION=1
in the environment, `run` does both and compares.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, EnsureTyped, Identityd, Invertd
from monai.transforms.compose import execute_compose

from ensemble_builder.errors import ParityError
from ensemble_builder.runtime.components import is_keep_largest, keep_largest
from ensemble_builder.runtime.inverse import in_slabs, invert_and_reduce
from ensemble_builder.runtime.recording import NotRecorded
from ensemble_builder.runtime.reduction import Reduction, reduction_of

CHECK = "TRITOME_CHECK_FUSION"
"""Environment variable; 1 compares every fused step with the plain transforms (slow)."""

LONGEST_REDUCTION = 3
"""Transforms that may make labels together: two activations and the AsDiscreted."""

_TRITON = {torch.uint8: "UINT8", torch.int16: "INT16", torch.float32: "FP32"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Split:
    """A postprocessing in two parts.

    Attributes:
        reduction: What the inferer step does; None where nothing is gained by it.
        rest: What is left for the postprocess step, in its order.
        channels: Channels of the edge between the two.
        dtype: Its dtype.
    """

    reduction: Reduction | None
    rest: Compose
    channels: int
    dtype: torch.dtype

    @property
    def reduce(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """For `windows.sliding_window`: [C, ...] -> [C', ...], slab by slab."""
        reduction = self.reduction
        if reduction is None:
            return None
        return lambda part: in_slabs(reduction, part)

    @property
    def datatype(self) -> str:
        """The edge's, in Triton's words."""
        return _TRITON[self.dtype]


def split(postprocessing: Compose, pred_key: str, channels: int) -> Split:
    """Finds what of the postprocessing the inferer step can do.

    Args:
        postprocessing: The bundle's.
        pred_key: Key of the prediction.
        channels: Of the network's output.

    Returns:
        The two parts; all is in the second where folding gains nothing.
    """
    plain = Split(None, postprocessing, channels, torch.float32)
    if not is_plain(postprocessing):
        return plain
    transforms = list(postprocessing.flatten().transforms)
    lead = 0
    while lead < len(transforms) and changes_nothing(transforms[lead], pred_key):
        lead += 1
    for count in range(LONGEST_REDUCTION, 0, -1):
        reduction = reduction_of(transforms[lead : lead + count], pred_key)
        if reduction is not None:
            rest = Compose(transforms[:lead] + transforms[lead + count :])
            dtype = reduction.dtype(channels)
            return Split(reduction, rest, reduction.channels(channels), dtype)
    return plain


def run(
    transforms: Compose, data: Mapping[Any, Any], pred_key: str, *, check: bool | None = None
) -> dict[Any, Any]:
    """The postprocessing, or its rest after `split`.

    Args:
        transforms: In their order.
        data: The postprocessing's dictionary. A prediction that `split` made labels of may
            have their narrow dtype.
        pred_key: Key of the prediction.
        check: Also runs the transforms plainly and compares; None asks the environment.

    Returns:
        The dictionary that MONAI gives. Where nothing but labels comes out at the end, they
        have the narrowest dtype that holds them instead of float32.

    Raises:
        ParityError: with `check`, where the two differ.
    """
    data = dict(data)
    if check is None:
        check = os.environ.get(CHECK) == "1"
    done = _run(transforms, data, pred_key)
    if check:
        _compare(transforms(_widened(data, pred_key)), done, pred_key)
    return done


def run_in_slabs(transforms: Compose, pred_key: str, *, labels: bool) -> bool:
    """True where `run` never has channels of floats on the image's grid.

    Args:
        transforms: A postprocessing, or its rest after `split`.
        pred_key: Key of the prediction.
        labels: The prediction is labels already.
    """
    if not is_plain(transforms):
        return False
    waiting = list(transforms.flatten().transforms)
    place = next((n for n, one in enumerate(waiting) if type(one) is Invertd), len(waiting))
    if place == len(waiting):
        return True
    ahead, waiting = waiting[:place], waiting[place + 1 :]
    while waiting and changes_nothing(waiting[0], pred_key):
        waiting = waiting[1:]
    counts = range(LONGEST_REDUCTION, 0, -1)
    reduced = next((n for n in counts if reduction_of(waiting[:n], pred_key)), 0)
    if not (reduced or labels or any(type(one) is AsDiscreted for one in ahead)):
        return False
    return all(
        _keeps_labels(one) or changes_nothing(one, pred_key) or is_keep_largest(one, pred_key)
        for one in waiting[reduced:]
    )


def _run(transforms: Compose, data: dict[Any, Any], key: str) -> dict[Any, Any]:
    if not is_plain(transforms):
        return _dictionary(transforms(_widened(data, key)))
    waiting = list(transforms.flatten().transforms)
    while waiting:
        fused = _fused(waiting, data, key)
        if fused is not None:
            data, count = fused
            waiting = waiting[count:]
        else:
            if not _keeps_labels(waiting[0]):
                data = _widened(data, key)
            # As Compose runs it: a lazy transform resamples at once.
            data = _dictionary(execute_compose(data, waiting[:1], lazy=transforms.lazy))
            waiting = waiting[1:]
    return data


def _widened(data: Mapping[Any, Any], key: str) -> dict[Any, Any]:
    """Narrow labels as float32, which is how AsDiscreted leaves them to what follows."""
    pred = data.get(key)
    if isinstance(pred, torch.Tensor) and pred.dtype in (torch.uint8, torch.int16):
        return {**data, key: pred.to(torch.float32)}
    return dict(data)


def _fused(
    waiting: Sequence[Any], data: dict[Any, Any], key: str
) -> tuple[dict[Any, Any], int] | None:
    """The next transforms as one step, and how many they were; None where they aren't one."""
    first = waiting[0]
    if type(first) is Invertd:
        if tuple(first.keys) != (key,):
            return None
        lead = 1
        while lead < len(waiting) and changes_nothing(waiting[lead], key):
            lead += 1
        for count in range(LONGEST_REDUCTION, 0, -1):
            reduction = reduction_of(waiting[lead : lead + count], key)
            if reduction is not None:
                return _inverted(first, data, key, reduction, lead + count)
        return _inverted(first, data, key, None, 1)
    pred = data.get(key)
    if not isinstance(pred, torch.Tensor):
        return None
    if is_keep_largest(first, key):
        return _largest(first, data, pred, key)
    if not pred.is_floating_point() or pred.ndim < 2:  # scores are small enough for MONAI
        return None
    for count in range(LONGEST_REDUCTION, 0, -1):
        reduction = reduction_of(waiting[:count], key)
        if reduction is not None:
            labels = MetaTensor(in_slabs(reduction, pred.as_subclass(torch.Tensor)))
            if isinstance(pred, MetaTensor):
                labels.copy_meta_from(pred)
            return {**data, key: labels}, count
    return None


def _largest(
    transform: Any, data: dict[Any, Any], pred: torch.Tensor, key: str
) -> tuple[dict[Any, Any], int] | None:
    try:
        labels = MetaTensor(keep_largest(transform, pred.as_subclass(torch.Tensor)))
    except NotRecorded as reason:
        _log.info("the largest components are found by MONAI's own code: %s", reason)
        return None
    if isinstance(pred, MetaTensor):
        labels.copy_meta_from(pred)
    return {**data, key: labels}, 1


def _inverted(
    inverse: Invertd, data: dict[Any, Any], key: str, reduction: Reduction | None, count: int
) -> tuple[dict[Any, Any], int] | None:
    try:
        return invert_and_reduce(inverse, data, key, reduction), count
    except NotRecorded as reason:
        _log.info("the inverse runs as MONAI's own code: %s", reason)
        return None


def is_plain(transforms: Any) -> bool:
    """True for a Compose that only runs one transform after the other."""
    if type(transforms) is not Compose or transforms.lazy:
        return False
    listed = transforms.flatten().transforms
    if any(isinstance(one, Compose) for one in listed):
        return False
    # With lazy=None each transform's own word counts, and resamplings may become one.
    return transforms.lazy is False or not any(getattr(one, "lazy", False) for one in listed)


def changes_nothing(transform: Any, key: str) -> bool:
    """True for a transform that leaves a float32 tensor under `key` as it is."""
    if type(transform) is Identityd:
        return True
    if type(transform) is not EnsureTyped or key not in transform.keys:
        return False
    converter = transform.converter
    return (
        tuple(transform.keys) == (key,)
        and str(converter.data_type) == "tensor"
        and all(d in (None, torch.float32) for d in transform.dtype)
        and converter.device is None
        and converter.track_meta in (None, True)
    )


def _keeps_labels(transform: Any) -> bool:
    """True for a transform that doesn't look at the labels."""
    return type(transform) is Identityd or type(transform).__name__ == "Written"


def _dictionary(done: Any) -> dict[Any, Any]:
    if not isinstance(done, dict):
        msg = f"the postprocessing gives a {type(done).__name__} instead of a dictionary"
        raise TypeError(msg)
    return done


def differing(expected: Any, actual: Any) -> str | None:
    """How two results differ, in words for "... voxels differ"; None where they don't.

    Args:
        expected: MONAI's tensor.
        actual: Ours. Another dtype is no difference, and neither is the same NaN.
    """
    ours, theirs = (
        torch.as_tensor([] if one is None else one).detach().as_subclass(torch.Tensor)
        for one in (actual, expected)
    )
    if ours.shape != theirs.shape:
        return f"{list(ours.shape)} instead of {list(theirs.shape)}"
    ours = ours.to(theirs.device, theirs.dtype)
    different = int(((ours != theirs) & ~(ours.isnan() & theirs.isnan())).sum())
    return f"{different} of {theirs.numel()}" if different else None


def _compare(plain: Any, fused: Mapping[Any, Any], key: str) -> None:
    wrong = differing(plain[key], fused.get(key))
    if wrong:
        msg = (
            f"fused postprocessing: {wrong} voxels differ from MONAI's own transforms; "
            "please report this bundle"
        )
        raise ParityError(msg)
