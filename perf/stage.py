"""What the parts of a bench share: how much is measured, where, and on which chest.

The chest is painted, and written as a DICOM study, when the first part asks for it. All of it
lies in a scratch folder and goes with it.
"""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from clients.demo.phantom_study import write_ct_series
from clients.infer import stored_volume
from ensemble_builder.phantoms.thorax import thorax_phantom
from ensemble_builder.server import TritonServer
from perf.peers.case import Volume
from perf.peers.compare import JSON

Say = Callable[[str], None]

MODEL = "lung_ct"
"""The built-in pipeline that is served."""

_SEED = 20
_COVERED_MM = (320.0, 400.0, 400.0)
_INTERCEPT = -1024
"""As in nearly every real CT: with 0 some work would be left out."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: How often each side of a part is counted; one more round warms up.
        instances: Of the series that intake is measured with.
        rows: Jobs that lie in the queue's full tables.
        left_out: Parts that run only where they are asked for.
        without: Peers that are left out.
    """

    shape_kji: tuple[int, int, int]
    rounds: int
    instances: int
    rows: int
    left_out: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """A whole chest, whatever the number of voxels."""
        k, j, i = (mm / n for mm, n in zip(_COVERED_MM, self.shape_kji, strict=True))
        return k, j, i

    @property
    def arena_bytes(self) -> int:
        """Two volumes with their masks, and at least what a gateway accepts as an arena."""
        slices, rows, columns = self.shape_kji
        return max(1 << 24, 2 * 3 * slices * rows * columns)


USUAL = Plan(
    (120, 512, 512),
    rounds=3,
    instances=100,
    rows=100_000,
    left_out=("busy", "growth"),
    without=(JSON,),
)
FULL = Plan((300, 512, 512), rounds=5, instances=300, rows=100_000)
QUICK = Plan(
    (24, 96, 96), rounds=1, instances=8, rows=500, left_out=("arrival", "peers", "busy", "growth")
)


@dataclass(frozen=True)
class Stage:
    """Where a bench runs.

    Attributes:
        folder: For whatever a part leaves on the disk; each makes one of its own in it.
        model_repository: Where lung_ct is served from.
        perf_analyzer: The environment that holds it.
        bundles: For the parts that run on any bundle.
        further_volumes: Besides the generated chest.
        further_studies: Those of them that are DICOM folders.
        database_urls: Databases that may be emptied, besides the SQLite file of the queue.
        say: Hears how far it is.
        without_chest: Parts that run on any volume leave the generated chest out.
        notes: What the report says of the setting; parts may add to it.
    """

    plan: Plan
    folder: Path
    model_repository: Path
    perf_analyzer: Path
    bundles: Sequence[Path]
    further_volumes: Sequence[Volume] = ()
    further_studies: Sequence[Path] = ()
    database_urls: Sequence[str] = ()
    say: Say = print
    without_chest: bool = False
    notes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def _painted(self) -> tuple[Volume, Path]:
        shape = self.plan.shape_kji
        self.say(f"Painting a chest of {shape[0]} slices")
        phantom = thorax_phantom(_SEED, shape_kji=shape, spacing_mm=self.plan.spacing_mm)
        study = write_ct_series(
            self.folder / "study",
            hu=phantom.hu,
            labels=phantom.labels,
            affine_lps=phantom.affine_lps,
            seed=_SEED,
        )
        stored = (phantom.hu.astype(np.int32) - _INTERCEPT).clip(-32768, 32767).astype(np.int16)
        rescale = np.tile(np.array([1.0, _INTERCEPT]), (shape[0], 1))
        affine = phantom.affine_lps.astype(np.float32).astype(np.float64)
        self.notes["chest"] = " x ".join(map(str, shape)) + " voxels, generated"
        return Volume(f"chest of {shape[0]} slices", stored, rescale, affine), study.folder

    @property
    def chest(self) -> Volume:
        """As the contract wants it."""
        return self._painted[0]

    @property
    def study(self) -> Path:
        """The same as a folder with one DICOM study."""
        return self._painted[1]

    def volumes(self) -> Iterator[Volume]:
        """The chest, unless it's left out, then what else was named."""
        if not self.without_chest:
            yield self.chest
        yield from self.further_volumes

    def studies(self) -> Iterator[tuple[str, Path]]:
        """Name and DICOM folder of each volume that has one."""
        if not self.without_chest:
            yield self.chest.name, self.study
        for folder in self.further_studies:
            yield folder.name, folder

    def saved(self, volume: Volume) -> Path:
        """As an .npz, for processes that read their volume themselves."""
        path = self.folder / f"{volume.name}.npz"
        if not path.is_file():
            np.savez(path, **volume.request())
        return path

    @contextmanager
    def triton(self) -> Iterator[TritonServer]:
        """A server of lung_ct, and of nothing else, while the block lasts.

        Raises:
            BuilderError: there is none, or it does not start.
        """
        self.say("Starting Triton")
        repository = only_lung_ct(self.model_repository, self.folder / "model_repository")
        with TritonServer(repository, log=self.folder / "triton.log") as server:
            version = _triton_version(server.http_url)
            self.notes["Triton"] = f"{version} ({server.origin})"
            yield server


def only_lung_ct(model_repository: Path, folder: Path) -> Path:
    """Its models without others, whose stubs would be loaded and watched in vain."""
    for model in model_repository.glob(f"{MODEL}*"):
        shutil.copytree(model, folder / model.name, dirs_exist_ok=True)
    return folder


def read_volume(source: Path) -> Volume:
    """A volume from an .npz with IMAGE, RESCALE and AFFINE, or from a DICOM folder."""
    if source.suffix == ".npz":
        return Volume.read(source)
    image, rescale, affine = stored_volume(source)
    affine = affine.astype(np.float32).astype(np.float64)
    return Volume(source.name, image, rescale, affine)


def _triton_version(http_url: str) -> str:
    # A proxy, where the machine has one, is not for loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{http_url}/v2", timeout=10) as answer:
        return str(json.load(answer)["version"])
