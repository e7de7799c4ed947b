"""Web, answers: what went wrong, said in HTTP and JSON, without a patient attribute."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import JSONResponse

from dicom_gateway.errors import (
    DatabaseUnavailable,
    GatewayError,
    OutOfResources,
    Refused,
    RequestTooLarge,
    Retryable,
    UnsupportedMedia,
)

RETRY_AFTER_S = 10


class HttpError(Exception):
    """An answer other than success; raised anywhere in a request.

    Attributes:
        status: Of HTTP.
        code: Stable, snake_case, for machines.
    """

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def not_found(what: str) -> HttpError:
    """404 for something that isn't here (or not for this AE title)."""
    return HttpError(HTTPStatus.NOT_FOUND, "not_found", f"no such {what} here")


def bad_request(message: str) -> HttpError:
    """400 with a sentence."""
    return HttpError(HTTPStatus.BAD_REQUEST, "bad_request", message)


def not_acceptable(message: str) -> HttpError:
    """406 with a sentence."""
    return HttpError(HTTPStatus.NOT_ACCEPTABLE, "not_acceptable", message)


def as_answer(error: HttpError | GatewayError) -> JSONResponse:
    """The response for an error that has a name."""
    status = error.status if isinstance(error, HttpError) else http_status(error)
    headers = {}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = str(RETRY_AFTER_S)
    return JSONResponse(
        {"error": error.code, "detail": str(error)}, status_code=status, headers=headers
    )


def http_status(error: GatewayError) -> HTTPStatus:
    """The HTTP status for an error of the gateway's tree."""
    if isinstance(error, OutOfResources | DatabaseUnavailable | Retryable):
        return HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, RequestTooLarge):
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if isinstance(error, UnsupportedMedia):
        return HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    if isinstance(error, Refused):
        return HTTPStatus.BAD_REQUEST
    return HTTPStatus.INTERNAL_SERVER_ERROR
