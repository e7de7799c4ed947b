"""A few child processes that decode pixels, under a limit of memory and of time.

In: `PixelTask`s and where in the arena each frame goes. Out: the frames, written by the
children straight into the arena. A child that crashes, hangs or asks for too much memory
costs its own job an error and nobody else anything; the next task finds a fresh child.

Children are plain subprocesses with one socket each, not an executor's: in a broken
executor nobody can say whose task broke it, and a hanging C codec can't be cancelled there.
What survives a crash of the gateway: nothing, the children end when their socket does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import dicom_gateway
from dicom_gateway.assemble.pixels import PixelTask
from dicom_gateway.errors import BrokenPixelData, GatewayError, Retryable, UnusableSeries

HEADROOM_BYTES = 1 << 30
"""Address space for decoding one frame, beyond what the interpreter and codecs take."""

TIMEOUT_S = 30.0
"""For one frame. The slowest honest one (a 3000 x 4000 JPEG 2000) takes about 2 s."""

ALARM_MARGIN_S = 5.0
"""How much later than we would end it a child ends itself, should we be gone by then."""

START_TIMEOUT_S = 60.0
"""For a child to say hello: its imports take a second, on a busy machine many."""


class DecoderPool:
    """Decodes frames in children; safe to use from several threads.

    Args:
        size: How many children; 0 means one per core that we may use.
    """

    def __init__(
        self,
        size: int = 0,
        *,
        timeout_s: float = TIMEOUT_S,
        headroom_bytes: int = HEADROOM_BYTES,
    ) -> None:
        self.size = size or len(os.sched_getaffinity(0))
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._children = [_Child(timeout_s, headroom_bytes) for _ in range(self.size)]
        for child in self._children:
            self._idle.put(child)

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Of the children there are just now."""
        return tuple(child.process_id for child in self._children)

    @property
    def alive(self) -> int:
        """How many of them live; a dead one is replaced when it is needed next."""
        return sum(child.is_alive for child in self._children)

    def decode(self, arena: Path, frames: Sequence[tuple[int, PixelTask]]) -> None:
        """Decodes all frames into the arena, each at its own offset in bytes.

        When it returns or raises, no child writes there any more.

        Raises:
            BrokenPixelData, UnusableSeries: of the first frame that failed.
            Retryable: (decoder_unavailable) children don't start, or are killed from
                outside, for instance by a machine that is short of memory.
        """
        stop = threading.Event()

        def one(offset_bytes: int, task: PixelTask) -> None:
            with self._borrow() as child:
                if not stop.is_set():
                    child.decode(arena, offset_bytes, task)

        with ThreadPoolExecutor(self.size, thread_name_prefix="decode") as threads:
            futures = [threads.submit(one, offset, task) for offset, task in frames]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()  # leaving the block waits for those that run
        for future in futures:
            future.result()

    def decode_frame(self, arena: Path, offset_bytes: int, task: PixelTask) -> None:
        """Decodes one frame into the arena, in the calling thread; raises as `decode` does."""
        with self._borrow() as child:
            child.decode(arena, offset_bytes, task)

    def close(self) -> None:
        """Ends the children."""
        for child in self._children:
            child.end()

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _borrow(self) -> Iterator[_Child]:
        child = self._idle.get()
        try:
            yield child
        finally:
            self._idle.put(child)


class _Child:
    """One process and the socket to it; used by one thread at a time."""

    def __init__(self, timeout_s: float, headroom_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._headroom_bytes = headroom_bytes
        self._greeted = False
        self._start()

    def decode(self, arena: Path, offset_bytes: int, task: PixelTask) -> None:
        if self._process.poll() is not None:
            self.end()
            self._start()
        self._wait_for_hello()
        request = {"arena": str(arena), "offset_bytes": offset_bytes, "task": asdict(task)}
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            answer = self._receive()
        except TimeoutError as error:
            self.end()
            msg = (
                f"decoding one image took longer than {self._timeout_s:g} s and was stopped; "
                "its compressed data is probably damaged"
            )
            raise BrokenPixelData(msg) from error
        except OSError as error:
            if self._how_it_ended() == -signal.SIGKILL:
                msg = "a decoder was killed from outside (is the machine short of memory?)"
                raise Retryable(msg, code="decoder_unavailable") from error
            msg = "decoding one image crashed the decoder; its compressed data is damaged"
            raise BrokenPixelData(msg) from error
        if answer:
            raise _error(answer)

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _how_it_ended(self) -> int:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)  # it is writing nothing: its socket is closed
        code = self._process.poll()
        self.end()
        return 0 if code is None else code

    def _wait_for_hello(self) -> None:
        if self._greeted:
            return
        try:
            self._socket.settimeout(START_TIMEOUT_S)
            self._receive()
        except OSError as error:
            self.end()
            msg = (
                f"a decoder doesn't start within {START_TIMEOUT_S:g} s; is the machine overloaded?"
            )
            raise Retryable(msg, code="decoder_unavailable") from error
        self._greeted = True

    def _start(self) -> None:
        root = str(Path(dicom_gateway.__file__).resolve().parents[1])
        known = os.environ.get("PYTHONPATH")
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "dicom_gateway.assemble.decode_child",
                    str(theirs.fileno()),
                    str(self._headroom_bytes),
                    str(self._timeout_s + ALARM_MARGIN_S),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Codecs and pydicom print what they stumble over, and that may be a
                # patient's data; the answer on the socket says all we want to know.
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Ctrl-C is for the gateway, which then ends us.
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{root}{os.pathsep}{known}" if known else root,
                    # Idle threads of numpy would eat the address space.
                    "OPENBLAS_NUM_THREADS": "1",
                    "OMP_NUM_THREADS": "1",
                },
            )
        self._socket = ours
        self._greeted = False

    def _receive(self) -> dict[str, str]:
        answer = b""
        while not answer.endswith(b"\n"):
            piece = self._socket.recv(65536)
            if not piece:
                raise ConnectionResetError
            answer += piece
        decoded: dict[str, str] = json.loads(answer)
        return decoded


def _error(answer: dict[str, str]) -> GatewayError:
    if answer["kind"] == "unusable":
        return UnusableSeries(answer["message"], code=answer["code"])
    if answer["kind"] == "retryable":
        return Retryable(answer["message"], code=answer["code"])
    return BrokenPixelData(answer["message"], code=answer["code"])
