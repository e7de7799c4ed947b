"""DICOMweb, what a peer accepts: the Accept header, and which media type a frame has.

In: header and query of a request. Out: media ranges, the best first.

Source: PS3.18 8.7 (media types), RFC 9110 12.5.1 (Accept).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value

from starlette.requests import Request

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
OCTETS = "application/octet-stream"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
ANY_SYNTAX = "*"

_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57")
FRAME_TYPES = {
    **dict.fromkeys((*_JPEG, "1.2.840.10008.1.2.4.70"), "image/jpeg"),
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
"""PS3.18 Table 8.7.3-5."""


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One entry of an Accept header.

    Attributes:
        kind: Such as "multipart/related", "*/*".
        part: For multipart/related the type of its parts; else as `kind`.
        transfer_syntax: A UID, "*" for whatever it is, or None where nothing was said.
    """

    kind: str
    part: str
    transfer_syntax: str | None
    q: float

    def takes(self, media_type: str) -> bool:
        """Whether parts (or a single body) of this type are taken."""
        family = media_type.partition("/")[0]
        return self.part in (media_type, f"{family}/*", "*/*")

    def takes_syntax(self, transfer_syntax_uid: str, default: str | None = None) -> bool:
        """Whether this transfer syntax is taken; `default` is meant where nothing was said."""
        wanted = self.transfer_syntax or default or ANY_SYNTAX
        return wanted in (ANY_SYNTAX, transfer_syntax_uid)


def accepted(request: Request) -> list[MediaRange]:
    """What the peer takes, the best first; anything where it says nothing."""
    # PS3.18 8.3.3.1: the query parameter stands for a header that a browser can't set.
    # A plus sign that isn't written as %2B arrives there as a space.
    asked = [
        one.replace("dicom json", "dicom+json") for one in request.query_params.getlist("accept")
    ]
    headers = asked or request.headers.getlist("accept")
    ranges = [_range(text) for header in headers for text in _split(header) if text.strip()]
    ranges = [one for one in ranges if one.q > 0]
    if not headers:
        ranges = [MediaRange("*/*", "*/*", None, 1.0)]
    return sorted(ranges, key=lambda one: -one.q)


def _range(text: str) -> MediaRange:
    message = Message()
    message["content-type"] = text.strip()
    found = message.get_params(header="content-type") or [("*/*", "")]
    kind = found[0][0].lower()
    parameters = {name.lower(): collapse_rfc2231_value(value) for name, value in found[1:]}
    part = parameters.get("type", "*/*").lower() if kind == "multipart/related" else kind
    try:
        q = float(parameters.get("q", "1"))
    except ValueError:
        q = 0.0
    return MediaRange(kind, part, parameters.get("transfer-syntax"), q)


def _split(header: str) -> Iterator[str]:
    """At the commas that are not within quotes."""
    start, quoted = 0, False
    for place, character in enumerate(header):
        quoted ^= character == '"'
        if character == "," and not quoted:
            yield header[start:place]
            start = place + 1
    yield header[start:]
