"""A relay to a peer on loopback that resets its first connections in the middle of a transfer.

Comes in: the peer's port. Goes out: a port to call instead. Survives a crash: nothing.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Relay:
    """Where it listens, and how often it has reset a connection."""

    port: int = 0
    resets: int = 0


@contextmanager
def a_resetting_relay(to_port: int, *, after_bytes: int, times: int) -> Iterator[Relay]:
    """Resets the first `times` connections that bring more than `after_bytes`."""
    relay = Relay()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.settimeout(0.05)
    relay.port = listening.getsockname()[1]
    stopping = threading.Event()

    def pass_on(caller: socket.socket) -> None:
        with caller, socket.create_connection(("127.0.0.1", to_port)) as peer:
            brought = 0
            while not stopping.is_set():
                for one in select.select([caller, peer], [], [], 0.05)[0]:
                    piece = one.recv(1024)
                    if not piece:
                        return
                    brought += len(piece) if one is caller else 0
                    if brought > after_bytes and relay.resets < times:
                        relay.resets += 1
                        # Nothing is flushed: the peer sees RST (SO_LINGER of zero).
                        caller.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                        )
                        return
                    (peer if one is caller else caller).sendall(piece)

    def serve() -> None:
        while not stopping.is_set():
            try:
                caller, _ = listening.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=pass_on, args=(caller,))
            thread.start()
            calls.append(thread)

    calls: list[threading.Thread] = []
    server = threading.Thread(target=serve)
    server.start()
    try:
        yield relay
    finally:
        stopping.set()
        server.join()
        for call in calls:
            call.join()
        listening.close()
