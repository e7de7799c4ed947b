"""Web, connections: how long and how many may say nothing, and who the TLS peer is.

In: bytes. Out: uvicorn's requests. Nothing is kept beyond the connections that are open.

Whoever says nothing takes no place from those that have something to say: of too many silent
connections the oldest is closed. One whose request is answered before its body has come counts as
silent: the rest goes by unread, for as long as a header may take. To close at once would take the
answer from a peer that reads it only when it has sent all.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(slots=True)
class Lobby:
    """What the connections of one server have in common.

    Attributes:
        request_timeout_s: From the connection, or from the first byte of a further request,
            to the end of its header.
        silent_limit: Connections without a request under way.
        certificates: (address, port) -> SHA-256 of the client certificate.
        silent: Those without a request under way, the oldest first.
        greeting: (address, port) -> those that are accepted and whose TLS isn't agreed on yet,
            among others that have gone meanwhile; the oldest first.
    """

    request_timeout_s: float
    silent_limit: int
    certificates: dict[tuple[str, int], str] = field(default_factory=dict)
    silent: dict[LimitedHttp, None] = field(default_factory=dict)
    greeting: dict[tuple[str, int], socket.socket] = field(default_factory=dict)


class Door(socket.socket):
    """The listening socket: whoever comes in by it is in the lobby at once.

    asyncio tells of a TLS connection only when its handshake is over.

    Args:
        listening: Is taken over.
        lobby: Shared by all connections of the server.
    """

    def __init__(self, listening: socket.socket, lobby: Lobby) -> None:
        super().__init__(fileno=listening.detach())
        self._lobby = lobby

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection."""
        connection, address = super().accept()
        greeting = self._lobby.greeting
        greeting[address[:2]] = connection
        if len(greeting) > self._lobby.silent_limit:
            oldest = greeting.pop(next(iter(greeting)))
            with suppress(OSError):  # it has gone
                oldest.shutdown(socket.SHUT_RDWR)
        return connection, address


class LimitedHttp(H11Protocol):
    """uvicorn's HTTP/1.1, for peers that may mean no good.

    Args:
        lobby: Shared by all connections of the server.
        **uvicorn_s: Of uvicorn.
    """

    def __init__(self, *, lobby: Lobby, **uvicorn_s: Any) -> None:
        super().__init__(**uvicorn_s)
        self._lobby = lobby
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A peer has come."""
        super().connection_made(transport)
        if self.client:
            self._lobby.greeting.pop(self.client, None)
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        if certificate and self.client:
            self._lobby.certificates[self.client] = hashlib.sha256(certificate).hexdigest()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """A peer has sent something."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """A peer has gone."""
        self._forget_deadline()
        self._lobby.silent.pop(self, None)
        if self.client:
            self._lobby.certificates.pop(self.client, None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """An answer is out; the peer may ask on."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._wait()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_deadline()
            self._lobby.silent.pop(self, None)
            return
        self._wait()
        if self._deadline is None:
            self._deadline = self.loop.call_later(
                self._lobby.request_timeout_s, self.transport.close
            )

    def _wait(self) -> None:
        self._lobby.silent.setdefault(self)
        if len(self._lobby.silent) > self._lobby.silent_limit:
            oldest = next(iter(self._lobby.silent))
            del self._lobby.silent[oldest]
            oldest.transport.close()

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
