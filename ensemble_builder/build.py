"""`tritome build`: read -> validate -> plan -> emit, in one call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ensemble_builder.bundle import find_bundle, read_bundle
from ensemble_builder.errors import BundleError
from ensemble_builder.plan import Model, plan
from ensemble_builder.repository import write

RUNTIMES = ("auto", "torch", "openvino")


def build(
    bundle: str | Path, repository: Path, runtime: str = "auto", name: str | None = None
) -> Iterator[tuple[Model, bool]]:
    """Writes the Triton models that serve a bundle.

    Args:
        bundle: A bundle's folder, or the name of a built-in pipeline such as lung_ct.
        repository: The model repository's folder; made where it doesn't exist.
        runtime: What computes the network: auto (OpenVINO on a CPU, torch on a GPU), torch
            or openvino.
        name: The ensemble's name in Triton; the bundle folder's where not given.

    Yields:
        Each model written and whether it changed, in the ensemble's order, ensemble last.

    Raises:
        BundleError: the bundle can't be read or served.
        RepositoryError: the repository can't be written.
    """
    if runtime not in RUNTIMES:
        msg = f"runtime '{runtime}' is not one of {', '.join(RUNTIMES)}"
        raise BundleError(msg)
    yield from write(plan(read_bundle(find_bundle(bundle), runtime, name)), repository)
