"""From a bundle to Triton models: their tensors, configs and files, nothing written yet.

One bundle becomes four models: `<name>_preprocess`, `<name>_inferer`, `<name>_postprocess`
and the ensemble `<name>`. The same bundle always gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from ensemble_builder.bundle import Bundle
from ensemble_builder.bundle_files import WEIGHTS_SUFFIXES
from ensemble_builder.contract import (
    PARAMETER,
    Contract,
    InputPart,
    NamedInput,
    OutputPart,
    SegmentRow,
)
from ensemble_builder.memory import peak_bytes_per_voxel
from ensemble_builder.networks import DEFAULT_PRIORITY, PRIORITY_LEVELS, network_config
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.runtime.loading import extra_name
from ensemble_builder.runtime.recipe import BUNDLE_FOLDER, RECIPE_FILE, Output
from ensemble_builder.version import BUILDER_VERSION

CONFIG_FILE = "config.pbtxt"

VERSION = "1"
"""Triton's model version folder; `repository.write` moves it on where one is there already."""

LARGEST_TEXT_BYTES = 4 * 2**20
"""A file beside the configs that is larger isn't code and isn't shipped."""

_SHIPPED = (".json", ".yaml", ".yml", ".txt", ".csv", ".toml")
_NOT_SHIPPED = ("docs", "eval", "models", "label", "dataset", "data")
"""Folders of a bundle of which only code is shipped."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One edge of the ensemble: name, Triton datatype, dims (-1 is any)."""

    name: str
    datatype: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """One folder of the model repository.

    Attributes:
        files: Path below the model's folder -> content, or the file to copy.
    """

    name: str
    files: Mapping[str, bytes | Path]


@dataclass(frozen=True, slots=True)
class Step:
    """One Python-backend model of a bundle, with its tensors."""

    role: str
    runtime_class: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


TRACE = Tensor("TRACE", "STRING", (1,))


def plan(bundle: Bundle) -> tuple[Model, ...]:
    """The models that serve a bundle, in the order of the ensemble's steps, ensemble last."""
    contract = contract_of(bundle)
    steps = steps_of(bundle)
    return (*step_models(bundle), ensemble_model(bundle.name, contract, _wired(bundle, steps)))


def steps_of(bundle: Bundle) -> tuple[Step, ...]:
    """The three steps of a bundle with their typed edges."""
    recipe, findings = bundle.recipe, bundle.findings
    x = Tensor("X", "FP32", findings.x_dims)
    y = Tensor("Y", *bundle.y_edge)
    extras = tuple(
        Tensor(extra_name(key), datatype, dims)
        for key, (dims, datatype) in findings.extra_dims.items()
    )
    carried = tuple(Tensor(one.tensor, one.datatype, one.dims) for one in recipe.carried)
    own = tuple(one for one in carried if one.name != x.name)
    inputs = tuple(tensor for one in recipe.inputs for tensor in input_tensors(one))
    outputs = tuple(Tensor(one.tensor, one.datatype, one.dims) for one in recipe.outputs)
    return (
        Step("preprocess", "Preprocess", inputs, (x, TRACE, *extras, *own)),
        Step("inferer", "Inferer", (x, *extras), (y,)),
        Step("postprocess", "Postprocess", (y, TRACE, *carried), outputs),
    )


def input_tensors(one: Input) -> tuple[Tensor, ...]:
    """The tensors of one input, its main one first."""
    if one.layout == "rgb":
        return (Tensor(one.tensor, "UINT8", (-1, -1, one.channels)),)
    if one.layout == "points":
        return (Tensor(one.tensor, "INT64", (-1, one.channels)),)
    if one.layout == "value":
        return (Tensor(one.tensor, "FP32", (1,)),)
    image, slices = {
        "volume": ((-1, -1, -1), (-1, 2)),
        "channels": ((one.channels, -1, -1, -1), (one.channels, -1, 2)),
        "gray": ((-1, -1), (1, 2)),
    }[one.layout]
    return (
        Tensor(one.tensor, one.datatype, image),
        Tensor(one.rescale, "FP64", slices),
        Tensor(one.affine, "FP64", (4, 4)),
    )


def step_models(bundle: Bundle) -> tuple[Model, ...]:
    """The three Python-backend models of a bundle; before them its network's own, if it has one."""
    own_network = bundle.recipe.network_model is not None
    steps = tuple(
        Model(
            f"{bundle.name}_{step.role}",
            {
                CONFIG_FILE: config_text(_step_config(bundle, step)),
                f"{VERSION}/model.py": model_py(step.role, step.runtime_class),
                f"{VERSION}/{RECIPE_FILE}": bundle.recipe.to_json().encode(),
                **_bundle_files(bundle, with_weights=step.role == "inferer" and not own_network),
            },
        )
        for step in steps_of(bundle)
    )
    return (*network_models(bundle), *steps)


def network_models(bundle: Bundle) -> tuple[Model, ...]:
    """The model that the inferer asks for its windows, where the network is one of its own."""
    model = bundle.recipe.network_model
    if model is None:
        return ()
    files: dict[str, bytes | Path] = {CONFIG_FILE: config_text(network_config(model))}
    files |= {f"{VERSION}/{name}": content for name, content in bundle.network_files.items()}
    if model.backend == "python":
        files |= {
            f"{VERSION}/model.py": model_py("network", "Network"),
            f"{VERSION}/{RECIPE_FILE}": bundle.recipe.to_json().encode(),
            **_bundle_files(bundle, with_weights=True),
        }
    return (Model(model.name, files),)


def ensemble_model(name: str, contract: Contract, config: pb.ModelConfig) -> Model:
    """The ensemble that carries the contract."""
    config.parameters[PARAMETER].string_value = contract.to_json()
    return Model(
        name,
        {
            CONFIG_FILE: config_text(config),
            # Triton wants a version folder, git wants a file in it.
            f"{VERSION}/contract.json": (contract.model_dump_json(indent=2) + "\n").encode(),
        },
    )


def contract_of(bundle: Bundle) -> Contract:
    """The contract that the ensemble's config carries."""
    recipe = bundle.recipe
    kinds = tuple(one.layout for one in recipe.inputs)
    short: dict[tuple[str, ...], str] = {
        ("volume",): "volume",
        ("gray",): "image",
        ("rgb",): "image",
    }
    return Contract(
        builder_version=BUILDER_VERSION,
        pipeline=bundle.name,
        version=bundle.version,
        description=bundle.description,
        intended_use=bundle.intended_use,
        input=InputPart.model_validate(
            {
                "kind": short.get(kinds, "inputs"),
                "modality": bundle.modality,
                "irregular": bundle.irregular,
            }
        ),
        inputs=tuple(_named_input(bundle, one) for one in recipe.inputs),
        outputs=tuple(
            OutputPart(
                name=one.tensor,
                kind=one.kind,
                datatype=one.datatype,
                dims=one.dims,
                segments=_segments(bundle, one),
                classes=()
                if one.kind == "labelmap" or len(bundle.classes) != one.dims[0]
                else bundle.classes,
                on_input_grid=one.on_input_grid,
            )
            for one in recipe.outputs
        ),
        peak_bytes_per_voxel=peak_bytes_per_voxel(bundle),
        weights={
            "sha256": bundle.weights_sha256,
            "license": bundle.licence,
            "source": bundle.source,
        },
        bundle_sha256=bundle_digest(bundle),
    )


def _segments(bundle: Bundle, output: Output) -> tuple[SegmentRow, ...]:
    """The bundle's table, which is of its label map, or of its masks where it has none."""
    if output.kind == "labelmap":
        return bundle.segments
    of_masks = all(one.kind != "labelmap" for one in bundle.recipe.outputs)
    return bundle.segments if output.kind == "masks" and of_masks else ()


def bundle_digest(bundle: Bundle) -> str:
    """sha256 over names and bytes of everything that is built from."""
    digest = hashlib.sha256()
    for name, path in sorted(_bundle_files(bundle, with_weights=True).items()):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    digest.update(bundle.recipe.to_json().encode())
    return digest.hexdigest()


def _named_input(bundle: Bundle, one: Input) -> NamedInput:
    if not one.is_image:
        tensors = {"values": one.tensor}
    elif one.is_stored:
        tensors = {"image": one.tensor, "rescale": one.rescale, "affine": one.affine}
    else:
        tensors = {"image": one.tensor}
    names = bundle.channels.get(one.key, ())
    return NamedInput(
        name=one.key,
        layout=one.layout,
        modality=bundle.modality if one.is_image else "",
        channels=names if len(names) == one.channels else (),
        tensors=tensors,
        datatype=input_tensors(one)[0].datatype,
        dims=input_tensors(one)[0].dims,
        example_shape=bundle.findings.example_shapes[one.tensor],
    )


def model_py(role: str, runtime_class: str) -> bytes:
    """The few lines that name the runtime class."""
    return (
        '"""Written by `tritome build`; change the bundle and build again instead."""\n\n'
        f"from ensemble_builder.runtime.{role} import {runtime_class}\n\n"
        f"TritonPythonModel = {runtime_class}\n"
    ).encode()


def _bundle_files(bundle: Bundle, *, with_weights: bool) -> dict[str, Path]:
    """What travels with a model: configs, scripts and small texts; weights where wanted.

    And whatever else the config names, such as an array of statistics.
    """
    root = bundle.folder
    found = {"LICENSE"} | {name for name in _small_files(root) if _is_shipped(root / name, name)}
    if bundle.is_built_in:
        # Its python files are how it was trained, not what it needs.
        found = {name for name in found if not name.endswith(".py")}
    found |= {
        name
        for name in bundle.named_files
        if with_weights
        or not (
            name.endswith(WEIGHTS_SUFFIXES) or (root / name).stat().st_size > LARGEST_TEXT_BYTES
        )
    }
    if with_weights and bundle.recipe.weights.path:
        found.add(bundle.recipe.weights.path)
    return {
        f"{VERSION}/{BUNDLE_FOLDER}/{name}": root / name
        for name in sorted(found)
        if (root / name).is_file()
    }


def _small_files(root: Path) -> Iterator[str]:
    """Files of a bundle that may travel with each model, by their paths in it."""
    for path in root.rglob("*"):
        name = path.relative_to(root)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
        if not hidden and path.is_file() and path.stat().st_size <= LARGEST_TEXT_BYTES:
            yield str(name)


def _is_shipped(path: Path, name: str) -> bool:
    """Code, wherever it lies; of folders that hold no data texts, and what lies beside code."""
    top, *inside = Path(name).parts
    if path.suffix == ".py" or top in _NOT_SHIPPED:
        return path.suffix == ".py"
    if path.suffix in _SHIPPED:
        return True
    return bool(inside) and path.suffix not in WEIGHTS_SUFFIXES and any(path.parent.glob("*.py"))


def _step_config(bundle: Bundle, step: Step) -> pb.ModelConfig:
    config = python_config(f"{bundle.name}_{step.role}", step.inputs, step.outputs)
    if step.role == "inferer":
        config.instance_group[0].count = bundle.instances
        # What waits for an instance is taken in the order of the gateway's priorities.
        config.dynamic_batching.priority_levels = PRIORITY_LEVELS
        config.dynamic_batching.default_priority_level = DEFAULT_PRIORITY
    return config


def python_config(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> pb.ModelConfig:
    """A Python-backend model on whatever device the machine has."""
    config = model_config(name, inputs, outputs)
    config.backend = "python"
    # KIND_AUTO is a GPU where there is one: the same repository serves both kinds of machine.
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_AUTO)
    # Otherwise the backend moves every input to the CPU before the model sees it.
    config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"
    return config


def _wired(bundle: Bundle, steps: Sequence[Step]) -> pb.ModelConfig:
    config = model_config(bundle.name, steps[0].inputs, steps[-1].outputs)
    config.platform = "ensemble"
    for step in steps:
        add_step(config, f"{bundle.name}_{step.role}", step)
    return config


def add_step(
    config: pb.ModelConfig, model: str, step: Step, prefix: str = "", shared: Sequence[str] = ()
) -> None:
    """Adds a step to an ensemble; its edges get `prefix`, but for those in `shared`."""
    found = config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
    for tensor in step.inputs:
        name = tensor.name
        found.input_map[name] = name if name in shared else prefix + name
    for tensor in step.outputs:
        name = tensor.name
        found.output_map[name] = name if name in shared else prefix + name


def model_config(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> pb.ModelConfig:
    """A model's name and tensors."""
    config = pb.ModelConfig(name=name)
    for tensor in inputs:
        config.input.add(
            name=tensor.name,
            data_type=pb.DataType.Value(f"TYPE_{tensor.datatype}"),
            dims=tensor.dims,
        )
    for tensor in outputs:
        config.output.add(
            name=tensor.name,
            data_type=pb.DataType.Value(f"TYPE_{tensor.datatype}"),
            dims=tensor.dims,
        )
    return config


def config_text(config: pb.ModelConfig) -> bytes:
    """The config as Triton reads it. text_format leaves zeros out; Triton wants this one."""
    zero = "" if config.max_batch_size else "max_batch_size: 0\n"
    return f"{zero}{text_format.MessageToString(config)}".encode()
