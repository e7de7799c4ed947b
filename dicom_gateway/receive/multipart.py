"""Receive, MIME multipart/related piece by piece, in as much memory as one piece takes.

In: the bytes of a body in whatever pieces they come. Out: events: a part begins (with its
headers), some of its bytes, it ends. Nothing is kept: no socket, no file, no part as a whole.
Used for what is stored with us (STOW-RS) and for what we fetch (WADO-RS).

Source: RFC 2046 5.1 (multipart), RFC 2387 (related), PS3.18 8.6.1.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dicom_gateway.errors import BadRequest

HEADER_LIMIT_BYTES = 16 * 1024
"""For the headers of one part; real ones have a hundred."""
PREAMBLE_LIMIT_BYTES = 64 * 1024
"""What may stand before the first part; nearly always nothing."""
_PADDING_LIMIT_BYTES = 256
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,199}[0-9A-Za-z'()+_,./:=?-]")


@dataclass(frozen=True, slots=True)
class PartBegins:
    """The headers of a part, their names in small letters."""

    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class PartBytes:
    """The next bytes of the part that began."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnds:
    """The part is complete."""


Event = PartBegins | PartBytes | PartEnds


class MultipartReader:
    """Takes a body in pieces, gives its events.

    Args:
        boundary: As the Content-Type has it.

    Raises:
        BadRequest: it can't be a boundary.
    """

    def __init__(self, boundary: str) -> None:
        # RFC 2046 allows 70 characters; some peers write more, which does no harm.
        if _BOUNDARY.fullmatch(boundary) is None:
            msg = "the Content-Type has no usable boundary for its parts"
            raise BadRequest(msg, code="bad_multipart")
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        # So that the first delimiter, at the very beginning, looks like all others.
        self._buffer = bytearray(b"\r\n")
        self._preamble_bytes = 0
        self._step = self._in_preamble
        self._events: list[Event] = []
        self.ended = False
        """True once the closing delimiter has come; what follows it is not looked at."""

    def feed(self, piece: bytes) -> list[Event]:
        """Gives what `piece` completes; all bytes of a part come out, none is held back long.

        Raises:
            BadRequest: this is no multipart body, or its headers are too long.
        """
        self._events = []
        self._buffer += piece
        while not self.ended and self._step():
            pass
        if self.ended:
            self._buffer.clear()
        return self._events

    # Each step takes something from the buffer, or returns False: more bytes are needed.

    def _in_preamble(self) -> bool:
        found = self._next_delimiter()
        self._preamble_bytes += found.before
        if self._preamble_bytes > PREAMBLE_LIMIT_BYTES:
            msg = "the body doesn't begin with the boundary that the Content-Type names"
            raise BadRequest(msg, code="bad_multipart")
        del self._buffer[: found.before + found.length]
        return self._after(found)

    def _in_headers(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end > HEADER_LIMIT_BYTES or (end < 0 and len(self._buffer) > HEADER_LIMIT_BYTES):
            msg = f"the headers of a part are longer than {HEADER_LIMIT_BYTES} bytes"
            raise BadRequest(msg, code="bad_multipart")
        if end < 0:
            return False
        self._events.append(PartBegins(_headers(bytes(self._buffer[:end]))))
        # The line end before a delimiter is the delimiter's; an empty part has only that.
        del self._buffer[: end + 2]
        self._step = self._at_body
        return True

    def _at_body(self) -> bool:
        found = self._next_delimiter()
        if not found.before and not found.length:
            return False
        if found.before:
            del self._buffer[:2]
        self._step = self._in_body
        return True

    def _in_body(self) -> bool:
        found = self._next_delimiter()
        if found.before:
            self._events.append(PartBytes(bytes(self._buffer[: found.before])))
        del self._buffer[: found.before + found.length]
        if found.length:
            self._events.append(PartEnds())
        return self._after(found)

    def _after(self, found: _Found) -> bool:
        if not found.length:
            return False
        self.ended = found.closes
        # The headers' first line end has gone with the delimiter: a part without headers
        # begins with an empty line.
        self._buffer[:0] = b"\r\n"
        self._step = self._in_headers
        return True

    def _next_delimiter(self) -> _Found:
        start = 0
        while True:
            at = self._buffer.find(self._delimiter, start)
            if at < 0:
                # All but what may be the beginning of a delimiter.
                return _Found(max(0, len(self._buffer) - len(self._delimiter) + 1), 0)
            after = at + len(self._delimiter)
            following = bytes(self._buffer[after : after + 2])
            if following == b"--":
                return _Found(at, after + 2 - at, closes=True)
            line_end = self._buffer.find(b"\r\n", after, after + _PADDING_LIMIT_BYTES)
            if line_end >= 0 and not self._buffer[after:line_end].strip(b" \t"):
                return _Found(at, line_end + 2 - at)
            rest = self._buffer[after : after + _PADDING_LIMIT_BYTES]
            may_go_on = rest == b"-" or not rest.strip(b" \t\r")
            if may_go_on and line_end < 0 and len(rest) < _PADDING_LIMIT_BYTES:
                return _Found(at, 0)
            start = at + 1  # only looks like one


@dataclass(frozen=True, slots=True)
class _Found:
    """`before` bytes that are no delimiter, then one of `length` bytes (0: none yet)."""

    before: int
    length: int
    closes: bool = False


def _headers(raw: bytes) -> dict[str, str]:
    unfolded = re.sub(rb"\r\n[ \t]+", b" ", raw)
    headers = {}
    for line in unfolded.split(b"\r\n"):
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return headers
