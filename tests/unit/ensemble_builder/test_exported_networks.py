"""A network as a Triton model of its own: its files and its config."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from ensemble_builder.build import build
from ensemble_builder.bundle import Options, read_bundle
from ensemble_builder.errors import BundleError
from ensemble_builder.networks import ExportedNetwork, export_network, network_config
from ensemble_builder.runtime.networks import NetworkOptions
from ensemble_builder.runtime.recipe import Recipe
from tests.support.bundles import a_segmentation_bundle
from tests.support.networks import Moody, Twins, a_classifier, a_network

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:monai")
WINDOW = (1, 16, 16, 16)


def _export(backend: str, **options: object) -> ExportedNetwork:
    return export_network("b_network", a_network(), WINDOW, NetworkOptions(**options), backend)


def test_windows_of_several_studies_merge_and_priorities_hold():
    """What the config says of batches, delays, priorities and the warm-up."""
    config = network_config(_export("python").model)
    assert (config.name, config.backend, config.max_batch_size) == ("b_network", "python", 8)
    assert [(t.name, list(t.dims)) for t in config.input] == [("WINDOWS", [1, 16, 16, 16])]
    assert [(t.name, list(t.dims)) for t in config.output] == [("PREDICTION", [3, 16, 16, 16])]
    batching = config.dynamic_batching
    assert batching.max_queue_delay_microseconds > 0
    assert (batching.priority_levels, batching.default_priority_level) == (4, 3)
    (warm_up,) = config.model_warmup
    assert warm_up.batch_size == 1
    assert list(warm_up.inputs["WINDOWS"].dims) == [1, 16, 16, 16]


def test_the_largest_batch_follows_from_the_size_of_the_windows():
    """Eight small ones; fewer where a window and its many channels fill the memory."""
    many = torch.nn.Conv3d(1, 105, 1).eval()
    large = export_network("b_network", many, (1, 96, 96, 96), NetworkOptions())
    assert large.model.most_windows == 1
    assert _export("python").model.most_windows == 8


def test_free_sizes_are_free_in_the_config_too():
    """-1 where the size varies; the warm-up has one that may come."""
    options = NetworkOptions(free_axes=(0, 1))
    config = network_config(export_network("b_network", a_classifier(), (3, 32, 32), options).model)
    assert list(config.input[0].dims) == [3, -1, -1]
    assert list(config.output[0].dims) == [4]
    assert list(config.model_warmup[0].inputs["WINDOWS"].dims) == [3, 32, 32]


@pytest.mark.parametrize(
    ("backend", "platform", "file", "tensors"),
    [
        ("onnxruntime", "onnxruntime_onnx", "model.onnx", ("WINDOWS", "PREDICTION")),
        ("pytorch", "pytorch_libtorch", "model.pt", ("WINDOWS__0", "PREDICTION__0")),
    ],
)
def test_a_backend_of_triton_s_own_gets_its_file_and_its_names(backend, platform, file, tensors):
    """The config parses as Triton parses it; the export was compared with eager, also in twos."""
    found = _export(backend)
    config = network_config(found.model)
    again = text_format.Parse(text_format.MessageToString(config), pb.ModelConfig())
    assert (again.platform, again.default_model_filename) == (platform, file)
    assert (again.input[0].name, again.output[0].name) == tensors
    assert list(found.files) == [file]
    assert [check.windows[0] for check in found.checks] == [1, 2]
    assert found.notes == ()


def test_the_onnx_file_fits_its_config():
    """Names, types and dims are those that ONNX Runtime finds in the file."""
    found = _export("onnxruntime")
    session = onnxruntime.InferenceSession(
        found.files["model.onnx"], providers=["CPUExecutionProvider"]
    )
    for side, described in (
        (session.get_inputs(), network_config(found.model).input),
        (session.get_outputs(), network_config(found.model).output),
    ):
        (tensor,), (stated,) = side, described
        assert (tensor.name, tensor.type) == (stated.name, "tensor(float)")
        assert len(tensor.shape) == 1 + len(stated.dims)


@pytest.mark.parametrize("backend", ["onnxruntime", "pytorch"])
def test_an_export_that_differs_runs_on_the_python_backend(backend):
    """And a note says why."""
    found = export_network("b_network", Moody().eval(), (1, 16, 16), NetworkOptions(), backend)
    assert (found.model.backend, dict(found.files)) == ("python", {})
    assert f"not on {backend}: it differs from eager on 2x1x16x16" in found.notes[0]
    assert found.model.input == "WINDOWS"


def test_an_engine_that_cannot_be_built_here_is_refused(monkeypatch):
    """The sentence says where to build and what to choose otherwise."""
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(BundleError, match=r"backend tensorrt: .*; build on the machine that will"):
        _export("tensorrt")


def test_what_is_no_backend_and_what_is_no_prediction_is_refused():
    """By name."""
    with pytest.raises(BundleError, match="network backend 'onnx' is not one of python, onnx"):
        _export("onnx")
    with pytest.raises(BundleError, match="gives a tuple of 2"):
        export_network("b_network", Twins(), WINDOW, NetworkOptions())


@pytest.mark.parametrize("backend", ["python", "onnxruntime"])
def test_a_bundle_is_built_with_its_network_in_a_model_of_its_own(tmp_path, backend):
    """The weights go with the network; the inferer has none, and two instances that ask."""
    bundle = a_segmentation_bundle(tmp_path / "b")
    repository = tmp_path / "repository"
    written = [m.name for m, _ in build(bundle, repository, Options(network_backend=backend))]
    assert written == ["b_network", "b_preprocess", "b_inferer", "b_postprocess", "b"]
    assert not list((repository / "b_inferer").rglob("*.pt"))
    inferer = text_format.Parse(
        (repository / "b_inferer" / "config.pbtxt").read_text(encoding="utf-8"), pb.ModelConfig()
    )
    assert inferer.instance_group[0].count == 2
    recipe = Recipe.load(repository / "b_inferer" / "1")
    assert recipe.network_model is not None
    assert (recipe.network_model.name, recipe.network_model.backend) == ("b_network", backend)
    assert recipe.network_model.input_dims == (1, 32, 32, 32)
    files = {one.name for one in (repository / "b_network" / "1").rglob("*") if one.is_file()}
    wanted = {"python": {"model.py", "model.pt", "recipe.json"}, "onnxruntime": {"model.onnx"}}
    assert wanted[backend] <= files
    assert not [
        changed
        for _, changed in build(bundle, repository, Options(network_backend=backend))
        if changed
    ]


def test_runtime_triton_means_a_model_of_its_own(tmp_path):
    """On the backend that every server has, computing as this machine does by itself."""
    recipe = read_bundle(a_segmentation_bundle(tmp_path / "b"), Options(runtime="triton")).recipe
    assert recipe.runtime == "auto"
    assert recipe.network_model is not None
    assert recipe.network_model.backend == "python"
