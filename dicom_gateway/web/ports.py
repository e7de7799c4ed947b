"""What the web room is handed by `app`: the shapes of other rooms' callables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from dicom_gateway.records import Reception


class Body(Protocol):
    """One multipart body under way; every call may block."""

    @property
    def reception(self) -> Reception:
        """What became of its parts so far."""
        ...

    def feed(self, piece: bytes) -> None:
        """Takes the next piece."""
        ...

    def finish(self) -> Reception:
        """Ends it in order."""
        ...

    def abort(self) -> None:
        """Ends it as a lost connection would be ended."""
        ...


class OpenBody(Protocol):
    """Begins to take a body (`receive.stow.BodyIntake.open`, its limits bound)."""

    def __call__(
        self,
        content_type: str,
        *,
        called_ae_title: str,
        calling_ae_title: str,
        study_instance_uid: str | None,
    ) -> Body:
        """Raises UnsupportedMedia or BadRequest where it can't be one."""
        ...


Heard = Callable[[str | None, str, str, str, int], None]
"""Told of each request: calling title (None of somebody unknown), address, method, path, HTTP
status; may block."""

Metrics = Callable[[], bytes]
"""All metrics in Prometheus' text format 0.0.4; may block for some seconds."""

Health = Callable[[], Mapping[str, str]]
"""What is not well: name of the part -> one sentence; empty where all is well. Never blocks."""
