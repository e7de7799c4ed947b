"""A repository whose pipelines write down what they were given: shape, affine, digest.

Comes in: names, modalities, and what each may do to irregular series. Goes out: a Triton
repository for `SmallTriton`, and the records of a job. Survives a crash: the records.

The mask has label 1 where the value is above a threshold and label 2 in a ball around the
middle of the volume, drawn in patient coordinates from AFFINE alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BALL_MM = 40.0
"""Diameter of the ball; flattened along the slices where the volume is thinner."""

_SMALL = 4 << 20
"""Volumes of no more voxels are kept whole."""

_MODEL = """
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.folder = Path(parameters["records"]["string_value"])
        self.threshold = float(parameters["threshold"]["string_value"])

    def execute(self, requests):
        return [self._one(request) for request in requests]

    def _one(self, request):
        image, rescale, affine = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("IMAGE", "RESCALE", "AFFINE")
        )
        digest = hashlib.sha256()
        mask = np.zeros(image.shape, dtype=np.uint8)
        shape = np.array(image.shape)
        middle = (affine @ [*((shape[::-1] - 1) / 2), 1])[:3]
        for k in range(len(image)):
            values = image[k] * rescale[k, 0] + rescale[k, 1]
            digest.update(values.astype("<f4").tobytes())
            mask[k] = values > self.threshold
        self._draw_ball(mask, affine, middle)
        number = time.monotonic_ns()
        stem = self.folder / f"{request.request_id()}.{number}"
        if image.size <= SMALL:
            np.savez(f"{stem}.npz", image=image, rescale=rescale)
        told = {
            "shape": list(image.shape),
            "affine": affine.tolist(),
            "sha256": digest.hexdigest(),
            "middle": middle.tolist(),
        }
        beside = Path(f"{stem}.part")
        beside.write_text(json.dumps(told))
        beside.rename(f"{stem}.json")
        return pb_utils.InferenceResponse([pb_utils.Tensor("MASK", mask)])

    def _draw_ball(self, mask, affine, middle):
        inverse = np.linalg.inv(affine)
        centre = (inverse @ [*middle, 1])[:3]
        reach = BALL_MM / 2 * np.linalg.norm(inverse[:3, :3], axis=1)
        low = np.maximum(np.floor(centre - reach), 0).astype(int)
        high = np.minimum(np.ceil(centre + reach) + 1, mask.shape[::-1]).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1]))
        k, j, i = np.indices(mask[box].shape)
        i, j, k = i + low[0], j + low[1], k + low[2]
        places = np.stack([i, j, k, np.ones_like(i)], -1) @ affine.T
        mask[box][np.linalg.norm(places[..., :3] - middle, axis=-1) < BALL_MM / 2] = 2
"""

_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 0
input [
  {{ name: "IMAGE" data_type: TYPE_INT16 dims: [ -1, -1, -1 ] }},
  {{ name: "RESCALE" data_type: TYPE_FP64 dims: [ -1, 2 ] }},
  {{ name: "AFFINE" data_type: TYPE_FP64 dims: [ 4, 4 ] }}
]
output [ {{ name: "MASK" data_type: TYPE_UINT8 dims: [ -1, -1, -1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters {{ key: "contract" value {{ string_value: '{contract}' }} }}
parameters {{ key: "records" value {{ string_value: '{records}' }} }}
parameters {{ key: "threshold" value {{ string_value: '{threshold}' }} }}
"""


@dataclass(frozen=True)
class Recording:
    """What one volume of a job looked like inside Triton.

    Attributes:
        values: float64 [K, J, I], where the volume was small enough to be kept.
        middle_lps_mm: Of the ball of label 2.
    """

    shape_kji: tuple[int, int, int]
    affine_lps: NDArray[np.float64]
    sha256: str
    middle_lps_mm: NDArray[np.float64]
    values: NDArray[np.float64] | None


def a_recording_pipeline(
    repository: Path,
    records: Path,
    name: str,
    *,
    modality: str = "CT",
    irregular: Sequence[str] | None = ("resample", "split"),
    threshold: float = 0.0,
) -> Path:
    """Adds a pipeline to a repository; its records go to `records`."""
    records.mkdir(parents=True, exist_ok=True)
    code = {"value": "85756007", "scheme_designator": "SCT", "meaning": "Tissue"}
    taken: dict[str, Any] = {"kind": "volume", "modality": modality}
    if irregular is not None:
        taken["irregular"] = list(irregular)
    contract = {
        "schema_version": 1,
        "builder_version": "0.1.0",
        "pipeline": name,
        "version": "1.0.0",
        "description": "Writes down what it is given",
        "input": taken,
        "outputs": [
            {
                "name": "MASK",
                "kind": "labelmap",
                "datatype": "UINT8",
                "dims": [-1, -1, -1],
                "segments": [
                    {"label": 1, "name": "Above the threshold", "category": code, "type": code},
                    {"label": 2, "name": "Ball", "category": code, "type": code},
                ],
            }
        ],
        "peak_bytes_per_voxel": 8.0,
    }
    model = repository / name / "1"
    model.mkdir(parents=True)
    code_text = f"BALL_MM = {BALL_MM}\nSMALL = {_SMALL}\n{_MODEL}"
    (model / "model.py").write_text(code_text, encoding="utf-8")
    config = _CONFIG.format(
        name=name, contract=json.dumps(contract), records=records, threshold=threshold
    )
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")
    return repository


def recordings(records: Path, job_id: str) -> list[Recording]:
    """What a job sent, volume by volume."""
    found = sorted(records.glob(f"{job_id}.*.json"), key=lambda path: int(path.suffixes[-2][1:]))
    return [_recording(path) for path in found]


def _recording(path: Path) -> Recording:
    told = json.loads(path.read_text(encoding="utf-8"))
    kept = path.with_suffix(".npz")
    values = None
    if kept.exists():
        with np.load(kept) as arrays:
            image, rescale = arrays["image"], arrays["rescale"]
            values = image * rescale[:, 0, None, None] + rescale[:, 1, None, None]
    slices, rows, columns = told["shape"]
    return Recording(
        shape_kji=(slices, rows, columns),
        affine_lps=np.array(told["affine"]),
        sha256=told["sha256"],
        middle_lps_mm=np.array(told["middle"]),
        values=values,
    )
