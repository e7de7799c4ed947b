"""DICOMweb, WADO-RS: kept objects as they are, their metadata, and their frames.

In: files that `holdings` has found, and what the peer accepts. Out: pieces of a response body;
never more than a piece (or one header, or one frame) is in memory.

Source: PS3.18 10.4.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from dicom_gateway.web.answers import not_acceptable, not_found
from dicom_gateway.web.dicomweb.frames import FrameLayout, find_frames
from dicom_gateway.web.dicomweb.headers import UNDEFINED_LENGTH, HeaderUnreadable, read_header
from dicom_gateway.web.dicomweb.holdings import Held
from dicom_gateway.web.dicomweb.json_model import as_json
from dicom_gateway.web.dicomweb.media import (
    ANY_SYNTAX,
    DICOM,
    EXPLICIT_LITTLE_ENDIAN,
    FRAME_TYPES,
    OCTETS,
    MediaRange,
)
from dicom_gateway.web.dicomweb.transcode import POSSIBLE, transcode

_CHUNK_BYTES = 1 << 20
_GROUP_PIXELS = 0x7FE0

Pieces = Generator[bytes, None, None]
Answer = tuple[str, Pieces]
"""The media type of a response, and its body; whoever doesn't take all of it closes it."""


def objects(found: Sequence[Held], ranges: Sequence[MediaRange]) -> Answer:
    """Whole objects, as the first media range that can be served wants them.

    Raises:
        HttpError: 406: none can.
    """
    syntaxes = {one.transfer_syntax_uid for one in found}
    for wanted in ranges:
        if not wanted.takes(DICOM):
            continue
        is_single = wanted.kind == DICOM
        if is_single and len(found) > 1:
            continue
        if all(wanted.takes_syntax(syntax) for syntax in syntaxes):
            files: Iterator[tuple[str, Iterator[bytes]]] = (
                (one.transfer_syntax_uid, _pieces(one.path)) for one in found
            )
        elif wanted.takes_syntax(EXPLICIT_LITTLE_ENDIAN) and syntaxes <= POSSIBLE:
            files = _transcoded(found)
        else:
            continue
        if is_single:
            syntax, body = next(files)
            return f"{DICOM}; transfer-syntax={syntax}", _with_the_rest(body, files)
        return _multipart(
            DICOM, ((f"{DICOM}; transfer-syntax={syntax}", None, body) for syntax, body in files)
        )
    msg = (
        'these objects are given as multipart/related; type="application/dicom"; '
        f"transfer-syntax=* (they are kept in {', '.join(sorted(syntaxes))}), or in explicit VR "
        "little endian where that is possible without loss"
    )
    raise not_acceptable(msg)


def frames(one: Held, numbers: Sequence[int], ranges: Sequence[MediaRange], url: str) -> Answer:
    """Frames of one object, as they lie in its file.

    Args:
        one: The object.
        numbers: 1-based.
        ranges: What the peer accepts.
        url: Of the object.

    Raises:
        HttpError: 404: there is no such frame; 406: it isn't kept in what the peer accepts.
    """
    try:
        layout = find_frames(one.path)
    except (HeaderUnreadable, OSError) as error:
        reason = str(error) if isinstance(error, HeaderUnreadable) else "its file is gone"
        msg = f"no frame can be cut out of this instance: {reason}"
        raise not_acceptable(msg) from error
    if not all(1 <= number <= layout.number_of_frames for number in numbers):
        raise not_found(f"frame; the instance has {layout.number_of_frames}")
    media, syntax = _frame_type(layout)
    way = None if media is None else _way(ranges, media, syntax, len(numbers))
    if way is None:
        what = f'type="{media}"; transfer-syntax={syntax}' if media else "no known media type"
        msg = f"the frames of this instance are given as multipart/related; {what}"
        raise not_acceptable(msg)
    media, is_single = way
    kind = f"{media}; transfer-syntax={syntax}"
    if is_single:
        return kind, _frame(layout, numbers[0])
    return _multipart(
        media,
        ((kind, f"{url}/frames/{number}", _frame(layout, number)) for number in numbers),
    )


def metadata(found: Sequence[Held], url_of: Callable[[Held], str]) -> Pieces:
    """A DICOM JSON array with one data set for each object."""
    separator = b"["
    for one in found:
        yield separator + json.dumps(_as_json(one, url_of(one)), ensure_ascii=False).encode()
        separator = b","
    yield b"[]" if separator == b"[" else b"]"


def bulk_data(one: Held, ranges: Sequence[MediaRange]) -> Answer:
    """The pixel data of a native object, as it lies in its file.

    Raises:
        HttpError: 404: it has none, or is encapsulated: those are asked for as frames; 406: it
            is big-endian, which this media type isn't, or the peer accepts others only.
    """
    try:
        ds, pixels = read_header(one.path)
    except (HeaderUnreadable, OSError) as error:
        raise not_found("bulk data") from error
    if pixels is None:
        raise not_found("bulk data")
    if pixels.length == UNDEFINED_LENGTH:
        raise not_found("bulk data; ask for the frames")
    way = _way(ranges, OCTETS, EXPLICIT_LITTLE_ENDIAN, 1)
    if way is None or not ds.original_encoding[1]:
        msg = f"bulk data is given as {OCTETS}, and of little-endian objects only"
        raise not_acceptable(msg)
    whole = _pieces(one.path, pixels.offset, pixels.length)
    if way[1]:
        return OCTETS, whole
    return _multipart(OCTETS, iter([(OCTETS, None, whole)]))


def _way(
    ranges: Sequence[MediaRange], media: str, syntax: str, count: int
) -> tuple[str, bool] | None:
    """As which media type the peer likes best to have it, and whether without parts."""
    for wanted in ranges:
        # So viewers ask for what is there, compressed or not.
        is_any = wanted.part == OCTETS and wanted.transfer_syntax == ANY_SYNTAX
        name = OCTETS if is_any else media
        is_single = wanted.kind == name
        if is_single and count > 1:
            continue
        if wanted.takes(name) and wanted.takes_syntax(syntax):
            return name, is_single
    return None


def _frame_type(layout: FrameLayout) -> tuple[str | None, str]:
    if layout.frame_bytes is None:
        return FRAME_TYPES.get(layout.transfer_syntax_uid), layout.transfer_syntax_uid
    # Implicit and explicit VR have the same pixels; a big-endian one isn't what this says.
    is_little = layout.transfer_syntax_uid in ("1.2.840.10008.1.2", EXPLICIT_LITTLE_ENDIAN)
    return (OCTETS if is_little else None), EXPLICIT_LITTLE_ENDIAN


def _frame(layout: FrameLayout, number: int) -> Pieces:
    with layout.path.open("rb") as file:
        yield layout.read(file, number)


def _as_json(one: Held, url: str) -> dict[str, Any]:
    try:
        ds, pixels = read_header(one.path)
    except (HeaderUnreadable, OSError):
        # It is held all the same; what the index knows of it is certain.
        return {
            "00080018": {"vr": "UI", "Value": [one.sop_instance_uid]},
            "0020000D": {"vr": "UI", "Value": [one.study_instance_uid]},
            "0020000E": {"vr": "UI", "Value": [one.series_instance_uid]},
        }
    # Tag by tag: walking over a data set reads each value, and the first bad one ends the walk.
    found = as_json(ds, [tag for tag, _raw in ds.items() if tag.group != _GROUP_PIXELS])
    found["00083002"] = {"vr": "UI", "Value": [one.transfer_syntax_uid]}
    if pixels is not None:
        where = f"{url}/bulkdata" if pixels.length != UNDEFINED_LENGTH else f"{url}/frames/1"
        found[f"{pixels.tag:08X}"] = {"vr": "OW", "BulkDataURI": where}
    return dict(sorted(found.items()))


def _transcoded(found: Sequence[Held]) -> Iterator[tuple[str, Iterator[bytes]]]:
    for body in transcode([one.path for one in found]):
        yield EXPLICIT_LITTLE_ENDIAN, body


def _with_the_rest(body: Iterator[bytes], files: Iterator[tuple[str, Iterator[bytes]]]) -> Pieces:
    """Whoever makes the one file ends with `files`: not before its last piece."""
    yield from body
    for _, more in files:
        yield from more


def _pieces(path: Path, offset: int = 0, length: int | None = None) -> Pieces:
    with path.open("rb") as file:
        file.seek(offset)
        left = length
        while piece := file.read(_CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES)):
            yield piece
            left = None if left is None else left - len(piece)


def _multipart(media: str, parts: Iterator[tuple[str, str | None, Iterator[bytes]]]) -> Answer:
    boundary = secrets.token_hex(16)
    return f'multipart/related; type="{media}"; boundary={boundary}', _body(boundary, parts)


def _body(boundary: str, parts: Iterator[tuple[str, str | None, Iterator[bytes]]]) -> Pieces:
    before = ""
    for kind, location, pieces in parts:
        head = f"{before}--{boundary}\r\nContent-Type: {kind}\r\n"
        if location is not None:
            head += f"Content-Location: {location}\r\n"
        yield f"{head}\r\n".encode()
        yield from pieces
        before = "\r\n"
    yield f"{before}--{boundary}--\r\n".encode()
