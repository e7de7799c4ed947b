"""The parity certificate: figures, versions and digests of one comparison, as JSON.

`tritome verify` writes it into the ensemble's version folder under the name that the contract
states; building the pipeline anew makes a version without one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ensemble_builder.errors import ParityError
from ensemble_builder.repository import served_version
from ensemble_builder.verify.compare import StageParity
from ensemble_builder.verify.source import Request
from ensemble_builder.version import BUILDER_VERSION

LARGEST_SCORE_DIFFERENCE = 1e-5
"""Of scores and images, with the torch runtime."""

LEAST_AGREEMENT = 0.999
"""Part of the voxels with any other runtime."""

LARGEST_AFFINE_DIFFERENCE_MM = 1e-6

_PACKAGES = ("monai", "torch", "numpy", "openvino", "onnxruntime", "tensorrt", "tritonclient")


@dataclass(frozen=True, slots=True)
class RuntimeParity:
    """One runtime's comparison.

    Attributes:
        runtime: torch, or whatever served.
        stages: Each tensor's figures in the order of the steps.
        passed: Within the limits above.
    """

    runtime: str
    stages: tuple[StageParity, ...]
    passed: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was compared, and how it came out.

    Attributes:
        pipeline: The ensemble.
        request: Where the input came from, in words.
        request_sha256: Over its tensors.
        runtimes: One or several comparisons of the same input.
        unproven: What had nothing to do with this input, so that its comparison says nothing.
    """

    pipeline: str
    bundle_sha256: str
    weights_sha256: str
    request: str
    request_sha256: str
    server: str
    runtimes: tuple[RuntimeParity, ...]
    unproven: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Every runtime within its limits."""
        return all(one.passed for one in self.runtimes)

    def to_json(self) -> str:
        """The certificate."""
        document = {
            "schema_version": 1,
            "builder_version": BUILDER_VERSION,
            "versions": {**_versions(), "python": platform.python_version()},
            "passed": self.passed,
            **asdict(self),
        }
        return json.dumps(document, indent=2, sort_keys=True) + "\n"


def judged(runtime: str, stages: tuple[StageParity, ...]) -> RuntimeParity:
    """Compares the figures with the limits of the runtime."""
    exact = runtime == "torch"
    return RuntimeParity(runtime, stages, all(_within(one, exact=exact) for one in stages))


def _within(one: StageParity, *, exact: bool) -> bool:
    if (one.affine_difference_mm or 0.0) > LARGEST_AFFINE_DIFFERENCE_MM:
        return False
    if one.worst_dice is not None:
        return one.different == 0 if exact else one.agreement >= LEAST_AGREEMENT
    if one.stage == "inferer":
        return not exact or one.largest_difference <= LARGEST_SCORE_DIFFERENCE
    limit = LARGEST_SCORE_DIFFERENCE if exact or one.stage == "preprocess" else 1e-2
    return one.largest_difference <= limit


def request_digest(request: Request) -> str:
    """sha256 over a request's tensors in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(request.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def write_certificate(verdict: Verdict, repository: Path, name: str) -> Path:
    """Stores the certificate beside the version of the ensemble that is served.

    Raises:
        RepositoryError: the repository has no such ensemble.
        ParityError: the certificate can't be written.
    """
    folder = repository / verdict.pipeline
    path = folder / str(served_version(folder)) / name
    try:
        path.write_text(verdict.to_json(), encoding="utf-8")
    except OSError as error:
        msg = f"{path} can't be written ({error.strerror})"
        raise ParityError(msg) from error
    return path


def _versions() -> Mapping[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
