"""Which runtime computes a network, and when eager does in its place."""

from __future__ import annotations

import logging
import os
import sys

import pytest
import torch

from ensemble_builder.errors import BundleError
from ensemble_builder.runtime.networks import NetworkOptions, choose_network, example_windows
from tests.support.networks import BySize, Moody, Twins, Untraceable, a_classifier, a_network

CPU = torch.device("cpu")
CONVERTED = ("openvino", "onnxruntime")


def _agree(network: torch.nn.Module, loaded: object, windows: torch.Tensor) -> bool:
    with torch.inference_mode():
        return torch.allclose(loaded(windows), network(windows), atol=1e-4)


@pytest.mark.parametrize(
    ("runtime", "dims", "window"),
    [
        ("openvino", 3, (1, 16, 24, 8)),
        ("onnxruntime", 3, (1, 16, 24, 8)),
        ("onnxruntime", 2, (3, 24, 16)),
    ],
)
def test_a_conversion_computes_what_eager_computes(runtime, dims, window):
    """In three and two dimensions, for one window and for batches of several sizes."""
    network = a_network(dims=dims, channels=window[0])
    options = NetworkOptions(runtime, most_windows=4)
    loaded = choose_network(network, example_windows(window), CPU, options)
    assert (loaded.runtime, loaded.precision, loaded.refused) == (runtime, "f32", "")
    assert [check.windows[0] for check in loaded.checks] == [1, 2]
    for count in (1, 2, 4):
        assert _agree(network, loaded, torch.rand(count, *window))


def test_a_classification_is_converted_too():
    """A row of scores for each image, images of any size."""
    network = a_classifier()
    options = NetworkOptions("onnxruntime", free_axes=(0, 1))
    loaded = choose_network(network, example_windows((3, 32, 32)), CPU, options)
    assert loaded.runtime == "onnxruntime"
    assert _agree(network, loaded, torch.rand(2, 3, 48, 40))


def test_auto_is_openvino_on_a_cpu(caplog):
    """The log says that it agrees with eager, with the figures and what is allowed."""
    caplog.set_level(logging.INFO)
    loaded = choose_network(a_network(), example_windows((1, 16, 16, 16)), CPU)
    assert loaded.runtime == "openvino"
    assert "openvino f32 agrees with eager torch (1x1x16x16x16: 100.000 % same" in caplog.text
    assert "allowed: 99.9 %, 0.001" in caplog.text


def test_eager_torch_is_the_module_itself():
    """Bit for bit, and further tensors reach it."""
    network = a_network()
    loaded = choose_network(network, example_windows((1, 8, 8, 8)), CPU, NetworkOptions("torch"))
    windows = torch.rand(2, 1, 8, 8, 8)
    with torch.inference_mode():
        assert torch.equal(loaded(windows), network(windows))
    assert loaded.checks == ()


def test_a_conversion_is_compared_with_full_float32():
    """TF32, a GPU's default, is further from it than a conversion may be."""
    network = a_network()
    short = []
    network.register_forward_pre_hook(lambda *_: short.append(torch.backends.cudnn.allow_tf32))
    window = example_windows((1, 16, 16, 16))
    choose_network(network, window, CPU, NetworkOptions("onnxruntime", most_windows=1))
    assert short[0] is False
    assert torch.backends.cudnn.allow_tf32


def test_a_conversion_that_differs_on_batches_is_not_used(caplog):
    """A trace of one window says nothing of two; eager computes, and the log gives the figures."""
    network = Moody().eval()
    options = NetworkOptions("onnxruntime", most_windows=4)
    loaded = choose_network(network, example_windows((1, 16, 16)), CPU, options)
    assert loaded.runtime == "torch"
    assert "onnxruntime f32 is not used: it differs from eager on 2x1x16x16: " in caplog.text
    assert "f32 must reach 99.9 % and 0.001" in caplog.text
    assert _agree(network, loaded, torch.rand(3, 1, 16, 16))


@pytest.mark.parametrize("runtime", CONVERTED)
def test_windows_of_other_sizes_go_to_eager_where_the_conversion_fits_one(runtime):
    """A network that can only be converted for one size is right for all of them."""
    network = BySize().eval()
    options = NetworkOptions(runtime, free_axes=(0, 1))
    loaded = choose_network(network, example_windows((1, 32, 32)), CPU, options)
    assert loaded.runtime == runtime
    for size in (32, 64):
        assert _agree(network, loaded, torch.rand(1, 1, size, size))


def test_a_network_that_does_not_convert_runs_on_eager(caplog):
    """One sentence in the log, no traceback."""
    network = Untraceable().eval()
    loaded = choose_network(network, example_windows((1, 16, 16)), CPU, NetworkOptions("openvino"))
    assert loaded.runtime == "torch"
    assert "openvino f32 is not used: the network doesn't" in caplog.text
    assert _agree(network, loaded, torch.rand(2, 1, 16, 16))


@pytest.mark.parametrize(
    ("runtime", "missing", "sentence"),
    [
        ("openvino", "openvino", "OpenVINO isn't installed (pip install openvino)"),
        ("onnxruntime", "onnxruntime", "ONNX Runtime isn't installed"),
        ("onnxruntime", "onnx", "onnx isn't installed"),
        ("tensorrt", "tensorrt", "TensorRT computes on an NVIDIA GPU, this instance has none"),
    ],
)
def test_a_runtime_that_is_not_here_is_said_in_one_sentence(
    runtime, missing, sentence, monkeypatch
):
    """Eager computes in its place."""
    monkeypatch.setitem(sys.modules, missing, None)
    loaded = choose_network(
        a_network(), example_windows((1, 8, 8, 8)), CPU, NetworkOptions(runtime)
    )
    assert loaded.runtime == "torch"
    assert loaded.refused.startswith(f"{runtime} f32 is not used: {sentence}")


@pytest.mark.parametrize("runtime", ["auto", "onnxruntime", "tensorrt", "torch_compile"])
def test_a_network_that_gives_several_tensors_is_refused_before_any_conversion(runtime):
    """The sentence says what it gives and what to do."""
    with pytest.raises(BundleError, match=r"network: gives a tuple of 2 .* needs one tensor"):
        choose_network(Twins(), example_windows((1, 8, 8)), CPU, NetworkOptions(runtime))


def test_lower_precision_is_compared_with_f32_under_its_own_tolerance():
    """Asked for and within its tolerance it is used; the figures are kept."""
    network = a_network(dims=2, channels=1)
    options = NetworkOptions("torch", "bf16", most_windows=2)
    loaded = choose_network(network, example_windows((1, 32, 32)), CPU, options)
    assert (loaded.runtime, loaded.precision) == ("torch", "bf16")
    assert 0 < loaded.checks[0].off <= 5e-2
    assert loaded(torch.rand(1, 1, 32, 32)).dtype == torch.float32
    assert "allowed: 98 %, 0.05" in str(loaded)


def test_lower_precision_that_loses_too_much_falls_back_to_f32(caplog):
    """A network whose decisions hang on the last digits."""
    network = a_network(dims=2)
    with torch.no_grad():
        network[3].weight.mul_(1e-4)
        network[3].bias.copy_(torch.tensor([100.0, 100.0, 100.0]))
    options = NetworkOptions("torch", "bf16")
    loaded = choose_network(network, example_windows((1, 32, 32)), CPU, options)
    assert (loaded.runtime, loaded.precision) == ("torch", "f32")
    assert "torch bf16 is not used: it differs from eager" in caplog.text


@pytest.mark.parametrize("runtime", CONVERTED)
def test_half_precision_is_asked_for_by_name(runtime):
    """It is used where it stays within its tolerance, and says what it is."""
    network = a_network(dims=2)
    options = NetworkOptions(runtime, "f16")
    loaded = choose_network(network, example_windows((1, 32, 32)), CPU, options)
    assert (loaded.runtime, loaded.precision) == (runtime, "f16")
    assert loaded(torch.rand(2, 1, 32, 32)).dtype == torch.float32


@pytest.mark.skipif(
    "TRITOME_COMPILE" not in os.environ, reason="a minute of compiling: TRITOME_COMPILE=1 runs it"
)
def test_torch_compile_computes_what_eager_computes():
    """For one window and for batches, without compiling anew for each size."""
    network = a_network(dims=2)
    options = NetworkOptions("torch_compile", most_windows=4)
    loaded = choose_network(network, example_windows((1, 16, 16)), CPU, options)
    assert loaded.runtime == "torch_compile"
    for count in (1, 3, 4):
        assert _agree(network, loaded, torch.rand(count, 1, 16, 16))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"runtime": "onnx"}, "runtime 'onnx' is not one of auto, torch, openvino"),
        ({"precision": "int8"}, "precision 'int8' is not one of f32, bf16, f16"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, sentence):
    """With the words that do."""
    with pytest.raises(BundleError, match=sentence):
        NetworkOptions(**words)


def test_openvino_computes_windows_beside_each_other():
    """Windows that follow each other share the cores in streams; each prediction is its own."""
    module = torch.nn.Conv3d(1, 2, 3, padding=1).eval()
    example = example_windows((1, 16, 16, 16))
    options = NetworkOptions("openvino", most_windows=4, many_windows=True)
    network = choose_network(module, example, CPU, options).network
    windows = torch.randn(6, 1, 16, 16, 16)
    under_way = [network.submit(part) for part in windows.split(1)]
    expected = module(windows).detach()
    for number, one in enumerate(under_way):
        torch.testing.assert_close(one.result(), expected[number : number + 1])
    torch.testing.assert_close(network(windows), expected)
    assert network.in_flight > 1


def test_openvino_computes_large_windows_one_at_a_time(monkeypatch):
    """Each stream would have memory of its own for them, or for a prediction of many channels."""
    module = torch.nn.Conv3d(1, 2, 3, padding=1).eval()
    example = example_windows((1, 16, 16, 16))
    options = NetworkOptions("openvino", most_windows=4, many_windows=True)

    def in_flight() -> int:
        return choose_network(module, example, CPU, options).network.in_flight

    assert in_flight() > 2
    for limit in ("LARGEST_IN_STREAMS", "LARGEST_PREDICTION_IN_STREAMS"):
        with monkeypatch.context() as patch:
            patch.setattr(f"ensemble_builder.runtime.networks.openvino.{limit}", 16**3 - 1)
            assert in_flight() == 2


def test_openvino_computes_the_same_after_a_rest():
    """What lies between its layers was given back."""
    module = torch.nn.Conv3d(1, 2, 3, padding=1).eval()
    network = choose_network(
        module, example_windows((1, 16, 16, 16)), CPU, NetworkOptions("openvino")
    ).network
    window = torch.randn(1, 1, 16, 16, 16)
    before = network(window)
    network.rest()
    assert torch.equal(network(window), before)
