"""DICOMweb, STOW-RS: the body goes piece by piece to whoever keeps it; here it is answered.

In: a request. Out: the Store Instances Response Module as DICOM JSON.

Source: PS3.18 10.5, PS3.18 Table 10.5.3-1 (statuses), Annex I (the response module).
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from dicom_gateway.config_web import StowSettings
from dicom_gateway.errors import BadRequest, Refused, RequestTooLarge
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import Reception
from dicom_gateway.web.answers import RETRY_AFTER_S, HttpError, http_status
from dicom_gateway.web.dicomweb.media import DICOM_JSON, accepted
from dicom_gateway.web.ports import Body, OpenBody

_OUT_OF_RESOURCES = range(0xA700, 0xA800)
_REASONS_SHOWN = 5
_JSON_TYPES = (DICOM_JSON, "application/json")

_log = get_logger(room="web")


class Stow:
    """Takes STOW-RS requests, so many at the same time.

    Args:
        settings: `web.stow` of gateway.yaml.
        open_body: Whoever keeps the parts.
    """

    def __init__(self, settings: StowSettings, open_body: OpenBody) -> None:
        self._settings = settings
        self._open_body = open_body
        self._under_way = 0

    async def store(
        self,
        request: Request,
        *,
        called_ae_title: str,
        calling_ae_title: str,
        study_instance_uid: str | None,
        base_url: str,
    ) -> Response:
        """One request.

        Raises:
            HttpError, GatewayError: why nothing of it was taken.
        """
        self._require_takeable(request)
        body = self._open_body(
            request.headers.get("content-type", ""),
            called_ae_title=called_ae_title,
            calling_ae_title=calling_ae_title,
            study_instance_uid=study_instance_uid,
        )
        self._under_way += 1
        try:
            reception = await _take(request, body)
        except (BadRequest, RequestTooLarge) as error:
            if not body.reception.kept:
                raise
            # What came whole before is kept, and the peer must know of it.
            return _answer(body.reception, base_url, error)
        finally:
            self._under_way -= 1
        return _answer(reception, base_url)

    def _require_takeable(self, request: Request) -> None:
        if not any(one.takes(kind) for one in accepted(request) for kind in _JSON_TYPES):
            msg = f"the answer is given as {DICOM_JSON} only; accept that"
            raise HttpError(HTTPStatus.NOT_ACCEPTABLE, "not_acceptable", msg)
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            msg = "compressed bodies are not taken; send without Content-Encoding"
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media", msg)
        announced = request.headers.get("content-length", "0")
        if not announced.isdecimal() or int(announced) > self._settings.max_request_bytes:
            msg = (
                f"the body is larger than {self._settings.max_request_bytes} bytes "
                "(web.stow.max-request-bytes); send it in several requests"
            )
            raise RequestTooLarge(msg)
        if self._under_way >= self._settings.max_requests:
            msg = "as many requests are under way as are taken at once; try again in a moment"
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "busy", msg)


async def _take(request: Request, body: Body) -> Reception:
    try:
        async for piece in request.stream():
            if piece:
                await run_in_threadpool(body.feed, piece)
        return await run_in_threadpool(body.finish)
    except ClientDisconnect as error:
        _log.warning("a body was broken off", kept=len(body.reception.kept))
        msg = "the body didn't come to its end in time"
        raise HttpError(HTTPStatus.REQUEST_TIMEOUT, "broken_off", msg) from error
    finally:
        # Nothing where it has ended in order. Else, whatever ended it, its series must not wait
        # for ever; shielded, as this task may be cancelled.
        await asyncio.shield(run_in_threadpool(body.abort))


def _answer(reception: Reception, base_url: str, cut: Refused | None = None) -> Response:
    status = _status(reception) if cut is None else http_status(cut)
    module = _module(reception, base_url)
    answer = JSONResponse(module, status_code=status, media_type=DICOM_JSON)
    reasons = [str(cut)] if cut else []
    reasons += dict.fromkeys(f"{one.code}: {one.reason}" for one in reception.refused)
    for reason in reasons[:_REASONS_SHOWN]:
        answer.headers.append("warning", f'299 tritome "{reason.replace(chr(34), chr(39))}"')
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        answer.headers["retry-after"] = str(RETRY_AFTER_S)
    return answer


def _status(reception: Reception) -> HTTPStatus:
    kept, refused = reception.kept, reception.refused
    if not refused:
        return HTTPStatus.OK
    if kept:
        return HTTPStatus.ACCEPTED
    if all(one.code == "too_large" for one in refused):
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if all(one.status in _OUT_OF_RESOURCES for one in refused):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.CONFLICT


def _module(reception: Reception, base_url: str) -> dict[str, Any]:
    """The Store Instances Response Module (PS3.18 Annex I.2)."""
    kept, refused = reception.kept, reception.refused
    module: dict[str, Any] = {}
    if kept:
        module["00081199"] = _sequence(
            {
                "00081150": _uid(one.sop_class_uid),
                "00081155": _uid(one.sop_instance_uid),
                "00081190": _link(
                    f"{base_url}/studies/{one.study_instance_uid}/series/"
                    f"{one.series_instance_uid}/instances/{one.sop_instance_uid}"
                ),
            }
            for one in kept
        )
        if len({one.study_instance_uid for one in kept}) == 1:
            module["00081190"] = _link(f"{base_url}/studies/{kept[0].study_instance_uid}")
    named = [one for one in refused if one.sop_class_uid and one.sop_instance_uid]
    if named:
        module["00081198"] = _sequence(
            {
                "00081150": _uid(one.sop_class_uid),
                "00081155": _uid(one.sop_instance_uid),
                "00081197": {"vr": "US", "Value": [one.status]},
            }
            for one in named
        )
    nameless = [one for one in refused if one not in named]
    if nameless:
        # Other Failures Sequence: of what isn't even known what it was.
        module["0008119A"] = _sequence(
            {"00081197": {"vr": "US", "Value": [one.status]}} for one in nameless
        )
    return module


def _link(url: str) -> dict[str, Any]:
    return {"vr": "UR", "Value": [url]}


def _sequence(items: Any) -> dict[str, Any]:
    return {"vr": "SQ", "Value": list(items)}


def _uid(uid: str | None) -> dict[str, Any]:
    return {"vr": "UI", "Value": [uid]}
