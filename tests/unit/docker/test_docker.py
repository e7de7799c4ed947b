"""The images and the compose file, as far as they can be judged without a Docker engine."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_gateway.config import GatewaySettings, load_settings
from tests.support.orthanc import orthanc

_COMPOSE_FILES = ("compose.yaml", "compose.gpu.yaml")
_DOCKERFILES = ("gateway.Dockerfile", "triton.Dockerfile")
_BYTES = {"mb": 2**20, "gb": 2**30}


@pytest.fixture(scope="module")
def docker(repository_root: Path) -> Path:
    """The folder with everything for Docker."""
    return repository_root / "docker"


@pytest.fixture(scope="module")
def services(docker: Path) -> dict[str, Any]:
    """The services of the compose file, anchors resolved."""
    document = yaml.safe_load((docker / "compose.yaml").read_text(encoding="utf-8"))
    return dict(document["services"])


@pytest.fixture(scope="module")
def settings(docker: Path) -> GatewaySettings:
    """The gateway's settings in the compose file, read as the gateway reads them."""
    return load_settings(docker / "gateway.yaml")


def _run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name(program), *arguments]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


@pytest.mark.parametrize("name", _DOCKERFILES)
def test_hadolint_finds_nothing(docker: Path, name: str) -> None:
    """The images follow Docker's own good practice."""
    answer = _run("hadolint", docker / name)
    assert (answer.returncode, answer.stdout) == (0, "")


def test_hadolint_finds_something_where_there_is_something(tmp_path: Path) -> None:
    """The check above can fail: an unpinned image and a needless sudo are seen."""
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN sudo true\n", encoding="utf-8")
    answer = _run("hadolint", tmp_path / "Dockerfile")
    assert answer.returncode != 0
    assert "DL3006" in answer.stdout


@pytest.mark.parametrize("name", _COMPOSE_FILES)
def test_the_compose_files_fit_the_compose_specification(docker: Path, name: str) -> None:
    """The specification's own JSON schema has no objection."""
    answer = _run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", docker / name)
    assert answer.returncode == 0, answer.stdout


def test_the_schema_objects_to_a_wrong_key(tmp_path: Path) -> None:
    """The check above can fail: a misspelt key is seen."""
    wrong = tmp_path / "compose.yaml"
    wrong.write_text("services: {a: {image: b, shm-size: 1gb}}", encoding="utf-8")
    assert _run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", wrong).returncode


def test_gateway_and_triton_share_one_dev_shm(services: dict[str, Any]) -> None:
    """The gateway lives in Triton's IPC namespace, as the same user, and starts after it."""
    assert services["triton"]["ipc"] == "shareable"
    assert services["gateway"]["ipc"] == "service:triton"
    assert services["gateway"]["depends_on"]["triton"]["condition"] == "service_healthy"


def test_both_images_run_as_the_same_ordinary_user(docker: Path) -> None:
    """The arena is for its owner only, and nobody is root."""
    users = {
        re.findall(r"^USER (.+)$", (docker / name).read_text(encoding="utf-8"), re.MULTILINE)[-1]
        for name in _DOCKERFILES
    }
    assert users == {"1000:1000"}


def test_shared_memory_is_as_large_as_the_arena_asks_for(
    services: dict[str, Any], settings: GatewaySettings
) -> None:
    """Both arenas, twice the largest volume for Triton's Python models, and air fit in it."""
    number, unit = re.fullmatch(r"(\d+)([mg]b)", services["triton"]["shm_size"]).groups()
    assert int(number) * _BYTES[unit] >= (
        4 * settings.triton.arena_bytes + settings.jobs.ahead_bytes
    )


def test_only_dicom_is_open_to_the_network(services: dict[str, Any]) -> None:
    """Every other published port is for this machine alone; Triton publishes none."""
    published = {
        (name, port)
        for name, service in services.items()
        for port in service.get("ports", [])
        if not port.startswith("127.0.0.1:")
    }
    assert published == {("gateway", "11112:11112")}
    assert "ports" not in services["triton"]


def test_every_container_has_few_rights(services: dict[str, Any]) -> None:
    """No capability, no new privilege, nothing written outside volumes and /tmp."""
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_every_container_says_whether_it_is_well(services: dict[str, Any], docker: Path) -> None:
    """A health check stands in the compose file or in the image."""
    for name, service in services.items():
        if "healthcheck" not in service:
            dockerfile = docker.parent / service["build"]["dockerfile"]
            assert "\nHEALTHCHECK " in dockerfile.read_text(encoding="utf-8"), name


def test_the_gateway_is_well_where_its_door_is_open(docker: Path, tmp_path: Path) -> None:
    """On whichever port gateway.yaml has: the running gateway says where, in a file."""
    text = (docker / "gateway.Dockerfile").read_text(encoding="utf-8")
    [asked] = re.findall(r"^ +CMD (\[.+\])$", text, re.MULTILINE)
    [started] = re.findall(r"^ENTRYPOINT (\[.+\])$", text, re.MULTILINE)
    ready = tmp_path / "ready.json"
    place = json.loads(started)[json.loads(started).index("--ready-file") + 1]
    code = json.loads(asked)[-1].replace(place, str(ready))

    def is_well() -> bool:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0

    assert not is_well()
    with socket.create_server(("127.0.0.1", 0)) as door:
        ready.write_text(json.dumps({"port": door.getsockname()[1]}), encoding="ascii")
        assert is_well()
    assert not is_well()


def test_mounted_files_are_there(services: dict[str, Any], docker: Path) -> None:
    """Docker makes a folder where a mounted file is missing; so none is."""
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (docker / source).is_file(), source


def test_what_the_images_copy_reaches_the_builder(docker: Path) -> None:
    """Everything that COPY names is let through by the image's ignore file."""
    for name in _DOCKERFILES:
        ignore = (docker / f"{name}.dockerignore").read_text(encoding="utf-8").splitlines()
        text = (docker / name).read_text(encoding="utf-8")
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
            for source in line.split()[:-1]:
                assert f"!{source}" in ignore, (name, source)
                assert (docker.parent / source).exists(), source


def test_orthanc_and_the_gateway_know_each_other(
    docker: Path, services: dict[str, Any], settings: GatewaySettings
) -> None:
    """Names, ports and AE titles agree on both sides, in both directions."""
    orthanc = json.loads((docker / "orthanc.json").read_text(encoding="utf-8"))
    peers = orthanc["DicomModalities"]

    [to_us] = [peer for peer in peers.values() if peer["AET"] == "LUNG_CT"]
    assert to_us["AET"] in [title.ae_title for title in settings.dicom.scp.ae_titles]
    assert (to_us["Host"], to_us["Port"]) == ("gateway", settings.dicom.scp.port)
    assert "gateway" in services

    [to_orthanc] = settings.dicom.scu.destinations
    assert to_orthanc.host_ip == "orthanc"
    assert (to_orthanc.port, to_orthanc.ae_title) == (orthanc["DicomPort"], orthanc["DicomAet"])
    assert [source.ae_title for source in settings.dicom.scp.sources] == [orthanc["DicomAet"]]
    assert settings.dicom.scu.ae_title in [peer["AET"] for peer in peers.values()]


def test_the_gateway_finds_triton_and_keeps_its_store_in_the_volume(
    services: dict[str, Any], settings: GatewaySettings
) -> None:
    """A new container has the studies of the old one."""
    assert settings.triton.url == "triton:8001"
    assert f"gateway:{settings.store.folder}" in services["gateway"]["volumes"]


def test_a_real_orthanc_starts_with_its_settings(docker: Path, tmp_path: Path) -> None:
    """Orthanc reads the file without an objection and takes the name that is in it."""
    given = json.loads((docker / "orthanc.json").read_text(encoding="utf-8"))
    elsewhere = ("StorageDirectory", "IndexDirectory", "DicomPort", "HttpPort")
    kept = {key: value for key, value in given.items() if key not in elsewhere}
    with orthanc(tmp_path, settings=kept) as peer:
        assert peer.get("/system")["DicomAet"] == given["DicomAet"]
        assert sorted(peer.get("/modalities")) == sorted(given["DicomModalities"])
