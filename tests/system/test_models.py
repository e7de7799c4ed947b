"""A pipeline's life in a running Triton: built, changed, rolled back, unloaded."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from clients.commands import models
from clients.errors import ClientError
from ensemble_builder.build import build
from ensemble_builder.bundle import Options
from ensemble_builder.errors import RepositoryError
from ensemble_builder.server import TritonServer
from ensemble_builder.server.heartbeat import LOOPBACK_CHANNEL
from ensemble_builder.verify import StoredVolume, served
from tests.support.bundles import a_segmentation_bundle
from tests.support.small_triton import SmallTriton, an_ensemble
from tests.support.volumes import an_oblique_volume

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
]


def _version(server: TritonServer, model: str) -> str:
    client = triton.InferenceServerClient(server.grpc_url, channel_args=LOOPBACK_CHANNEL)
    try:
        ready = [
            one.version
            for one in client.get_model_repository_index().models
            if one.name == model and one.state == "READY"
        ]
    finally:
        client.close()
    return ",".join(ready)


def test_a_new_version_is_loaded_and_the_one_before_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Building again adds version 2; load serves it, roll brings 1 back, unload ends it."""
    bundle, repository = a_segmentation_bundle(tmp_path / "b"), tmp_path / "repository"
    list(build(bundle, repository, Options(runtime="torch", instances=1)))
    volume: StoredVolume = an_oblique_volume((20, 40, 44))
    with TritonServer(repository, log=tmp_path / "triton.log", watch=False) as server:
        first = served(server.grpc_url, "b", volume)
        changed = Options(runtime="torch", instances=1, overrides={"inferer.overlap": 0.25})
        list(build(bundle, repository, changed))
        assert _version(server, "b_inferer") == "1"
        models.load(repository, "b", server.grpc_url)
        assert _version(server, "b_inferer") == "2"
        models.roll(repository, "b", None, server.grpc_url)
        assert _version(server, "b_inferer") == "1"
        assert (served(server.grpc_url, "b", volume) == first).all()
        models.list_models(repository, server.grpc_url)
        shown = capsys.readouterr().out
        assert "1, 2" in shown
        assert "ready 1" in shown
        models.unload(repository, "b", server.grpc_url)
        assert _version(server, "b") == ""
    with pytest.raises(RepositoryError, match="has no version 9"):
        models.roll(repository, "b", 9, "127.0.0.1:1")


def test_old_and_new_models_never_compute_together(tmp_path: Path) -> None:
    """While the steps change one after the other, their pipeline isn't served."""
    repository = an_ensemble(tmp_path / "models")
    (tmp_path / "triton").mkdir()
    seen: list[dict[str, str]] = []
    ended = threading.Event()
    with SmallTriton(tmp_path / "triton", repository, explicit=True) as server:

        def look() -> None:
            with triton.InferenceServerClient(server.url) as client:
                while not ended.wait(0.02):
                    index = client.get_model_repository_index().models
                    seen.append({m.name: m.version for m in index if m.state == "READY"})

        an_ensemble(repository, version=2)
        looker = threading.Thread(target=look)
        looker.start()
        try:
            models.load(repository, "pipeline", server.url)
        finally:
            ended.set()
            looker.join()
        an_ensemble(repository, version=3)
        (repository / "threshold" / "config.pbtxt").write_text("no config", encoding="ascii")
        with pytest.raises(ClientError, match="isn't served now"):
            models.load(repository, "pipeline", server.url)
    assert {"threshold": "1"} in seen
    assert {"pipeline": "1", "threshold": "2"} not in seen


def test_without_a_server_the_list_still_says_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Versions come from the folder; Triton's column says that nobody answers."""
    bundle, repository = a_segmentation_bundle(tmp_path / "b"), tmp_path / "repository"
    list(build(bundle, repository))
    models.list_models(repository, "127.0.0.1:1")
    assert "no server" in capsys.readouterr().out
    with pytest.raises(ClientError, match="no earlier version"):
        models.roll(repository, "b", None, "127.0.0.1:1")
