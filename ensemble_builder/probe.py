"""Finds out what a bundle takes and gives, by running its own transforms on small inputs.

A config doesn't say whether its one image is a volume, four co-registered ones, a photograph
or a radiograph; metadata is often missing or wrong. So each layout is tried, likely ones
first, until the preprocessing gives what the network takes. The network itself runs on
torch's meta device, where only shapes are computed.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import monai
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, Invertd, Randomizable

from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.config import BundleConfig
from ensemble_builder.runtime.inputs import Input, Layout
from ensemble_builder.runtime.loading import (
    input_shape,
    loaded,
    network_input,
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
from ensemble_builder.runtime.steps import Loaded, Written
from ensemble_builder.samples import sample

LABEL_KEYS = frozenset({"label", "labels", "seg", "segmentation"})
"""Keys of a ground truth, which no request brings."""

SIZES = (((29, 34, 38), (147, 181)), ((101, 107, 112), (519, 533)))
"""Shapes tried, (K, J, I) and (J, I): small first; a crop or a patch may need more."""

MANY_CHANNELS = 24
"""Above it only some channels are asked which label they stand for."""

_CPU = torch.device("cpu")
_DATATYPES = {
    torch.float32: "FP32", torch.float64: "FP64", torch.float16: "FP16", torch.uint8: "UINT8",
    torch.int16: "INT16", torch.int32: "INT32", torch.int64: "INT64", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Findings:
    """What probing found.

    Attributes:
        x_shape: Of X in the probe, [C, *spatial].
        y_dims: Dims of Y, -1 where it depends on the input.
        labels: Label -> the network's channel that it stands for, for the label map.
        example_shapes: Input's tensor -> the shape it had in the probe.
        x_voxel_mm3: Size of X's voxels where the preprocessing resamples; None where X has
            the input's own.
        x_voxels_fixed: Voxels of X where it is resized to one shape.
    """

    inputs: tuple[Input, ...]
    network_key: str
    pred_key: str
    outputs: tuple[Output, ...]
    carried: tuple[Carried, ...]
    window: tuple[int, ...]
    x_dims: tuple[int, ...]
    extra_dims: Mapping[str, tuple[tuple[int, ...], str]]
    y_dims: tuple[int, ...]
    labels: Mapping[int, int]
    example_shapes: Mapping[str, tuple[int, ...]]
    x_voxel_mm3: float | None = None
    x_voxels_fixed: int | None = None


@dataclass(frozen=True, slots=True)
class _Try:
    """One way of reading the inputs that the preprocessing and the network accept."""

    inputs: tuple[Input, ...]
    network_key: str
    done: dict[Any, Any]
    input_shape: tuple[int, ...]
    y: torch.Tensor
    window: tuple[int, ...]
    example_shapes: dict[str, tuple[int, ...]]


def probe(
    bundle: BundleConfig,
    network: torch.nn.Module,
    metadata_inputs: Mapping[str, Any],
    extra_keys: Sequence[str] | Mapping[str, str],
) -> Findings:
    """Finds out what a bundle takes and gives.

    Args:
        bundle: Parsed.
        network: Without weights, in eval mode.
        metadata_inputs: `network_data_format.inputs` of its metadata.
        extra_keys: Keys that the evaluator's prepare_batch gives the network besides the image.

    Raises:
        BundleError: no layout works, or it gives something that can't be served.
    """
    with _quiet():
        before = bundle.preprocessing()
        after = bundle.postprocessing()
        _refuse_randomness(before)
        found = _find_inputs(bundle, before, network, metadata_inputs, extra_keys)
        pred_key = _pred_key(bundle, after)
        carried, done = _run_after(after, found, pred_key)
        outputs = _outputs(after, done, pred_key, found.input_shape)
        labels = _labels(after, found, pred_key, outputs, carried)
    x = network_input(found.network_key, found.done)
    extras = {}
    for key in _extra_list(extra_keys):
        tensor = torch.as_tensor(found.done[key])
        extras[key] = (tuple([-1] * tensor.ndim), _DATATYPES.get(tensor.dtype, "FP32"))
    scores = found.y.ndim == 2
    y_dims = found.y.shape[1:] if scores else (found.y.shape[1], *[-1] * (found.y.ndim - 2))
    return Findings(
        inputs=found.inputs,
        network_key=found.network_key,
        pred_key=pred_key,
        outputs=outputs,
        carried=carried,
        window=found.window,
        x_dims=(x.shape[0], *[-1] * (x.ndim - 1)),
        extra_dims=extras,
        y_dims=tuple(y_dims),
        labels=labels,
        example_shapes=found.example_shapes,
        **_grid_of_x(found, x),
    )


def _grid_of_x(found: _Try, x: torch.Tensor) -> dict[str, Any]:
    """Whether X lies on the input's grid, on one of a fixed spacing, or has a fixed shape."""
    image = found.done[found.network_key]
    if not isinstance(image, MetaTensor) or x.ndim - 1 != len(found.input_shape):
        return {}
    names = " ".join(str(op.get("class", "")) for op in image.applied_operations)
    if "Spacing" in names or "SpatialResample" in names:
        return {"x_voxel_mm3": float(torch.linalg.det(image.affine[:3, :3].double()).abs())}
    return {"x_voxels_fixed": int(np.prod(x.shape[1:]))} if "Resize" in names else {}


# Inputs -------------------------------------------------------------------------------


def _find_inputs(
    bundle: BundleConfig,
    before: Compose,
    network: torch.nn.Module,
    metadata: Mapping[str, Any],
    extra_keys: Sequence[str] | Mapping[str, str],
) -> _Try:
    images = _image_keys(before, metadata)
    extras = _likely_extras(bundle, before, images, metadata)
    failures: list[tuple[int, str]] = []
    for size in SIZES:
        required: list[str] = list(extras)
        tried: set[tuple[str, ...]] = set()
        while tuple(required) not in tried:
            tried.add(tuple(required))
            for inputs in _candidates(images, required, metadata):
                try:
                    return _try(
                        bundle, before, network, inputs=inputs, extra_keys=extra_keys, size=size
                    )
                except _Failed as failed:
                    failures.append((failed.depth, failed.sentence))
                    if failed.missing and failed.missing not in [*required, *images]:
                        if failed.missing.lower() in LABEL_KEYS:
                            msg = (
                                f"preprocessing: needs '{failed.missing}', which no request "
                                "brings: this is a config for training or evaluation; name an "
                                "inference config with --config"
                            )
                            raise BundleError(msg) from None
                        required.append(failed.missing)
                        break
    _, sentence = max(failures, key=lambda one: one[0])
    raise BundleError(sentence)


class _Failed(Exception):
    """One try didn't work; `depth` says how far it came."""

    def __init__(self, depth: int, sentence: str, missing: str = "") -> None:
        super().__init__(sentence)
        self.depth, self.sentence, self.missing = depth, sentence, missing


def _try(
    bundle: BundleConfig,
    before: Compose,
    network: torch.nn.Module,
    *,
    inputs: tuple[Input, ...],
    extra_keys: Sequence[str] | Mapping[str, str],
    size: tuple[tuple[int, ...], tuple[int, ...]],
) -> _Try:
    request = sample(inputs, *size)
    data = loaded(inputs, lambda name, _: torch.from_numpy(request[name]), _CPU)
    shape = input_shape(inputs, data)
    try:
        done: Any = before(data)
    except Exception as error:  # a bundle's transform raises what it likes
        cause = root_cause(error)
        missing = missing_package(cause)
        if missing:
            raise BundleError(missing) from error
        sentence = f"preprocessing: {_transform_of(error)}{_said(cause)}"
        raise _Failed(1, sentence, _missing_key(cause)) from error
    if not isinstance(done, dict):
        msg = (
            f"preprocessing: gives a {type(done).__name__}, not one dictionary; crops into "
            "several patches can't be served"
        )
        raise _Failed(2, msg)
    key = _network_key(done, inputs)
    try:
        x = network_input(key, done)
    except RuntimeError as error:
        raise _Failed(2, f"preprocessing: {error}") from error
    if any(n == 0 for n in x.shape):
        msg = "preprocessing: leaves nothing of a generated image"
        raise _Failed(1, msg)
    y, window = _predicted(bundle, network, x, done, extra_keys)
    if not isinstance(y, torch.Tensor):
        raise BundleError(_not_one_tensor("inferer", y))
    example_shapes = {name: value.shape for name, value in request.items()}
    return _Try(inputs, key, done, shape, y, window, example_shapes)


def _predicted(
    bundle: BundleConfig,
    network: torch.nn.Module,
    x: torch.Tensor,
    done: Mapping[Any, Any],
    extra_keys: Sequence[str] | Mapping[str, str],
) -> tuple[Any, tuple[int, ...]]:
    """What the inferer gives of X, and the shape of one window."""
    shapes = _ShapeNetwork(network)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    try:
        if isinstance(extra_keys, Mapping):
            kwargs = {name: torch.as_tensor(done[k])[None] for name, k in extra_keys.items()}
        else:
            args = tuple(torch.as_tensor(done[k])[None] for k in extra_keys)
    except KeyError as error:
        msg = (
            f"evaluator: prepare_batch wants '{error.args[0]}', which the preprocessing doesn't "
            "give"
        )
        raise _Failed(2, msg) from error
    try:
        with torch.inference_mode():
            y = bundle.inferer()(x[None], shapes, *args, **kwargs)
    except BundleError as error:
        raise _Failed(4, str(error)) from error
    except Exception as error:
        cause = root_cause(error)
        missing = missing_package(cause)
        if missing:
            raise BundleError(missing) from error
        msg = (
            "inferer: the network can't take what the preprocessing gives, "
            f"{list(x.shape)}: {_said(cause)}"
        )
        raise _Failed(3, msg) from error
    return y, shapes.window


def _image_keys(before: Compose, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    keys: list[str] = []
    for one in _flat(before):
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
) -> list[str]:
    """Keys that come beside the images and that some transform names, such as clicks."""
    named = set(_strings([vars(one) for one in _flat(before)]))
    beside: list[str] = [str(key) for key in metadata]
    for text in bundle.texts():
        beside += _keys_beside(text, images)
    beside += _literal_keys_beside(bundle, images)
    return [
        key
        for key in dict.fromkeys(beside)
        if key in named and key not in images and key.lower() not in LABEL_KEYS
    ]


def _keys_beside(text: str, images: Sequence[str]) -> list[str]:
    """Keys of dictionaries in an expression that hold one of the images too."""
    if not text.startswith("$"):
        return []
    try:
        tree = ast.parse(re.sub(r"@[\w:#]+", "_", text[1:]).strip(), mode="eval")
    except (SyntaxError, ValueError):
        return []
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [k.value for k in node.keys if isinstance(k, ast.Constant)]
            if any(key in images for key in keys):
                found += [str(key) for key in keys if key not in images]
    return found


def _literal_keys_beside(bundle: BundleConfig, images: Sequence[str]) -> list[str]:
    place = bundle.raw("dataset", {})
    data = place.get("data") if isinstance(place, dict) else None
    if isinstance(data, list) and data and isinstance(data[0], dict):
        return [str(key) for key in data[0] if key not in images]
    return []


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
    images: Sequence[str], extras: Sequence[str], metadata: Mapping[str, Any]
) -> Iterator[tuple[Input, ...]]:
    """Ways to read the inputs, likely ones first: all images alike before any mixture."""
    per_image = [_layouts(metadata.get(key, {})) for key in images]
    shapes = list(itertools.product(*per_image))
    shapes.sort(key=lambda combination: len(set(combination)))
    for combination in shapes[:64]:
        flat = any(layout in ("rgb", "gray") for layout, _ in combination)
        readings: list[tuple[Layout, int]] = [("points", 2 if flat else 3), ("value", 1)]
        for kinds in itertools.product(*[readings for _ in extras]):
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


def _layouts(described: Any) -> list[tuple[Layout, int]]:
    stated = described if isinstance(described, Mapping) else {}
    channels = stated.get("num_channels", 1)
    channels = channels if isinstance(channels, int) and 1 < channels <= 64 else 0
    shape = stated.get("spatial_shape")
    flat = isinstance(shape, list) and len(shape) == 2
    colour = str(stated.get("format", "")).upper() in ("RGB", "BGR")
    volume: list[tuple[Layout, int]] = [("volume", 1)]
    counts = [n for n in dict.fromkeys((channels, 2, 3, 4)) if n]
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
        raise _Failed(2, msg)
    return tensors[-1]


def _missing_key(cause: BaseException) -> str:
    if not isinstance(cause, KeyError) or not cause.args:
        return ""
    text = str(cause.args[0])
    quoted = re.search(r"[Kk]ey `([^`]+)`", text)
    return quoted.group(1) if quoted else text if re.fullmatch(r"[\w.-]{1,64}", text) else ""


# The network --------------------------------------------------------------------------


class _ShapeNetwork:
    """Stands for the network: random numbers of the shape that it would give."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network
        tensors = [*network.named_parameters(), *network.named_buffers()]
        self._meta = {name: tensor.detach().to("meta") for name, tensor in tensors}
        self._seen: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.window: tuple[int, ...] = ()

    def __call__(self, windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        plain = windows.as_subclass(torch.Tensor)
        self.window = tuple(plain.shape[1:])
        shape = tuple(plain.shape)
        if shape not in self._seen:
            self._seen[shape] = self._shape(plain, args, kwargs)
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.randn(self._seen[shape], generator=generator)

    def _shape(
        self, windows: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[int, ...]:
        try:
            with torch.device("meta"):
                y = torch.func.functional_call(
                    self._network,
                    self._meta,
                    (windows.to("meta"), *(_to_meta(one) for one in args)),
                    {name: _to_meta(one) for name, one in kwargs.items()},
                )
        except Exception:  # noqa: BLE001 - not every network runs on the meta device
            y = self._network(windows, *args, **kwargs)
        if not isinstance(y, torch.Tensor):
            raise BundleError(_not_one_tensor("network", y))
        return tuple(y.shape)


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _not_one_tensor(place: str, y: Any) -> str:
    found = f"a {type(y).__name__}"
    if isinstance(y, Mapping):
        found += f" with {', '.join(repr(str(key)) for key in list(y)[:4])}"
    return (
        f"{place}: gives {found}, and one tensor can be served; wrap the network so that it "
        "returns the one you need (detection heads aren't supported yet)"
    )


# Results ------------------------------------------------------------------------------


def _pred_key(bundle: BundleConfig, after: Compose) -> str:
    """MONAI's evaluator calls it `pred`; a bundle without one may have its own word."""
    keys = [str(k) for one in _flat(after) for k in getattr(one, "keys", ()) or ()]
    evaluated = bool(bundle.components("SupervisedEvaluator"))
    return "pred" if evaluated or "pred" in keys or not keys else keys[0]


def _run_after(
    after: Compose, found: _Try, pred_key: str
) -> tuple[tuple[Carried, ...], dict[Any, Any]]:
    """Runs the postprocessing as it will be served: on stand-ins, or with tensors carried."""
    state = _crossed(found)
    full = state_of(found.done, found.input_shape)
    y = found.y[0]
    try:
        wanted = _run(after, full, found, pred_key, y=y, tensors=_tensors(found))
    except Exception as error:
        cause = root_cause(error)
        msg = f"postprocessing: {_transform_of(error)}{_said(cause)}"
        missing = _missing_key(cause)
        if missing:
            msg = (
                f"postprocessing: {_transform_of(error)}wants '{missing}', which neither the "
                "preprocessing nor the network gives"
            )
        raise BundleError(msg) from error
    ways = ((), (found.network_key,), tuple(_tensors(found)))
    for keys in ways:
        tensors = {key: value for key, value in _tensors(found).items() if key in keys}
        try:
            done = _run(after, state, found, pred_key, y=y, tensors=tensors)
        except Exception:  # noqa: BLE001, S112 - then it needs more than that
            continue
        if _same(done, wanted, after, pred_key):
            return tuple(_carried(key, value, found) for key, value in tensors.items()), done
    msg = "postprocessing: depends on something of the preprocessing that can't leave its process"
    raise BundleError(msg)


def _crossed(found: _Try) -> State:
    return decode_state(encode_state(state_of(found.done, found.input_shape)))


def _tensors(found: _Try) -> dict[str, torch.Tensor]:
    return {str(k): v for k, v in found.done.items() if isinstance(v, torch.Tensor)}


def _carried(key: str, value: torch.Tensor, found: _Try) -> Carried:
    datatype = _DATATYPES.get(value.dtype)
    if datatype is None:
        msg = f"postprocessing: reads '{key}' of {value.dtype}, which Triton has no datatype for"
        raise BundleError(msg)
    if key == found.network_key and value.dtype == torch.float32:
        return Carried(key, "X", datatype, (value.shape[0], *[-1] * (value.ndim - 1)))
    return Carried(key, f"CARRIED_{tensor_name(key)}", datatype, tuple([-1] * value.ndim))


def _run(
    after: Compose,
    state: State,
    found: _Try,
    pred_key: str,
    *,
    y: torch.Tensor,
    tensors: Mapping[str, torch.Tensor],
) -> dict[Any, Any]:
    with torch.inference_mode():
        data = dictionary_of(found.network_key, pred_key, state, y.clone(), tensors)
        return cast(dict[Any, Any], after(data))


def _result_keys(after: Compose, pred_key: str) -> tuple[str, ...]:
    keys = [str(k) for one in _flat(after) if isinstance(one, Written) for k in one.keys]
    return tuple(dict.fromkeys(keys)) or (pred_key,)


def _same(
    done: Mapping[Any, Any], wanted: Mapping[Any, Any], after: Compose, pred_key: str
) -> bool:
    for key in _result_keys(after, pred_key):
        one, other = done.get(key), wanted.get(key)
        if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
            if type(one) is not type(other):
                return False
        elif one.shape != other.shape or not torch.equal(
            torch.as_tensor(one), torch.as_tensor(other)
        ):
            return False
    return True


def _outputs(
    after: Compose, done: Mapping[Any, Any], pred_key: str, shape: tuple[int, ...]
) -> tuple[Output, ...]:
    keys = _result_keys(after, pred_key)
    found = []
    for key in keys:
        if key not in done:
            msg = f"postprocessing: writes '{key}' and never makes it"
            raise BundleError(msg)
        value = done[key]
        if isinstance(value, np.ndarray | np.generic):
            value = torch.as_tensor(value)
        if not isinstance(value, torch.Tensor):
            raise BundleError(_not_one_tensor(f"postprocessing: '{key}'", value))
        found.append(_output(after, key, value, shape, alone=len(keys) == 1))
    return tuple(found)


def _output(
    after: Compose, key: str, value: torch.Tensor, shape: tuple[int, ...], *, alone: bool
) -> Output:
    writers = [one for one in _flat(after) if isinstance(one, Written) and key in one.keys]
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
    for one in _flat(after):
        if isinstance(one, AsDiscreted) and key in one.keys:
            at = list(one.keys).index(key)
            if one.argmax[at] or one.threshold[at] is not None or one.rounding[at] is not None:
                return True
    plain = value.as_subclass(torch.Tensor)
    return not plain.is_floating_point() or bool((plain == plain.round()).all())


def _labels(
    after: Compose,
    found: _Try,
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


# Words --------------------------------------------------------------------------------


def _flat(compose: Compose) -> list[Any]:
    return list(compose.flatten().transforms)


def _refuse_randomness(before: Compose) -> None:
    for one in _flat(before):
        if isinstance(one, Randomizable) and not isinstance(one, Compose | Invertd):
            msg = (
                f"preprocessing: {type(one).__name__} is random, as for training; name an "
                "inference config with --config, or take it out"
            )
            raise BundleError(msg)


def _extra_list(extra_keys: Sequence[str] | Mapping[str, str]) -> list[str]:
    return list(extra_keys.values() if isinstance(extra_keys, Mapping) else extra_keys)


def missing_package(cause: BaseException) -> str:
    """The sentence for a Python package that the bundle needs and this machine lacks."""
    unknown = re.search(r"Cannot locate class or function path: '([^']+)'", str(cause))
    if unknown:
        return (
            f"there is no '{unknown.group(1)}' in MONAI {monai.__version__} or the bundle: is it "
            "spelt right, made for another MONAI, or missing from scripts/?"
        )
    found = re.search(r"No module named '([\w.]+)'", str(cause))
    if not found:
        return ""
    name = found.group(1).split(".")[0]
    return f"needs the Python package '{name}', which is not installed: pip install {name}"


def _said(cause: BaseException) -> str:
    words = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {words[:240]}" if words else type(cause).__name__


def _transform_of(error: BaseException) -> str:
    """The transform that MONAI says it was applying, as 'Spacingd: '."""
    found = re.search(r"applying transform <?([\w.]+)", str(error))
    return f"{found.group(1).rsplit('.', 1)[-1]}: " if found else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Probing tries what must fail; neither MONAI's log nor its warnings concern anybody."""
    loggers = [logging.getLogger(name) for name in ("monai", "monai.transforms.compose", "")]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)
