"""What all peers share: one bundle with weights on the disk, one volume, one Triton.

In: a bundle and a volume. Out: a bundle folder that MONAI's own commands can run, and a model
repository that holds our ensemble (once for each runtime) and the models that the peers ask.
All of it lies in a scratch folder and goes with it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemble_builder.bundle import Options, read_bundle
from ensemble_builder.plan import plan
from ensemble_builder.repository import write

NETWORK_MODEL = "peer_network"
TUTORIAL_MODEL = "peer_tutorial"
SETTINGS_FILE = "peer.json"
_MODELS = Path(__file__).with_name("models")


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume as the contract wants it.

    Attributes:
        image: int16 [K, J, I].
        rescale: float64 [K, 2].
        affine_lps: float64 [4, 4], numbers that float32 holds, so that NIfTI keeps them.
    """

    name: str
    image: NDArray[np.int16]
    rescale: NDArray[np.float64]
    affine_lps: NDArray[np.float64]

    @staticmethod
    def read(path: Path) -> Volume:
        """From an .npz with IMAGE, RESCALE and AFFINE."""
        held = np.load(path)
        affine = held["AFFINE"].astype(np.float32).astype(np.float64)
        return Volume(path.stem, held["IMAGE"], held["RESCALE"], affine)

    def hounsfield(self) -> NDArray[np.float32]:
        """float32 [K, J, I]."""
        slope, intercept = (self.rescale[:, n, None, None] for n in (0, 1))
        values: NDArray[np.float32] = (self.image * slope + intercept).astype(np.float32)
        return values

    def request(self) -> dict[str, NDArray[Any]]:
        """Our ensemble's inputs."""
        return {"IMAGE": self.image, "RESCALE": self.rescale, "AFFINE": self.affine_lps}


@dataclass(frozen=True, slots=True)
class Case:
    """A bundle with weights on the disk.

    Attributes:
        folder: Of the bundle.
        config: Its inference config, inside the folder.
        network_id: The network's config id.
        weights: Its file, inside the folder.
        key: Of the image.
        window: [C, *roi].
    """

    name: str
    folder: Path
    config: str
    network_id: str
    weights: str
    key: str
    pred_key: str
    window: tuple[int, ...]

    @staticmethod
    def prepare(bundle: Path, scratch: Path) -> Case:
        """Copies a bundle; one without weights gets the random ones of seed 0.

        Raises:
            BundleError: it can't be served.
        """
        import torch  # noqa: PLC0415 - slow, and only here

        from ensemble_builder.runtime.weights import network_with_weights  # noqa: PLC0415

        found = read_bundle(bundle, Options(random_weights=0))
        folder = scratch / found.name
        shutil.copytree(found.folder, folder, dirs_exist_ok=True)
        recipe = found.recipe
        if recipe.weights.seed is not None:
            config = recipe.open(found.folder, torch.device("cpu"))
            module = network_with_weights(config, recipe.network_id, recipe.weights, folder)
            (folder / "models").mkdir(exist_ok=True)
            torch.save(module.state_dict(), folder / "models" / "model.pt")
        return Case(
            found.name,
            folder,
            recipe.configs[0],
            recipe.network_id,
            recipe.weights.path or "models/model.pt",
            recipe.network_key,
            recipe.pred_key,
            tuple(recipe.window),
        )

    def read(self, runtime: str = "torch", name: str | None = None) -> Any:
        """The builder's view of it."""
        return read_bundle(self.folder, Options(runtime=runtime, name=name))

    def served_as(self, runtime: str) -> str:
        """Name of our ensemble with that runtime."""
        return f"{self.name}_{runtime}"

    def repository(self, scratch: Path, runtimes: Sequence[str]) -> Path:
        """Our ensemble once for each runtime, and the peers' models beside it."""
        place = scratch / "repository"
        for runtime in runtimes:
            list(write(plan(self.read(runtime, self.served_as(runtime))), place))
        settings = json.dumps({"bundle": str(self.folder), "network": NETWORK_MODEL})
        for name in (NETWORK_MODEL, TUTORIAL_MODEL):
            version = place / name / "1"
            version.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_MODELS / f"{name}.py", version / "model.py")
            shutil.copy2(_MODELS / f"{name}.pbtxt", place / name / "config.pbtxt")
            (version / SETTINGS_FILE).write_text(settings, encoding="utf-8")
        return place
