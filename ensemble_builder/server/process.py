"""One run of a tritonserver: its command line, its start, its end, what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ensemble_builder.errors import PortTaken, ServerNotFound
from ensemble_builder.server import guard as guard_script
from ensemble_builder.server.find import FoundServer

STUB_TIMEOUT_S = 1800
"""For a stub to load its model: it imports torch and MONAI, converts the network and compares
it, which a large one on a busy machine needs many minutes for. One that hangs uses no processor,
and the supervisor sees that much earlier."""

EXIT_TIMEOUT_S = 20
"""A server that once lost a stub never finds it unloaded and would wait for ever."""
THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""A stub's idle threads sleep: spinning, as OpenMP has them by default, they would take the
cores from the stub of the step that runs. The environment may say otherwise."""

_SHM = Path("/dev/shm")  # noqa: S108 - where the python backend keeps its regions


@dataclass(frozen=True, slots=True)
class Ports:
    """Where one server listens."""

    http: int
    grpc: int
    metrics: int
    host: str = "127.0.0.1"
    """Loopback, unless Triton has a container to itself."""

    @property
    def reached_at(self) -> str:
        """The address by which this machine reaches it: the same, unless that means all."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104

    @staticmethod
    def choose(http: int = 0, grpc: int = 0, metrics: int = 0, host: str = "127.0.0.1") -> Ports:
        """Fills in free ports for those given as 0."""
        held: list[socket.socket] = []
        try:
            chosen = []
            for port in (http, grpc, metrics):
                probe = socket.socket()
                held.append(probe)  # kept until all are chosen, so that no two are the same
                if port == 0:
                    probe.bind(("127.0.0.1", 0))
                chosen.append(port or int(probe.getsockname()[1]))
            return Ports(chosen[0], chosen[1], chosen[2], host)
        finally:
            for probe in held:
                probe.close()

    def require_free(self) -> None:
        """Looks whether the ports can be had.

        Raises:
            PortTaken: one is in use, perhaps by another Triton.
        """
        for service in ("http", "grpc", "metrics"):
            port = getattr(self, service)
            with socket.socket() as probe:
                # As servers do: connections of an earlier life that fade away don't count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    msg = (
                        f"port {port} is in use or not allowed ({error.strerror}): end what "
                        f"listens there (another Triton?) or choose another --{service}-port"
                    )
                    raise PortTaken(msg) from error


class ServerProcess:
    """A running tritonserver with its stubs; `stop` leaves nothing behind."""

    def __init__(
        self,
        found: FoundServer,
        repository: Path,
        ports: Ports,
        log: IO[bytes] | None,
        flags: Sequence[str] = (),
    ) -> None:
        """Starts it, with further flags if need be; it is not ready yet."""
        self._scratch = Path(tempfile.mkdtemp(prefix="tritome-triton-"))
        # A prefix of its own tells this run's leftovers in /dev/shm from anyone else's.
        self.server_id = f"tritome_stub_{uuid.uuid4().hex[:12]}_"
        try:
            command = [*self.command(found, repository, ports), *flags]
            self._process = subprocess.Popen(
                command,
                env=THREADS | os.environ | found.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log is not None else None,
                start_new_session=True,  # Ctrl-C is for us; we end it in order
            )
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        self.pid = self._process.pid
        what_to_clear = (str(self.pid), self.server_id, str(self._scratch))
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", guard_script.__file__, *what_to_clear],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        except BaseException:
            os.killpg(self.pid, signal.SIGKILL)
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise

    def command(self, found: FoundServer, repository: Path, ports: Ports) -> list[str]:
        """The command line; flags that this server doesn't know are left out."""
        wanted: list[tuple[str, str]] = [
            ("--model-repository", str(repository.resolve())),
            ("--id", self.server_id),
            # Explicit mode can load a model again after its stub died.
            ("--model-control-mode", "explicit"),
            ("--load-model", "*"),
            ("--disable-auto-complete-config", ""),
            ("--http-address", ports.host),
            ("--http-port", str(ports.http)),
            ("--grpc-address", ports.host),
            ("--grpc-port", str(ports.grpc)),
            ("--metrics-address", ports.host),
            ("--metrics-port", str(ports.metrics)),
            ("--exit-timeout-secs", str(EXIT_TIMEOUT_S - 5)),
            ("--allow-client-shm", "true"),
            ("--backend-config", f"python,stub-timeout-seconds={STUB_TIMEOUT_S}"),
            ("--backend-config", f"python,shm-region-prefix-name={self.server_id}"),
        ]
        if found.wheel is not None:
            wanted.append(("--backend-directory", str(_backends(found.wheel, self._scratch))))
            wanted.append(("--cache-directory", str(found.wheel / "caches")))
        return [
            str(found.binary),
            *(
                f"{flag}={value}" if value else flag
                for flag, value in wanted
                if flag in found.flags
            ),
        ]

    def ended(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._process.poll()

    def ask_to_end(self) -> None:
        """Asks it to end; requests in flight are answered with an error."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ends it in order, or by force after a while; clears what it left in /dev/shm."""
        if self._process.poll() is None:
            self.ask_to_end()
            try:
                self._process.wait(EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self.clear()

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self.clear()

    def clear(self) -> None:
        """Removes the stubs and the shared memory of a server that has ended."""
        self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # stubs outlive a killed server for a while
        for region in _SHM.glob(f"{self.server_id}*"):
            region.unlink(missing_ok=True)
        shutil.rmtree(self._scratch, ignore_errors=True)
        with contextlib.suppress(BrokenPipeError):
            self._guard.communicate(b"in order\n")


def _backends(wheel: Path, scratch: Path) -> Path:
    """The wheel's backends with the stub for this Python where the backend looks for it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        msg = f"the wheel's tritonserver has no stub for Python {version}; use Python 3.11 or 3.12"
        raise ServerNotFound(msg)
    backends = scratch / "backends"
    shutil.copytree(wheel / "backends", backends)
    shutil.copy2(stub, backends / "python" / stub.name)
    return backends
