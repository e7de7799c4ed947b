"""Results to one destination by STOW-RS, one object a request.

In: DICOM files. Out: a note for the job's story, or an error that says whether sending again
helps. Nothing is kept here. One object a request: so an answer is always about that object,
and what one peer refuses doesn't take another object with it.

Source: PS3.18 10.5 (Store), Table 10.5.3-1 (statuses), Annex I (store instances response).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dicom_gateway.config_delivery import Destination
from dicom_gateway.deliver.cstore import head_of
from dicom_gateway.deliver.dicomweb import Web, trouble_of_http
from dicom_gateway.deliver.statuses import arrival, trouble
from dicom_gateway.errors import DestinationUnavailable, EncodingFailed

_PIECE_BYTES = 256 * 1024
_ANSWER_LIMIT_BYTES = 4 << 20
_FAILED, _REFERENCED = "00081198", "00081199"
_REFERENCED_UID = "00081155"
_FAILURE_REASON, _WARNING_REASON = "00081197", "00081196"
_CONFLICT, _ACCEPTED = 409, 202


class Stow:
    """Sends files one after the other; keeps its connection open between them.

    Args:
        destination: Where they go.

    Raises:
        ConfigurationError: its token, password or certificates can't be read.
    """

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._web = Web(destination)

    def send(self, path: Path) -> str:
        """Sends one file and reads the answer.

        Raises:
            DestinationUnreachable, DestinationUnavailable, NotUnderstood,
            DestinationRefused, EncodingFailed: as `CStore.send`.
        """
        uid = head_of(path).sop_instance_uid
        body = _Body(path)
        answer = self._web.ask(
            "POST",
            "/studies",
            data=body,
            headers={
                "Content-Type": (
                    f'multipart/related; type="application/dicom"; boundary={body.boundary}'
                ),
                "Accept": "application/dicom+json",
            },
        )
        status = answer.status_code
        told = _told(answer.content) if status in (200, _ACCEPTED, _CONFLICT) else {}
        failed = _first(told, _FAILED)
        if failed is not None:
            reason = _number(failed, _FAILURE_REASON)
            if reason in (0x0000, None):
                reason = 0x0110
            # 0x0111 duplicate among the failed: it has the object all the same.
            return arrival(int(reason), self._destination)
        if status in (200, _ACCEPTED):
            kept = _named(told, uid)
            if kept is None:
                msg = (
                    f"{self._destination} answers HTTP {status}, but doesn't say that it has the "
                    "object; its answer must be application/dicom+json and name what it stored. "
                    "Look into its log, and whether a proxy answers in its place"
                )
                raise DestinationUnavailable(msg)
            warning = _number(kept, _WARNING_REASON)
            return arrival(warning, self._destination) if warning else "accepted"
        if status == _CONFLICT:
            raise trouble(0xC000, self._destination)
        raise trouble_of_http(status, self._destination)

    def close(self) -> None:
        """Closes the connection."""
        self._web.close()


class _Body:
    """A multipart body of one file, read piece by piece; with its length, for old proxies."""

    def __init__(self, path: Path) -> None:
        self.boundary = secrets.token_hex(16)
        self._path = path
        self._head = f"--{self.boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        self._tail = f"\r\n--{self.boundary}--\r\n".encode()

    def __len__(self) -> int:
        return len(self._head) + self._path.stat().st_size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        try:
            with self._path.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    yield piece
        except OSError as error:
            msg = f"the result file {self._path.name} can't be read any more"
            raise EncodingFailed(msg, code="result_missing") from error
        yield self._tail


def _told(content: bytes) -> dict[str, Any]:
    """The response as DICOM JSON; empty where it is none."""
    if len(content) > _ANSWER_LIMIT_BYTES:
        return {}
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    if isinstance(found, list):
        found = found[0] if found else {}
    return found if isinstance(found, dict) else {}


def _first(told: dict[str, Any], tag: str) -> dict[str, Any] | None:
    element = told.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    if not isinstance(values, list) or not values:
        return None
    return values[0] if isinstance(values[0], dict) else {}


def _named(told: dict[str, Any], uid: str) -> dict[str, Any] | None:
    """What is said of this object among those that were stored."""
    element = told.get(_REFERENCED)
    values = element.get("Value") if isinstance(element, dict) else None
    for one in values if isinstance(values, list) else ():
        said = one.get(_REFERENCED_UID) if isinstance(one, dict) else None
        if isinstance(said, dict) and said.get("Value") == [uid]:
            found: dict[str, Any] = one
            return found
    return None


def _number(item: dict[str, Any], tag: str) -> int | None:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    if not isinstance(values, list) or not values:
        return None
    try:
        return int(values[0])
    except (TypeError, ValueError):
        return None
