"""Finds how a bundle's inputs are read: layouts are tried, likely ones first.

In: the parsed bundle and its network. Out: the first reading (`Reading`) that the preprocessing
and the network accept, or the sentence of the try that came furthest.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.transforms import Compose

from ensemble_builder.errors import BundleError
from ensemble_builder.probe.network import not_one_tensor, predicted
from ensemble_builder.probe.words import Failed, flat, missing_package, said, transform_of
from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.inputs import Input, Layout
from ensemble_builder.runtime.loading import (
    input_affine,
    input_shape,
    loaded,
    network_input,
    root_cause,
    tensor_name,
)
from ensemble_builder.runtime.placing import InputGrid
from ensemble_builder.runtime.steps import Loaded
from ensemble_builder.samples import sample

LABEL_KEYS = frozenset({"label", "labels", "seg", "segmentation"})
"""Keys of a ground truth, which no request brings."""

EVEN_SIZE = ((64, 96, 128), (512, 768))
"""For networks that halve the image itself a few times and pad nothing."""

SIZES = (((29, 34, 38), (147, 181)), ((101, 107, 112), (519, 533)), EVEN_SIZE)
"""Shapes tried, (K, J, I) and (J, I): small and odd first; a crop or a patch may need more."""

MOST_TRIED_LARGER = 8
"""Readings that came furthest with the small shapes are tried with larger ones, too."""

_CPU = torch.device("cpu")


_OF_FILES = frozenset(
    {"bitpix", "datatype", "dim", "filename_or_obj", "pixdim", "qform_code", "sform_code"}
)
"""What MONAI's readers put into an image's metadata from a NIfTI header and its path."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One way of reading the inputs that the preprocessing and the network accept."""

    inputs: tuple[Input, ...]
    network_key: str
    done: dict[Any, Any]
    grid: InputGrid
    y: torch.Tensor
    window: tuple[int, ...]
    example_shapes: dict[str, tuple[int, ...]]


def find_inputs(
    bundle: BundleConfig,
    before: Compose,
    network: torch.nn.Module,
    metadata: Mapping[str, Any],
    extra_keys: Sequence[str] | Mapping[str, str],
) -> Reading:
    """The first reading of the inputs that preprocessing and network accept.

    Raises:
        BundleError: none does; the sentence is that of the try that came furthest.
    """
    images = _image_keys(before, metadata)
    taken = _channels_taken(network)
    required = _likely_extras(bundle, before, images, metadata)
    failures: list[tuple[int, str, tuple[Input, ...]]] = []
    tried: set[tuple[str, ...]] = set()
    while tuple(required) not in tried:
        tried.add(tuple(required))
        for inputs in _candidates(images, required, metadata, taken):
            try:
                return _read(
                    bundle, before, network, inputs=inputs, extra_keys=extra_keys, size=SIZES[0]
                )
            except Failed as failed:
                failures.append((failed.depth, failed.sentence, inputs))
                if failed.missing and failed.missing not in [*required, *images]:
                    if failed.missing.lower() in LABEL_KEYS:
                        msg = (
                            f"preprocessing: needs '{failed.missing}', which no request "
                            "brings: this is a config for training or evaluation; name an "
                            "inference config with --config"
                        )
                        raise BundleError(msg) from None
                    required[failed.missing] = False
                    break
    hopeful = sorted(failures, key=lambda one: -one[0])[:MOST_TRIED_LARGER]
    for size in SIZES[1:]:
        for _, _, inputs in hopeful:
            try:
                return _read(
                    bundle, before, network, inputs=inputs, extra_keys=extra_keys, size=size
                )
            except Failed as failed:
                failures.append((failed.depth, failed.sentence, inputs))
    _, sentence, _ = max(failures, key=lambda one: one[0])
    raise BundleError(sentence)


def _read(
    bundle: BundleConfig,
    before: Compose,
    network: torch.nn.Module,
    *,
    inputs: tuple[Input, ...],
    extra_keys: Sequence[str] | Mapping[str, str],
    size: tuple[tuple[int, ...], tuple[int, ...]],
) -> Reading:
    request = sample(inputs, *size)
    data = loaded(inputs, lambda name, _: torch.from_numpy(request[name]), _CPU)
    grid = InputGrid(
        input_shape(inputs, data),
        input_affine(inputs, lambda name, _: torch.from_numpy(request[name])),
    )
    try:
        done: Any = before(data)
    except Exception as error:  # a bundle's transform raises what it likes
        cause = root_cause(error)
        missing = missing_package(cause)
        if missing:
            raise BundleError(missing) from error
        absent = missing_key(cause)
        words = f"wants '{absent}', which no image or transform brings" if absent else said(cause)
        if absent in _OF_FILES:
            words = (
                f"wants '{absent}' of a file's own metadata, and serving reads no files: an image "
                "comes with its affine (spacing, place and direction) and its shape"
            )
        raise Failed(1, f"preprocessing: {transform_of(error)}{words}", absent) from error
    if not isinstance(done, dict):
        msg = (
            f"preprocessing: gives a {type(done).__name__}, not one dictionary; crops into "
            "several patches can't be served"
        )
        raise Failed(2, msg)
    key = _network_key(done, inputs)
    try:
        x = network_input(key, done)
    except RuntimeError as error:
        raise Failed(2, f"preprocessing: {error}") from error
    if any(n == 0 for n in x.shape):
        msg = "preprocessing: leaves nothing of a generated image"
        raise Failed(1, msg)
    y, window = predicted(bundle, network, x, done, extra_keys)
    if not isinstance(y, torch.Tensor):
        raise Failed(4, not_one_tensor("network", y))
    example_shapes = {name: value.shape for name, value in request.items()}
    return Reading(inputs, key, done, grid, y, window, example_shapes)


def _image_keys(before: Compose, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    keys: list[str] = []
    for one in flat(before):
        if isinstance(one, Loaded):
            keys += [str(key) for key in one.keys if str(key) not in keys]
            if not one.allow_missing_keys and any(str(k).lower() in LABEL_KEYS for k in one.keys):
                label = next(str(k) for k in one.keys if str(k).lower() in LABEL_KEYS)
                msg = (
                    f"preprocessing: reads '{label}', which no request brings: this is a config "
                    "for training or evaluation; name an inference config with --config"
                )
                raise BundleError(msg)
    keys = [key for key in keys if key.lower() not in LABEL_KEYS]
    stated = [str(k) for k, v in metadata.items() if isinstance(v, Mapping) and _is_image(v)]
    return tuple(keys or stated or ["image"])


def _is_image(described: Mapping[str, Any]) -> bool:
    return str(described.get("type", "image")) in ("image", "magnitude", "png", "jpg", "jpeg")


def _likely_extras(
    bundle: BundleConfig, before: Compose, images: Sequence[str], metadata: Mapping[str, Any]
) -> dict[str, bool]:
    """Keys beside the images that some transform names, such as clicks: is it a number?"""
    named = set(_strings([getattr(one, "__dict__", {}) for one in flat(before)]))
    # An image that nothing reads is made of others, such as of contrasts: no request brings it.
    beside = {
        str(key): False
        for key, described in metadata.items()
        if not (isinstance(described, Mapping) and _is_image(described))
    }
    for text in bundle.texts():
        beside |= _beside(text, images)
    beside |= _literally_beside(bundle, images)
    return {
        key: number
        for key, number in beside.items()
        if key in named and key not in images and key.lower() not in LABEL_KEYS
    }


def _beside(text: str, images: Sequence[str]) -> dict[str, bool]:
    """Keys of dictionaries in an expression that hold one of the images too: is it a number?"""
    if not text.startswith("$"):
        return {}
    try:
        tree = ast.parse(re.sub(r"@[\w:#]+", "_", text[1:]).strip(), mode="eval")
    except (SyntaxError, ValueError):
        return {}
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs = [
                (str(key.value), isinstance(value, ast.Constant) and _is_number(value.value))
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            ]
            if any(key in images for key, _ in pairs):
                found |= {key: number for key, number in pairs if key not in images}
    return found


def _literally_beside(bundle: BundleConfig, images: Sequence[str]) -> dict[str, bool]:
    place = bundle.raw("dataset", {})
    data = place.get("data") if isinstance(place, dict) else None
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return {str(k): _is_number(value) for k, value in data[0].items() if k not in images}
    return {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _strings(value: Any, depth: int = 3) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, Mapping):
        for one in value.values():
            yield from _strings(one, depth - 1)
    elif depth and isinstance(value, list | tuple | set):
        for one in value:
            yield from _strings(one, depth - 1)


def _candidates(
    images: Sequence[str], extras: Mapping[str, bool], metadata: Mapping[str, Any], taken: int
) -> Iterator[tuple[Input, ...]]:
    """Ways to read the inputs, likely ones first: all images alike before any mixture."""
    per_image = [_layouts(metadata.get(key, {}), taken) for key in images]
    shapes = list(itertools.product(*per_image))
    shapes.sort(key=lambda combination: len(set(combination)))
    for combination in shapes[:64]:
        flat = any(layout in ("rgb", "gray") for layout, _ in combination)
        readings: list[tuple[Layout, int]] = [("points", 2 if flat else 3), ("value", 1)]
        per_extra = [readings[::-1] if number else readings for number in extras.values()]
        for kinds in itertools.product(*per_extra):
            single = len(images) == 1
            names = ["IMAGE"] if single else [tensor_name(key) for key in images]
            yield (
                *(
                    Input(key, name, layout, channels)
                    for key, name, (layout, channels) in zip(
                        images, names, combination, strict=True
                    )
                ),
                *(
                    Input(key, tensor_name(key), layout, channels)
                    for key, (layout, channels) in zip(extras, kinds, strict=True)
                ),
            )


def _channels_taken(network: torch.nn.Module) -> int:
    """What the network's first convolution takes; 1 where it has none."""
    kernels = (one for one in network.parameters() if one.ndim >= 4)
    return next((int(one.shape[1]) for one in kernels), 1)


def _layouts(described: Any, taken: int) -> list[tuple[Layout, int]]:
    stated = described if isinstance(described, Mapping) else {}
    channels = stated.get("num_channels")
    channels = channels if isinstance(channels, int) else 1
    shape = stated.get("spatial_shape")
    flat = isinstance(shape, list) and len(shape) == 2
    colour = str(stated.get("format", "")).upper() in ("RGB", "BGR")
    volume: list[tuple[Layout, int]] = [("volume", 1)]
    counts = [n for n in dict.fromkeys((channels, taken, 2, 3, 4)) if 1 < n <= 64]
    several: list[tuple[Layout, int]] = [("channels", n) for n in counts]
    pictures: list[tuple[Layout, int]] = [("rgb", 3), ("gray", 1)]
    if colour:
        return [*pictures, *volume, *several]
    if flat:
        return [*volume, *reversed(pictures), *several]
    return [*volume, *several, *pictures]


def _network_key(done: Mapping[Any, Any], inputs: Sequence[Input]) -> str:
    """MONAI's evaluator gives the network `image`; a bundle without one has its own word."""
    tensors = [str(key) for key, value in done.items() if isinstance(value, torch.Tensor)]
    for key in ("image", *(one.key for one in inputs if one.is_image)):
        if key in tensors:
            return key
    if not tensors:
        msg = "preprocessing: gives no tensor"
        raise Failed(2, msg)
    return tensors[-1]


def missing_key(cause: BaseException) -> str:
    """The key that a transform looked for in vain, or nothing where that was not the trouble."""
    if not isinstance(cause, KeyError) or not cause.args:
        return ""
    text = str(cause.args[0])
    quoted = re.search(r"[Kk]ey `([^`]+)`", text)
    return quoted.group(1) if quoted else text if re.fullmatch(r"[\w.-]{1,64}", text) else ""
