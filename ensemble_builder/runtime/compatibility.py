"""Bundles written for an older MONAI, made to mean the same in the one that is installed.

Only what provably changes nothing is mended: an argument that MONAI removed because it had
no effect on the result, and transforms that got another name. Everything else is left to
fail with MONAI's own words.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

REMOVED_ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "SwinUNETR": {"img_size": "the network takes any size now"},
    "SwinTransformer": {"img_size": "the network takes any size now"},
    "Spacingd": {"meta_keys": "the image carries it", "meta_key_postfix": "the image carries it"},
    "Orientationd": {"meta_keys": "the image carries it"},
    "EnsureChannelFirstd": {
        "meta_keys": "the image carries it",
        "meta_key_postfix": "the image carries it",
    },
    "Resized": {"meta_keys": "the image carries it"},
}
"""Class -> argument -> why the bundle means the same without it."""

_Item = dict[str, Any]


def _renamed(target: str) -> Callable[[_Item], _Item]:
    return lambda item: {**item, "_target_": target}


def _add_channel(item: _Item) -> _Item:
    return {
        "_target_": "monai.transforms.EnsureChannelFirstd",
        "keys": item["keys"],
        "channel_dim": "no_channel",
    }


def _channel_first(item: _Item) -> _Item:
    return {
        "_target_": "monai.transforms.EnsureChannelFirstd",
        "keys": item["keys"],
        "channel_dim": item.get("channel_dim", -1),
    }


def _identity(item: _Item) -> _Item:
    return {"_target_": "monai.transforms.Identityd", "keys": item["keys"]}


REPLACED: Mapping[str, Callable[[_Item], _Item]] = {
    "AddChanneld": _add_channel,
    "AsChannelFirstd": _channel_first,
    "ToMetaTensord": _identity,
    "FromMetaTensord": _identity,
    "SplitChanneld": _renamed("monai.transforms.SplitDimd"),
}
"""Transforms that MONAI removed, and what says the same today."""


def modernised(item: _Item, located: object, weights_are_loaded: bool) -> tuple[_Item, list[str]]:
    """A config item as the installed MONAI understands it, and what was changed in words.

    Args:
        item: A dictionary with a `_target_`.
        located: The class or function that `_target_` means; None where there is none.
        weights_are_loaded: A checkpoint replaces all weights, so pretrained ones needn't be
            fetched.
    """
    name = str(item["_target_"]).rsplit(".", 1)[-1]
    if located is None and name in REPLACED:
        fresh = REPLACED[name](item)
        return fresh, [f"{name} is {str(fresh['_target_']).rsplit('.', 1)[-1]} in this MONAI"]
    notes: list[str] = []
    fresh = dict(item)
    accepted = _parameters(located)
    for argument, why in REMOVED_ARGUMENTS.get(name, {}).items():
        if argument in fresh and accepted is not None and argument not in accepted:
            del fresh[argument]
            notes.append(f"{name} has no '{argument}' any more: {why}")
    if weights_are_loaded and fresh.get("pretrained") is True and ".nets" in _module(located):
        fresh["pretrained"] = False
        notes.append(f"{name}: pretrained weights aren't fetched, the checkpoint replaces them")
    return fresh, notes


def _module(located: object) -> str:
    return str(getattr(located, "__module__", ""))


def _parameters(located: object) -> set[str] | None:
    """The names that may be given, None where anything may."""
    if not callable(located):
        return None
    try:
        found = inspect.signature(located).parameters
    except (TypeError, ValueError):
        return None
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in found.values()):
        return None
    return set(found)
