"""A process for one study: what `monai.bundle run` does with an inference config.

Nothing of ours is imported. It reads the config with MONAI's parser, the image with the bundle's
LoadImaged, and writes with its SaveImaged; ignite's engine, which would call these same
objects, is left out (it costs a little, and isn't always installed). The settings come as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(settings: dict[str, Any]) -> None:
    """Runs the study."""
    import torch  # noqa: PLC0415 - the imports are a part of what is measured
    from monai.bundle import ConfigParser  # noqa: PLC0415

    parser = ConfigParser()
    parser.read_config(settings["config"])
    parser["bundle_root"] = settings["bundle_root"]
    if "device" in parser.config:
        parser["device"] = f"$torch.device('{settings['device']}')"
    _write_to(parser.config, settings["output_dir"])
    network = parser.get_parsed_content(settings["network"])
    state = torch.load(settings["weights"], map_location="cpu", weights_only=True)
    network.load_state_dict(state.get("model", state))
    # As the evaluator: the network and each image go to the run's device.
    device = torch.device(settings["device"])
    network.to(device).eval()
    key, pred_key = settings["key"], settings["pred_key"]
    with torch.no_grad():
        data = parser.get_parsed_content("preprocessing")({key: settings["image"]})
        inferer = parser.get_parsed_content("inferer")
        data[pred_key] = inferer(data[key][None].to(device), network)[0]
        parser.get_parsed_content("postprocessing")(data)


def _write_to(node: Any, folder: str) -> None:
    """Lets every SaveImaged write there, without compression, which would only take time."""
    if isinstance(node, dict):
        if str(node.get("_target_", "")).rpartition(".")[2].startswith("SaveImage"):
            node.update(output_dir=folder, output_ext=".nii", output_dtype="uint8")
        for one in node.values():
            _write_to(one, folder)
    elif isinstance(node, list):
        for one in node:
            _write_to(one, folder)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
