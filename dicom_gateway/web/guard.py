"""Web, who may come in: bearer tokens, client certificates, addresses.

In: a request. Out: the same request with its `Caller`, or 401. Nothing is kept, and nothing
of a token or a header is logged.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_gateway.config_web import WebCaller, WebSettings
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.web.answers import HttpError
from dicom_gateway.web.ports import Heard

OPEN_TO_ALL = frozenset(("/health",))
_LEAST_TOKEN_CHARACTERS = 16
_LOOPBACK_NAMES = frozenset(("127.0.0.1", "localhost", "[::1]"))

_log = get_logger(room="web")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        rights: `store`, `read`, `metrics`.
    """

    calling_ae_title: str
    rights: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller
    token_sha256: bytes | None
    certificate_sha256: str | None
    host_ip: str | None


class Guard:
    """ASGI middleware: lets those in who are known.

    Args:
        app: What lies behind.
        settings: `web` of gateway.yaml; its token files are read here.
        certificates: (address, port) of a connection -> SHA-256 of its client certificate.
        heard: Told of each request that was answered or turned away.

    Raises:
        ConfigurationError: a token can't be read or is too short.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: WebSettings,
        certificates: dict[tuple[str, int], str],
        heard: Heard = lambda *_request: None,
    ) -> None:
        self._app = app
        self._heard = heard
        self._certificates = certificates
        self._known = [_known(caller) for caller in settings.callers]
        self._nobody_listed = None
        if not settings.callers:
            rights = frozenset(("store", "read", "metrics"))
            self._nobody_listed = Caller(settings.calling_ae_title, rights)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http" or scope["path"] in OPEN_TO_ALL:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        caller = self._who(headers, scope.get("client") or ("", 0))
        if caller is None:
            _log.warning("request turned away", host_ip=(scope.get("client") or ("",))[0])
            answer = JSONResponse(
                {"error": "not_known", "detail": "say who you are with a bearer token that I know"},
                status_code=HTTPStatus.UNAUTHORIZED,
                headers={"www-authenticate": "Bearer"},
            )
            await answer(scope, receive, send)
            await self._tell(scope, None, HTTPStatus.UNAUTHORIZED)
            return
        scope.setdefault("state", {})["caller"] = caller
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            await self._tell(scope, caller, status)

    async def _tell(self, scope: Scope, caller: Caller | None, status: int) -> None:
        title = None if caller is None else caller.calling_ae_title
        host_ip = (scope.get("client") or ("",))[0]
        await run_in_threadpool(self._heard, title, host_ip, scope["method"], scope["path"], status)

    def _who(self, headers: Headers, client: tuple[str, int]) -> Caller | None:
        if self._nobody_listed is not None:
            # A page in a browser on this machine could ask by a name of its own that leads
            # to 127.0.0.1 (DNS rebinding); it can't choose this header.
            host = headers.get("host", "")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            return self._nobody_listed if name.lower() in _LOOPBACK_NAMES else None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        offered = hashlib.sha256(token.strip().encode()).digest()
        if scheme.lower() != "bearer":
            offered = b""
        certificate = self._certificates.get((client[0], client[1]))
        found = None
        for known in self._known:  # all of them: the time says nothing about which
            fits = known.token_sha256 is None or hmac.compare_digest(known.token_sha256, offered)
            fits &= known.certificate_sha256 in (None, certificate)
            fits &= known.host_ip is None or _same_address(known.host_ip, client[0])
            if fits and found is None:
                found = known.caller
        return found


def require(request: Request, right: str) -> Caller:
    """The caller of a request that needs a right.

    Raises:
        HttpError: 403.
    """
    caller: Caller = request.state.caller
    if right not in caller.rights:
        msg = f"'{caller.calling_ae_title}' has no right to {right} here"
        raise HttpError(HTTPStatus.FORBIDDEN, "no_right", msg)
    return caller


def _known(caller: WebCaller) -> _Known:
    token = read_token(caller.token_file, caller.token_environment, "web.callers")
    return _Known(
        Caller(caller.calling_ae_title, frozenset(caller.rights)),
        None if token is None else hashlib.sha256(token.encode()).digest(),
        caller.certificate_sha256,
        caller.host_ip,
    )


def read_token(file: os.PathLike[str] | None, environment: str | None, place: str) -> str | None:
    """A bearer token from a file or the environment.

    Raises:
        ConfigurationError: it isn't there or too short.
    """
    if file is None and environment is None:
        return None
    if file is not None:
        try:
            with open(file, encoding="utf-8") as opened:  # noqa: PTH123 - any path-like
                token = opened.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no text"
            msg = f"{place}: token-file {os.fspath(file)} can't be read ({reason})"
            raise ConfigurationError(msg) from error
    else:
        assert environment is not None
        token = os.environ.get(environment, "").strip()
    if len(token) < _LEAST_TOKEN_CHARACTERS:
        where = os.fspath(file) if file is not None else f"environment variable {environment}"
        msg = (
            f"{place}: the token in {where} has fewer than {_LEAST_TOKEN_CHARACTERS} characters; "
            "make one with: openssl rand -hex 32"
        )
        raise ConfigurationError(msg)
    return token


def _same_address(expected: str, actual: str) -> bool:
    try:
        return _plain(expected) == _plain(actual)
    except ValueError:
        return False


def _plain(text: str) -> object:
    address = ip_address(text.partition("%")[0])
    # A dual-stack socket shows IPv4 peers as ::ffff:10.0.0.1.
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
