"""What `tritome inspect` and `tritome graph` say of a bundle."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ensemble_builder.bundle import Options, read_bundle
from ensemble_builder.drawing import draw, read_config
from ensemble_builder.explain import edges, peak_bytes, transforms
from ensemble_builder.plan import plan
from tests.support.bundles import a_segmentation_bundle
from tests.support.zoo import a_radiograph_classifier

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:monai")


def test_each_transform_has_its_place(tmp_path: Path) -> None:
    """File I/O is left out; the rest runs where the ensemble's steps say."""
    rows = transforms(read_bundle(a_segmentation_bundle(tmp_path / "b")))
    places = {row.transform: row.step for row in rows}
    assert places["LoadImage"] == places["Save"] == "left out"
    assert places["Spacingd"] == "preprocess"
    assert places["SlidingWindowInferer"] == places["UNet"] == "inferer"
    assert places["Invertd"] == "postprocess"
    assert "pixdim=3.0x3.0x4.0" in next(r.options for r in rows if r.transform == "Spacingd")


def test_edges_have_a_size_for_a_real_study(tmp_path: Path) -> None:
    """IMAGE of 512x512x300 is 150 MiB; X is on the network's own grid and smaller."""
    bundle = read_bundle(a_segmentation_bundle(tmp_path / "b"))
    found = {edge.tensor.name: edge for edge in edges(bundle)}
    assert found["IMAGE"].example_bytes == 2 * 512 * 512 * 300
    x_bytes = found["X"].example_bytes
    assert x_bytes is not None
    assert 0 < x_bytes < 2 * 512 * 512 * 300
    assert found["X"].targets == ("inferer",)
    assert found["MASK"].targets == ("answer",)


def test_memory_is_said_for_what_the_steps_do(tmp_path: Path) -> None:
    """In slabs a request takes far less than its volume in floats; other steps take it all."""
    voxels = 512 * 512 * 300
    usual = read_bundle(a_segmentation_bundle(tmp_path / "usual"))
    request_bytes = 3 * voxels
    assert request_bytes < peak_bytes(usual) < 20 * voxels
    keys = {"keys": "pred"}
    odd = a_segmentation_bundle(
        tmp_path / "odd",
        changed={
            "postprocessing": {
                "_target_": "Compose",
                "transforms": [
                    {"_target_": "Activationsd", **keys, "softmax": True},
                    {
                        "_target_": "Invertd",
                        **keys,
                        "transform": "@preprocessing",
                        "orig_keys": "@image_key",
                        "nearest_interp": False,
                    },
                    {"_target_": "Lambdad", **keys, "func": "$lambda x: x * 2"},
                    {"_target_": "AsDiscreted", **keys, "argmax": True},
                    {"_target_": "SaveImaged", **keys, "output_dir": "out"},
                ],
            }
        },
    )
    assert peak_bytes(read_bundle(odd)) > peak_bytes(usual) + 3 * 16 * voxels


def test_the_picture_has_every_model_and_edge(tmp_path: Path) -> None:
    """Well-formed SVG with a box per model, in the order of the steps, and the tensors' names."""
    models = plan(
        read_bundle(a_radiograph_classifier(tmp_path / "xray"), Options(random_weights=0))
    )
    configs = {one.name: read_config(bytes(one.files["config.pbtxt"]).decode()) for one in models}  # type: ignore[arg-type]
    svg = draw(configs["xray"], configs)
    texts = [element.text or "" for element in ET.fromstring(svg).iter() if element.text]
    for name in ("xray_preprocess", "xray_inferer", "xray_postprocess", "request", "answer"):
        assert name in texts
    assert any(text.startswith("SCORES FP32 [3]") for text in texts)
