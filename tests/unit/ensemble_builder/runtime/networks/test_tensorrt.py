"""What TensorRT is asked for. It can't run without a GPU: a scripted one notes the questions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ensemble_builder.errors import ConversionError
from ensemble_builder.runtime.networks import NetworkOptions, example_windows
from ensemble_builder.runtime.networks.tensorrt import build_engine, convert, import_tensorrt
from tests.support.networks import a_network

WINDOW = (1, 96, 96, 96)


class ScriptedTensorRT:
    """Answers as TensorRT 10 and 11 do, by the names of their Python API."""

    BuilderFlag = SimpleNamespace(TF32="TF32")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=2)

    def __init__(self, *, complaint: str = "", plan: bytes | None = b"plan") -> None:
        self._complaint = complaint
        self._plan = plan
        self.asked: list[tuple[Any, ...]] = []

    def Logger(self, severity: object) -> object:
        """A logger."""
        return severity

    Logger.ERROR = "ERROR"  # type: ignore[attr-defined]

    def Builder(self, _logger: object) -> Any:
        """A builder that notes what it is told."""

        def note(*words: Any) -> None:
            self.asked.append(words)

        config = SimpleNamespace(
            clear_flag=lambda flag: note("clear", flag),
            add_optimization_profile=lambda profile: note("profile", *profile.shapes),
        )
        profile = SimpleNamespace(shapes=())
        profile.set_shape = lambda *shapes: setattr(profile, "shapes", shapes)
        return SimpleNamespace(
            create_network=lambda flags: note("network", flags),
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda _network, _config: self._plan,
        )

    def OnnxParser(self, _network: object, _logger: object) -> Any:
        """A parser that takes the model, or complains."""
        return SimpleNamespace(
            parse=lambda _model: not self._complaint,
            num_errors=1,
            get_error=lambda _number: SimpleNamespace(desc=lambda: self._complaint),
        )


def test_an_engine_is_strongly_typed_float32_for_one_to_most_windows():
    """No half precision and no TF32 behind our back; batches up to the largest."""
    trt = ScriptedTensorRT()
    assert build_engine(trt, b"onnx", WINDOW, NetworkOptions(most_windows=4)) == b"plan"
    one, most = (1, *WINDOW), (4, *WINDOW)
    assert trt.asked == [
        ("network", 4),
        ("clear", "TF32"),
        ("profile", "WINDOWS", one, most, most),
    ]


@pytest.mark.parametrize(
    ("trt", "free_axes", "sentence"),
    [
        (ScriptedTensorRT(complaint="no Foo here"), (), "doesn't take the network: no Foo here"),
        (ScriptedTensorRT(plan=None), (), "can't build an engine for this network on this GPU"),
        (ScriptedTensorRT(), (0,), "windows of any size come, and an engine is built for one"),
    ],
)
def test_what_it_does_not_take_is_said_in_one_sentence(trt, free_axes, sentence):
    """With TensorRT's own reason where it gives one."""
    with pytest.raises(ConversionError, match=sentence):
        build_engine(trt, b"onnx", WINDOW, NetworkOptions(free_axes=free_axes))


def test_without_a_gpu_it_is_refused_before_anything_is_exported():
    """One sentence; eager torch runs."""
    example = example_windows((1, 8, 8, 8))
    with pytest.raises(ConversionError, match="TensorRT computes on an NVIDIA GPU"):
        convert(a_network(), example, NetworkOptions("tensorrt"), torch.zeros(1, 3, 8, 8, 8))


def test_where_it_is_not_installed_the_sentence_says_how(monkeypatch):
    """Also where only its libraries are missing."""
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(ConversionError, match=r"TensorRT isn't installed \(pip install tensorrt"):
        import_tensorrt()
