"""`tritome doctor`: what it finds, and whether it says what to do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from clients.commands import doctor
from clients.commands.doctor import State
from clients.commands.serve import write_example
from ensemble_builder.version import BUILDER_VERSION


def a_repository(folder: Path, builder_version: str) -> Path:
    """A repository with one ensemble's configuration."""
    config = ModelConfig(name="lung_ct", platform="ensemble")
    config.parameters[
        "contract"
    ].string_value = f'{{"pipeline": "lung_ct", "builder_version": "{builder_version}"}}'
    (folder / "lung_ct").mkdir(parents=True)
    path = folder / "lung_ct" / "config.pbtxt"
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
    return folder


def test_everything_that_is_not_ok_says_what_to_do(tmp_path: Path) -> None:
    """No finding leaves a person alone with it."""
    findings = list(doctor.examine(tmp_path / "gateway.yaml", tmp_path / "model_repository"))
    assert len({finding.what for finding in findings}) == len(findings)
    for finding in findings:
        assert finding.detail
        assert finding.state is State.OK or finding.remedy, finding.what


def test_the_report_is_a_line_per_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, states and remedies are printed, and the verdict agrees with the states."""
    monkeypatch.setattr(doctor.out, "width", 250)
    able = doctor.run(tmp_path / "gateway.yaml", tmp_path / "model_repository")
    printed = capsys.readouterr().out
    for what in ("Python", "packages [builder]", "tritonserver", "shared memory", "GPU", "disk"):
        assert what in printed
    assert "tritome build lung_ct" in printed
    assert ("The demo can run here" in printed) is able
    assert ("missing" in printed) is not able


def test_a_repository_of_this_version_is_served(tmp_path: Path) -> None:
    """Name and version of the pipeline are shown."""
    finding = doctor.repository(a_repository(tmp_path, BUILDER_VERSION))
    assert finding.state is State.OK
    assert finding.detail == f"lung_ct (builder {BUILDER_VERSION})"


@pytest.mark.parametrize("version", ["9.0.0", "0.0.1"])
def test_a_repository_of_another_version_is_named(tmp_path: Path, version: str) -> None:
    """The runtime would refuse it; doctor says so before."""
    finding = doctor.repository(a_repository(tmp_path, version))
    assert finding.state is State.MISSING
    assert "tritome build lung_ct" in finding.remedy


def test_a_broken_model_configuration_is_named(tmp_path: Path) -> None:
    """A file that Triton couldn't read either."""
    folder = a_repository(tmp_path, BUILDER_VERSION)
    (folder / "lung_ct" / "config.pbtxt").write_text("name: {", encoding="utf-8")
    finding = doctor.repository(folder)
    assert finding.state is State.MISSING
    assert "is no model configuration" in finding.detail


def test_settings_are_checked(tmp_path: Path) -> None:
    """Absent, valid, wrong: three different lines."""
    config = tmp_path / "gateway.yaml"
    assert doctor.settings(config).state is State.WARN
    write_example(config)
    assert doctor.settings(config).detail == "answers to LUNG"
    config.write_text("dicom: {scp: {prot: 1}}", encoding="utf-8")
    assert "did you mean 'port'" in doctor.settings(config).detail


def test_a_port_in_use_is_said() -> None:
    """Somebody listens there already."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        assert doctor.ports([("gateway", port)]).state is State.OK
        other.listen()
        finding = doctor.ports([("gateway", port)])
    assert finding.state is State.WARN
    assert str(port) in finding.detail


def test_an_absent_package_names_its_extra() -> None:
    """And so how to install it."""
    finding = doctor.packages("builder", ["json", "no_such_package"])
    assert finding.state is State.MISSING
    assert finding.detail == "without no_such_package"
    assert finding.remedy == "pip install 'tritome[builder]'"


def test_shared_memory_that_is_not_there_is_said(tmp_path: Path) -> None:
    """A container without /dev/shm."""
    assert doctor.shared_memory(tmp_path / "none").state is State.MISSING
