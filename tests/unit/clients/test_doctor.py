"""`tritome doctor`: what it finds, and whether it says what to do."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import sqlalchemy as sa
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from clients.commands import doctor
from clients.commands.doctor import State
from clients.commands.serve import write_example
from ensemble_builder.version import BUILDER_VERSION
from tests.support.databases import a_postgresql
from tests.support.processes import free_port


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
    assert [one.state for one in doctor.settings(config)] == [State.WARN]
    write_example(config)
    found = list(doctor.settings(config))
    assert [one.state for one in found] == [State.OK, State.OK]
    assert found[0].detail == "answers to LUNG"
    config.write_text("dicom: {scp: {prot: 1}}", encoding="utf-8")
    (wrong,) = doctor.settings(config)
    assert "did you mean 'port'" in wrong.detail


def test_what_the_settings_name_and_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate, a token, a database server: before the gateway's start finds out."""
    monkeypatch.delenv("PACS_TOKEN", raising=False)
    (tmp_path / "ours.pem").write_text("a certificate", encoding="ascii")
    config = tmp_path / "gateway.yaml"
    config.write_text(
        f"""
        dicom:
          scp:
            reject-unknown-sources: false
            ae-titles: [{{ae-title: LUNG, pipelines: [lung_ct], destinations: [pacs]}}]
          scu:
            destinations:
            - name: pacs
              dicomweb:
                url: https://pacs.example/dicom-web
                token-environment: PACS_TOKEN
                ca-file: {tmp_path}/nobodys.pem
                certificate-file: {tmp_path}/ours.pem
        store:
          folder: {tmp_path}/store
          database-url: postgresql+psycopg://tritome@127.0.0.1:{free_port()}/tritome
        """,
        encoding="utf-8",
    )
    found = {one.what: one for one in doctor.settings(config)}
    place = "dicom.scu.destinations[0].dicomweb"
    assert set(found) == {
        "gateway.yaml",
        f"{place}.token-environment",
        f"{place}.ca-file",
        "index",
    }
    assert "nobodys.pem" in found[f"{place}.ca-file"].detail
    assert "start that PostgreSQL" in found["index"].remedy
    assert all(one.remedy for name, one in found.items() if name != "gateway.yaml")
    assert not (tmp_path / "store").exists()


def test_a_database_that_answers_is_said() -> None:
    """And nothing is changed in it."""
    with a_postgresql() as url:
        assert doctor.index(url).state is State.OK
        engine = sa.create_engine(url)
        assert sa.inspect(engine).get_table_names() == []
        engine.dispose()


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
