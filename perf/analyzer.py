"""NVIDIA's perf_analyzer on one ensemble, over each of Triton's three roads.

Comes in: a running server and a volume. Goes out: one measurement for each road. The volume
is a phantom, never zeros: an empty volume takes short cuts in the network and in the
postprocessing.
"""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perf.measure import Measurement

_TIMEOUT_S = 1800
_INTERCEPT = -1024
"""As in nearly every real CT: with 0 some work would be left out."""


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


@dataclass(frozen=True)
class VolumeInput:
    """The tensors of one volume as perf_analyzer reads them: a raw file for each input."""

    folder: Path
    shape_kji: tuple[int, int, int]

    @property
    def voxels(self) -> int:
        """How many voxels the volume has."""
        return int(np.prod(self.shape_kji))

    @property
    def moved_bytes(self) -> int:
        """IMAGE in (2 bytes a voxel) and MASK out (1 byte a voxel)."""
        return 3 * self.voxels


def write_input(
    folder: Path, hu: NDArray[np.int16], affine_lps: NDArray[np.float64]
) -> VolumeInput:
    """Writes IMAGE, RESCALE and AFFINE as perf_analyzer wants them.

    Args:
        folder: Where; made if it isn't there.
        hu: int16 [K, J, I], Hounsfield units.
        affine_lps: float64 [4, 4], (i, j, k, 1) -> LPS millimetres.

    Raises:
        ValueError: when the volume is the same everywhere, which would measure short cuts.
    """
    if hu.min() == hu.max():
        msg = "a volume that is the same everywhere measures short cuts; give a real one"
        raise ValueError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    slices, rows, columns = hu.shape
    stored = hu.astype(np.int32) - _INTERCEPT
    rescale = np.tile(np.array([1.0, _INTERCEPT]), (slices, 1))
    stored.clip(-32768, 32767).astype("<i2").tofile(folder / "IMAGE")
    rescale.astype("<f8").tofile(folder / "RESCALE")
    affine_lps.astype("<f8").tofile(folder / "AFFINE")
    return VolumeInput(folder, (slices, rows, columns))


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

    def measure(
        self, road: Road, model: str, url: str, volume: VolumeInput, *, requests: int
    ) -> Measurement:
        """Sends `requests` requests one after the other, after one to warm up.

        Raises:
            AnalyzerFailed: with perf_analyzer's own words.
        """
        self._run(road, [*self._target(road, model, url, volume), "--request-count", "1"])
        table = volume.folder.parent / f"{road.protocol}-{road.shared_memory}.csv"
        table.unlink(missing_ok=True)
        # Not --profile-export-file, which has each request's duration, but writes every
        # voxel beside it as decimal text.
        output = self._run(
            road,
            [
                *self._target(road, model, url, volume),
                *("--request-count", str(requests), "--percentile", "25"),
                *("--verbose-csv", "-f", str(table)),
            ],
        )
        try:
            p25_s, median_s, p90_s = read_percentiles(table)
        except (OSError, KeyError, ValueError, IndexError) as error:
            msg = f"perf_analyzer over {road.name} gave no figures:\n{output}"
            raise AnalyzerFailed(msg) from error
        name = f"{model} over {road.name}"
        return Measurement(name, requests, p25_s, median_s, p90_s, volume.moved_bytes)

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
    def _target(road: Road, model: str, url: str, volume: VolumeInput) -> Iterator[str]:
        yield from ("-m", model, "-u", url, "--concurrency-range", "1")
        slices, rows, columns = volume.shape_kji
        yield from ("-i", road.protocol, "--input-data", str(volume.folder))
        yield from ("--shape", f"IMAGE:{slices},{rows},{columns}")
        yield from ("--shape", f"RESCALE:{slices},2", "--shape", "AFFINE:4,4")
        if road.shared_memory:
            yield from ("--shared-memory", "system")
            yield from ("--output-shared-memory-size", str(volume.voxels))


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
