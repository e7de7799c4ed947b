"""Reads a MONAI bundle and finds out how it can be served, or says why it can't.

In: a bundle's folder or zip, or the name of a built-in pipeline, with the config files and
the overrides a person chose. Out: a frozen `Bundle`. A bundle is code: its expressions run
when it is parsed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from ensemble_builder.bundle_files import (
    BUILT_IN,
    config_files,
    config_names,
    find_bundle,
    named_files,
    says,
    weights_of,
)
from ensemble_builder.contract import ClassRow, SegmentRow
from ensemble_builder.errors import BundleError
from ensemble_builder.metadata import (
    channel_names,
    first_output,
    image_names,
    irregular_of,
    modality_of,
    read_metadata,
    side,
    text_of,
)
from ensemble_builder.networks import ExportedNetwork, export_network
from ensemble_builder.probe import Findings, missing_package, probe
from ensemble_builder.runtime.config import PARTS, BundleConfig
from ensemble_builder.runtime.fusion import Split, split
from ensemble_builder.runtime.inputs import InputDatatype
from ensemble_builder.runtime.networks import network_options
from ensemble_builder.runtime.recipe import Recipe, Weights
from ensemble_builder.runtime.rewriting import ids, texts
from ensemble_builder.runtime.weights import network_with_weights
from ensemble_builder.segments import classes_of, segments_of, segments_of_masks
from ensemble_builder.version import BUILDER_VERSION

__all__ = ["BUILT_IN", "Bundle", "Options", "find_bundle", "model_name", "read_bundle"]

INFERER_INSTANCES = 2
"""An instance is busy until its request ends, paused or not. In the second one an immediate study
computes while the first waits between two windows; and where the network is a model of its own,
windows of two studies meet there. With one, an immediate study waits for the running one."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a person chose besides the bundle.

    Attributes:
        configs: Config files, in the bundle or beside it; the inference config where empty.
        overrides: Config ids and what to put there.
        runtime: What computes the network.
        precision: Of the network's arithmetic.
        network_backend: Triton's backend for a model of its own for the network, see
            `networks.NETWORK_BACKENDS`; empty where the inferer computes it.
        name: The ensemble's name; made from the folder's where None.
        random_weights: Seed of weights for a bundle without any; None wants the bundle's own.
        input_datatype: Of stored values: INT16, or FP32 for series with floating point pixels.
        instances: How many instances of the inferer compute beside each other.
    """

    configs: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    runtime: str = "auto"
    precision: str = "f32"
    network_backend: str = ""
    name: str | None = None
    random_weights: int | None = None
    input_datatype: InputDatatype = "INT16"
    instances: int = INFERER_INSTANCES


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that can be served.

    Attributes:
        folder: The bundle's root.
        name: The Triton name of its ensemble: lower_snake.
        recipe: What the runtime needs to know.
        findings: Shapes of the edges, as the builder saw them.
        modality: DICOM Modality of its images, empty where the metadata doesn't say.
        channels: Input key -> names of its channels, where the metadata has them.
        classes: Names of the network's channels.
        segments: Of the label map, one row per label, or of the masks; empty where there is none.
        irregular: What its metadata allows for irregular series: refuse, resample or split.
        notes: What was read otherwise than it is written, in words.
        network_files: Files of the network's own model for another backend than Python's.
        y_edge: Datatype and dims of what crosses from the inferer step: the network's output,
            or already labels of it.
        instances: Of its inferer.
        named_files: Files of it that its config names.
    """

    folder: Path
    name: str
    version: str
    recipe: Recipe
    findings: Findings
    modality: str
    channels: Mapping[str, tuple[str, ...]]
    classes: tuple[str | ClassRow, ...]
    segments: tuple[SegmentRow, ...]
    description: str
    intended_use: str
    weights_sha256: str
    licence: str
    source: str
    irregular: str | None = None
    notes: tuple[str, ...] = ()
    network_files: Mapping[str, bytes] = field(default_factory=dict)
    y_edge: tuple[str, tuple[int, ...]] = ("FP32", ())
    instances: int = INFERER_INSTANCES
    named_files: tuple[str, ...] = ()

    @property
    def is_built_in(self) -> bool:
        """It lies in this package."""
        return BUILT_IN.resolve() in self.folder.resolve().parents


def read_bundle(folder: Path, options: Options | None = None) -> Bundle:
    """Reads a bundle and finds out how it can be served.

    Args:
        folder: The bundle's root.
        options: What a person chose besides it.

    Raises:
        BundleError: it can't be read or served; names the bundle, the key and the reason.
    """
    options = options or Options()
    folder = folder.resolve()
    try:
        return _read(folder, options)
    except BundleError as error:
        msg = f"{folder.resolve().name}: {error}"
        raise BundleError(msg) from error
    except RecursionError as error:
        msg = f"{folder.resolve().name}: the config refers to itself in a circle"
        raise BundleError(msg) from error
    except Exception as error:  # a bundle is code and raises what it likes
        words = " ".join(str(error).split())[:400]
        msg = f"{folder.resolve().name}: can't be read: {type(error).__name__}: {words}"
        raise BundleError(msg) from error


def _read(folder: Path, options: Options) -> Bundle:
    configs = config_names(folder, options.configs)
    metadata = read_metadata(folder)
    bundle = _parsed(folder, configs, options.overrides)
    if not metadata:
        bundle.notes.append(
            "there is no metadata.json, so nothing has a name: neither labels nor modality"
        )
    for part in ("preprocessing", "inferer", "postprocessing", "network"):
        if bundle.place(part) is None:
            raise BundleError(_absent(bundle, part, configs))
    _refuse_engines(bundle)
    _instantiate(bundle)
    weights = weights_of(bundle, folder, options.random_weights)
    extra_keys = _extra_keys(bundle)
    network_id, network = _network(bundle, weights, folder)
    described = side(metadata, "inputs")
    findings = probe(bundle, network, described, extra_keys)
    labelmap = next((one for one in findings.outputs if one.kind == "labelmap"), None)
    classes = channel_names(
        side(metadata, "outputs").get(findings.pred_key) or first_output(metadata)
    )
    masks = next((one for one in findings.outputs if one.kind == "masks"), None)
    segments: tuple[SegmentRow, ...] = ()
    if labelmap:
        segments = segments_of(metadata, classes, findings.labels)
    elif masks:
        segments = segments_of_masks(metadata, classes, masks.dims[0])
    keyword = dict(extra_keys) if isinstance(extra_keys, Mapping) else {}
    parts = _split(bundle, findings)
    recipe = Recipe(
        builder_version=BUILDER_VERSION,
        configs=configs,
        inputs=tuple(
            replace(one, datatype=options.input_datatype) if one.is_stored else one
            for one in findings.inputs
        ),
        outputs=_wide_enough(findings, segments),
        network_id=network_id,
        network_key=findings.network_key,
        pred_key=findings.pred_key,
        weights=weights,
        window=findings.window,
        runtime="auto" if options.runtime == "triton" else options.runtime,
        precision=options.precision,
        amp=bool(bundle.evaluator().get("amp", False)),
        network_args=() if keyword else tuple(extra_keys),
        network_kwargs=keyword,
        carried=findings.carried,
        overrides=dict(options.overrides),
        y_channels=findings.y_dims[0] if parts else 0,
    )
    one_number = any(one.kind == "scores" and one.dims == (1,) for one in findings.outputs)
    if one_number and findings.y_dims[0] > 1:
        bundle.notes.append(
            f"of the network's {findings.y_dims[0]} scores the postprocessing makes one number, as "
            "of the likeliest class; a report shows it as a score"
        )
    word, note = modality_of(described)
    if note:
        bundle.notes.append(note)
    weights_file = folder / weights.path if weights.path else None
    name = model_name(options.name or folder.resolve().name)
    exported = _network_model(bundle, recipe, network, name, options)
    return Bundle(
        folder=folder,
        name=name,
        version=text_of(metadata, "version") or "0",
        recipe=replace(recipe, network_model=exported.model) if exported else recipe,
        findings=findings,
        modality=word,
        channels={
            one.key: image_names(described.get(one.key)) for one in findings.inputs if one.is_image
        },
        classes=classes_of(metadata, classes, findings.y_dims[0]),
        segments=segments,
        description=text_of(metadata, "description"),
        intended_use=text_of(metadata, "intended_use"),
        weights_sha256=hashlib.sha256(weights_file.read_bytes()).hexdigest()
        if weights_file
        else f"random weights of seed {weights.seed}",
        licence=text_of(metadata, "license", "copyright"),
        source=text_of(metadata, "data_source"),
        irregular=irregular_of(metadata),
        instances=options.instances,
        named_files=named_files(bundle, folder),
        notes=(*bundle.notes, *(exported.notes if exported else ())),
        network_files=exported.files if exported else {},
        y_edge=(parts.datatype, (parts.channels, *findings.y_dims[1:]))
        if parts
        else ("FP32", findings.y_dims),
    )


def _split(bundle: BundleConfig, findings: Findings) -> Split | None:
    """Where the inferer step already makes labels of the network's output; None where not."""
    if len(findings.y_dims) < 3:
        return None
    parts = split(bundle.postprocessing(), findings.pred_key, findings.y_dims[0])
    return parts if parts.reduction is not None else None


# Configs ------------------------------------------------------------------------------


def _parsed(folder: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> BundleConfig:
    written: dict[str, Any] = {}
    for name in configs:
        try:
            text = (folder / name).read_text(encoding="utf-8")
            found = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
        except (ValueError, OSError, yaml.YAMLError) as error:
            msg = f"{name} can't be read: {' '.join(str(error).split())}"
            raise BundleError(msg) from error
        if not isinstance(found, dict):
            msg = f"{name} is a {type(found).__name__}, expected keys and values"
            raise BundleError(msg)
        written |= found
    for place in overrides:
        _refuse_unused(place, written)
    return BundleConfig(folder, configs, torch.device("cpu"), overrides)


def _refuse_unused(place: str, written: Mapping[str, Any]) -> None:
    """A misspelt --set would change nothing, and nobody would see it.

    Raises:
        BundleError: the config has no such key at its top, and nothing in it asks for one.
    """
    top = re.split(r"::|#|\.", place)[0]
    asked = rf"[@%]{re.escape(top)}(?!\w)"
    if place in written or top in written or top in _TOP_IDS:
        return
    if any(re.search(asked, one) for one in texts(written)):
        return
    inside = [one for one in ids(written) if one.rsplit("::", 1)[-1] == top]
    near = inside[:3] or difflib.get_close_matches(top, list(map(str, written)), n=1)
    hint = f"did you mean {' or '.join(near)}?" if near else "it would change nothing"
    msg = f"--set {place}: the config has no '{top}', and nothing in it asks for one; {hint}"
    raise BundleError(msg)


def _instantiate(bundle: BundleConfig) -> None:
    """Builds every part but the network once, so that a mistake in one is said as its own.

    Raises:
        BundleError: one can't be built.
    """
    for part in ("preprocessing", "inferer", "postprocessing"):
        try:
            getattr(bundle, part)()
        except BundleError:
            raise
        except RecursionError as error:
            msg = f"{part}: refers to itself in a circle"
            raise BundleError(msg) from error
        except Exception as error:  # a bundle's own code raises what it likes
            cause = error.__cause__ or error
            missing = missing_package(cause)
            words = " ".join(str(cause).split())[:300]
            if isinstance(cause, SyntaxError) and cause.text:
                words = f"in the expression '{cause.text.strip()}'"
            if "circular references" in words:
                words, missing = "", f"{part}: refers to itself in a circle"
            msg = missing or f"{part}: can't be built: {type(cause).__name__}: {words}"
            raise BundleError(msg) from error


_TOP_IDS = frozenset({"evaluator", *(place for part in PARTS.values() for place in part)})
"""Ids that are looked for in a config, and may be added to it."""

_HINT = "; add it, or name another config with --config"


def _absent(bundle: BundleConfig, part: str, configs: Sequence[str]) -> str:
    files = " + ".join(configs)
    training = next((key for key in ("trainer", "train", "loss") if bundle.raw(key)), None)
    if training:
        return (
            f"{files} has no '{part}', which serving needs, but '{training}': it is a config for "
            "training; name an inference config with --config"
        )
    for name in ("network_def", part):
        written = bundle.raw(name)
        if isinstance(written, str) and written.startswith("@"):
            return f"'{name}' refers to '{written}', which {files} doesn't have"
    other = next((one for one in config_files(bundle.folder) if says(one, PARTS[part])), None)
    if other is not None and f"configs/{other.name}" not in configs:
        both = " ".join(f"--config {one}" for one in (other.name, *(c[8:] for c in configs)))
        return f"{files} has no '{part}', but configs/{other.name} has: merge them with {both}"
    if part == "network":
        return f"{files} has neither 'network_def' nor 'network', and serving needs one{_HINT}"
    return f"{files} has no '{part}', which serving needs{_HINT}"


def _refuse_engines(bundle: BundleConfig) -> None:
    """Evaluators that do more than one network's forward pass can't be what is served."""
    evaluator = bundle.evaluator()
    target = str(evaluator.get("_target_", ""))
    name = _last_word(target)
    if name == "EnsembleEvaluator":
        msg = (
            "evaluator: EnsembleEvaluator runs several networks; join one bundle each in a "
            "pipeline YAML instead"
        )
        raise BundleError(msg)
    if target and name != "SupervisedEvaluator":
        msg = (
            f"evaluator: nobody can know what {name} does beside the forward pass; serving "
            "needs MONAI's SupervisedEvaluator, with the rest in inferer and postprocessing"
        )
        raise BundleError(msg)
    for key, usual in (("iteration_update", None), ("mode", "eval"), ("decollate", True)):
        if evaluator.get(key, usual) not in (usual, "$monai.utils.ForwardMode.EVAL"):
            msg = (
                f"evaluator: {key} is {evaluator[key]!r}, which would give something else than "
                "the network's forward pass and the postprocessing; leave it away"
            )
            raise BundleError(msg)
    for key in ("detector", "detector_ops"):
        if bundle.raw(key):
            msg = f"{key}: detection heads aren't supported yet"
            raise BundleError(msg)


def _last_word(target: str) -> str:
    """The name of a class or function without its module; of an expression, its beginning."""
    if re.fullmatch(r"\$?[\w.]*", target):
        return target.removeprefix("$").rsplit(".", 1)[-1]
    return target if len(target) <= 60 else f"{target[:57]}..."


def _extra_keys(bundle: BundleConfig) -> tuple[str, ...] | Mapping[str, str]:
    """What the evaluator's prepare_batch gives the network besides the image."""
    prepare = bundle.evaluator().get("prepare_batch")
    if isinstance(prepare, str) and prepare.startswith("@"):
        prepare = bundle.raw(prepare[1:])
    if prepare is None:
        return ()
    target = str(prepare.get("_target_", "")) if isinstance(prepare, Mapping) else str(prepare)
    name = _last_word(target)
    if name in ("PrepareBatchDefault", "default_prepare_batch"):
        return ()
    if isinstance(prepare, Mapping) and name == "PrepareBatchExtraInput":
        keys = prepare.get("extra_keys", ())
        if isinstance(keys, Mapping):
            return {str(one): str(other) for one, other in keys.items()}
        return (keys,) if isinstance(keys, str) else tuple(str(one) for one in keys)
    msg = (
        f"evaluator: prepare_batch is {name or target}; only MONAI's PrepareBatchExtraInput is "
        "supported"
    )
    raise BundleError(msg)


# The network --------------------------------------------------------------------------


def _network(bundle: BundleConfig, weights: Weights, folder: Path) -> tuple[str, torch.nn.Module]:
    """The network that the evaluator runs, filled; its config id."""
    place = bundle.place("network")
    if place is None:
        msg = "the config has no 'network'"
        raise BundleError(msg)
    try:
        return place, network_with_weights(bundle, place, weights, folder)
    except BundleError:
        raise
    except Exception as error:  # a bundle's network raises what it likes
        cause = error.__cause__ or error
        words = " ".join(str(cause).split())[:300]
        missing = missing_package(cause)
        msg = missing or f"{place}: can't be built: {type(cause).__name__}: {words}"
        raise BundleError(msg) from error


def _network_model(
    bundle: BundleConfig, recipe: Recipe, network: torch.nn.Module, name: str, options: Options
) -> ExportedNetwork | None:
    """The network as a model of its own, where one is wanted."""
    backend = options.network_backend or ("python" if options.runtime == "triton" else "")
    if not backend:
        return None
    if recipe.needs_eager:
        msg = (
            "network: takes further tensors besides the image, so it can't be a model of its own; "
            "leave --network-backend away"
        )
        raise BundleError(msg)
    wanted = network_options(recipe, bundle.inferer())
    return export_network(f"{name}_network", network, recipe.window, wanted, backend)


def _wide_enough(findings: Findings, segments: Sequence[SegmentRow]) -> tuple[Any, ...]:
    """Outputs whose datatype holds the largest label."""
    largest = max((row.label for row in segments), default=0)
    if largest <= 255:
        return findings.outputs
    return tuple(
        replace(one, datatype="UINT16") if one.kind == "labelmap" else one
        for one in findings.outputs
    )


# Names ----------------------------------------------------------------------------------


def model_name(name: str) -> str:
    """A Triton model name from a folder's: lower_snake, at most 48 characters."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    snake = re.sub(r"[^a-z0-9]+", "_", snake).strip("_")
    return (snake if snake[:1].isalpha() else f"bundle_{snake}")[:48].rstrip("_")
