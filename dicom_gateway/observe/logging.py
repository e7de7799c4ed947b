"""Structured logs on standard error, JSON or for people, never with a patient attribute.

In: events from every room and from the libraries below them. Out: one line each. Nothing
is kept. Two habits keep patients out: libraries that log data sets are silenced to
warnings without their content, and a traceback is written as places and types only, since
the message of a foreign exception may quote a data element's value.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

_QUIET = ("pynetdicom", "pydicom", "highdicom", "alembic", "sqlalchemy")
"""Libraries whose records may carry parts of data sets, or only repeat ours."""


class _StandardError:
    """Standard error as it is now; what it doesn't take is lost, and nothing else with it.

    A full disk under it, or a pipe that nobody reads any more, ends no thread.
    """

    def write(self, text: str) -> None:
        """Writes, if it can."""
        with suppress(OSError, ValueError):  # a ValueError where it is closed
            sys.stderr.write(text)

    def flush(self) -> None:
        """Flushes, if it can."""
        with suppress(OSError, ValueError):
            sys.stderr.flush()


_STANDARD_ERROR = cast(TextIO, _StandardError())


def set_up_logging(style: Literal["json", "console"] = "json", level: int = logging.INFO) -> None:
    """Sets the process's logging up; call it once, before the first thread.

    Args:
        style: "json" for machines (one object a line), "console" for a terminal.
        level: Lowest level of our own events.
    """
    _configure(style, level)
    for name in _QUIET:
        library = logging.getLogger(name)
        library.handlers = [logging.NullHandler()]
        library.setLevel(logging.CRITICAL)
        library.propagate = False


def _configure(style: Literal["json", "console"], level: int) -> None:
    renderer: Any = structlog.processors.JSONRenderer()
    if style == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            places_only,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_names: structlog.PrintLogger(_STANDARD_ERROR),
        cache_logger_on_first_use=False,
    )


def level_of(said: str | None) -> int:
    """A level by its name in the environment; INFO where it says nothing known."""
    return logging.DEBUG if (said or "").lower() == "debug" else logging.INFO


def get_logger(**context: Any) -> FilteringBoundLogger:
    """A logger that adds `context` to each of its events."""
    return cast(FilteringBoundLogger, structlog.get_logger(**context))


def places_only(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replaces `exc_info` by exception types and code places, without messages.

    Messages of our own errors are clean by the habit of `errors.py`, but a pydicom or
    numpy exception deep in the chain may quote a value.
    """
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    elif isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        chain = []
        seen: set[int] = set()
        one: BaseException | None = error
        while one is not None and id(one) not in seen:
            seen.add(id(one))
            chain.append({"type": type(one).__qualname__, "at": _places(one.__traceback__)})
            one = one.__cause__ or one.__context__
        event["error_chain"] = chain
    return event


def _places(trace: TracebackType | None) -> list[str]:
    return [
        f"{frame.f_globals.get('__name__', '?')}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(trace)
    ]


# structlog's own default prints local variables below a traceback: never here, not even
# for a program that forgets to call `set_up_logging`.
_configure("json", logging.INFO)
