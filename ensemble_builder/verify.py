"""Is what Triton serves what MONAI computes? One process against the served ensemble.

`reference` is MONAI alone: the bundle's own transforms, inferer and eager network, one
after the other in this process, without anything that was written for serving but the
removal of file I/O. `served` asks a running Triton. `compare` counts the voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tritonclient.grpc as triton
from monai.data import MetaTensor, decollate_batch
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

from ensemble_builder.bundle import read_bundle
from ensemble_builder.errors import ParityError
from ensemble_builder.runtime.networks import load_weights
from ensemble_builder.runtime.recipe import BundleConfig
from ensemble_builder.server.heartbeat import LOOPBACK_CHANNEL


@dataclass(frozen=True, slots=True)
class StoredVolume:
    """One volume as the contract wants it.

    Attributes:
        image: int16 [K, J, I], stored pixel values.
        rescale: float64 [K, 2], slope and intercept per slice.
        affine_lps: float64 [4, 4], (i, j, k, 1) -> LPS millimetres.
    """

    image: NDArray[np.int16]
    rescale: NDArray[np.float64]
    affine_lps: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two label maps agree.

    Attributes:
        voxels: How many voxels were compared.
        different: How many of them differ.
        dice: Label -> Dice coefficient, for each label that either side has.
    """

    voxels: int
    different: int
    dice: dict[int, float]

    @property
    def agreement(self) -> float:
        """Part of the voxels that are equal, 0..1."""
        return 1.0 - self.different / self.voxels


def reference(bundle_folder: Path, volume: StoredVolume) -> NDArray[np.uint8]:
    """The mask that MONAI computes in this process: uint8 [K, J, I].

    Raises:
        BundleError: the bundle can't be read.
    """
    recipe = read_bundle(bundle_folder).recipe
    bundle = BundleConfig(bundle_folder, recipe.config, torch.device("cpu"))
    slopes, intercepts = volume.rescale[:, :1, None], volume.rescale[:, 1:, None]
    values = (volume.image.astype(np.float64) * slopes + intercepts).astype(np.float32)
    affine_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine_lps
    # What a reader gives: [I, J, K], no channel axis, RAS.
    meta = {"affine": affine_ras, "original_channel_dim": "no_channel", "space": "RAS"}
    image = MetaTensor(np.ascontiguousarray(values.transpose(2, 1, 0)), meta=meta)
    with torch.no_grad():
        data = bundle.preprocessing()({recipe.image_key: image})
        network = load_weights(bundle.network(recipe.network_id), bundle_folder / recipe.weights)
        batch = data[recipe.image_key][None]
        prediction = bundle.inferer()(inputs=batch, network=network)
        data[recipe.pred_key] = decollate_batch(prediction)[0]
        mask = bundle.postprocessing()(data)[recipe.pred_key]
    return np.ascontiguousarray(np.asarray(mask)[0].transpose(2, 1, 0)).astype(np.uint8)


def served(grpc_url: str, pipeline: str, volume: StoredVolume) -> NDArray[np.uint8]:
    """The mask that a running Triton gives, over plain gRPC: uint8 [K, J, I]."""
    inputs = []
    values: dict[str, NDArray[Any]] = {
        "IMAGE": volume.image,
        "RESCALE": volume.rescale,
        "AFFINE": volume.affine_lps,
    }
    for name, value in values.items():
        tensor = triton.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(np.ascontiguousarray(value))
        inputs.append(tensor)
    client = triton.InferenceServerClient(grpc_url, channel_args=LOOPBACK_CHANNEL)
    try:
        mask: NDArray[np.uint8] = client.infer(pipeline, inputs).as_numpy("MASK")
    finally:
        client.close()
    return mask


def compare(expected: NDArray[np.uint8], actual: NDArray[np.uint8]) -> Parity:
    """Counts the voxels that differ.

    Raises:
        ParityError: the two masks don't even have the same shape.
    """
    if expected.shape != actual.shape:
        msg = f"served {list(actual.shape)}, MONAI gives {list(expected.shape)}"
        raise ParityError(msg)
    labels = sorted((set(np.unique(expected)) | set(np.unique(actual))) - {np.uint8(0)})
    return Parity(
        voxels=expected.size,
        different=int(np.count_nonzero(expected != actual)),
        dice={int(label): dice(expected == label, actual == label) for label in labels},
    )


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Dice's coefficient of two masks; 1 when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else 1.0
