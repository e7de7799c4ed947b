"""Receive, step 1: connections. Silent ones cost a file descriptor, no thread and no memory.

In: the ports that are listened on. Out: a `Connection` as soon as its peer says something;
who stays silent is shown out when its time is over, or earlier, when others come. Nothing
survives a crash, nor needs to.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from dicom_gateway.config import ScpSettings
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.receive.admission import WaitingRoom

_BACKLOG = 512
_SWEEP_S = 0.2
_PAUSE_S = 0.1

_log = get_logger(room="receive")


@dataclass(frozen=True, slots=True)
class Connection:
    """An accepted connection, nothing of it read yet.

    Attributes:
        association_id: Opaque, unique for each connection.
        accepted_at_s: By the machine's monotonic clock, the same in all processes.
    """

    association_id: str
    socket: socket.socket
    host_ip: str
    port: int
    tls: bool
    accepted_at_s: float


class Listener:
    """Accepts connections in a thread of its own.

    Args:
        settings: `dicom.scp` of gateway.yaml.
        waiting: Who came and has not yet said what they want.
        begin: Called with each connection whose peer has begun to speak, in the listener's
            thread; owns its socket from then on.

    Raises:
        ConfigurationError: an address or port can't be listened on.
    """

    def __init__(
        self, settings: ScpSettings, waiting: WaitingRoom, begin: Callable[[Connection], None]
    ) -> None:
        self._timeout_s = settings.handshake_timeout_s
        self._waiting = waiting
        self._begin = begin
        self._silent: dict[str, Connection] = {}  # oldest first
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, None)
        self._doors: list[tuple[socket.socket, bool]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="receive", daemon=True)
        try:
            if settings.plain:
                self._doors.append((_listen(settings.host, settings.port, "port"), False))
            if settings.tls is not None:
                self._doors.append((_listen(settings.host, settings.tls.port, "tls.port"), True))
        except ConfigurationError:
            self._close()
            raise
        for door in self._doors:
            self._selector.register(door[0], selectors.EVENT_READ, door)

    @property
    def port(self) -> int | None:
        """Of the plain port; None where there is none."""
        return next((_port_of(door) for door, tls in self._doors if not tls), None)

    @property
    def tls_port(self) -> int | None:
        """Of the TLS port; None where there is none."""
        return next((_port_of(door) for door, tls in self._doors if tls), None)

    @property
    def is_alive(self) -> bool:
        """Whether connections are accepted."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Accepts from here on."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Accepts no more; the ports are free afterwards."""
        self._stopping = True
        with suppress(OSError):
            self._wake_sender.send(b"!")
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._close()

    # The listener's thread ----------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(_SWEEP_S):
                if isinstance(key.data, Connection):
                    self._speaks(key.data)
                elif key.data is not None:
                    self._accept(*key.data)
            self._show_out_the_silent()

    def _accept(self, door: socket.socket, tls: bool) -> None:
        try:
            accepted, address = door.accept()
        except (BlockingIOError, ConnectionError):
            return  # gone again
        except OSError as error:
            # Out of file descriptors, for instance: others will free some.
            _log.error("connections can't be accepted", reason=error.strerror)
            time.sleep(_PAUSE_S)
            return
        accepted.setblocking(True)
        with suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made = Connection(uuid.uuid4().hex, accepted, address[0], address[1], tls, time.monotonic())
        self._silent[made.association_id] = made
        self._selector.register(accepted, selectors.EVENT_READ, made)
        leaver = self._waiting.enter(made.association_id, made.host_ip, accepted)
        if leaver is not None:
            self._close_silent(*leaver)

    def _speaks(self, connection: Connection) -> None:
        if connection.association_id not in self._silent:
            return  # it was shown out in this very round
        try:
            gone = connection.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            self._waiting.leave(connection.association_id)
            self._close_silent(connection.association_id, connection.socket)
            return
        del self._silent[connection.association_id]
        self._selector.unregister(connection.socket)
        try:
            # The waiting room holds the connection as well, to be able to show it out.
            own = connection.socket.dup()
        except OSError:
            self._waiting.leave(connection.association_id)
            connection.socket.close()
            return
        self._begin(
            Connection(
                connection.association_id,
                own,
                connection.host_ip,
                connection.port,
                connection.tls,
                connection.accepted_at_s,
            )
        )

    def _show_out_the_silent(self) -> None:
        latest_s = time.monotonic() - self._timeout_s
        for connection in list(self._silent.values()):
            if connection.accepted_at_s > latest_s:
                break
            self._waiting.leave(connection.association_id)
            self._close_silent(connection.association_id, connection.socket)

    def _close_silent(self, association_id: str, connection: socket.socket) -> None:
        if self._silent.pop(association_id, None) is not None:
            self._selector.unregister(connection)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _close(self) -> None:
        for connection in list(self._silent.values()):
            self._waiting.leave(connection.association_id)
            self._close_silent(connection.association_id, connection.socket)
        for door, _ in self._doors:
            door.close()
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()


def _listen(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, port))
        door.listen(_BACKLOG)
        door.setblocking(False)
    except OSError as error:
        door.close()
        msg = (
            f"dicom.scp.{setting}: {host} port {port} can't be listened on ({error.strerror}); "
            "is another gateway running, or is the port below 1024?"
        )
        raise ConfigurationError(msg) from error
    return door


def _port_of(door: socket.socket) -> int:
    return int(door.getsockname()[1])
