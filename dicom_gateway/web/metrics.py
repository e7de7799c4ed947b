"""Web, metrics: what Prometheus scrapes. For those who have the right `metrics`.

Source: Prometheus, exposition formats (text, version 0.0.4).
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dicom_gateway.web.guard import require
from dicom_gateway.web.ports import Metrics

_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def routes(metrics: Metrics) -> Sequence[BaseRoute]:
    """GET /metrics."""

    async def ask(request: Request) -> Response:
        require(request, "metrics")
        return Response(await run_in_threadpool(metrics), media_type=_TEXT)

    return [Route("/metrics", ask, methods=["GET"])]
