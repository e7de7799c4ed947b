"""Reads a MONAI bundle and finds out how it can be served, or says why it can't.

In: a folder with `configs/inference.*`, `configs/metadata.json` and `models/model.pt`, or
the name of a built-in pipeline. Out: a frozen `Bundle`. A bundle is code: its expressions
run when it is parsed.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Invertd
from pydantic import ValidationError

from ensemble_builder.contract import Code, SegmentRow
from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.networks import load_weights
from ensemble_builder.runtime.recipe import BundleConfig, Recipe
from ensemble_builder.version import BUILDER_VERSION

BUILT_IN = Path(__file__).parent / "pipelines"
CONFIG_NAMES = ("inference.json", "inference.yaml", "inference.yml")

LARGEST_LABEL = 255
"""MASK is UINT8."""

TISSUE = Code(value="85756007", scheme_designator="SCT", meaning="Tissue")
"""What a segment is when its bundle names it but gives no code."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that can be served as label maps of one volume.

    Attributes:
        folder: The bundle's root.
        name: The Triton name of its ensemble: lower_snake.
        recipe: What the runtime needs to know.
        modality: DICOM Modality of its input, empty where the metadata doesn't say.
        segments: The segment table, one row per label.
    """

    folder: Path
    name: str
    version: str
    recipe: Recipe
    modality: str
    segments: tuple[SegmentRow, ...]
    description: str
    intended_use: str
    weights_sha256: str
    licence: str
    source: str


def find_bundle(bundle: str | Path) -> Path:
    """The folder of a bundle given by path or by the name of a built-in pipeline.

    Raises:
        BundleError: there is none.
    """
    path = Path(bundle)
    if (path / "configs").is_dir():
        return path
    built_in = BUILT_IN / str(bundle)
    if re.fullmatch(r"[a-z][a-z0-9_]*", str(bundle)) and (built_in / "configs").is_dir():
        return built_in
    names = ", ".join(sorted(p.parent.name for p in BUILT_IN.glob("*/configs")))
    msg = f"'{bundle}' is neither a folder with configs/ in it nor built in ({names})"
    raise BundleError(msg)


def read_bundle(folder: Path, runtime: str = "auto", name: str | None = None) -> Bundle:
    """Reads a bundle and checks that it can be served.

    Args:
        folder: The bundle's root.
        runtime: What computes the network: auto, torch or openvino.
        name: The ensemble's name; made from the folder's where not given.

    Raises:
        BundleError: it can't be read or served; names the key and the reason.
    """
    config = next((f"configs/{n}" for n in CONFIG_NAMES if (folder / "configs" / n).is_file()), "")
    if not config:
        msg = f"{folder.name}: configs/ holds none of {', '.join(CONFIG_NAMES)}"
        raise BundleError(msg)
    metadata = _read_metadata(folder)
    weights = folder / "models" / "model.pt"
    if not weights.is_file():
        msg = f"{folder.name}: models/model.pt is missing; download or train the weights first"
        raise BundleError(msg)
    try:
        recipe = _recipe(
            BundleConfig(folder, config, torch.device("cpu")), config, runtime, weights
        )
    except BundleError as error:
        msg = f"{folder.name}: {error}"
        raise BundleError(msg) from error
    except Exception as error:  # a bundle is code and raises what it likes
        msg = f"{folder.name}: {config} can't be built: {type(error).__name__}: {error}"
        raise BundleError(msg) from error
    image = _first(metadata, "inputs")
    return Bundle(
        folder=folder,
        name=_model_name(name or folder.resolve().name),
        version=str(metadata.get("version", "0")),
        recipe=recipe,
        modality=_modality(str(image.get("modality", ""))),
        segments=_segments(metadata, folder.name),
        description=str(metadata.get("description", "")),
        intended_use=str(metadata.get("intended_use", "")),
        weights_sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        licence=str(metadata.get("license", metadata.get("copyright", ""))),
        source=str(metadata.get("data_source", "")),
    )


def _recipe(bundle: BundleConfig, config: str, runtime: str, weights: Path) -> Recipe:
    """Instantiates every part once, as the models will, and notes what they need to know."""
    for key in ("preprocessing", "inferer", "postprocessing"):
        if not bundle.has(key):
            msg = f"{config} has no '{key}', which serving needs"
            raise BundleError(msg)
    network_id = next((k for k in ("network_def", "network") if bundle.has(k)), None)
    if network_id is None:
        msg = f"{config} has neither 'network_def' nor 'network'"
        raise BundleError(msg)
    image_key = _only_key(bundle.preprocessing().flatten().transforms[0], "preprocessing")
    inferer = bundle.inferer()
    if not hasattr(inferer, "roi_size"):
        msg = f"inferer: {type(inferer).__name__} is not supported yet, SlidingWindowInferer is"
        raise BundleError(msg)
    post = bundle.postprocessing().flatten().transforms
    inverse = next((t for t in post if isinstance(t, Invertd)), None)
    if inverse is None:
        msg = (
            "postprocessing has no Invertd, so its mask would not lie on the input's grid; "
            "add one where the bundle was trained to have it"
        )
        raise BundleError(msg)
    if tuple(inverse.orig_keys) != (image_key,):
        msg = f"postprocessing: Invertd's orig_keys must be '{image_key}'"
        raise BundleError(msg)
    load_weights(bundle.network(network_id), weights)
    return Recipe(
        builder_version=BUILDER_VERSION,
        config=config,
        image_key=image_key,
        pred_key=_only_key(inverse, "postprocessing: Invertd"),
        network_id=network_id,
        weights=f"models/{weights.name}",
        runtime=runtime,
        amp=bool(bundle.raw("evaluator", {}).get("amp", False)),
    )


def _only_key(transform: Any, place: str) -> str:
    keys = tuple(getattr(transform, "keys", ()))
    if len(keys) != 1:
        msg = f"{place} works on the keys {list(keys)}; exactly one is supported so far"
        raise BundleError(msg)
    return str(keys[0])


def _read_metadata(folder: Path) -> dict[str, Any]:
    path = folder / "configs" / "metadata.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{folder.name}: configs/metadata.json can't be read: {error}"
        raise BundleError(msg) from error
    if not isinstance(found, dict):
        msg = f"{folder.name}: configs/metadata.json is not an object"
        raise BundleError(msg)
    return found


def _first(metadata: dict[str, Any], side: str) -> dict[str, Any]:
    described = metadata.get("network_data_format", {}).get(side, {})
    return next((d for d in described.values() if isinstance(d, dict)), {})


def _modality(stated: str) -> str:
    """DICOM's word for what a metadata file calls its modality."""
    word = stated.strip().upper()
    known = {"MRI": "MR", "X-RAY": "DX", "XRAY": "DX", "N/A": "", "NONE": ""}
    return known.get(word, word)[:16]


def _model_name(name: str) -> str:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    snake = re.sub(r"[^a-z0-9]+", "_", snake).strip("_")
    return (snake if snake[:1].isalpha() else f"bundle_{snake}")[:63]


def _segments(metadata: dict[str, Any], name: str) -> tuple[SegmentRow, ...]:
    """The bundle's own `segments` table, or one row per channel it names.

    Raises:
        BundleError: no segment at all, one that can't be read, or more than UINT8 holds.
    """
    place = f"{name}: configs/metadata.json"
    stated = metadata.get("segments")
    try:
        if stated is not None:
            rows = tuple(SegmentRow.model_validate(row) for row in stated)
        else:
            channels = _first(metadata, "outputs").get("channel_def", {})
            rows = tuple(
                SegmentRow(label=label, name=text[:64], category=TISSUE, type=TISSUE)
                for label, text in sorted((int(key), str(text)) for key, text in channels.items())
                if label > 0
            )
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(str(part) for part in found["loc"])
        msg = f"{place}: a row of segments: {where}: {found['msg']}"
        raise BundleError(msg) from error
    except (TypeError, ValueError, AttributeError) as error:
        msg = f"{place}: segments or channel_def can't be read: {error}"
        raise BundleError(msg) from error
    if not rows:
        msg = f"{place}: names no segment; list them under 'segments', or outputs' channel_def"
        raise BundleError(msg)
    labels = [row.label for row in rows]
    if max(labels) > LARGEST_LABEL or len(set(labels)) != len(labels):
        msg = f"{place}: labels must be different and at most {LARGEST_LABEL}, not {labels}"
        raise BundleError(msg)
    return rows
