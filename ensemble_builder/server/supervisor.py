"""Keeps one tritonserver running: launch, watch, reload a dead model, restart a dead server."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil
from tritonclient.utils import InferenceServerException

from ensemble_builder.errors import PortTaken, ServerFailed
from ensemble_builder.server.find import find_tritonserver
from ensemble_builder.server.heartbeat import Heart
from ensemble_builder.server.process import Ports, ServerProcess

FIRST_BEAT_TIMEOUT_S = 600.0
"""A first inference warms the network up, which on a busy machine takes its time."""
IDLE_START_TIMEOUT_S = 120.0
"""A server that gets ready computes: it imports, converts and compares. One that uses no
processor for so long hangs; how long a large network takes is nobody's fault."""
LAUNCHES = 3
"""A port that was free when it was chosen may be somebody else's when the server binds it."""
BEAT_EVERY_S = 5.0
BEAT_TIMEOUT_S = 120.0
LARGEST_BEAT_SHARE = 0.1
"""Watching takes at most this part of the time: a large network's heartbeat is a real
inference too, and comes less often."""
BUSY_CPU_SHARE = 0.05
"""A server that used more of one core than this during a late heartbeat is busy, not hung."""
WORKING_CPU_SHARE = 0.5
"""A server that uses more of one core than this works on somebody's request: what it is asked
for beside that would make the request wait."""
LONGEST_UNASKED_S = 60.0
"""So long such a server isn't asked: one of its pipelines may hang beside those that work."""
TOO_MANY_BEATS = 2
LONGEST_BACKOFF_S = 60.0

_log = logging.getLogger(__name__)


class TritonServer:
    """A tritonserver on loopback, serving one model repository.

    A context manager: ready on entry, gone on exit with its stubs and shared memory. Between
    the two it is watched; a dead stub's model is loaded again, a dead or hung server is
    started again on the same ports.
    """

    def __init__(
        self,
        model_repository: Path,
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        host: str = "127.0.0.1",
        log: Path | None = None,
        watch: bool = True,
        flags: Sequence[str] = (),
    ) -> None:
        """Looks for a tritonserver; starts nothing yet.

        Args:
            model_repository: Folder that `tritome build` wrote.
            http_port: 0 chooses a free one; the same for the other two.
            grpc_port: See `http_port`.
            metrics_port: See `http_port`.
            host: The address to listen on; another than loopback only where nobody else can
                reach it, such as the inner network of containers.
            log: File for the server's output; ours where not given.
            watch: Whether to watch and restart.
            flags: Further ones for tritonserver, such as --trace-config.

        Raises:
            ServerNotFound: there is no tritonserver on this machine.
        """
        self._found = find_tritonserver()
        self._repository = model_repository
        self._asked_ports = (http_port, grpc_port, metrics_port)
        self._ports = Ports.choose(*self._asked_ports, host)
        self._log_path = log
        self._log_file: IO[bytes] | None = None
        self._watch = watch
        self._flags = tuple(flags)
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None
        self._process: ServerProcess | None = None
        self._heart: Heart | None = None
        self._failed_beats = 0
        self._next_beat_s = 0.0
        self._last_beat_s = 0.0
        self._looked = (0.0, 0.0)  # when, and how many processor seconds had been used
        self._stubs: dict[int, str] = {}  # process id -> its model, of those seen alive
        self.restarts = 0
        """How often the server was started again."""
        self.reloads = 0
        """How often a model was loaded again because its stub died."""

    @property
    def model_repository(self) -> Path:
        """The folder that is served."""
        return self._repository

    @property
    def grpc_url(self) -> str:
        """host:port of the gRPC service."""
        return f"{self._ports.reached_at}:{self._ports.grpc}"

    @property
    def http_url(self) -> str:
        """host:port of the HTTP service."""
        return f"{self._ports.reached_at}:{self._ports.http}"

    @property
    def metrics_url(self) -> str:
        """host:port of the metrics page."""
        return f"{self._ports.reached_at}:{self._ports.metrics}"

    @property
    def origin(self) -> str:
        """Where the server came from: path, container or wheel."""
        return self._found.origin

    @property
    def pid(self) -> int:
        """Process id of the running tritonserver."""
        if self._process is None:
            msg = "the server isn't started"
            raise ServerFailed(msg)
        return self._process.pid

    def __enter__(self) -> TritonServer:
        """Starts the server and waits until a real inference went through."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops it."""
        self.stop()

    def start(self) -> None:
        """Starts the server and waits until a real inference went through.

        Raises:
            ServerFailed: it ends or doesn't get ready; the message holds its last words.
        """
        if not any(self._repository.glob("*/config.pbtxt")):
            msg = f"{self._repository} holds no models; write some with `tritome build lung_ct`"
            raise ServerFailed(msg)
        if self._log_path is not None:
            self._log_file = self._log_path.open("ab")
        try:
            self._launch_somewhere()
        except BaseException:
            self._stop_process()
            if self._log_file is not None:
                self._log_file.close()
            raise
        if self._watch:
            self._watcher = threading.Thread(target=self._watch_loop, name="triton-watch")
            self._watcher.start()

    def stop(self) -> None:
        """Ends the watch and the server."""
        self._ended.set()
        process = self._process
        if process is not None:
            process.ask_to_end()  # first of all: it ends the heartbeat that may be in flight
        if self._watcher is not None:
            self._watcher.join()
        self._stop_process()
        if self._log_file is not None:
            self._log_file.close()

    def wait(self) -> None:
        """Blocks until `stop` is called from elsewhere, such as a signal handler."""
        while not self._ended.wait(1.0):
            pass

    def _launch_somewhere(self) -> None:
        """Launches on other ports where those that we have chosen were taken meanwhile."""
        for tries_left in reversed(range(LAUNCHES)):
            try:
                self._launch()
            except PortTaken:
                chosen = Ports.choose(*self._asked_ports, self._ports.host)
                if not tries_left or chosen == self._ports:
                    raise
                self._stop_process()
                self._ports = chosen
            else:
                return

    def _launch(self) -> None:
        self._ports.require_free()
        process = ServerProcess(
            self._found, self._repository, self._ports, self._log_file, self._flags
        )
        self._process = process
        server_id = process.server_id if "--id" in self._found.flags else ""
        heart = self._heart = Heart(self.grpc_url, server_id)
        self._failed_beats = 0
        computed_s, since = self._cpu_s(), time.monotonic()
        while not heart.ready():
            status = process.ended()
            if status is not None:
                raise self._failure(f"ended with status {status} at start")
            now_s, now = self._cpu_s(), time.monotonic()
            if now_s - computed_s > BUSY_CPU_SHARE * (now - since):
                computed_s, since = now_s, now
            elif now - since > IDLE_START_TIMEOUT_S:
                raise self._failure(f"isn't ready and has done nothing for {now - since:.0f} s")
            if self._ended.wait(0.2):
                return
        beat = heart.beat(FIRST_BEAT_TIMEOUT_S)
        if self._ended.is_set():
            return
        if beat.failure is not None:
            raise self._failure(f"started, but doesn't compute: {beat.failure}")
        _log.info("tritonserver serves %s", ", ".join(beat.pipelines) or "no pipeline")

    def _watch_loop(self) -> None:
        backoff_s = 1.0
        while not self._ended.wait(BEAT_EVERY_S if self._alive() else 0.0):
            try:
                if not self._alive():
                    self._restart("ended by itself")
                elif (model := self._model_of_a_dead_stub()) is not None:
                    self._reload(model)
                elif time.monotonic() >= self._next_beat_s and not self._works():
                    self._check()
                backoff_s = 1.0
            except Exception as error:  # noqa: BLE001 - a thread's edge: it must go on watching
                _log.error("tritonserver can't be brought back yet: %s", error)
                self._stop_process()
                self._ended.wait(backoff_s)
                backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)

    def _works(self) -> bool:
        """Whether it has been computing since the last look, and was asked not long ago."""
        now_s, used_s = time.monotonic(), self._cpu_s()
        before_s, before_used_s = self._looked
        self._looked = now_s, used_s
        works = used_s - before_used_s > WORKING_CPU_SHARE * (now_s - before_s)
        return works and now_s - self._last_beat_s < LONGEST_UNASKED_S

    def _check(self) -> None:
        heart = self._heart
        assert heart is not None
        before_s, started = self._cpu_s(), time.monotonic()
        beat = heart.beat(BEAT_TIMEOUT_S)
        took_s = time.monotonic() - started
        self._last_beat_s = time.monotonic()
        self._looked = self._last_beat_s, self._cpu_s()  # its own time is no work
        self._next_beat_s = self._last_beat_s + took_s * (1 / LARGEST_BEAT_SHARE - 1)
        if self._ended.is_set() or not self._alive():
            return
        if beat.failure is None:
            self._failed_beats = 0
        elif beat.dead_model is not None:
            self._reload(beat.dead_model)
        elif beat.busy:
            # Working on something large, or short of memory because of it: no reason to
            # kill it and the job with it. Idle and silent is another matter.
            share = (self._cpu_s() - before_s) / (time.monotonic() - started)
            if share < BUSY_CPU_SHARE:
                self._failed(beat.failure)
        else:
            self._failed(beat.failure)

    def _failed(self, failure: str) -> None:
        """One failed beat may be an accident of the moment; several in a row are not."""
        self._failed_beats += 1
        _log.warning("heartbeat %d of %d failed: %s", self._failed_beats, TOO_MANY_BEATS, failure)
        if self._failed_beats >= TOO_MANY_BEATS:
            self._restart(f"doesn't compute any more ({failure})")

    def _model_of_a_dead_stub(self) -> str | None:
        """Where one of several instances died, the others answer for it; this finds it anyway.

        The server doesn't bury a killed stub, so it stays as a zombie; one that ended in order,
        when its model was unloaded, is gone.
        """
        found: dict[int, str] = {}
        dead: dict[int, str] = {}
        with contextlib.suppress(psutil.Error, ServerFailed):
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if child.status() == psutil.STATUS_ZOMBIE:
                        if child.pid in self._stubs:
                            dead[child.pid] = self._stubs[child.pid]
                    elif serves := model_of_stub(child.cmdline(), self._repository):
                        found[child.pid] = serves
        self._stubs = found | dead
        return next(iter(dead.values()), None)

    def _reload(self, model: str) -> None:
        heart = self._heart
        assert heart is not None
        _log.warning("the stub of %s died; the model is loaded again", model)
        # Whoever noticed it, a look or a heartbeat: all of its instances are replaced. So none of
        # those stubs is its any more, also one that lives now and is dead at the next look.
        self._stubs = {pid: other for pid, other in self._stubs.items() if other != model}
        try:
            heart.reload(model)
            self.reloads += 1
        except InferenceServerException as error:
            self._restart(f"can't load {model} again ({error.message()})")

    def _restart(self, reason: str) -> None:
        _log.warning("tritonserver %s; starting it again", reason)
        self._stop_process(by_force=True)
        self._launch()
        self.restarts += 1

    def _alive(self) -> bool:
        return self._process is not None and self._process.ended() is None

    def _stop_process(self, *, by_force: bool = False) -> None:
        process, self._process = self._process, None
        heart, self._heart = self._heart, None
        if heart is not None:
            heart.close()
        if process is None:
            return
        if by_force:
            process.kill()
        else:
            process.stop()

    def _cpu_s(self) -> float:
        """CPU seconds that the server and its stubs have used so far."""
        total = 0.0
        with contextlib.suppress(psutil.Error, ServerFailed):
            server = psutil.Process(self.pid)
            for process in [server, *server.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):  # a dead stub stays a zombie
                    times = process.cpu_times()
                    total += times.user + times.system
        return total

    def _failure(self, how: str) -> ServerFailed:
        words = self._last_words()
        kind = PortTaken if "already in use" in words else ServerFailed
        return kind(f"tritonserver {how}{words}")

    def _last_words(self) -> str:
        if self._log_path is None:
            return ""
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line for line in lines if line.startswith("E") or "rror" in line] or lines
        return "\n" + "\n".join(telling[-8:])


def model_of_stub(command: Sequence[str], repository: Path) -> str | None:
    """The model that a stub of the Python backend serves; None for another process."""
    root = f"{repository.resolve()}/"
    for part in command:
        if part.startswith(root) and part.endswith("/model.py"):
            return part.removeprefix(root).partition("/")[0]
    return None
