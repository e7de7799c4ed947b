"""A real tritonserver from the wheel on a tiny model repository, started and killed at will.

Comes in: nothing, or a repository of the test's own. Goes out: host:port of its gRPC door.
Survives a crash: nothing; the server and its stubs end with the `with` block.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.support.processes import PeerFailed, free_port
from tests.support.shared_memory import DEV_SHM

REPOSITORY = Path(__file__).with_name("triton_repo")


def a_repository(folder: Path, pipeline: str, *, schema_version: int = 1) -> Path:
    """The small pipeline under another name, or with a contract of another schema version."""
    shutil.copytree(REPOSITORY / "threshold", folder / pipeline)
    config = folder / pipeline / "config.pbtxt"
    text = config.read_text(encoding="utf-8").replace("threshold", pipeline)
    config.write_text(
        text.replace('"schema_version": 1', f'"schema_version": {schema_version}'),
        encoding="utf-8",
    )
    return folder


_ENSEMBLE = """
name: "pipeline"
platform: "ensemble"
max_batch_size: 0
input [
  { name: "IMAGE" data_type: TYPE_INT16 dims: [ -1, -1, -1 ] },
  { name: "RESCALE" data_type: TYPE_FP64 dims: [ -1, 2 ] },
  { name: "AFFINE" data_type: TYPE_FP64 dims: [ 4, 4 ] }
]
output [ { name: "MASK" data_type: TYPE_UINT8 dims: [ -1, -1, -1 ] } ]
ensemble_scheduling {
  step [ {
    model_name: "threshold"
    model_version: -1
    input_map { key: "IMAGE" value: "IMAGE" }
    input_map { key: "RESCALE" value: "RESCALE" }
    input_map { key: "AFFINE" value: "AFFINE" }
    output_map { key: "MASK" value: "MASK" }
  } ]
}
"""


def an_ensemble(folder: Path, version: int = 1) -> Path:
    """An ensemble `pipeline` of one step, as the builder lays it out; another version beside."""
    for model in ("pipeline", "threshold"):
        (folder / model).mkdir(parents=True, exist_ok=True)
        shutil.copytree(REPOSITORY / "threshold" / "1", folder / model / str(version))
    shutil.copy2(REPOSITORY / "threshold" / "config.pbtxt", folder / "threshold")
    (folder / "pipeline" / "config.pbtxt").write_text(_ENSEMBLE, encoding="ascii")
    steps = folder / "pipeline" / str(version) / "steps.json"
    steps.write_text(f'{{"threshold": {version}}}', encoding="ascii")
    return folder


class SmallTriton:
    """A tritonserver that a test may kill and start again on the same port.

    Args:
        folder: Where its backends and its log are put.
        repository: Models to serve; a copy is not made.
        explicit: Models may be loaded anew.
    """

    def __init__(
        self, folder: Path, repository: Path = REPOSITORY, *, explicit: bool = False
    ) -> None:
        self._folder = folder
        self._repository = repository
        self._control = ["--model-control-mode=explicit", "--load-model=*"] if explicit else []
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._stub_regions: set[str] = set()
        self._environment = _prepare(folder)
        self.url = f"127.0.0.1:{self._port}"

    def start(self, timeout_s: float = 300.0) -> None:
        """Returns when every model answers."""
        before = _stub_regions()
        with (self._folder / "triton.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _wheel() / "bin" / "tritonserver",
                    f"--model-repository={self._repository}",
                    f"--backend-directory={self._folder / 'backends'}",
                    "--allow-http=false",
                    "--allow-metrics=false",
                    "--grpc-address=127.0.0.1",
                    f"--grpc-port={self._port}",
                    "--backend-config=python,stub-timeout-seconds=120",
                    *self._control,
                ],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its stubs can be ended with it
            )
        deadline_s = time.monotonic() + timeout_s
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                msg = f"tritonserver didn't come up:\n{self.output()}"
                raise PeerFailed(msg)
            time.sleep(0.1)
        self._stub_regions |= _stub_regions() - before

    def kill(self) -> None:
        """SIGKILL to the server and its stubs, as a crash or the kernel would."""
        # Taken first: the test may start the next life while this one is still ending.
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def output(self) -> str:
        """Everything the server has said."""
        return (self._folder / "triton.log").read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> SmallTriton:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()
        for name in self._stub_regions:  # a killed server leaves them behind
            (DEV_SHM / name).unlink(missing_ok=True)

    def _ready(self) -> bool:
        client = grpcclient.InferenceServerClient(self.url)
        try:
            return bool(client.is_server_ready(client_timeout=1.0))
        except InferenceServerException:
            return False
        finally:
            client.close()


def _wheel() -> Path:
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None, "the wheel nvidia-pytriton is not installed (extra: server)"
    assert spec.origin is not None
    return Path(spec.origin).parent / "tritonserver"


def _prepare(folder: Path) -> dict[str, str]:
    """Backends with this Python's stub, and an environment in which it finds its way."""
    wheel = _wheel()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(wheel / "backends", folder / "backends", dirs_exist_ok=True)
    shutil.copy2(
        wheel / "python_backend_stubs" / version / "triton_python_backend_stub",
        folder / "backends" / "python" / "triton_python_backend_stub",
    )
    libraries = [wheel.parent.parent / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": ":".join(str(place) for place in libraries),
    }


def _stub_regions() -> set[str]:
    return {path.name for path in DEV_SHM.glob("triton_python_backend_shm_region_*")}
