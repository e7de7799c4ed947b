"""Web, health: is every part of the gateway alive? For supervisors and load balancers.

Open to all, so it says no more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from dicom_gateway.observe.logging import get_logger
from dicom_gateway.web.ports import Health

_log = get_logger(room="web")


def routes(health: Health) -> Sequence[BaseRoute]:
    """GET /health: 200 or 503."""

    async def ask(_request: Request) -> Response:
        troubles = health()  # not in one of the threads: those may all be waiting for the disk
        if not troubles:
            return JSONResponse({"status": "ok"})
        _log.warning("not well", troubles=dict(troubles))
        return JSONResponse(
            {"status": "not well", "parts": sorted(troubles)},
            status_code=HTTPStatus.SERVICE_UNAVAILABLE,
        )

    return [Route("/health", ask, methods=["GET"])]
