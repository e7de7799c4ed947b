"""`tritome build`: read -> validate -> plan -> emit, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ensemble_builder.bundle import Options, find_bundle, read_bundle
from ensemble_builder.pipeline import find_pipeline, plan_pipeline
from ensemble_builder.plan import Model, plan
from ensemble_builder.repository import write
from ensemble_builder.runtime.networks import RUNTIMES, NetworkOptions

__all__ = ["RUNTIMES", "build", "planned"]


def _nobody(_note: str) -> None:
    """Nobody wants to hear of it."""


def planned(
    bundle: str | Path, options: Options | None = None, tell: Callable[[str], None] = _nobody
) -> tuple[Model, ...]:
    """The Triton models that serve a bundle or a pipeline YAML, nothing written.

    Args:
        bundle: As for `build`.
        options: What a person chose besides it.
        tell: Hears what was read otherwise than it is written, in words.

    Raises:
        BundleError: a bundle can't be read or served.
        PipelineError: the YAML is wrong.
    """
    options = options or Options()
    NetworkOptions(options.runtime, options.precision)  # refuses what is none of them
    pipeline = find_pipeline(bundle)
    if pipeline is not None:
        return plan_pipeline(pipeline, options, tell)
    found = read_bundle(find_bundle(bundle), options)
    for note in found.notes:
        tell(note)
    return plan(found)


def build(
    bundle: str | Path,
    repository: Path,
    options: Options | None = None,
    *,
    replace: bool = False,
    tell: Callable[[str], None] = _nobody,
) -> Iterator[tuple[Model, bool]]:
    """Writes the Triton models that serve a bundle or a pipeline YAML.

    Args:
        bundle: A bundle's folder or zip, a pipeline's YAML, or the name of a built-in pipeline
            such as lung_ct.
        repository: The model repository's folder; made where it doesn't exist.
        options: What a person chose besides the bundle.
        replace: Write version 1 and drop all others instead of adding one.
        tell: As for `planned`.

    Yields:
        Each model written and whether it changed, in the ensemble's order, ensemble last.

    Raises:
        BundleError: a bundle can't be read or served.
        PipelineError: the YAML is wrong.
        RepositoryError: the repository can't be written.
    """
    yield from write(planned(bundle, options, tell), repository, replace=replace)
