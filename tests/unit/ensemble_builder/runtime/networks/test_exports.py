"""Networks as files: ONNX and TorchScript, with the same bytes each time."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.networks.nets import UNet

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks.examples import example_windows
from ensemble_builder.runtime.networks.onnx_export import to_onnx
from ensemble_builder.runtime.networks.torchscript import load_torchscript, to_torchscript
from tests.support.networks import Untraceable, a_network

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:monai")
WINDOW = (1, 16, 16, 16)


def _unet() -> torch.nn.Module:
    torch.manual_seed(3)
    return UNet(3, 1, 2, [4, 8], [2], num_res_units=1, norm="batch").eval()


@pytest.mark.parametrize("export", [to_onnx, to_torchscript])
def test_the_same_network_gives_the_same_bytes(export):
    """However many others were exported before it, and with no trace of this machine."""
    one = export(_unet(), example_windows(WINDOW))
    export(a_network(), example_windows(WINDOW))
    other = export(_unet(), example_windows(WINDOW))
    assert one == other
    assert b"site-packages" not in one
    assert b"/home/" not in one


def test_an_onnx_file_computes_what_eager_computes():
    """Its doors have the names that Triton's config gives them; the batch is free."""
    network = _unet()
    model = to_onnx(network, example_windows(WINDOW))
    onnx.checker.check_model(onnx.load_model_from_string(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape) for i in session.get_inputs()] == [("WINDOWS", ["batch", *WINDOW])]
    for count in (1, 3):
        windows = torch.rand(count, *WINDOW)
        (found,) = session.run(["PREDICTION"], {"WINDOWS": windows.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(found, network(windows).numpy(), atol=1e-4)


def test_a_torchscript_file_computes_exactly_what_eager_computes():
    """It is the same torch, so bit for bit."""
    network = _unet()
    loaded = load_torchscript(to_torchscript(network, example_windows(WINDOW)), torch.device("cpu"))
    windows = torch.rand(3, *WINDOW)
    with torch.inference_mode():
        assert torch.equal(loaded(windows), network(windows))


def test_half_precision_is_inside_the_file():
    """Its doors stay float32, its weights take half the space, the network is left as it was."""
    network = _unet()
    model = to_onnx(network, example_windows(WINDOW), dtype=torch.float16)
    graph = onnx.load_model_from_string(model).graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    weights = [one for one in graph.initializer if len(one.dims) == 5]
    assert {one.data_type for one in weights} == {onnx.TensorProto.FLOAT16}
    assert {one.dtype for one in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("export", "sentence"),
    [(to_onnx, "doesn't export to ONNX"), (to_torchscript, "can't be traced")],
)
def test_a_network_that_does_not_export_is_said_in_one_sentence(export, sentence):
    """With the kind of error, for the log."""
    with pytest.raises(ConversionError, match=rf"the network {sentence} \(\w+\)$"):
        export(Untraceable().eval(), example_windows((1, 16, 16)))
