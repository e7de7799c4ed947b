"""Web, the application: which path is answered by what.

In: the callables of other rooms. Out: one ASGI application. A further part of the web side
(the JSON API, the dashboard) is one more entry of `routes`.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from dicom_gateway.errors import GatewayError
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.web.answers import HttpError, as_answer

_log = get_logger(room="web")


def build_application(*parts: Sequence[BaseRoute]) -> Starlette:
    """Puts the parts together.

    Args:
        *parts: Routes of each part: `health.routes(...)`, `metrics.routes(...)`,
            `dicomweb.routes(...)`.
    """
    return Starlette(
        routes=[route for part in parts for route in part],
        exception_handlers={
            HttpError: _named,
            GatewayError: _named,
            Exception: _unforeseen,
        },
    )


async def _named(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError | GatewayError)
    return as_answer(error)


async def _unforeseen(_request: Request, error: Exception) -> Response:
    _log.error("request failed: unforeseen error", exc_info=error)
    return as_answer(GatewayError("something unforeseen; the gateway's log has the reason"))
