"""Multipart bodies: the same parts in whatever pieces they come, and limits on all of it."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_gateway.errors import BadRequest
from dicom_gateway.receive.multipart import (
    HEADER_LIMIT_BYTES,
    PREAMBLE_LIMIT_BYTES,
    MultipartReader,
    PartBegins,
    PartBytes,
)

BOUNDARY = "a-b"


def parts_of(body: bytes, cuts: list[int] | None = None) -> list[tuple[dict[str, str], bytes]]:
    """Headers and content of each part of a whole body, fed in pieces cut at these places."""
    reader = MultipartReader(BOUNDARY)
    places = sorted({0, len(body), *(cut for cut in cuts or [] if cut < len(body))})
    found: list[tuple[dict[str, str], bytes]] = []
    whole = 0
    for start, end in pairwise(places):
        for event in reader.feed(body[start:end]):
            if isinstance(event, PartBegins):
                found.append((event.headers, b""))
            elif isinstance(event, PartBytes):
                found[-1] = (found[-1][0], found[-1][1] + event.data)
            else:
                whole += 1
    assert reader.ended
    assert whole == len(found)
    return found


def a_body(*contents: bytes) -> bytes:
    """A body with these parts."""
    parts = (
        b"--a-b\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in contents
    )
    return b"".join(parts) + b"--a-b--\r\n"


LOOKALIKES = (b"", b"\r\n--a-", b"\r\n--a-bc", b"--a-b", b"\r\n\r\n", b"\r\n-", b"\r\n--a-b-x")


@settings(deadline=None)
@given(
    contents=st.lists(
        st.lists(st.sampled_from(LOOKALIKES) | st.binary(max_size=40), max_size=4).map(b"".join),
        max_size=4,
    ),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_parts_come_out_as_they_went_in(contents: list[bytes], cuts: list[int]) -> None:
    """However the body is cut, and whatever looks like a boundary in it."""
    a_boundary = rb"(\A|\r\n)--a-b(--|[ \t]*(\r\n|\r?\Z))"
    contents = [one for one in contents if not re.search(a_boundary, one)]
    assert [content for _, content in parts_of(a_body(*contents), cuts)] == contents


def test_what_stands_around_the_parts_is_left_out() -> None:
    """Preamble, padding behind a boundary, epilogue (RFC 2046 5.1.1)."""
    body = (
        b"a preamble\r\n--a-b \t\r\nX-One: 1\r\n folded\r\nx-two:2\r\n\r\nfirst\r\n"
        b"--a-b\r\n\r\nsecond\r\n--a-b--\r\nan epilogue --a-b\r\n"
    )
    assert parts_of(body) == [({"x-one": "1 folded", "x-two": "2"}, b"first"), ({}, b"second")]


@pytest.mark.parametrize(
    "body",
    [
        b"x" * (PREAMBLE_LIMIT_BYTES + 100),
        b"--a-b\r\nX: " + b"y" * (HEADER_LIMIT_BYTES + 100),
        b"--a-b\r\nX: " + b"y" * (HEADER_LIMIT_BYTES + 100) + b"\r\n\r\n",
    ],
    ids=["no boundary", "endless header", "long header"],
)
def test_what_is_no_multipart_body_ends_soon(body: bytes) -> None:
    """Memory is not filled by what never begins."""
    reader = MultipartReader(BOUNDARY)
    with pytest.raises(BadRequest) as refused:
        reader.feed(body)
    assert refused.value.code == "bad_multipart"


@pytest.mark.parametrize("boundary", ["", "a\r\nb", "ä", "x" * 201, "ends with space "])
def test_a_boundary_that_is_none_is_refused(boundary: str) -> None:
    """Before anything of the body is read."""
    with pytest.raises(BadRequest):
        MultipartReader(boundary)


def test_bytes_of_a_part_are_not_held_back() -> None:
    """All but what may begin a boundary comes out at once."""
    reader = MultipartReader(BOUNDARY)
    reader.feed(b"--a-b\r\n\r\n")
    events = reader.feed(b"z" * 100_000)
    given_out = sum(len(event.data) for event in events if isinstance(event, PartBytes))
    assert given_out > 100_000 - 20
