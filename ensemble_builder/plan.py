"""From a bundle to Triton models: their tensors, configs and files, nothing written yet.

One bundle becomes four models: `<name>_preprocess`, `<name>_inferer`, `<name>_postprocess`
and the ensemble `<name>`. The same bundle always gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from ensemble_builder.bundle import Bundle
from ensemble_builder.contract import PARAMETER, Contract, InputPart, OutputPart
from ensemble_builder.runtime.recipe import RECIPE_FILE
from ensemble_builder.version import BUILDER_VERSION

VERSION = "1"
"""Triton's model version folder."""


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


IMAGE = Tensor("IMAGE", "INT16", (-1, -1, -1))
RESCALE = Tensor("RESCALE", "FP64", (-1, 2))
AFFINE = Tensor("AFFINE", "FP64", (4, 4))
X = Tensor("X", "FP32", (-1, -1, -1, -1))
Y = Tensor("Y", "FP32", (-1, -1, -1, -1))
TRACE = Tensor("TRACE", "STRING", (1,))
TRACE_AFFINE = Tensor("TRACE_AFFINE", "FP64", (4, 4))
MASK = Tensor("MASK", "UINT8", (-1, -1, -1))

BYTES_PER_VOXEL = 2 + 4 + 4
"""IMAGE as it came, as float32, and the preprocessing's copy of it."""
BYTES_PER_VOXEL_AND_CHANNEL = 4 + 8 + 4
"""A prediction inverted to the input's grid: float32, its float64 resampling, the result."""


@dataclass(frozen=True, slots=True)
class _Step:
    role: str
    runtime_class: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


STEPS = (
    _Step("preprocess", "Preprocess", (IMAGE, RESCALE, AFFINE), (X, TRACE, TRACE_AFFINE)),
    _Step("inferer", "Inferer", (X,), (Y,)),
    _Step("postprocess", "Postprocess", (Y, TRACE, TRACE_AFFINE), (MASK,)),
)


def plan(bundle: Bundle) -> tuple[Model, ...]:
    """The models that serve a bundle, in the order of the ensemble's steps, ensemble last."""
    steps = tuple(
        Model(
            f"{bundle.name}_{step.role}",
            {
                "config.pbtxt": _text(_step_config(bundle, step)),
                f"{VERSION}/model.py": _model_py(step),
                f"{VERSION}/{RECIPE_FILE}": bundle.recipe.to_json().encode(),
                **_bundle_files(bundle, with_weights=step.role == "inferer"),
            },
        )
        for step in STEPS
    )
    contract = contract_of(bundle)
    ensemble = Model(
        bundle.name,
        {
            "config.pbtxt": _text(_ensemble_config(bundle, contract)),
            # Triton wants a version folder, git wants a file in it.
            f"{VERSION}/contract.json": (contract.model_dump_json(indent=2) + "\n").encode(),
        },
    )
    return (*steps, ensemble)


def contract_of(bundle: Bundle) -> Contract:
    """The contract that the ensemble's config carries."""
    channels = 1 + max((s.label for s in bundle.segments), default=1)
    return Contract(
        builder_version=BUILDER_VERSION,
        pipeline=bundle.name,
        version=bundle.version,
        description=bundle.description,
        intended_use=bundle.intended_use,
        input=InputPart(kind="volume", modality=bundle.modality),
        outputs=(
            OutputPart(
                name=MASK.name,
                kind="labelmap",
                datatype=MASK.datatype,
                dims=MASK.dims,
                segments=bundle.segments,
            ),
        ),
        peak_bytes_per_voxel=BYTES_PER_VOXEL + channels * BYTES_PER_VOXEL_AND_CHANNEL,
        weights={
            "sha256": bundle.weights_sha256,
            "license": bundle.licence,
            "source": bundle.source,
        },
    )


def _model_py(step: _Step) -> bytes:
    return (
        '"""Written by `tritome build`; change the bundle and build again instead."""\n\n'
        f"from ensemble_builder.runtime.{step.role} import {step.runtime_class}\n\n"
        f"TritonPythonModel = {step.runtime_class}\n"
    ).encode()


def _bundle_files(bundle: Bundle, *, with_weights: bool) -> dict[str, Path]:
    wanted = [bundle.recipe.config, "configs/metadata.json", "LICENSE"]
    if with_weights:
        wanted.append(bundle.recipe.weights)
    wanted += sorted(
        str(p.relative_to(bundle.folder)) for p in bundle.folder.glob("scripts/**/*.py")
    )
    return {
        f"{VERSION}/bundle/{name}": bundle.folder / name
        for name in wanted
        if (bundle.folder / name).is_file()
    }


def _step_config(bundle: Bundle, step: _Step) -> pb.ModelConfig:
    config = _config(f"{bundle.name}_{step.role}", step.inputs, step.outputs)
    config.backend = "python"
    # KIND_AUTO is a GPU where there is one: the same repository serves both kinds of machine.
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_AUTO)
    # Otherwise the backend moves every input to the CPU before the model sees it.
    config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"
    return config


def _ensemble_config(bundle: Bundle, contract: Contract) -> pb.ModelConfig:
    config = _config(bundle.name, STEPS[0].inputs, STEPS[-1].outputs)
    config.platform = "ensemble"
    for step in STEPS:
        found = config.ensemble_scheduling.step.add(
            model_name=f"{bundle.name}_{step.role}", model_version=-1
        )
        for tensor in step.inputs:
            found.input_map[tensor.name] = tensor.name
        for tensor in step.outputs:
            found.output_map[tensor.name] = tensor.name
    config.parameters[PARAMETER].string_value = contract.to_json()
    return config


def _config(name: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> pb.ModelConfig:
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


def _text(config: pb.ModelConfig) -> bytes:
    """The config as Triton reads it. text_format leaves zeros out; Triton wants this one."""
    return f"max_batch_size: 0\n{text_format.MessageToString(config)}".encode()
