"""NVIDIA's perf_analyzer on one model, over one of Triton's three roads.

Comes in: a running server and a request. Goes out: how long it took. The request is a real one,
never zeros: an empty volume takes short cuts in the network and in the postprocessing.
"""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TIMEOUT_S = 1800


class AnalyzerFailed(Exception):
    """perf_analyzer is not there or gave no figures; the message says what to do."""


@dataclass(frozen=True)
class Road:
    """One way for tensors to reach Triton and come back."""

    name: str
    protocol: str
    shared_memory: bool


ROADS = (
    Road("HTTP", "http", shared_memory=False),
    Road("gRPC", "grpc", shared_memory=False),
    Road("gRPC + shared memory", "grpc", shared_memory=True),
)


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A request to one model as perf_analyzer reads it: a file for each input.

    Attributes:
        shapes: Tensor -> its shape.
        moved_bytes: What goes in and comes out.
        output_bytes: Of the largest output.
    """

    folder: Path
    shapes: dict[str, tuple[int, ...]]
    moved_bytes: int
    output_bytes: int


def write_input(
    folder: Path,
    request: Mapping[str, NDArray[Any]],
    answer: Mapping[str, NDArray[Any]],
) -> ModelInput:
    """Writes a request as perf_analyzer wants it: raw bytes, and strings as lines of text.

    Args:
        folder: Where; made if it isn't there.
        request: Tensor -> what goes in; BYTES as an array of objects.
        answer: Tensor -> what comes out; only its size matters.

    Raises:
        ValueError: when a large tensor is the same everywhere, which would measure short cuts, or
            a string has several lines.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in request.items():
        if value.dtype == np.object_:
            lines = [bytes(one) for one in value.reshape(-1)]
            if any(b"\n" in line for line in lines):
                msg = f"perf_analyzer reads a string of {name} from one line, and it has several"
                raise ValueError(msg)
            (folder / name).write_bytes(b"\n".join(lines) + b"\n")
            continue
        if value.ndim > 2 and value.min() == value.max():
            msg = f"{name} is the same everywhere: that measures short cuts; give a real one"
            raise ValueError(msg)
        # C order, little-endian, as Triton has it.
        value.astype(value.dtype.newbyteorder("<")).tofile(folder / name)
    outputs = [_size_bytes(value) for value in answer.values()]
    return ModelInput(
        folder,
        {name: value.shape for name, value in request.items()},
        sum(map(_size_bytes, request.values())) + sum(outputs),
        max(outputs),
    )


def _size_bytes(value: NDArray[Any]) -> int:
    """As Triton carries it: each string has its length before it."""
    if value.dtype == np.object_:
        return sum(4 + len(one) for one in value.reshape(-1))
    return int(value.nbytes)


@dataclass(frozen=True)
class Analyzer:
    """The perf_analyzer program and the libraries it needs."""

    program: Path
    library_folders: tuple[Path, ...]

    @classmethod
    def find(cls, environment: Path) -> Analyzer:
        """Takes it out of the environment that `make bench` prepares for it.

        Raises:
            AnalyzerFailed: when it isn't there.
        """
        program = environment / "bin" / "perf_analyzer"
        if not program.is_file():
            msg = f"there is no perf_analyzer in {environment}; 'make bench' puts it there"
            raise AnalyzerFailed(msg)
        return cls(program, tuple(environment.glob("lib/python*/site-packages/nvidia/*/lib")))

    def ask_twice(
        self, road: Road, model: str, url: str, request: ModelInput
    ) -> tuple[float, float]:
        """Sends a request, and again when the answer is there; gives both durations in seconds.

        Raises:
            AnalyzerFailed: with perf_analyzer's own words.
        """
        table = request.folder.with_suffix(".csv")
        table.unlink(missing_ok=True)
        # Not --profile-export-file, which has each request's duration, but writes every
        # voxel beside it as decimal text. Of two requests, percentiles tell both.
        output = self._run(
            road,
            [
                *self._target(road, model, url, request),
                *("--request-count", "2", "--percentile", "25"),
                *("--verbose-csv", "-f", str(table)),
            ],
        )
        try:
            shorter_s, _, longer_s = read_percentiles(table)
        except (OSError, KeyError, ValueError, IndexError) as error:
            msg = f"perf_analyzer over {road.name} gave no figures:\n{output}"
            raise AnalyzerFailed(msg) from error
        return shorter_s, longer_s

    def _run(self, road: Road, arguments: list[str]) -> str:
        libraries = [str(folder) for folder in self.library_folders]
        libraries += filter(None, [os.environ.get("LD_LIBRARY_PATH")])
        try:
            answer = subprocess.run(
                [str(self.program), *arguments],
                env={**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            msg = f"perf_analyzer over {road.name} took longer than {_TIMEOUT_S} s"
            raise AnalyzerFailed(msg) from error
        if answer.returncode:
            msg = f"perf_analyzer over {road.name} gave no figures:\n{answer.stdout.strip()}"
            raise AnalyzerFailed(msg)
        return answer.stdout.strip()

    @staticmethod
    def _target(road: Road, model: str, url: str, request: ModelInput) -> Iterator[str]:
        yield from ("-m", model, "-u", url, "--concurrency-range", "1")
        yield from ("-i", road.protocol, "--input-data", str(request.folder))
        for name, shape in request.shapes.items():
            yield from ("--shape", f"{name}:{','.join(map(str, shape))}")
        if road.shared_memory:
            yield from ("--shared-memory", "system")
            yield from ("--output-shared-memory-size", str(request.output_bytes))


def read_percentiles(table: Path) -> tuple[float, float, float]:
    """The 25th, 50th and 90th percentile in seconds, from perf_analyzer's CSV report.

    Source: perf_analyzer's documentation: one row for each load, latencies in microseconds.
    """
    with table.open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file), None)
    if row is None:
        msg = "the report has no row"
        raise ValueError(msg)
    p25_s, median_s, p90_s = (float(row[f"p{rank} latency"]) / 1e6 for rank in (25, 50, 90))
    return p25_s, median_s, p90_s
