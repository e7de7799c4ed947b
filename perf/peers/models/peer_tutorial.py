"""One Python model that does everything, as MONAI's full-GPU-inference tutorial has it.

A float volume comes in; MONAI's own transforms and sliding window run here, the network is
another model, called by BLS for each batch of windows; MONAI's label map goes out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from monai.data import MetaTensor

from ensemble_builder.bundle import Options, read_bundle

LPS_TO_RAS = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))


def to_torch(request: Any, name: str) -> torch.Tensor:
    """An input without a copy."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    found: torch.Tensor = torch.utils.dlpack.from_dlpack(tensor.to_dlpack())
    return found


class TritonPythonModel:
    """Triton's python model interface."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the bundle."""
        here = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((here / "peer.json").read_text())
        found = read_bundle(Path(settings["bundle"]), Options(runtime="torch"))
        self.recipe, self.network = found.recipe, settings["network"]
        self.device = torch.device("cuda" if args["model_instance_kind"] == "GPU" else "cpu")
        config = found.recipe.open(found.folder, self.device)
        self.before, self.after = config.preprocessing(), config.postprocessing()
        self.inferer = config.inferer()

    def ask(self, windows: torch.Tensor) -> torch.Tensor:
        """The network's answer for a batch of windows."""
        plain = windows.as_subclass(torch.Tensor).contiguous()
        request = pb_utils.InferenceRequest(
            model_name=self.network,
            requested_output_names=["PREDICTION"],
            inputs=[pb_utils.Tensor.from_dlpack("WINDOWS", plain)],
        )
        response = request.exec()
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        found = pb_utils.get_output_tensor_by_name(response, "PREDICTION")
        prediction: torch.Tensor = torch.utils.dlpack.from_dlpack(found.to_dlpack())
        return prediction.to(self.device)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [self.one(request) for request in requests]

    def one(self, request: Any) -> Any:
        """One study."""
        volume = to_torch(request, "VOLUME").to(self.device).permute(2, 1, 0)
        meta = {
            "affine": LPS_TO_RAS @ to_torch(request, "AFFINE").cpu(),
            "space": "RAS",
            "original_channel_dim": "no_channel",
            "spatial_shape": tuple(volume.shape),
        }
        with torch.no_grad():
            data = self.before({self.recipe.network_key: MetaTensor(volume, meta=meta)})
            x = data[self.recipe.network_key]
            data[self.recipe.pred_key] = self.inferer(x[None].float(), self.ask)[0]
            done = self.after(data)[self.recipe.pred_key]
        mask = torch.as_tensor(done).as_subclass(torch.Tensor)[0].permute(2, 1, 0)
        output = pb_utils.Tensor.from_dlpack("MASK", mask.float().contiguous())
        return pb_utils.InferenceResponse(output_tensors=[output])
