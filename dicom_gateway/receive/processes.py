"""Receive, several processes on one port: Python's lock makes one process the limit.

One process accepts, admits and counts; it hands each connection, as a file descriptor, to the
child that serves the fewest. The children do what costs time: they read, keep and answer.
They ask for admission and tell of each end, and of what they keep, by one socket each; the
bytes of an object never come back here. The processes meet in the database and the store, and
nowhere else.

What survives a crash: a child that dies takes its associations with it, whose senders have no
answer and send again; its associations are told of as lost, and another child takes its
place. When the process that accepts dies, the children finish what they keep and end.
"""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dicom_gateway.config import ScpSettings
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.admission import FrontDesk, Rejection
from dicom_gateway.receive.listener import Connection
from dicom_gateway.tls import PeerCertificate, server_context

START_TIMEOUT_S = 60.0
"""For a child to say that it is ready: imports take seconds on a busy machine."""
_MESSAGE_BYTES = 64 * 1024
_TRIES = 5
_SHORT_LIFE_S = 10.0
_NAMES_LIMIT = 32

_log = get_logger(room="receive")


@dataclass(frozen=True, slots=True)
class Child:
    """How a receiving process is started.

    Attributes:
        command: The number of its socket's file descriptor is added.
        greeting: What it needs to know, of any length; it reads that from its standard input.
    """

    command: Sequence[str]
    greeting: str


@dataclass(frozen=True, slots=True)
class FromChildren:
    """Who hears what children do.

    Attributes:
        kept: Told path, called AE title and bytes of each object that a child has kept.
        delivered: Told job, destination and failure (None where it arrived) of each delivery that
            ended with a report to a child; may wait for the database.
    """

    kept: Callable[[Path, str, int], None] = lambda *_kept: None
    delivered: Callable[[str, str, str | None], None] = lambda *_delivery: None


class Processes:
    """The receiving children, kept running.

    Args:
        settings: `dicom.scp` of gateway.yaml.
        desk: Asked for the children's associations.
        child: What to start.
        from_children: Hears what they do.
        refused: Told the code of why a child has not taken an object.

    Raises:
        ConfigurationError: TLS can't work, or the children don't start.
    """

    def __init__(
        self,
        settings: ScpSettings,
        desk: FrontDesk,
        child: Child,
        from_children: FromChildren,
        refused: Callable[[str], None],
    ) -> None:
        if settings.tls is not None:  # said here, in one sentence, and not by each child
            server_context(
                settings.tls.certificate_file,
                settings.tls.key_file,
                settings.tls.client_ca_file,
                client_required=settings.tls.client_certificates == "required",
            )
        self._desk = desk
        self._from_children = from_children
        self._refused = refused
        self._stopping = threading.Event()
        # Noting an end waits for the database; nobody who wants to come in waits for that.
        self._ended: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ender = threading.Thread(target=self._note_ends, name="receive-ends", daemon=True)
        self._ender.start()
        self._children = [
            _Kept(child, self._on_message, self._on_lost, self._stopping)
            for _ in range(settings.processes)
        ]
        for one in self._children:
            one.start()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        for one in self._children:
            if not one.ready.wait(max(0.0, deadline_s - time.monotonic())) or one.gave_up:
                self.stop(1.0)
                msg = "dicom.scp.processes: a receiving process doesn't start; see the log above"
                raise ConfigurationError(msg)

    @property
    def is_alive(self) -> bool:
        """False once a child can't be kept running."""
        return not any(one.gave_up for one in self._children)

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Of the children that serve just now."""
        return tuple(pid for one in self._children if (pid := one.process_id) is not None)

    def begin(self, connection: Connection) -> None:
        """Hands a connection to the child that serves the fewest."""
        try:
            for child in sorted(self._children, key=lambda one: len(one.serving)):
                if child.hand_over(connection):
                    return
        finally:
            connection.socket.close()
        _log.error("connection closed: no receiving process takes it", host_ip=connection.host_ip)
        self._desk.ended(connection.association_id, in_order=False)

    def stop(self, timeout_s: float) -> None:
        """Lets the children finish what they keep, and ends them."""
        self._stopping.set()
        for child in self._children:
            child.ask_to_end()
        deadline_s = time.monotonic() + timeout_s
        for child in self._children:
            child.end(max(0.1, deadline_s - time.monotonic()))
        self._ended.put(None)
        self._ender.join(timeout_s)

    def _on_message(self, child: _Kept, message: dict[str, Any]) -> None:
        hears = self._from_children
        if message["kind"] == "kept":
            hears.kept(Path(message["path"]), message["called"], message["size_bytes"])
            return
        if message["kind"] == "refused":
            self._refused(message["code"])
            return
        if message["kind"] == "delivered":
            told = message["job_id"], message["destination"], message["failure"]
            self._ended.put(partial(hears.delivered, *told))
            return
        association_id = message["id"]
        if message["kind"] == "ended":
            child.serving.discard(association_id)
            if self._desk.left(association_id):
                in_order = message["in_order"]
                self._ended.put(partial(self._desk.tell_end, association_id, in_order=in_order))
            return
        rejection = self._desk.admit(
            association_id,
            called_ae_title=message["called"],
            calling_ae_title=message["calling"],
            host_ip=message["host_ip"],
            certificate=_certificate(message["certificate"]),
        )
        answer = None if rejection is None else asdict(rejection)
        child.tell({"kind": "admission", "id": association_id, "rejection": answer})

    def _on_lost(self, association_ids: Sequence[str]) -> None:
        for association_id in association_ids:
            if self._desk.left(association_id):
                self._ended.put(partial(self._desk.tell_end, association_id, in_order=False))

    def _note_ends(self) -> None:
        while (note := self._ended.get()) is not None:
            try:
                note()
            except Exception:  # noqa: BLE001 - outermost edge: the next ends are noted all the same
                _log.exception("an end could not be noted")


class _Kept:
    """One place for a child, in which there is always one."""

    def __init__(
        self,
        child: Child,
        on_message: Callable[[_Kept, dict[str, Any]], None],
        on_lost: Callable[[Sequence[str]], None],
        stopping: threading.Event,
    ) -> None:
        self._child = child
        self._on_message = on_message
        self._on_lost = on_lost
        self._stopping = stopping
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_one, name="receive-child", daemon=True)
        self.serving: set[str] = set()
        self.ready = threading.Event()
        self.gave_up = False

    @property
    def process_id(self) -> int | None:
        """Of the child that serves just now; None while there is none."""
        serves = self._process is not None and self.ready.is_set() and not self.gave_up
        return self._process.pid if serves and self._process is not None else None

    def start(self) -> None:
        """Keeps a child running from here on."""
        self._thread.start()

    def hand_over(self, connection: Connection) -> bool:
        """Gives it a connection; False where it takes none just now."""
        to = self._socket
        if to is None or not self.ready.is_set():
            return False
        message = {
            "kind": "connection",
            "id": connection.association_id,
            "host_ip": connection.host_ip,
            "port": connection.port,
            "tls": connection.tls,
            "accepted_at_s": connection.accepted_at_s,
        }
        self.serving.add(connection.association_id)
        try:
            encoded = json.dumps(message).encode()
            # Not waiting: one that doesn't read must not hold up the door.
            socket.send_fds(to, [encoded], [connection.socket.fileno()], socket.MSG_DONTWAIT)
        except OSError:
            self.serving.discard(connection.association_id)
            return False
        return True

    def tell(self, message: dict[str, Any]) -> None:
        """Sends a message; to one that has just died it makes no difference."""
        to = self._socket
        if to is not None:
            with suppress(OSError):
                to.send(json.dumps(message).encode())

    def ask_to_end(self) -> None:
        """It finishes what it keeps, tells of the ends, and goes."""
        to = self._socket
        if to is not None:
            with suppress(OSError):
                to.shutdown(socket.SHUT_WR)

    def end(self, timeout_s: float) -> None:
        """Waits for it; ends it by force when the time is over."""
        process = self._process
        if process is not None:
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._thread.ident is not None:
            self._thread.join(5.0)

    def _keep_one(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                was_ready = self._live()
            except OSError as error:
                _log.error("a receiving process can't be started", reason=error.strerror)
                was_ready = False
            if self._stopping.is_set():
                break
            # One that has served is always replaced; one that can't even start is not for ever.
            failures = 0 if was_ready else failures + 1
            if failures > _TRIES:
                _log.error("receiving processes don't start, again and again")
                self.gave_up = True
                self.ready.set()
                return
            if time.monotonic() - began_s < _SHORT_LIFE_S:
                self._stopping.wait(min(0.25 * 2**failures, 5.0))

    def _live(self) -> bool:
        """One child from its start to its end; True where it got as far as serving."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                process = subprocess.Popen(
                    [*self._child.command, str(theirs.fileno())],
                    stdin=subprocess.PIPE,
                    pass_fds=(theirs.fileno(),),
                )
            self._process, self._socket = process, ours
            was_ready = False
            try:
                assert process.stdin is not None
                # Not by the socket, whose messages have a limit: settings may be long.
                with process.stdin as greeted:
                    greeted.write(self._child.greeting.encode())
                if self._stopping.is_set():
                    self.ask_to_end()
                while message := _receive(ours):
                    if message["kind"] == "ready":
                        was_ready = True
                        self.ready.set()
                        _log.info("receiving process ready", process_id=process.pid)
                    else:
                        self._on_message(self, message)
            except OSError:
                pass  # it died
            finally:
                if not self._stopping.is_set():
                    self.ready.clear()
                self._socket = None
                process.kill()  # where it only closed its socket
                status = process.wait()
                lost, self.serving = sorted(self.serving), set()
                self._on_lost(lost)
            if not self._stopping.is_set():
                _log.error("receiving process died", status=status, associations=len(lost))
            return was_ready


def _receive(source: socket.socket) -> dict[str, Any]:
    encoded = source.recv(_MESSAGE_BYTES)
    message: dict[str, Any] = json.loads(encoded) if encoded else {}
    return message


def _certificate(said: dict[str, Any] | None) -> PeerCertificate | None:
    return None if said is None else PeerCertificate(said["sha256"], frozenset(said["names"]))


# In the child -----------------------------------------------------------------------------


@dataclass
class _Answer:
    come: threading.Event = field(default_factory=threading.Event)
    rejection: Rejection | None = None


class RemoteDesk:
    """The desk of a receiving process: it asks the one that accepts.

    Args:
        line: The socket to it.
        timeout_s: How long to wait for its answers.
    """

    def __init__(self, line: socket.socket, timeout_s: float) -> None:
        self._line = line
        self._timeout_s = timeout_s
        self._asked: dict[str, _Answer] = {}

    def admit(
        self,
        association_id: str,
        *,
        called_ae_title: str,
        calling_ae_title: str,
        host_ip: str,
        certificate: PeerCertificate | None,
    ) -> Rejection | None:
        """Asks, and waits for the answer.

        Raises:
            TimeoutError: there is none.
        """
        answer = self._asked[association_id] = _Answer()
        shown = None
        if certificate is not None:
            names = sorted(certificate.names)[:_NAMES_LIMIT]
            shown = {"sha256": certificate.sha256, "names": names}
        try:
            self._tell(
                {
                    "kind": "ask",
                    "id": association_id,
                    "called": called_ae_title,
                    "calling": calling_ae_title,
                    "host_ip": host_ip,
                    "certificate": shown,
                }
            )
            if not answer.come.wait(self._timeout_s):
                raise TimeoutError
        finally:
            self._asked.pop(association_id, None)
        return answer.rejection

    def ended(self, association_id: str, *, in_order: bool) -> None:
        """Tells of an end."""
        self._tell({"kind": "ended", "id": association_id, "in_order": in_order})

    def kept(self, path: Path, called_ae_title: str, size_bytes: int) -> None:
        """Tells where an object is kept."""
        told = {"path": str(path), "called": called_ae_title, "size_bytes": size_bytes}
        self._tell({"kind": "kept", **told})

    def refused(self, code: str) -> None:
        """Tells why an object was not taken."""
        self._tell({"kind": "refused", "code": code})

    def delivered(self, job_id: str, destination: str, failure: str | None) -> None:
        """Tells of a delivery that has ended with a report."""
        told = {"job_id": job_id, "destination": destination, "failure": failure}
        self._tell({"kind": "delivered", **told})

    def answered(self, message: dict[str, Any]) -> None:
        """Takes an answer to `admit`."""
        answer = self._asked.get(message["id"])
        if answer is not None:
            said = message["rejection"]
            answer.rejection = None if said is None else Rejection(**said)
            answer.come.set()

    def _tell(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # it has died; so will we
            self._line.send(json.dumps(message).encode())


def receive_greeting() -> str:
    """What a child is told at its start."""
    return sys.stdin.buffer.read().decode()


def serve_connections(
    line: socket.socket, desk: RemoteDesk, begin: Callable[[Connection], None]
) -> None:
    """Serves what is handed over, until the process that accepts says stop, or dies.

    Args:
        line: The socket to it.
        desk: Gets the answers.
        begin: Gets the connections.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        # Meant for the one who accepts; it tells us when there is nothing more to come.
        signal.signal(number, signal.SIG_IGN)
    line.send(json.dumps({"kind": "ready"}).encode())
    while True:
        try:
            encoded, handed, _, _ = socket.recv_fds(line, _MESSAGE_BYTES, 1)
        except OSError:
            return
        if not encoded:
            return
        message = json.loads(encoded)
        if message["kind"] == "admission":
            desk.answered(message)
            continue
        begin(
            Connection(
                message["id"],
                socket.socket(fileno=handed[0]),
                message["host_ip"],
                message["port"],
                message["tls"],
                message["accepted_at_s"],
            )
        )
