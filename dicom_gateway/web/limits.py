"""Web, limits of requests: how many at once, and how long a peer may be silent in one.

In and out: ASGI messages. Nothing is kept.
"""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_gateway.web.guard import OPEN_TO_ALL


class IdleLimit:
    """ASGI middleware: a silent peer counts as gone.

    Args:
        app: What lies behind.
        idle_timeout_s: While a request or its response is under way.
    """

    def __init__(self, app: ASGIApp, idle_timeout_s: float) -> None:
        self._app = app
        self._idle_timeout_s = idle_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body_is_whole = False

        async def receive_in_time() -> Message:
            nonlocal body_is_whole
            if body_is_whole:  # waits for a disconnection, however long the answer takes
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._idle_timeout_s)
            except TimeoutError:
                return {"type": "http.disconnect"}
            body_is_whole = not message.get("more_body", False)
            return message

        async def send_in_time(message: Message) -> None:
            try:
                await asyncio.wait_for(send(message), self._idle_timeout_s)
            except TimeoutError as error:
                msg = "the peer reads nothing"
                raise ConnectionResetError(msg) from error

        await self._app(scope, receive_in_time, send_in_time)


class ActiveLimit:
    """ASGI middleware: so many requests at once, 503 for the others.

    What is open to all isn't counted: it takes no time, and a supervisor that is told 503 would
    end a gateway that only has much to do.

    Args:
        app: What lies behind.
        limit: Requests under way.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] == "http" and scope["path"] in OPEN_TO_ALL:
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._limit:
            answer = JSONResponse(
                {"error": "busy", "detail": "too many requests are under way; try again soon"},
                status_code=503,
                headers={"retry-after": "5"},
            )
            await answer(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1
