"""From a pipeline's YAML to Triton models: those of its bundles, those between, one ensemble.

In: a file, or the name of a built-in pipeline. Out: the models, nothing written yet; the same file
and bundles always give the same bytes. A node that takes a built-in bundle as it is shares the
models that `tritome build` makes of it alone: a server that has both holds them once. Any other
bundle's models carry the pipeline's and the node's name, so that two of one name never meet.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from tritonclient.grpc import model_config_pb2 as pb

from ensemble_builder.bundle import BUILT_IN, Bundle, Options, find_bundle, read_bundle
from ensemble_builder.contract import Contract, InputPart, NamedInput, OutputPart
from ensemble_builder.errors import BundleError, PipelineError
from ensemble_builder.graph import Call, order
from ensemble_builder.memory import peak_bytes_per_voxel
from ensemble_builder.plan import (
    VERSION,
    Model,
    Tensor,
    bundle_digest,
    config_text,
    ensemble_model,
    input_tensors,
    model_config,
    model_py,
    python_config,
    step_models,
    steps_of,
)
from ensemble_builder.runtime.networks import RUNTIMES
from ensemble_builder.sharing import PIPELINE_RECORD
from ensemble_builder.spec import Name, NetworkNode, SpecFile, is_spec, read_spec
from ensemble_builder.version import BUILDER_VERSION
from ensemble_builder.wired import NO_MASK, Joint, Member, MemberModel, Wired
from ensemble_builder.wiring import wire

PIPELINE_FILE = "pipeline.yaml"
"""Of a built-in pipeline, in its folder."""

BYTES_PER_VOXEL_OF_A_JOINT = 4.0
"""A region's part of the image, or a merge's masks: at most about this."""


def find_pipeline(given: str | Path) -> Path | None:
    """The YAML of a pipeline given by path or by the name of a built-in one; None for others."""
    path = Path(given)
    if is_spec(path):
        return path
    built_in = BUILT_IN / str(given) / PIPELINE_FILE
    if re.fullmatch(r"[a-z][a-z0-9_]*", str(given)) and built_in.is_file():
        return built_in
    return None


def code_of(path: Path) -> tuple[Path, ...]:
    """What runs when a bundle or a pipeline is built: itself and the bundles that it names.

    A pipeline's YAML counts too: an override may hold an expression.

    Raises:
        PipelineError: the YAML is wrong.
    """
    if not is_spec(path):
        return (path,)
    nodes = read_spec(path).spec.nodes.values()
    beside = [path.parent / node.bundle for node in nodes if isinstance(node, NetworkNode)]
    return (path, *dict.fromkeys(bundle for bundle in beside if bundle.exists()))


def plan_pipeline(
    path: Path, options: Options | None = None, tell: Callable[[str], None] | None = None
) -> tuple[Model, ...]:
    """The models that serve a pipeline, ensemble last.

    Args:
        path: Its YAML.
        options: What a person chose besides; holds for each bundle that says nothing else.
        tell: Hears what of each bundle was read otherwise than it is written.

    Raises:
        PipelineError: the file or a bundle in it can't be served; says file, line and why.
    """
    file, bundles, wired = read_pipeline(path, options or Options())
    if tell is not None:
        for node, bundle in bundles.items():
            for note in bundle.notes:
                tell(f"{node}: {note}")
    models = _distinct(file, bundles, wired)
    contract = contract_of_pipeline(file, bundles, wired)
    ensemble = ensemble_model(contract.pipeline, contract, _ensemble(contract.pipeline, wired))
    record = _record(file, bundles, wired)
    files = {**ensemble.files, f"{VERSION}/{PIPELINE_RECORD}": record.encode()}
    return (*models, Model(ensemble.name, files))


def read_pipeline(path: Path, options: Options) -> tuple[SpecFile, dict[str, Bundle], Wired]:
    """A pipeline, the bundle of each of its networks, and how all is wired.

    Raises:
        PipelineError: as `plan_pipeline`.
    """
    if options.input_datatype != "INT16":
        msg = f"{path.name}: pipelines of several bundles take INT16; leave --input-datatype out"
        raise PipelineError(msg)
    if options.overrides or options.configs:
        msg = (
            f"{path}: config files and values of a pipeline's bundles stand in its YAML "
            "(config, overrides), not on the command line"
        )
        raise PipelineError(msg)
    file = read_spec(path)
    if options.name:
        try:
            name = TypeAdapter(Name).validate_python(options.name)
        except ValidationError as error:
            msg = (
                f"{path.name}: a pipeline can't be called {options.name!r}; --name is a short name "
                "in lower_snake, at most 31 characters"
            )
            raise PipelineError(msg) from error
        file = replace(file, spec=file.spec.model_copy(update={"pipeline": name}))
    order(file)  # before any bundle is read
    for node, one in file.spec.nodes.items():
        if isinstance(one, NetworkNode) and one.runtime not in (None, *RUNTIMES):
            msg = f"runtime '{one.runtime}' is not one of {', '.join(RUNTIMES)}"
            raise file.error(("nodes", node, "runtime"), msg)
    bundles = read_members(file, options)
    return file, bundles, wire(file, {node: member_of(one) for node, one in bundles.items()})


def read_members(file: SpecFile, options: Options) -> dict[str, Bundle]:
    """Reads the bundle of each network; one that several nodes take alike is one.

    Raises:
        PipelineError: one can't be read or served.
    """
    found: dict[str, Bundle] = {}
    read: list[tuple[Path, Options, Bundle]] = []
    for name, node in file.spec.nodes.items():
        if not isinstance(node, NetworkNode):
            continue
        try:
            folder, asked = _folder(file, node), _options(file, name, node, options)
            same = (b for f, o, b in read if f == folder and replace(o, name=asked.name) == asked)
            found[name] = next(same, None) or read_bundle(folder, asked)
            read.append((folder, asked, found[name]))
        except BundleError as error:
            raise file.error(("nodes", name, "bundle"), str(error)) from error
    return found


def member_of(bundle: Bundle) -> Member:
    """What the wiring needs to know of a bundle."""
    maps = [one for one in bundle.recipe.outputs if one.kind == "labelmap" and len(one.dims) == 3]
    masks = [Tensor(one.tensor, one.datatype, one.dims) for one in maps if one.on_input_grid]
    why = NO_MASK
    if len(masks) > 1:
        names = ", ".join(mask.name for mask in masks)
        why = (
            f"gives {len(masks)} label maps ({names}), and a pipeline takes one of each network; "
            "let its postprocessing write only one"
        )
    elif maps and not masks:
        why = (
            "gives its label map on other voxels than the image's; let its postprocessing bring it "
            "back with Invertd"
        )
    return Member(
        models=tuple(
            MemberModel(f"{bundle.name}_{step.role}", step.inputs, step.outputs)
            for step in steps_of(bundle)
        ),
        inputs=bundle.recipe.inputs,
        mask=masks[0] if len(masks) == 1 else None,
        segments=bundle.segments,
        modality=bundle.modality,
        no_mask=why,
    )


def contract_of_pipeline(file: SpecFile, bundles: Mapping[str, Bundle], wired: Wired) -> Contract:
    """The contract that the ensemble's config carries: one table, every member's weights."""
    spec = file.spec
    alone = len(wired.inputs) == 1
    joints = len(wired.joints) * BYTES_PER_VOXEL_OF_A_JOINT
    return Contract(
        builder_version=BUILDER_VERSION,
        pipeline=spec.pipeline,
        version=spec.version,
        description=spec.description,
        intended_use=spec.intended_use or _joined(b.intended_use for b in bundles.values()),
        input=InputPart.model_validate(
            {
                "kind": "volume" if alone else "inputs",
                "modality": wired.modalities[wired.inputs[0].key],
                "irregular": _irregular(bundles),
            }
        ),
        inputs=tuple(
            NamedInput(
                name=one.key,
                layout="volume",
                modality=wired.modalities[one.key],
                channels=(),
                tensors={"image": one.tensor, "rescale": one.rescale, "affine": one.affine},
                datatype=input_tensors(one)[0].datatype,
                dims=input_tensors(one)[0].dims,
                example_shape=_example_shape(bundles),
            )
            for one in wired.inputs
        ),
        outputs=(
            OutputPart(
                name=wired.mask.name,
                kind="labelmap",
                datatype=wired.mask.datatype,
                dims=wired.mask.dims,
                segments=wired.segments,
            ),
        ),
        peak_bytes_per_voxel=sum(peak_bytes_per_voxel(b) for b in bundles.values()) + joints,
        weights=_weights(bundles),
        bundle_sha256=_digest(file, bundles),
    )


def _folder(file: SpecFile, node: NetworkNode) -> Path:
    """A bundle's folder: beside the file, or built in."""
    beside = file.path.parent / node.bundle
    if beside.exists():
        return find_bundle(beside)
    if re.fullmatch(r"[a-z][a-z0-9_]*", node.bundle) and (BUILT_IN / node.bundle).is_dir():
        return find_bundle(BUILT_IN / node.bundle)
    names = ", ".join(sorted(p.parent.name for p in BUILT_IN.glob("*/configs")))
    msg = f"'{node.bundle}' is neither a bundle beside this file nor built in ({names})"
    raise BundleError(msg)


def _options(file: SpecFile, name: str, node: NetworkNode, options: Options) -> Options:
    """What is asked of one bundle, and what its models are called."""
    asked = replace(
        options,
        configs=(node.config,) if node.config else (),
        overrides=dict(node.overrides),
        runtime=node.runtime or options.runtime,
        name=None,
    )
    shared = asked == Options() and not (file.path.parent / node.bundle).exists()
    return asked if shared else replace(asked, name=f"{file.spec.pipeline}_{name}")


def _distinct(file: SpecFile, bundles: Mapping[str, Bundle], wired: Wired) -> tuple[Model, ...]:
    """Each model once.

    Raises:
        PipelineError: two different models would have one name.
    """
    found: dict[str, Model] = {}
    made = [(node, model) for node, bundle in bundles.items() for model in step_models(bundle)]
    made += [("", _joint_model(joint)) for joint in wired.joints]
    for node, model in made:
        if found.setdefault(model.name, model) != model or model.name == file.spec.pipeline:
            raise file.error(
                ("nodes", node) if node else ("pipeline",),
                f"two different models would be called '{model.name}'; give the pipeline, the "
                "node or the bundle's folder another name",
            )
    if file.spec.pipeline in {bundle.name for bundle in bundles.values()}:
        raise file.error(
            ("pipeline",),
            f"the pipeline has the name of its bundle '{file.spec.pipeline}'; give it another one",
        )
    return tuple(found.values())


def _joint_model(joint: Joint) -> Model:
    files: dict[str, bytes | Path] = {
        "config.pbtxt": config_text(python_config(joint.name, joint.inputs, joint.outputs)),
        f"{VERSION}/model.py": model_py("joints", joint.runtime_class),
    }
    if joint.rule_file:
        files[f"{VERSION}/{joint.rule_file}"] = joint.rule.encode()
    return Model(joint.name, files)


def _ensemble(name: str, wired: Wired) -> pb.ModelConfig:
    inputs = [tensor for one in wired.inputs for tensor in input_tensors(one)]
    config = model_config(name, inputs, [wired.mask])
    config.platform = "ensemble"
    for call in wired.calls:
        _add_call(config, call)
    return config


def _add_call(config: pb.ModelConfig, call: Call) -> None:
    step = config.ensemble_scheduling.step.add(model_name=call.model, model_version=-1)
    for tensor, edge in call.inputs:
        step.input_map[tensor.name] = edge
    for tensor, edge in call.outputs:
        step.output_map[tensor.name] = edge


def _irregular(bundles: Mapping[str, Bundle]) -> str | None:
    """What the members allow; where they differ, nothing but a regular volume."""
    stated = {bundle.irregular for bundle in bundles.values()} - {None}
    return next(iter(stated), None) if len(stated) < 2 else "refuse"


def _example_shape(bundles: Mapping[str, Bundle]) -> tuple[int, ...]:
    """[K, J, I] that every member's builder tried, or larger."""
    shapes = [b.findings.example_shapes[b.recipe.inputs[0].tensor][-3:] for b in bundles.values()]
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True))


def _weights(bundles: Mapping[str, Bundle]) -> dict[str, str]:
    """Of all members together, then of each under its node's name."""
    digest = hashlib.sha256("".join(b.weights_sha256 for b in bundles.values()).encode())
    out = {
        "sha256": digest.hexdigest(),
        "license": _joined(b.licence for b in bundles.values()),
        "source": _joined(b.source for b in bundles.values()),
    }
    for node, bundle in bundles.items():
        out[f"{node}.sha256"] = bundle.weights_sha256
        out[f"{node}.license"] = bundle.licence
        out[f"{node}.source"] = bundle.source
    return out


def _joined(texts: Iterable[str]) -> str:
    return " ".join(dict.fromkeys(text for text in texts if text))


def _record(file: SpecFile, bundles: Mapping[str, Bundle], wired: Wired) -> str:
    """What `tritome verify` needs to do the same without Triton."""
    rules = [json.loads(one.rule) for one in wired.joints if one.runtime_class == "Merge"]
    record = {
        "spec": file.spec.model_dump(mode="json", exclude_defaults=True),
        "members": {node: bundle.name for node, bundle in bundles.items()},
        "tables": {
            rule["name"]: {one["name"]: one["table"] for one in rule["members"]} for rule in rules
        },
    }
    return json.dumps(record, indent=2, sort_keys=True) + "\n"


def _digest(file: SpecFile, bundles: Mapping[str, Bundle]) -> str:
    digest = hashlib.sha256(file.spec.model_dump_json().encode())
    for node, bundle in bundles.items():
        digest.update(f"{node}\0{bundle_digest(bundle)}".encode())
    return digest.hexdigest()
