"""A bundle's config as it is written, changed before anything of it is built.

In: the raw dictionaries and lists. Out: the same with stand-ins for file readers and writers,
with the files of macros found in the bundle, with our device where CUDA is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.transforms import LoadImage, LoadImaged, SaveImage, SaveImaged

from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.steps import READERS, WRITERS

_STEPS = "ensemble_builder.runtime.steps"
_DICTIONARY_SUFFIXES = ("", "d", "D", "Dict")
_READER_OPTIONS = (
    "dtype",
    "image_only",
    "ensure_channel_first",
    "meta_key_postfix",
    "allow_missing_keys",
)


def components(config: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All `_target_` items of a raw config with their ConfigParser ids."""
    if isinstance(config, dict):
        if isinstance(config.get("_target_"), str):
            yield place, config
        children: Any = config.items()
    elif isinstance(config, list):
        children = enumerate(config)
    else:
        return
    for key, child in list(children):
        yield from components(child, f"{place}::{key}" if place else str(key))


def ids(config: Any, place: str = "") -> Iterator[str]:
    """The ConfigParser id of everything below a raw config."""
    if isinstance(config, dict | list):
        for key, child in config.items() if isinstance(config, dict) else enumerate(config):
            here = f"{place}::{key}" if place else str(key)
            yield here
            yield from ids(child, here)


def anchor_macros(config: Any, bundle: Path) -> None:
    """Makes the files of `%file::id` absolute where the bundle has them."""
    if not isinstance(config, dict | list):
        return
    for key, child in list(config.items() if isinstance(config, dict) else enumerate(config)):
        if not (isinstance(child, str) and child.startswith("%")):
            anchor_macros(child, bundle)
            continue
        name, place = ConfigParser.split_path_id(child[1:])
        here = [one for one in (bundle / name, bundle / "configs" / name) if one.is_file()]
        if name and here:
            config[key] = f"%{here[0]}::{place}"


_NAMED_DEVICE = re.compile(
    r"""(\.to\(|\bdevice\(|\bdevice\s*=\s*|\bmap_location\s*=\s*)(['"])cuda(:\d+)?\2"""
)


def put_device(config: Any, device: str) -> None:
    """Puts this device where a config names CUDA itself: a CPU serves it too, and any GPU."""
    if not isinstance(config, dict | list):
        return
    for key, child in list(config.items() if isinstance(config, dict) else enumerate(config)):
        if not isinstance(child, str):
            put_device(child, device)
        elif child.startswith("$"):
            named = _NAMED_DEVICE.sub(rf"\1\2{device}\2", child)
            config[key] = named.replace(".cuda()", f".to('{device}')")
        elif re.fullmatch(r"cuda(:\d+)?", child):
            config[key] = device


def texts(config: Any) -> Iterator[str]:
    """Every string of a raw config."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict):
        for value in config.values():
            yield from texts(value)
    elif isinstance(config, list):
        for value in config:
            yield from texts(value)


def is_one_of(name: str, names: tuple[str, ...]) -> bool:
    """True where a `_target_` is one of these, or a dictionary's twin of one."""
    last = name.rsplit(".", 1)[-1]
    return any(last == f"{one}{suffix}" for one in names for suffix in _DICTIONARY_SUFFIXES)


def without_files(item: dict[str, Any], name: str, located: object) -> dict[str, Any] | None:
    """The stand-in of a reader or a writer, None for anything else.

    Replaced before anything is instantiated: an ITKReader needs itk only to be constructed.
    """
    kind = located if isinstance(located, type) else object
    if "Load" in name:
        _refuse_turned(item)
    if is_one_of(name, READERS) or issubclass(kind, LoadImaged | LoadImage):
        options = {key: item[key] for key in _READER_OPTIONS if key in item}
        array = name.endswith("LoadImage") or issubclass(kind, LoadImage)
        return {
            "_target_": f"{_STEPS}.Loaded",
            "keys": item.get("keys", "image"),
            "array": array,
            **options,
        }
    if is_one_of(name, WRITERS) or issubclass(kind, SaveImaged | SaveImage):
        return {
            "_target_": f"{_STEPS}.Written",
            "keys": item.get("keys", "pred"),
            "output_dtype": item.get("output_dtype"),
            "scores": "Classification" in name,
        }
    return None


def _refuse_turned(item: Mapping[str, Any]) -> None:
    """A reader that exchanges axes would give another image than the one that is served."""
    reader = item.get("reader")
    options = {**item, **(reader if isinstance(reader, Mapping) else {})}
    kind = str(reader.get("_target_") if isinstance(reader, Mapping) else reader)
    usual = {"reverse_indexing": "PIL" in kind, "affine_lps_to_ras": True}
    for key, value in usual.items():
        if options.get(key, value) != value:
            msg = (
                f"preprocessing: the reader's {key} is {options[key]!r}, which lays axes out "
                "otherwise than a request's images; leave it away and turn the image by a transform"
            )
            raise BundleError(msg)
