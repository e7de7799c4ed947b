"""MONAI alone: what `python -m monai.bundle run` computes, in this process, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from nibabel import orientations
from numpy.typing import NDArray

from ensemble_builder.bundle import Options, read_bundle
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.runtime.recipe import Output
from ensemble_builder.runtime.weights import network_with_weights
from ensemble_builder.verify.source import Request, Source, StoredVolume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_DTYPES: dict[str, Any] = {"UINT8": np.uint8, "UINT16": np.uint16, "FP32": np.float32}


@dataclass(frozen=True, slots=True)
class Stages:
    """What came out of each stage, in MONAI's own order of axes but for the outputs.

    Attributes:
        x: Network input, float32 [C, *spatial].
        x_affine: float64 [4, 4] RAS, or None where X carries none.
        y: Network output, [C, *spatial] or [n].
        outputs: Triton tensor -> result as the contract states it.
    """

    x: NDArray[np.float32]
    x_affine: NDArray[np.float64] | None
    y: NDArray[Any]
    outputs: Mapping[str, NDArray[Any]]


def reference(bundle_folder: Path, volume: StoredVolume) -> NDArray[Any]:
    """The mask that MONAI computes of one volume: [K, J, I].

    Raises:
        BundleError: the bundle can't be read.
    """
    source = Source.of(read_bundle(bundle_folder, Options(random_weights=0)))
    outputs = monai_stages(source, volume.request()).outputs
    return next(iter(outputs.values()))


def monai_stages(source: Source, request: Request) -> Stages:
    """Runs a bundle as MONAI's evaluator does, and keeps what came out of each stage.

    Raises:
        BundleError: the bundle can't be read.
    """
    recipe = source.recipe
    bundle = recipe.open(source.folder, torch.device("cpu"))
    data = {one.key: stored_as_read(one, request) for one in recipe.inputs}
    first = next(data[one.key] for one in recipe.inputs if one.is_image)
    affine = np.array(first.affine, dtype=np.float64)
    with torch.no_grad():
        data = cast(dict[str, Any], bundle.preprocessing()(data))
        network = network_with_weights(bundle, recipe.network_id, recipe.weights, source.folder)
        x = data[recipe.network_key]
        # As MONAI's DataLoader and evaluator do it: collated to a batch of one, and back.
        wanted = (recipe.network_key, *recipe.extra_keys())
        batch = list_data_collate([{key: data[key] for key in wanted}])
        args = [torch.as_tensor(batch[key]) for key in recipe.network_args]
        kwargs = {name: torch.as_tensor(batch[key]) for name, key in recipe.network_kwargs.items()}
        prediction = bundle.inferer()(batch[recipe.network_key].float(), network, *args, **kwargs)
        y = decollate_batch(prediction)[0]
        kept = np.array(_plain(y))
        data[recipe.pred_key] = y
        done = bundle.postprocessing()(data)
    return Stages(
        x=np.array(_plain(x), dtype=np.float32),
        x_affine=np.array(x.affine, dtype=np.float64) if isinstance(x, MetaTensor) else None,
        y=kept,
        outputs={
            one.tensor: stated(_as_the_image(done[one.key], one, affine), one)
            for one in recipe.outputs
        },
    )


def stored_as_read(one: Input, request: Request) -> Any:
    """What a reader would have given for one input."""
    stored = request[one.tensor]
    if one.layout == "points":
        return stored.tolist()
    if one.layout == "value":
        return stored.reshape(-1)[0].item()
    if one.layout == "rgb":
        meta: dict[str, Any] = {"original_channel_dim": -1, "space": "RAS"}
        meta["spatial_shape"] = (stored.shape[1], stored.shape[0])
        return MetaTensor(np.ascontiguousarray(stored.transpose(1, 0, 2)), meta=meta)
    rescale = request[one.rescale]
    if one.layout == "gray":
        slopes, intercepts = rescale[0, 0], rescale[0, 1]
    else:
        slopes, intercepts = rescale[..., 0, None, None], rescale[..., 1, None, None]
    values = (stored.astype(np.float64) * slopes + intercepts).astype(np.float32)
    several = one.layout == "channels"
    axes = (0, 3, 2, 1) if several else tuple(reversed(range(values.ndim)))
    values = np.ascontiguousarray(values.transpose(axes))
    meta = {
        "affine": _LPS_TO_RAS @ request[one.affine],
        "original_channel_dim": 0 if several else "no_channel",
        "spatial_shape": values.shape[1:] if several else values.shape,
        "space": "RAS",
    }
    return MetaTensor(values, meta=meta)


def _plain(value: Any) -> NDArray[Any]:
    tensor = torch.as_tensor(value).detach().as_subclass(torch.Tensor)
    return np.asarray(tensor.cpu())


def _as_the_image(result: Any, output: Output, affine: NDArray[np.float64]) -> NDArray[Any]:
    """A result with its axes in the image's order, as nibabel turns them by both affines.

    MONAI's writer leaves them as they are and writes the affine beside them; a result that has
    lost its own stays as it is, too.
    """
    plain = _plain(result)
    has_affine = output.has_affine and isinstance(result, MetaTensor)
    if not output.on_input_grid or not has_affine or plain.ndim < 3:
        return plain
    channels = plain.ndim - (len(output.dims) - (output.kind != "labelmap"))
    turning: Any = orientations  # it has no types
    now, wanted = (turning.io_orientation(one) for one in (np.array(result.affine), affine))
    turn = turning.ornt_transform(now, wanted)[: plain.ndim - channels]
    turned = turning.apply_orientation(
        np.moveaxis(plain, range(channels), range(-channels, 0)), turn
    )
    return np.asarray(np.moveaxis(turned, range(-channels, 0), range(channels)))


def stated(value: NDArray[Any], output: Output) -> NDArray[Any]:
    """A result in the contract's axes and datatype."""
    if output.kind == "scores":
        return value.astype(np.float32).reshape(-1)
    if output.kind in ("labelmap", "masks") and np.issubdtype(value.dtype, np.floating):
        value = np.trunc(value) if output.cut else np.rint(value)
    if value.ndim == len(output.dims) - (output.kind != "labelmap"):
        value = value[None]  # one channel that the bundle has squeezed away
    axes = (0, *range(value.ndim - 1, 0, -1))
    value = np.ascontiguousarray(value.transpose(axes)).astype(_DTYPES[output.datatype])
    return np.asarray(value[0] if output.kind == "labelmap" else value)
