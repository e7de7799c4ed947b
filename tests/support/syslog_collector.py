"""A collector of audit messages: syslog over TLS, as RFC 5425 frames it.

Comes in: a certificate. Goes out: a listening peer and what it was sent. Survives a crash:
nothing.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.certificates import Credentials


@dataclass
class Collector:
    """What came.

    Attributes:
        received: Whole messages, without their frames.
        connections: How many handshakes went well, and `failures` how many did not.
    """

    port: int = 0
    received: list[bytes] = field(default_factory=list)
    connections: int = 0
    failures: int = 0


@contextmanager
def a_collector(
    own: Credentials, *, client_ca: Path | None = None, port: int = 0, reads: bool = True
) -> Iterator[Collector]:
    """Listens on loopback while the block lasts; `reads=False` never reads what it is sent."""
    collector = Collector()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    listening = socket.create_server(("127.0.0.1", port))
    listening.settimeout(0.05)
    collector.port = listening.getsockname()[1]
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            try:
                plain, _ = listening.accept()
            except TimeoutError:
                continue
            plain.settimeout(10)
            try:
                with context.wrap_socket(plain, server_side=True) as connection:
                    collector.connections += 1
                    connection.settimeout(0.05)
                    if reads:
                        _read(connection, collector, stopping)
                    else:
                        stopping.wait()
            except OSError:
                collector.failures += 1
                plain.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield collector
    finally:
        stopping.set()
        thread.join()
        listening.close()


def _read(connection: ssl.SSLSocket, collector: Collector, stopping: threading.Event) -> None:
    buffered = b""
    while not stopping.is_set():
        with suppress(TimeoutError):
            piece = connection.recv(65536)
            if not piece:
                return
            buffered += piece
        while b" " in buffered:
            length, _, rest = buffered.partition(b" ")
            if len(rest) < int(length):
                break
            collector.received.append(rest[: int(length)])
            buffered = rest[int(length) :]
