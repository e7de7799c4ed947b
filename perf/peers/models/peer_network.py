"""The network alone, in eager torch: what the tutorial and a client with windows ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from ensemble_builder.bundle import Options, read_bundle
from ensemble_builder.runtime.weights import network_with_weights


class TritonPythonModel:
    """Triton's python model interface."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the bundle."""
        here = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((here / "peer.json").read_text())
        found = read_bundle(Path(settings["bundle"]), Options(runtime="torch"))
        self.device = torch.device("cuda" if args["model_instance_kind"] == "GPU" else "cpu")
        config = found.recipe.open(found.folder, self.device)
        module = network_with_weights(
            config, found.recipe.network_id, found.recipe.weights, found.folder
        )
        self.network = module.to(self.device)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "WINDOWS")
            windows = torch.utils.dlpack.from_dlpack(tensor.to_dlpack()).to(self.device)
            with torch.inference_mode():
                found = self.network(windows).contiguous()
            output = pb_utils.Tensor.from_dlpack("PREDICTION", found)
            responses.append(pb_utils.InferenceResponse(output_tensors=[output]))
        return responses
