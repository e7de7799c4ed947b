"""Web, the server: uvicorn in a thread of its own, its socket bound before it starts.

In: an ASGI application. Out: answers. Nothing is kept here.
"""

from __future__ import annotations

import asyncio.constants
import logging
import socket
import ssl
import threading
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from dicom_gateway.config_web import WebSettings
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.tls import server_context
from dicom_gateway.web.guard import Guard
from dicom_gateway.web.limits import ActiveLimit, IdleLimit
from dicom_gateway.web.ports import Heard
from dicom_gateway.web.protocol import Door, LimitedHttp, Lobby

_KEEP_ALIVE_S = 5
_GRACE_S = 5
_LONGEST_MS = 2**31 - 1


class WebServer:
    """Listens for HTTP.

    Args:
        settings: `web` of gateway.yaml.
        application: From `build_application`.
        heard: Told of each request.

    Raises:
        ConfigurationError: a token, certificate or key can't be used.
    """

    def __init__(
        self,
        settings: WebSettings,
        application: ASGIApp,
        heard: Heard = lambda *_request: None,
    ) -> None:
        self._settings = settings
        self._log = get_logger(room="web")
        self._lobby = lobby = Lobby(settings.request_timeout_s, settings.max_connections)
        guarded = Guard(application, settings, lobby.certificates, heard)
        limited = ActiveLimit(IdleLimit(guarded, settings.idle_timeout_s), settings.max_connections)
        # What uvicorn says of a request may repeat it; what matters is logged by the rooms.
        for name in ("uvicorn.error", "uvicorn.access", "asyncio"):
            logging.getLogger(name).addHandler(logging.NullHandler())
            logging.getLogger(name).propagate = False
        self._config = uvicorn.Config(
            limited,
            # A class or anything that makes one; uvicorn's types know only the class.
            http=partial(LimitedHttp, lobby=lobby),  # type: ignore[arg-type]
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=settings.max_header_bytes,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACE_S,
        )
        self._tls = self._tls_context()
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on, also where the settings say 0."""
        return self._settings.port if self._socket is None else self._socket.getsockname()[1]

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Listens from here on.

        Raises:
            ConfigurationError: the address or port can't be listened on.
        """
        host, port = self._settings.host, self._settings.port
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listening = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            msg = (
                f"web: {host} port {port} can't be listened on ({error.strerror}); is another "
                "program using it? web.port names the port"
            )
            raise ConfigurationError(msg) from error
        self._socket = Door(listening, self._lobby)
        # Connections have it from here. asyncio sets it only for sockets that name their protocol,
        # and an answer, header and body in two pieces, would wait 40 ms for the peer's word.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A connection that is closed waits in the kernel until its peer has read all of it, and
        # one that reads nothing would keep it for ever.
        timeout_ms = min(int(self._settings.idle_timeout_s * 1000), _LONGEST_MS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        self._config.load()
        self._config.ssl = self._tls
        # uvicorn hands no other time on; a silent TLS peer needs no minute to say hello.
        asyncio.constants.SSL_HANDSHAKE_TIMEOUT = self._settings.request_timeout_s
        self._server = uvicorn.Server(self._config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="web", daemon=True
        )
        self._thread.start()
        self._log.info("listening", host=host, port=self.port, tls=self._tls is not None)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Listens no more, lets the requests under way finish for a moment."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout_s)
        if self._socket is not None:
            self._socket.close()

    def _tls_context(self) -> ssl.SSLContext | None:
        tls = self._settings.tls
        if tls is None:
            return None
        return server_context(
            tls.certificate_file,
            tls.key_file,
            tls.client_ca_file,
            client_required=tls.client_certificates == "required",
        )
