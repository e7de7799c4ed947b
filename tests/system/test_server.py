"""A real tritonserver under our watch: it starts, it is killed, it comes back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from ensemble_builder.build import build
from ensemble_builder.bundle import Options
from ensemble_builder.errors import ParityError, PortTaken, ServerFailed, ServerNotFound
from ensemble_builder.server import TritonServer, find_tritonserver
from ensemble_builder.server.heartbeat import Heart
from ensemble_builder.server.supervisor import BEAT_EVERY_S
from ensemble_builder.verify import compare, reference, served
from tests.support.bundles import a_segmentation_bundle
from tests.support.processes import stub_of
from tests.support.small_triton import SmallTriton, a_repository
from tests.support.volumes import an_oblique_volume

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
]
RECOVERY_S = 150.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle that computes in a blink."""
    return a_segmentation_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, built with eager torch."""
    folder = tmp_path_factory.mktemp("repository")
    list(build(bundle, folder, Options(runtime="torch")))
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A watched server; tests may kill it."""
    with TritonServer(repository, log=tmp_path_factory.mktemp("log") / "triton.log") as found:
        yield found


def _regions_of(pid: int) -> list[Path]:
    """The shared memory that a server maps for its stubs."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    return sorted(
        {Path(line.split()[-1]) for line in maps.splitlines() if "/tritome_stub_" in line}
    )


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # a container's init may not reap
    except psutil.NoSuchProcess:
        return False


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + RECOVERY_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_the_served_mask_is_monai_s_to_the_voxel(server: TritonServer, bundle: Path) -> None:
    """On a rotated, anisotropic volume Triton gives exactly what one process gives."""
    volume = an_oblique_volume()
    expected = reference(bundle, volume)
    parity = compare(expected, served(server.grpc_url, "small", volume))
    assert parity.different == 0
    assert len(parity.dice) > 0, "the random network found nothing: the test would prove nothing"


def test_a_bad_input_is_the_client_s_fault_and_says_which(server: TritonServer) -> None:
    """INVALID_ARG with one sentence; no traceback, no path of the server's."""
    volume = an_oblique_volume()
    volume.affine_lps[:3, :3] = 0
    with pytest.raises(ParityError, match="AFFINE doesn't map voxels") as refused:
        served(server.grpc_url, "small", volume)
    cause = refused.value.__cause__
    assert isinstance(cause, InferenceServerException)
    assert "INVALID_ARGUMENT" in str(cause.status())
    assert "Traceback" not in str(refused.value)


def test_building_into_the_served_repository_disturbs_nobody(
    server: TritonServer, bundle: Path, repository: Path
) -> None:
    """What was built since the start isn't loaded yet; the heartbeat doesn't mind."""
    list(build(bundle, repository, Options(runtime="torch", name="another")))
    (repository / "an_empty_folder").mkdir()
    heart = Heart(server.grpc_url)
    try:
        beat = heart.beat(60)
    finally:
        heart.close()
        for name in (
            "another",
            *(f"another_{s}" for s in ("preprocess", "inferer", "postprocess")),
        ):
            shutil.rmtree(repository / name)
        (repository / "an_empty_folder").rmdir()
    assert (beat.pipelines, beat.failure) == (("small",), None)


def test_a_port_in_use_is_named_at_start(server: TritonServer, repository: Path) -> None:
    """Another Triton on the port isn't taken for ours."""
    port = int(server.grpc_url.rpartition(":")[2])
    second = TritonServer(repository, grpc_port=port)
    with pytest.raises(ServerFailed, match=f"port {port} is in use .* --grpc-port"):
        second.start()
    second.stop()


def test_a_server_on_another_address_is_looked_for_there(repository: Path) -> None:
    """Such as a container's own: the watch asks where it listens."""
    with TritonServer(repository, host="127.0.0.2") as server:
        assert server.grpc_url.startswith("127.0.0.2:")


def test_a_proxy_of_the_site_is_not_asked_for_loopback(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """http_proxy in the environment, as in most hospitals, doesn't hide the server."""
    for name in ("http_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    heart = Heart(server.grpc_url)
    assert heart.ready()
    heart.close()


def test_a_server_that_works_is_not_asked_whether_it_does(server: TritonServer) -> None:
    """The heartbeat is a real inference too; beside a study it would make that one slower."""
    client = triton.InferenceServerClient(server.grpc_url)

    def answered() -> int:
        return int(client.get_inference_statistics("small").model_stats[0].inference_count)

    volume = an_oblique_volume((160, 320, 320))
    served(server.grpc_url, "small", volume)
    time.sleep(BEAT_EVERY_S)  # whatever was due is over
    before, sent, until = answered(), 0, time.monotonic() + 4 * BEAT_EVERY_S
    while time.monotonic() < until:
        served(server.grpc_url, "small", volume)
        sent += 1
    # One may have been due just as the work began.
    assert answered() - before - sent <= 1
    _until(lambda: answered() - before - sent > 1, "an idle server isn't asked any more")
    client.close()


def test_networks_step_back_for_whoever_has_little_to_do(server: TritonServer) -> None:
    """On a CPU, which everybody shares: the inferer and its threads, and nobody else."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    inferer, before = (stub_of(server.pid, f"small_{step}") for step in ("inferer", "preprocess"))
    assert inferer.nice() == max(10, own)
    assert before.nice() == own


def test_a_killed_stub_is_replaced_without_a_hand(server: TritonServer, bundle: Path) -> None:
    """Triton still calls itself ready; the heartbeat notices and loads the model again."""
    before, pid = server.reloads, server.pid
    stub_of(server.pid, "small_inferer").kill()
    _until(lambda: server.reloads > before, "the model wasn't loaded again")
    volume = an_oblique_volume()
    assert (
        compare(reference(bundle, volume), served(server.grpc_url, "small", volume)).different == 0
    )
    assert server.pid == pid


def test_a_death_that_a_heartbeat_has_told_is_not_told_again(
    repository: Path, tmp_path: Path
) -> None:
    """A second load would take the model away from whoever uses it by then."""
    with TritonServer(repository, log=tmp_path / "triton.log", watch=False) as server:
        assert server._model_of_a_dead_stub() is None
        stub_of(server.pid, "small_preprocess").kill()
        server._check()
        assert server.reloads == 1
        assert server._model_of_a_dead_stub() is None


def test_a_killed_server_is_started_again(server: TritonServer) -> None:
    """On the same ports, and without its shared memory left behind."""
    before, pid = server.restarts, server.pid
    regions = _regions_of(server.pid)
    assert regions
    os.kill(pid, signal.SIGKILL)
    _until(lambda: server.restarts > before, "the server wasn't started again")
    client = triton.InferenceServerClient(server.grpc_url)
    assert client.is_model_ready("small")
    client.close()
    assert server.pid != pid
    assert [region for region in regions if region.exists()] == []


def test_a_launch_by_hand_serves_the_checked_in_repository(
    repository_root: Path, tmp_path: Path
) -> None:
    """Plain `tritonserver --model-repository=model_repository`, nothing of ours around it."""
    volume = an_oblique_volume((12, 40, 40))
    with SmallTriton(tmp_path, repository_root / "model_repository") as plain:
        assert served(plain.url, "lung_ct", volume).shape == (12, 40, 40)


def test_nothing_is_left_when_we_are_killed(repository: Path, tmp_path: Path) -> None:
    """`kill -9` of the process that watches ends tritonserver and its stubs too."""
    code = (
        "import sys, time; from pathlib import Path; from ensemble_builder.server import *\n"
        "s = TritonServer(Path(sys.argv[1]), log=Path(sys.argv[2])); s.start()\n"
        "print(s.pid, flush=True); time.sleep(600)"
    )
    arguments = [str(repository), str(tmp_path / "triton.log")]
    ours = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
    try:
        assert ours.stdout is not None
        server = psutil.Process(int(ours.stdout.readline()))
        family = [server, *server.children(recursive=True)]
        assert len(family) >= 4
        regions = _regions_of(server.pid)
        assert regions
    finally:
        ours.kill()
        ours.wait()
        ours.stdout.close()
    _until(lambda: not any(_runs(process) for process in family), "something still runs")
    _until(lambda: not any(region.exists() for region in regions), "shared memory is left")


def test_an_empty_repository_says_what_to_build(tmp_path: Path) -> None:
    """The message names the command that fills it."""
    with pytest.raises(ServerFailed, match="tritome build lung_ct"):
        TritonServer(tmp_path).start()


def test_a_model_that_doesn_t_load_is_told_in_its_own_words(
    repository: Path, tmp_path: Path
) -> None:
    """The error ends with the server's reason, and no process is left."""
    broken = tmp_path / "repository" / "small_inferer" / "1"
    broken.mkdir(parents=True)
    config = repository / "small_inferer" / "config.pbtxt"
    (broken.parent / "config.pbtxt").write_bytes(config.read_bytes())
    (broken / "model.py").write_text("raise ImportError('no such thing')\n", encoding="utf-8")
    server = TritonServer(tmp_path / "repository", log=tmp_path / "triton.log")
    with pytest.raises(ServerFailed, match="no such thing"):
        server.start()
    server.stop()


def test_what_a_person_unloads_is_not_missed(tmp_path: Path) -> None:
    """A heartbeat without it is none that failed: the watch would start the server again."""
    repository = a_repository(tmp_path / "models", "threshold")
    config = repository / "threshold" / "config.pbtxt"
    image = {
        "name": "image",
        "layout": "volume",
        "modality": "CT",
        "channels": ["image"],
        "datatype": "INT16",
        "dims": [-1, -1, -1],
        "example_shape": [4, 8, 8],
        "tensors": {"image": "IMAGE", "rescale": "RESCALE", "affine": "AFFINE"},
    }
    told = f'"inputs": [{json.dumps(image)}], "outputs"'
    config.write_text(config.read_text().replace('"outputs"', told))
    (tmp_path / "triton").mkdir()
    with SmallTriton(tmp_path / "triton", repository, explicit=True) as server:
        heart = Heart(server.url)
        first = heart.beat(60)
        with triton.InferenceServerClient(server.url) as operator:
            operator.unload_model("threshold")
        second = heart.beat(60)
        heart.close()
    assert (first.pipelines, first.failure) == (("threshold",), None)
    assert (second.pipelines, second.failure) == ((), None)


def test_a_server_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRITOME_TRITONSERVER that names something else is told so, at once."""
    monkeypatch.setenv("TRITOME_TRITONSERVER", "/bin/true")
    with pytest.raises(ServerNotFound, match="/bin/true is no working tritonserver"):
        find_tritonserver()


def test_a_port_that_was_taken_meanwhile_is_given_up(repository: Path, tmp_path: Path) -> None:
    """Chosen by us, it is chosen again; asked for by a person, it is named."""
    server = TritonServer(repository, log=tmp_path / "triton.log", watch=False)
    taken = int(server.metrics_url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", taken)), server:
        assert int(server.metrics_url.rpartition(":")[2]) != taken
        with triton.InferenceServerClient(server.grpc_url) as client:
            assert client.is_model_ready("small")
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} is in use"):
            TritonServer(repository, grpc_port=port, watch=False).start()
