"""One verification: build beside each other, serve, ask, compare.

Run as `python -m ensemble_builder.verify.run BUNDLE ...` it prints the verdict as JSON: one
process per bundle, because packages of different bundles have the same names.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemble_builder.bundle import Bundle, Options, find_bundle, read_bundle
from ensemble_builder.errors import BuilderError, ParityError
from ensemble_builder.pipeline import find_pipeline
from ensemble_builder.plan import bundle_digest, plan
from ensemble_builder.probe.inputs import EVEN_SIZE, SIZES
from ensemble_builder.probe.words import said
from ensemble_builder.repository import served_version, steps_of_version, write
from ensemble_builder.runtime.loading import loaded, network_input, root_cause
from ensemble_builder.runtime.networks import NetworkOptions
from ensemble_builder.runtime.recipe import Recipe
from ensemble_builder.samples import IMAGE_JI, VOLUME_KJI, sample
from ensemble_builder.server import TritonServer
from ensemble_builder.verify.certificate import (
    Verdict,
    judged,
    request_digest,
    write_certificate,
)
from ensemble_builder.verify.compare import compare_stages
from ensemble_builder.verify.monai import Stages, monai_stages
from ensemble_builder.verify.pipeline import (
    BuiltPipeline,
    verify_pipeline_file,
    verify_served_pipeline,
)
from ensemble_builder.verify.source import Request, Source, fitting
from ensemble_builder.verify.triton import served_stages

SEED = 0
LARGEST_X_VOXELS = 3_000_000
WINDOWS_ACROSS = 1.4
"""How many windows the generated input measures along each axis: several overlap."""


def verify_bundle(
    bundle: str | Path,
    options: Options,
    runtimes: Sequence[str] = ("torch",),
    request: Request | None = None,
) -> Verdict:
    """Builds a bundle into a folder of its own once for each runtime, and compares.

    Args:
        bundle: A folder, a zip, or the name of a built-in pipeline.
        options: As for building; the runtime is replaced.
        runtimes: What to serve with.
        request: The input; generated where None.

    Raises:
        BuilderError: it can't be built, served or compared.
    """
    for runtime in runtimes:
        NetworkOptions(runtime)  # refuses what is none
    pipeline = find_pipeline(bundle)
    if pipeline is not None:
        return verify_pipeline_file(pipeline, options, runtimes, request)
    found = read_bundle(find_bundle(bundle), replace(options, runtime=runtimes[0]))
    with tempfile.TemporaryDirectory(prefix="tritome-verify-") as folder:
        repository = Path(folder) / "model_repository"
        names = {}
        for runtime in runtimes:
            one = replace(
                found,
                name=f"{found.name[:36]}_{runtime}",
                recipe=replace(found.recipe, runtime=runtime),
                instances=1,  # one request at a time is compared; a second copy proves nothing
            )
            names[runtime] = one.name
            list(write(plan(one), repository))
        with TritonServer(repository, log=Path(folder) / "triton.log", watch=False) as server:
            return _compared(found, server, names, request)


def verify_served(
    repository: Path, pipeline: str, request: Request | None = None
) -> tuple[Verdict, Path]:
    """Serves a pipeline of a model repository as it is, compares, and writes its certificate.

    Raises:
        BuilderError: it isn't there, or can't be served or compared.
    """
    built = BuiltPipeline.find(repository, pipeline)
    if built is not None:
        return verify_served_pipeline(built, request)
    source = Source.in_repository(repository, pipeline)
    # What a person rolled back to is what Triton serves, not the newest.
    version = served_version(repository / pipeline)
    contract = json.loads(
        (repository / pipeline / str(version) / "contract.json").read_text(encoding="utf-8")
    )
    examples = [tuple(one["example_shape"]) for one in contract["inputs"]]
    chosen = (
        generated(source, examples)
        if request is None
        else fitting(request, source.recipe.inputs, pipeline)
    )
    expected = _expected(source, chosen)
    with tempfile.TemporaryDirectory(prefix="tritome-verify-") as folder:
        only = Path(folder) / "model_repository"
        only.mkdir()
        for name in steps_of_version(repository / pipeline, version):
            (only / name).symlink_to((repository / name).resolve())
        with TritonServer(only, log=Path(folder) / "triton.log", watch=False) as server:
            actual = served_stages(server.grpc_url, pipeline, source.recipe, chosen)
            verdict = Verdict(
                pipeline=pipeline,
                bundle_sha256=str(contract.get("bundle_sha256", "")),
                weights_sha256=str(contract["weights"].get("sha256", "")),
                request=_words(request, chosen),
                request_sha256=request_digest(chosen),
                server=server.origin,
                runtimes=(judged(source.recipe.runtime, compare_stages(expected, actual)),),
                unproven=_without_labels(expected),
            )
    return verdict, write_certificate(verdict, repository, str(contract["certificate"]))


def _compared(
    found: Bundle, server: TritonServer, names: dict[str, str], request: Request | None
) -> Verdict:
    source = Source.of(found)
    examples = [tuple(shape) for shape in found.findings.example_shapes.values()]
    chosen = (
        generated(source, examples)
        if request is None
        else fitting(request, source.recipe.inputs, found.name)
    )
    expected = _expected(source, chosen)
    return Verdict(
        pipeline=found.name,
        bundle_sha256=bundle_digest(found),
        weights_sha256=found.weights_sha256,
        request=_words(request, chosen),
        request_sha256=request_digest(chosen),
        server=server.origin,
        runtimes=tuple(
            judged(
                runtime,
                compare_stages(
                    expected, served_stages(server.grpc_url, name, source.recipe, chosen)
                ),
            )
            for runtime, name in names.items()
        ),
        unproven=_without_labels(expected),
    )


def _without_labels(expected: Stages) -> tuple[str, ...]:
    """Label maps and masks that are empty: equal ones would say little."""
    return tuple(
        f"{name} has no label anywhere"
        for name, value in expected.outputs.items()
        if value.dtype.kind == "u" and not value.any()
    )


def _expected(source: Source, request: Request) -> Stages:
    """What MONAI computes in one process.

    Raises:
        ParityError: nothing, as the bundle doesn't work there either.
    """
    try:
        return monai_stages(source, request)
    except BuilderError:
        raise
    except Exception as error:  # a bundle's code raises what it likes
        msg = (
            f"MONAI in one process fails on this input: {said(root_cause(error))}; give another "
            "with --input"
        )
        raise ParityError(msg) from error


def _words(request: Request | None, chosen: Request) -> str:
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in chosen.items())
    return f"{'generated, seed ' + str(SEED) if request is None else 'given'}: {shapes}"


# The input ----------------------------------------------------------------------------


def generated(source: Source, examples: Iterable[tuple[int, ...]] = ()) -> dict[str, Any]:
    """A request whose X measures a bit more than one window along each axis.

    Args:
        source: The bundle.
        examples: Shapes of its inputs when it was probed, which went through then; taken where
            other sizes don't.
    """
    recipe = source.recipe
    tried = next((size for size in SIZES if _is_of(size, examples)), SIZES[0])
    if tried == EVEN_SIZE:  # only such sizes go through
        return sample(recipe.inputs, *tried, SEED)
    try:
        request = _of_some_windows(source, recipe)
        _spatial_of_x(source, recipe, request)
    except Exception:  # noqa: BLE001 - a bundle's transforms may want another size
        return sample(recipe.inputs, *tried, SEED)
    return request


def _is_of(
    size: tuple[tuple[int, ...], tuple[int, ...]], shapes: Iterable[tuple[int, ...]]
) -> bool:
    volume, image = size
    return any(shape[-3:] == volume or shape[:2] == image for shape in shapes)


def _of_some_windows(source: Source, recipe: Recipe) -> dict[str, Any]:
    volume: tuple[int, ...] = VOLUME_KJI
    image: tuple[int, ...] = IMAGE_JI
    for _ in range(2):  # once more, as margins don't grow with the input
        request = sample(recipe.inputs, volume, image, SEED)
        spatial = _spatial_of_x(source, recipe, request)
        window = [n for n in recipe.window[1:] if n > 1]
        if len(window) != len(spatial) or not _has_windows(source, recipe):
            return request
        wanted = [WINDOWS_ACROSS * n for n in window]
        shrink = min(1.0, (LARGEST_X_VOXELS / float(np.prod(wanted))) ** (1 / len(wanted)))
        factor = float(
            np.median([shrink * w / max(n, 1) for w, n in zip(wanted, spatial, strict=True)])
        )
        volume = tuple(int(np.clip(round(n * factor), 20, 200)) for n in volume)
        image = tuple(int(np.clip(round(n * factor), 64, 800)) for n in image)
    return sample(recipe.inputs, volume, image, SEED)


def _spatial_of_x(source: Source, recipe: Recipe, request: Request) -> list[int]:
    bundle = recipe.open(source.folder, torch.device("cpu"))
    data = loaded(
        recipe.inputs,
        lambda name, _: torch.from_numpy(np.array(request[name])),
        torch.device("cpu"),
    )
    with torch.inference_mode():
        x = network_input(recipe.network_key, bundle.preprocessing()(data))
    return list(x.shape[1:])


def _has_windows(source: Source, recipe: Recipe) -> bool:
    return hasattr(recipe.open(source.folder, torch.device("cpu")).inferer(), "roi_size")


# One process per bundle ---------------------------------------------------------------


def main(arguments: Iterable[str] | None = None) -> int:
    """Prints the verdict, or what went wrong, as one line of JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--runtimes", nargs="+", default=["torch", "auto"])
    parser.add_argument("--random-weights", type=int, default=None)
    chosen = parser.parse_args(list(arguments) if arguments is not None else None)
    try:
        verdict = verify_bundle(
            chosen.bundle, Options(random_weights=chosen.random_weights), chosen.runtimes
        )
    except BuilderError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps(json.loads(verdict.to_json())))
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
