"""Reading a bundle: what is found in it, and how it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ensemble_builder.bundle import find_bundle, read_bundle
from ensemble_builder.errors import BundleError
from tests.support.bundles import a_segmentation_bundle

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:monai")


def test_a_bundle_is_read_without_its_reader_s_packages(tmp_path: Path) -> None:
    """ITKReader needs itk to be constructed; serving never constructs it."""
    bundle = read_bundle(a_segmentation_bundle(tmp_path / "MyBundle-2"))
    assert bundle.name == "my_bundle_2"
    assert bundle.modality == "CT"
    assert [(one.key, one.tensor, one.layout) for one in bundle.recipe.inputs] == [
        ("image", "IMAGE", "volume")
    ]
    assert bundle.recipe.pred_key == "pred"
    assert bundle.recipe.network_id == "network"
    assert [(s.label, s.name) for s in bundle.segments] == [(1, "one"), (2, "two")]


def test_a_yaml_config_is_read_too(tmp_path: Path) -> None:
    """JSON is YAML: a bundle with inference.yaml gives the same recipe, but for its name."""
    folder = a_segmentation_bundle(tmp_path / "b")
    path = folder / "configs" / "inference.json"
    path.rename(path.with_suffix(".yaml"))
    assert read_bundle(folder).recipe.configs == ("configs/inference.yaml",)


@pytest.mark.parametrize("missing", ["preprocessing", "inferer", "postprocessing"])
def test_a_missing_part_is_named(tmp_path: Path, missing: str) -> None:
    """What serving needs and the config lacks is said by its key."""
    folder = a_segmentation_bundle(tmp_path / "b", without=(missing,))
    with pytest.raises(BundleError, match=f"'{missing}'"):
        read_bundle(folder)


def _post(*transforms: dict[str, Any]) -> dict[str, Any]:
    return {"postprocessing": {"_target_": "Compose", "transforms": list(transforms)}}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"preprocessing": "$3"}, "preprocessing: is a int"),
        ({"postprocessing": {"_target_": "Compose", "transforms": ["@nothing"]}}, "nothing"),
        (_post({"_target_": "AsDiscreted", "keys": "guess", "argmax": True}), "guess"),
    ],
)
def test_what_can_t_be_served_is_refused_with_the_reason(
    tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    """One sentence that names the bundle, the key and the reason."""
    folder = a_segmentation_bundle(tmp_path / "b", changed=changed)
    with pytest.raises(BundleError, match=reason) as refused:
        read_bundle(folder)
    assert str(refused.value).startswith("b: ")


def test_a_mask_that_isn_t_brought_back_says_so(tmp_path: Path) -> None:
    """Without an inverse the label map has a grid of its own, and the contract says it."""
    changed = _post({"_target_": "AsDiscreted", "keys": "pred", "argmax": True})
    bundle = read_bundle(a_segmentation_bundle(tmp_path / "b", changed=changed))
    assert [one.on_input_grid for one in bundle.recipe.outputs] == [False]


def test_weights_that_are_code_are_refused(tmp_path: Path) -> None:
    """A model.pt that is a pickled object is never unpickled."""
    folder = a_segmentation_bundle(tmp_path / "b")
    torch.save({"model": Path("/")}, folder / "models" / "model.pt")
    with pytest.raises(BundleError, match=r"model\.pt"):
        read_bundle(folder)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """A state dict that doesn't fit says which file it was."""
    folder = a_segmentation_bundle(tmp_path / "b")
    torch.save({"a": torch.zeros(1)}, folder / "models" / "model.pt")
    with pytest.raises(BundleError, match=r"model\.pt: no weights for this network"):
        read_bundle(folder)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    """Zoo bundles come without weights; the message says to fetch or train them."""
    folder = a_segmentation_bundle(tmp_path / "b")
    (folder / "models" / "model.pt").unlink()
    with pytest.raises(BundleError, match=r"models/model\.pt is missing"):
        read_bundle(folder)


def test_bad_metadata_is_named(tmp_path: Path) -> None:
    """A segment without a name is refused, not served without one."""
    folder = a_segmentation_bundle(tmp_path / "b", metadata={"segments": [{"label": 1}]})
    with pytest.raises(BundleError, match="segments"):
        read_bundle(folder)


_CODE = {"value": "1", "scheme_designator": "SCT", "meaning": "a"}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"segments": []}, "names no segment"),
        (
            {
                "segments": [
                    {"label": n, "name": "a", "category": _CODE, "type": _CODE} for n in (1, 1)
                ]
            },
            "different",
        ),
        (
            {"segments": [{"label": 70000, "name": "a", "category": _CODE, "type": _CODE}]},
            "label",
        ),
        (
            {
                "segments": [
                    {
                        "label": 1,
                        "name": "a",
                        "category": _CODE,
                        "type": _CODE,
                        "colour_rgb": [900, 0, 0],
                    }
                ]
            },
            "colour_rgb",
        ),
    ],
)
def test_a_segment_table_that_can_t_be_served_is_refused(
    tmp_path: Path, metadata: dict[str, Any], reason: str
) -> None:
    """Labels fit 16 bits and are different; there is at least one; colours are bytes."""
    folder = a_segmentation_bundle(tmp_path / "b", metadata=metadata)
    with pytest.raises(BundleError, match=reason):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["no_such_bundle", "../lung_ct", "lung_ct/configs"])
def test_an_unknown_bundle_lists_the_built_in_ones(name: str) -> None:
    """A name that is neither a bundle's folder nor built in says what is built in."""
    with pytest.raises(BundleError, match="lung_ct"):
        find_bundle(name)
