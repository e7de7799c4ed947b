"""MONAI in one process: cold, as container operators run it for each study, and warm.

Cold is what `python -m monai.bundle run` does (`one_study.py`), from an uncompressed NIfTI
image to one: the process, its imports and its network are made for the study. Warm is what that
process does between reading and writing, in one that stays: its float image is there before
the clock starts. Both compute on the device that they are given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perf.peers.case import Case, Volume
from perf.workers import PeerFailed

__all__ = ["InOneProcess", "PeerFailed", "answer_volumes", "cold", "serve_warm", "write_nifti"]

_TIMEOUT_S = 1800
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_nifti(volume: Volume, path: Path) -> Path:
    """The volume as an uncompressed NIfTI image of Hounsfield units in int16."""
    import nibabel  # noqa: PLC0415

    values = np.rint(volume.hounsfield()).astype(np.int16)
    image = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]
        values.transpose(2, 1, 0), _LPS_TO_RAS @ volume.affine_lps
    )
    nibabel.save(image, path)
    return path


def cold(case: Case, image: Path, scratch: Path, device: str) -> tuple[float, NDArray[np.uint8]]:
    """One study in a process of its own.

    Args:
        case: The bundle.
        image: What `write_nifti` wrote.
        scratch: Where the result goes.
        device: Where its network computes, in torch's words.

    Returns:
        Seconds from the command to its end, and the labels [K, J, I].

    Raises:
        PeerFailed: the command failed or wrote nothing.
    """
    import nibabel  # noqa: PLC0415

    out = scratch / "bundle_run"
    settings = {
        "config": str(case.folder / case.config),
        "network": case.network_id,
        "weights": str(case.folder / case.weights),
        "key": case.key,
        "pred_key": case.pred_key,
        "image": str(image),
        "bundle_root": str(case.folder),
        "output_dir": str(out),
        "device": device,
    }
    script = Path(__file__).with_name("one_study.py")
    command = [sys.executable, "-W", "ignore", str(script), json.dumps(settings)]
    started = time.perf_counter()
    try:
        answer = subprocess.run(
            command,
            cwd=scratch,
            env={**os.environ, "PYTHONPATH": str(case.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        msg = f"one study with MONAI took more than {_TIMEOUT_S} s"
        raise PeerFailed(msg) from error
    seconds = time.perf_counter() - started
    written = sorted(out.rglob("*.nii"))
    if answer.returncode or not written:
        msg = f"one study with MONAI: {answer.stdout.strip()[-2000:]}"
        raise PeerFailed(msg)
    labels = np.asarray(nibabel.load(written[0]).dataobj).squeeze()  # type: ignore[attr-defined]
    written[0].unlink()
    return seconds, np.ascontiguousarray(labels.transpose(2, 1, 0).astype(np.uint8))


class InOneProcess:
    """MONAI's transforms, inferer and network of one bundle, kept."""

    def __init__(self, case: Case, device: str = "cpu", network: Any = None) -> None:
        """Reads the bundle.

        Args:
            case: The bundle.
            device: Where images go and its network computes.
            network: Takes the place of the bundle's own where given.
        """
        import torch  # noqa: PLC0415

        from ensemble_builder.runtime.weights import network_with_weights  # noqa: PLC0415

        found = case.read()
        self._recipe = found.recipe
        self._device = torch.device(device)
        config = found.recipe.open(found.folder, self._device)
        self._before, self._after = config.preprocessing(), config.postprocessing()
        self._inferer = config.inferer()
        self._network = network or network_with_weights(
            config, found.recipe.network_id, found.recipe.weights, found.folder
        ).to(self._device)

    def read(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the bundle's readers would give for a request's tensors."""
        from ensemble_builder.verify.monai import stored_as_read  # noqa: PLC0415

        return {one.key: stored_as_read(one, request) for one in self._recipe.inputs}

    def run(self, images: dict[str, Any]) -> NDArray[np.uint8]:
        """Labels [K, J, I] of what `read` gave."""
        import torch  # noqa: PLC0415

        from ensemble_builder.verify.monai import stated  # noqa: PLC0415

        recipe = self._recipe
        with torch.no_grad():
            data = self._before(images)
            x = data[recipe.network_key].to(self._device)
            data[recipe.pred_key] = self._inferer(x[None].float(), self._network)[0]
            done = self._after(data)
        output = recipe.outputs[0]
        plain = torch.as_tensor(done[output.key]).as_subclass(torch.Tensor).cpu().numpy()
        return stated(plain, output)


def serve_warm(pipe: Connection, case: Case, device: str) -> None:
    """A process that keeps everything; a volume in, seconds and labels out."""
    kept = InOneProcess(case, device)
    answer_volumes(pipe, kept)


def answer_volumes(pipe: Connection, kept: InOneProcess) -> None:
    """Until something else than a volume comes."""
    pipe.send("ready")
    while isinstance(volume := pipe.recv(), Volume):
        images = kept.read(volume.request())
        started = time.perf_counter()
        labels = kept.run(images)
        pipe.send((time.perf_counter() - started, labels))
