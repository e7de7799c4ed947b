"""A pipeline of several models: MONAI's bundles one by one, joined in numpy, beside what is served.

What lies between the bundles (regions, pasting, channels, merging) is written here a second time,
plainly and with numpy, so that it is compared and not merely run twice. The ensemble's version
folder says in `pipeline.json` what the pipeline is and which models serve each node.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ensemble_builder.bundle import Options
from ensemble_builder.errors import ParityError
from ensemble_builder.graph import inputs_of, order
from ensemble_builder.pipeline import plan_pipeline
from ensemble_builder.repository import served_version, steps_of_version, versions_of, write
from ensemble_builder.runtime.inputs import Input
from ensemble_builder.samples import IMAGE_JI, VOLUME_KJI, sample
from ensemble_builder.server import TritonServer
from ensemble_builder.sharing import PIPELINE_RECORD
from ensemble_builder.spec import MergeNode, NetworkNode, PipelineSpec, RegionNode, SpecFile
from ensemble_builder.verify.certificate import (
    RuntimeParity,
    Verdict,
    judged,
    request_digest,
    write_certificate,
)
from ensemble_builder.verify.compare import compare_tensor
from ensemble_builder.verify.monai import monai_stages
from ensemble_builder.verify.source import Request, Source, fitting
from ensemble_builder.verify.triton import ask

Mask = NDArray[Any]

SEED = 0
ACROSS = 2.0
"""How much larger than a builder's small sample the generated volume is, along each axis."""


@dataclass(frozen=True, slots=True)
class BuiltPipeline:
    """A pipeline in a model repository.

    Attributes:
        members: Node -> prefix of the models that serve it.
        tables: Merge -> member -> (label, merged label) pairs.
        contract: The ensemble's.
        steps: All of its models, itself included.
    """

    spec: PipelineSpec
    members: Mapping[str, str]
    tables: Mapping[str, Mapping[str, Sequence[Sequence[int]]]]
    contract: Mapping[str, Any]
    repository: Path
    steps: tuple[str, ...]

    @staticmethod
    def find(repository: Path, pipeline: str) -> BuiltPipeline | None:
        """The served version of a pipeline of several models; None where it is none."""
        model = repository / pipeline
        if not versions_of(model):
            return None
        # What a person rolled back to is what Triton serves, not the newest.
        version = served_version(model)
        record = model / str(version) / PIPELINE_RECORD
        if not record.is_file():
            return None
        raw = json.loads(record.read_text(encoding="utf-8"))
        contract = json.loads((record.parent / "contract.json").read_text(encoding="utf-8"))
        spec = PipelineSpec.model_validate(raw["spec"])
        steps = tuple(steps_of_version(model, version))
        return BuiltPipeline(spec, raw["members"], raw["tables"], contract, repository, steps)

    @property
    def file(self) -> SpecFile:
        """The pipeline as if read from a file; there are no lines any more."""
        return SpecFile(self.spec, Path(f"{self.spec.pipeline}.yaml"), {})

    def sources(self) -> dict[str, Source]:
        """The bundles as they were built."""
        return {
            node: Source.in_repository(self.repository, prefix)
            for node, prefix in self.members.items()
        }


@dataclass(frozen=True, slots=True)
class _Image:
    image: NDArray[np.int16]
    rescale: NDArray[np.float64]
    affine: NDArray[np.float64]
    grid: str
    box: tuple[slice, ...] | None = None


def pipeline_reference(built: BuiltPipeline, request: Request) -> tuple[Mask, tuple[str, ...]]:
    """The mask that MONAI's bundles give when they are run one by one and joined: [K, J, I].

    And, in words, which joints had nothing to do with this request.
    """
    spec, sources = built.spec, built.sources()
    images = {
        one.key: _Image(request[one.tensor], request[one.rescale], request[one.affine], one.key)
        for one in inputs_of(built.file)
    }
    masks: dict[str, tuple[Mask, str]] = {}
    idle: list[str] = []
    for name in order(built.file):
        node = spec.nodes[name]
        if isinstance(node, NetworkNode):
            masks[name] = _network(node, sources[name], images, masks)
        elif isinstance(node, RegionNode):
            mask, grid = masks[node.region_of]
            images[name] = _region(node, mask, images[grid])
            if not _chosen(node, mask).any():
                idle.append(f"region '{name}': '{node.region_of}' has none of its labels")
        else:
            tables = built.tables[name]
            merged = _merge(node, [(masks[m][0], tables[m]) for m in node.merge])
            idle += [
                f"merge '{name}': '{member}' has none of its labels"
                for member in node.merge
                if not np.isin(masks[member][0], [label for label, _ in tables[member]]).any()
            ]
            masks[name] = (merged, masks[node.merge[0]][1])
    return masks[spec.output][0], tuple(idle)


def _network(
    node: NetworkNode,
    source: Source,
    images: Mapping[str, _Image],
    masks: Mapping[str, tuple[Mask, str]],
) -> tuple[Mask, str]:
    named = [images[one] for one in node.channels if one in images]
    first = named[0] if named else images[masks[node.channels[0]][1]]
    request: dict[str, NDArray[Any]] = {}
    for n, one in enumerate(source.recipe.inputs):
        names = node.channels if n == 0 else (node.inputs[one.key],)
        own = images.get(names[0], first) if one.layout == "volume" else first
        request |= _fed(one, [_stored(name, first, images, masks) for name in names], own)
    output = next(o for o in source.recipe.outputs if o.kind == "labelmap")
    found = monai_stages(source, request).outputs[output.tensor]
    if first.box is None:
        return found, first.grid
    whole = np.zeros(images[first.grid].image.shape, found.dtype)
    whole[first.box] = found
    return whole, first.grid


def _stored(
    name: str,
    first: _Image,
    images: Mapping[str, _Image],
    masks: Mapping[str, tuple[Mask, str]],
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """A source as stored values and their rescaling."""
    if name in images:
        return images[name].image, images[name].rescale
    mask = masks[name][0]
    part = mask if first.box is None else mask[first.box]
    shift = 32768 if part.max(initial=0) > 32767 else 0  # as unsigned pixels come
    stored = (part.astype(np.int32) - shift).astype(np.int16)
    return stored, np.tile([1.0, float(shift)], (len(part), 1))


def _fed(
    one: Input, stored: Sequence[tuple[NDArray[np.int16], NDArray[np.float64]]], like: _Image
) -> dict[str, NDArray[Any]]:
    if one.layout == "volume":
        image, rescale = stored[0]
    else:
        image, rescale = (np.stack(parts) for parts in zip(*stored, strict=True))
    return {one.tensor: image, one.rescale: rescale, one.affine: like.affine}


def _chosen(node: RegionNode, mask: Mask) -> NDArray[np.bool_]:
    return mask > 0 if node.labels is None else np.isin(mask, node.labels)


def _region(node: RegionNode, mask: Mask, whole: _Image) -> _Image:
    chosen = _chosen(node, mask)
    if not chosen.any():
        return whole
    spacing = np.linalg.norm(whole.affine[:3, :3], axis=0)[::-1]
    margin = np.ceil(node.margin_mm / spacing).astype(int)
    image, rescale, affine = whole.image, whole.rescale, whole.affine
    if node.outside_value is not None:
        kept = ndimage.binary_dilation(chosen, np.ones(2 * margin + 1, bool))
        blank = np.rint((node.outside_value - rescale[:, 1]) / rescale[:, 0])
        blank = np.clip(blank, -32768, 32767).astype(np.int16)
        image = np.where(kept, image, blank[:, None, None])
    if not node.crop:
        return _Image(image, rescale, affine, whole.grid)
    found = [np.flatnonzero(chosen.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    start = [max(0, int(f[0]) - m) for f, m in zip(found, margin, strict=True)]
    stop = [int(f[-1]) + 1 + m for f, m in zip(found, margin, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    affine = affine.copy()
    affine[:, 3] = whole.affine @ [*start[::-1], 1]
    return _Image(image[box], rescale[box[0]], affine, whole.grid, box)


def _merge(node: MergeNode, members: Sequence[tuple[Mask, Sequence[Sequence[int]]]]) -> Mask:
    """Paints one claim over the other, the strongest last."""
    claims = [(to, mask == label) for mask, table in members for label, to in table]
    if node.overlap == "refuse":
        _refuse_overlaps(claims)
    if node.overlap == "first":
        claims = claims[::-1]
    elif node.overlap == "priority":
        claims.sort(key=lambda claim: -node.priority.index(claim[0]))
    largest = max(to for to, _ in claims)
    out = np.zeros(members[0][0].shape, np.uint8 if largest <= 255 else np.uint16)
    for to, where in claims:
        out[where] = to
    return out


def _refuse_overlaps(claims: Sequence[tuple[int, NDArray[np.bool_]]]) -> None:
    for (a, here), (b, there) in itertools.combinations(claims, 2):
        if a != b and bool((here & there).any()):
            msg = f"labels {a} and {b} overlap, and the merge refuses that: take another input"
            raise ParityError(msg)


def verify_served_pipeline(built: BuiltPipeline, request: Request | None) -> tuple[Verdict, Path]:
    """Serves a pipeline of a model repository as it is, compares, and writes its certificate.

    Raises:
        BuilderError: it can't be served or compared.
    """
    repository, name = built.repository, built.spec.pipeline
    with tempfile.TemporaryDirectory(prefix="tritome-verify-") as folder:
        only = Path(folder) / "model_repository"
        only.mkdir()
        for model in built.steps:
            (only / model).symlink_to((repository / model).resolve())
        with TritonServer(only, log=Path(folder) / "triton.log", watch=False) as server:
            verdict = _verdict(built, server, [(name, built)], request)
    return verdict, write_certificate(verdict, repository, str(built.contract["certificate"]))


def verify_pipeline_file(
    path: Path, options: Options, runtimes: Sequence[str], request: Request | None
) -> Verdict:
    """Builds a pipeline's YAML into a folder of its own once for each runtime, and compares.

    Raises:
        BuilderError: it can't be built, served or compared.
    """
    with tempfile.TemporaryDirectory(prefix="tritome-verify-") as folder:
        repository = Path(folder) / "model_repository"
        built: list[tuple[str, BuiltPipeline]] = []
        for runtime in runtimes:
            models = plan_pipeline(path, replace(options, runtime=runtime, name=f"with_{runtime}"))
            list(write(models, repository))
            found = BuiltPipeline.find(repository, models[-1].name)
            assert found is not None
            built.append((models[-1].name, found))
        with TritonServer(repository, log=Path(folder) / "triton.log", watch=False) as server:
            return _verdict(built[0][1], server, built, request)


def _verdict(
    built: BuiltPipeline,
    server: TritonServer,
    served: Sequence[tuple[str, BuiltPipeline]],
    request: Request | None,
) -> Verdict:
    inputs = inputs_of(built.file)
    given = None if request is None else fitting(request, inputs, built.spec.pipeline)
    chosen = _generated(built) if given is None else given
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in chosen.items())
    expected, idle = pipeline_reference(built, chosen)
    return Verdict(
        pipeline=built.spec.pipeline,
        bundle_sha256=str(built.contract["bundle_sha256"]),
        weights_sha256=str(built.contract["weights"]["sha256"]),
        request=f"{f'generated, seed {SEED}' if request is None else 'given'}: {shapes}",
        request_sha256=request_digest(chosen),
        server=server.origin,
        runtimes=tuple(_one_runtime(server, name, one, chosen, expected) for name, one in served),
        unproven=idle,
    )


def _one_runtime(
    server: TritonServer, name: str, built: BuiltPipeline, request: Request, expected: Mask
) -> RuntimeParity:
    actual = ask(server.grpc_url, name, request)["MASK"]
    runtimes = sorted({source.recipe.runtime for source in built.sources().values()})
    parity = compare_tensor("pipeline", "MASK", expected, actual)
    return judged(" and ".join(runtimes), (parity,))


def _generated(built: BuiltPipeline) -> dict[str, Any]:
    volume = tuple(round(ACROSS * n) for n in VOLUME_KJI)
    return sample(inputs_of(built.file), volume, IMAGE_JI, SEED)
