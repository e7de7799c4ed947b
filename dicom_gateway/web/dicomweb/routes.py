"""DICOMweb, which path is answered by what.

    /dicom-web/studies...                  all that is held; stores to the default title
    /dicom-web/{called AE title}/studies...    only what was sent to this title; stores to it

Source: PS3.18 10.1 (resources).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from http import HTTPStatus
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from dicom_gateway.config_web import WebSettings
from dicom_gateway.web.answers import bad_request, not_acceptable, not_found
from dicom_gateway.web.dicomweb import retrieve
from dicom_gateway.web.dicomweb.attributes import Level
from dicom_gateway.web.dicomweb.catalogue import Catalogue
from dicom_gateway.web.dicomweb.holdings import Held, find
from dicom_gateway.web.dicomweb.media import DICOM_JSON, accepted
from dicom_gateway.web.dicomweb.search import LIMIT, search, understand
from dicom_gateway.web.dicomweb.store import Stow
from dicom_gateway.web.guard import require
from dicom_gateway.web.ports import OpenBody

ROOT = "/dicom-web"
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_FRAMES_LIMIT = 10_000
_KEYWORDS = {
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "instance": "SOPInstanceUID",
}


def routes(
    settings: WebSettings,
    held: Catalogue,
    open_body: OpenBody,
    called_ae_titles: Sequence[str],
) -> Sequence[BaseRoute]:
    """All of DICOMweb.

    Args:
        settings: `web` of gateway.yaml.
        held: What can be asked for.
        open_body: Whoever keeps what is stored; its limits bound.
        called_ae_titles: Those we answer to, the default one first.
    """
    door = _Dicomweb(settings, held, Stow(settings.stow, open_body), called_ae_titles)
    below = door.routes()
    return [Mount(ROOT, routes=[*below, Mount("/{called_ae_title}", routes=door.routes())])]


class _Dicomweb:
    def __init__(
        self, settings: WebSettings, held: Catalogue, stow: Stow, titles: Sequence[str]
    ) -> None:
        self._settings = settings
        self._held = held
        self._stow = stow
        self._titles = titles

    def routes(self) -> list[BaseRoute]:
        """Below the root, or below a called AE title."""
        study, series = "/studies/{study}", "/studies/{study}/series/{series}"
        instance = series + "/instances/{instance}"
        return [
            Route("/studies", self.store, methods=["POST"]),
            Route(study, self.store, methods=["POST"]),
            Route("/studies", self._searcher("study"), methods=["GET"]),
            Route("/series", self._searcher("series"), methods=["GET"]),
            Route("/instances", self._searcher("instance"), methods=["GET"]),
            Route(study + "/series", self._searcher("series"), methods=["GET"]),
            Route(study + "/instances", self._searcher("instance"), methods=["GET"]),
            Route(series + "/instances", self._searcher("instance"), methods=["GET"]),
            Route(study, self.objects, methods=["GET"]),
            Route(series, self.objects, methods=["GET"]),
            Route(instance, self.objects, methods=["GET"]),
            Route(study + "/metadata", self.metadata, methods=["GET"]),
            Route(series + "/metadata", self.metadata, methods=["GET"]),
            Route(instance + "/metadata", self.metadata, methods=["GET"]),
            Route(instance + "/frames/{frames}", self.frames, methods=["GET"]),
            Route(instance + "/bulkdata", self.bulk_data, methods=["GET"]),
        ]

    async def store(self, request: Request) -> Response:
        """STOW-RS."""
        caller = require(request, "store")
        title = self._title(request)
        return await self._stow.store(
            request,
            called_ae_title=title or self._titles[0],
            calling_ae_title=caller.calling_ae_title,
            study_instance_uid=self._uids(request).get("StudyInstanceUID"),
            base_url=self._base_url(request, title),
        )

    def _searcher(self, level: Level) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return await self.search(request, level)

        return answer

    async def search(self, request: Request, level: Level) -> Response:
        """QIDO-RS."""
        require(request, "read")
        kinds = (DICOM_JSON, "application/json")
        if not any(one.takes(kind) for one in accepted(request) for kind in kinds):
            msg = f"search results are given as {DICOM_JSON} only; accept that"
            raise not_acceptable(msg)
        title = self._title(request)
        query = understand(
            level,
            self._uids(request),
            request.query_params.multi_items(),
            self._held.engine.dialect.name,
        )
        found, is_more = await run_in_threadpool(
            search, self._held, query, title, self._base_url(request, title)
        )
        warnings = list(query.warnings)
        if is_more and query.limit == LIMIT:
            warnings.append(
                "There are additional results that can be requested; ask on with offset="
                f"{query.offset + len(found)}."
            )
        status = HTTPStatus.OK if found else HTTPStatus.NO_CONTENT
        if not found:
            answer = Response(status_code=status)
        else:
            answer = JSONResponse(found, status_code=status, media_type=DICOM_JSON)
        for warning in warnings:
            answer.headers.append("warning", f'299 tritome "{warning}"')
        return answer

    async def objects(self, request: Request) -> Response:
        """WADO-RS, whole objects."""
        found = await self._found(request)
        kind, body = await run_in_threadpool(retrieve.objects, found, accepted(request))
        return _Streamed(body, media_type=kind)

    async def metadata(self, request: Request) -> Response:
        """WADO-RS, metadata."""
        if not any(
            one.takes(kind)
            for one in accepted(request)
            for kind in (DICOM_JSON, "application/json")
        ):
            msg = f"metadata is given as {DICOM_JSON} only; accept that"
            raise not_acceptable(msg)
        found = await self._found(request)
        base_url = self._base_url(request, self._title(request))
        body = retrieve.metadata(found, lambda one: _url(base_url, one))
        return _Streamed(body, media_type=DICOM_JSON)

    async def frames(self, request: Request) -> Response:
        """WADO-RS, frames."""
        asked = request.path_params["frames"]
        if not re.fullmatch(r"[1-9]\d{0,8}(?:,[1-9]\d{0,8})*", asked, re.ASCII):
            msg = "frames are numbers from 1, with commas between them"
            raise bad_request(msg)
        numbers = [int(number) for number in asked.split(",")]
        if len(numbers) > _FRAMES_LIMIT:
            msg = f"more than {_FRAMES_LIMIT} frames in one request"
            raise bad_request(msg)
        (one,) = await self._found(request)
        url = _url(self._base_url(request, self._title(request)), one)
        kind, body = await run_in_threadpool(retrieve.frames, one, numbers, accepted(request), url)
        return _Streamed(body, media_type=kind)

    async def bulk_data(self, request: Request) -> Response:
        """WADO-RS, native pixel data as one piece of bulk data."""
        (one,) = await self._found(request)
        kind, body = await run_in_threadpool(retrieve.bulk_data, one, accepted(request))
        return _Streamed(body, media_type=kind)

    async def _found(self, request: Request) -> list[Held]:
        require(request, "read")
        return await run_in_threadpool(find, self._held, self._uids(request), self._title(request))

    def _title(self, request: Request) -> str | None:
        """The called AE title of the path, None where it has none."""
        title = request.path_params.get("called_ae_title")
        if title is not None and title not in self._titles:
            raise not_found("AE title")
        return title

    def _uids(self, request: Request) -> dict[str, str]:
        found = {}
        for level, keyword in _KEYWORDS.items():
            uid = request.path_params.get(level)
            if uid is None:
                continue
            if len(uid) > 64 or not _UID.fullmatch(uid):
                # Not repeated: it may be anything.
                msg = f"the {level} in the path is no UID"
                raise bad_request(msg)
            found[keyword] = uid
        return found

    def _base_url(self, request: Request, title: str | None) -> str:
        outside = self._settings.public_url or str(request.base_url.replace(path="")).rstrip("/")
        return f"{outside}{ROOT}" + (f"/{quote(title, safe='')}" if title else "")


class _Streamed(StreamingResponse):
    """Closes its body, also where the peer goes in the middle: a file or a process is behind it."""

    def __init__(self, body: retrieve.Pieces, media_type: str) -> None:
        super().__init__(body, media_type=media_type)
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        with closing(self._body):
            await super().__call__(scope, receive, send)


def _url(base_url: str, one: Held) -> str:
    return (
        f"{base_url}/studies/{one.study_instance_uid}/series/{one.series_instance_uid}"
        f"/instances/{one.sop_instance_uid}"
    )
