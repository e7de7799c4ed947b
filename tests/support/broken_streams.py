"""Streams of PDUs that are almost right: `a_broken_stream(seed)`.

Comes in: a seed; the same one gives the same stream. Goes out: what to send, piece by piece,
and how to leave. The mutations know the grammar (PS3.8 9.3, PS3.7 6.3): lengths that claim
too much or too little at any level, wrong types and bits, items in the wrong place, twice or
not at all, PDUs out of order, streams cut anywhere.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pydicom.uid import generate_uid

from tests.support.raw_peer import (
    ABORT,
    ASSOCIATE_RJ,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    a_c_echo,
    a_c_store,
    a_command,
    a_context,
    a_fragment,
    an_association_request,
    item,
    pdu,
    usual_contexts,
)


class Leaving(StrEnum):
    """How the stream ends."""

    CLOSE = "close"
    RESET = "reset"
    WAIT = "wait"
    """Says nothing more until it is shown out."""
    RELEASE = "release"


@dataclass(frozen=True)
class BrokenStream:
    """What is sent, and how it ends.

    Attributes:
        pieces: Sent one by one; where `listens`, after an answer to the first was heard.
    """

    seed: int
    what: str
    pieces: tuple[bytes, ...]
    listens: bool
    leaving: Leaving


def a_broken_stream(seed: int, data_set: bytes) -> BrokenStream:
    """Breaks a C-ECHO and a C-STORE of `data_set` in one or two ways."""
    chance = random.Random(seed)
    uid = generate_uid(entropy_srcs=[str(seed)])
    half = len(data_set) // 2
    pieces = [
        an_association_request(usual_contexts()),
        pdu(P_DATA, a_fragment(1, a_c_echo(), command=True, last=True)),
        pdu(P_DATA, a_fragment(3, a_c_store(uid), command=True, last=True)),
        pdu(P_DATA, a_fragment(3, data_set[:half], command=False, last=False)),
        pdu(P_DATA, a_fragment(3, data_set[half:], command=False, last=True)),
        pdu(RELEASE_RQ, b"\0" * 4),
    ]
    names = []
    for _ in range(chance.choice((1, 1, 2))):
        if len(pieces) < 2 or len(pieces[0]) < 80:
            break  # there is nothing left to break by grammar
        breaking = chance.choice(_BREAKINGS)
        names.append(breaking.__name__.strip("_"))
        pieces = [piece for piece in breaking(pieces, chance) if piece]
    return BrokenStream(
        seed,
        " and ".join(names),
        tuple(pieces),
        listens=chance.random() < 0.8,
        leaving=chance.choice(tuple(Leaving)),
    )


_Pieces = list[bytes]


def _some(pieces: _Pieces, chance: random.Random) -> int:
    return chance.randrange(len(pieces))


def _with(pieces: _Pieces, place: int, piece: bytes) -> _Pieces:
    return [*pieces[:place], piece, *pieces[place + 1 :]]


def _a_length(chance: random.Random, true: int, width: int) -> int:
    top = (1 << 8 * width) - 1
    odd = (0, 1, 2, 3, true - 1, true + 1, true + 2, true * 2, true // 2, top, top - 1, top // 2)
    return min(max(chance.choice(odd), 0), top)


def _pdu_length(pieces: _Pieces, chance: random.Random) -> _Pieces:
    place = _some(pieces, chance)
    piece = pieces[place]
    length = _a_length(chance, len(piece) - 6, 4)
    return _with(pieces, place, piece[:2] + struct.pack(">L", length) + piece[6:])


def _pdu_type(pieces: _Pieces, chance: random.Random) -> _Pieces:
    place = _some(pieces, chance)
    return _with(pieces, place, bytes((chance.randrange(256),)) + pieces[place][1:])


def _item_length(pieces: _Pieces, chance: random.Random) -> _Pieces:
    """Of any item or sub-item of the association request."""
    request = pieces[0]
    places = _items(request, 74, len(request))
    place = chance.choice(places)
    true = int.from_bytes(request[place + 2 : place + 4], "big")
    length = struct.pack(">H", _a_length(chance, true, 2))
    return _with(pieces, 0, request[: place + 2] + length + request[place + 4 :])


def _item_type(pieces: _Pieces, chance: random.Random) -> _Pieces:
    request = pieces[0]
    place = chance.choice(_items(request, 74, len(request)))
    kind = chance.choice((0, 0x10, 0x20, 0x21, 0x30, 0x40, 0x50, 0x51, 0x54, 0x55, 0x58, 0xFF))
    return _with(pieces, 0, request[:place] + bytes((kind,)) + request[place + 1 :])


def _items(data: bytes, place: int, end: int) -> list[int]:
    found = []
    while place + 4 <= end:
        found.append(place)
        after = place + 4 + int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place] in (0x20, 0x50):
            found += _items(data, place + (8 if data[place] == 0x20 else 4), min(after, end))
        place = after
    return found


def _odd_request(pieces: _Pieces, chance: random.Random) -> _Pieces:
    """An association request that no library would make."""
    lots = bytes(chance.randrange(256) for _ in range(200))
    odd = chance.choice(
        (
            an_association_request([]),
            an_association_request(usual_contexts() * 3),
            an_association_request([a_context(0, "1.2.840.10008.1.1", [])]),
            an_association_request([a_context(2, "", ["", ""]), *usual_contexts()]),
            an_association_request([a_context(1, "9" * 300, ["9" * 300])]),
            an_association_request(usual_contexts(), called="\0\xff\\"),
            an_association_request(usual_contexts(), more=item(0x58, lots)),
            an_association_request(usual_contexts(), more=item(0x56, lots) + item(0x57, lots)),
            an_association_request(usual_contexts(), more=item(0x54, lots) * 20),
            an_association_request(usual_contexts(), more=item(0x53, b"\0")),
            an_association_request(usual_contexts(), more=item(0x51, b"\0\0\0\0")),
            an_association_request(usual_contexts(), more=item(0x51, b"\0\0\0\7")),
            an_association_request([item(0x20, lots)]),
            an_association_request([lots]),
        )
    )
    return _with(pieces, 0, odd)


def _fragment_length(pieces: _Pieces, chance: random.Random) -> _Pieces:
    place = chance.randrange(1, 5)
    piece = pieces[min(place, len(pieces) - 1)]
    length = struct.pack(">L", _a_length(chance, len(piece) - 10, 4))
    return _with(pieces, min(place, len(pieces) - 1), piece[:6] + length + piece[10:])


def _fragment_context(pieces: _Pieces, chance: random.Random) -> _Pieces:
    place = min(chance.randrange(1, 5), len(pieces) - 1)
    piece = pieces[place]
    return _with(pieces, place, piece[:10] + bytes((chance.randrange(256),)) + piece[11:])


def _control_header(pieces: _Pieces, chance: random.Random) -> _Pieces:
    place = min(chance.randrange(1, 5), len(pieces) - 1)
    piece = pieces[place]
    return _with(pieces, place, piece[:11] + bytes((chance.randrange(256),)) + piece[12:])


def _command_element(pieces: _Pieces, chance: random.Random) -> _Pieces:
    """A command with an element missing, wrong, too long or of another kind."""
    field = chance.choice(
        (
            0x0001,
            0x0020,
            0x0021,
            0x0030,
            0x0100,
            0x0110,
            0x0130,
            0x0140,
            0x0150,
            0x0FFF,
            0x8001,
            0x8030,
            0x8100,
            0x8130,
            0x7777,
        )
    )
    elements = [
        (0x0002, b"1.2.840.10008.5.1.4.1.1.2\0"),
        (0x0100, struct.pack("<H", field)),
        (0x0110, struct.pack("<H", chance.randrange(65536))),
        (0x0120, struct.pack("<H", chance.randrange(65536))),
        (0x0700, struct.pack("<H", 2)),
        (0x0800, struct.pack("<H", chance.choice((0x0101, 1, 0, 0xFFFF)))),
        (0x0900, struct.pack("<H", chance.randrange(65536))),
        (0x1000, chance.choice((b"1.2.3\0", b"", b"../../evil", b"\xff" * 70, b"1\\2\\3\0"))),
        (0x1002, struct.pack("<H", 1)),
        (0x1008, struct.pack("<H", 1)),
    ]
    kept = [one for one in elements if chance.random() < 0.85]
    for number, (tag, value) in enumerate(kept):
        if chance.random() < 0.1:
            kept[number] = (tag, value + bytes(chance.randrange(5)))
    context = chance.choice((1, 3, 5, 255))
    command = pdu(P_DATA, a_fragment(context, a_command(kept), command=True, last=True))
    return _with(pieces, min(2, len(pieces) - 1), command)


def _command_bytes(pieces: _Pieces, chance: random.Random) -> _Pieces:
    place = min(chance.choice((1, 2)), len(pieces) - 1)
    piece = bytearray(pieces[place])
    for _ in range(chance.randrange(1, 8)):
        if len(piece) > 12:
            piece[chance.randrange(12, len(piece))] = chance.randrange(256)
    return _with(pieces, place, bytes(piece))


def _any_bytes(pieces: _Pieces, chance: random.Random) -> _Pieces:
    place = _some(pieces, chance)
    piece = bytearray(pieces[place])
    for _ in range(chance.randrange(1, 20)):
        piece[chance.randrange(len(piece))] = chance.randrange(256)
    return _with(pieces, place, bytes(piece))


def _out_of_order(pieces: _Pieces, chance: random.Random) -> _Pieces:
    shuffled = list(pieces)
    chance.shuffle(shuffled)
    return shuffled


def _twice(pieces: _Pieces, chance: random.Random) -> _Pieces:
    place = _some(pieces, chance)
    return [*pieces[:place], *[pieces[place]] * chance.choice((2, 3, 9)), *pieces[place + 1 :]]


def _left_out(pieces: _Pieces, chance: random.Random) -> _Pieces:
    place = _some(pieces, chance)
    return (pieces[:place] + pieces[place + 1 :]) or pieces


def _out_of_place(pieces: _Pieces, chance: random.Random) -> _Pieces:
    """A PDU that has no place here, or not now."""
    odd = chance.choice(
        (
            pdu(ABORT, b"\0\0\0\0"),
            pdu(ABORT, b""),
            pdu(RELEASE_RP, b"\0\0\0\0"),
            pdu(RELEASE_RQ, b""),
            pdu(ASSOCIATE_RJ, b"\0\1\1\1"),
            pdu(2, b"\0" * 80),
            pdu(P_DATA, b""),
            pdu(P_DATA, b"\0\0\0\0"),
            pdu(P_DATA, struct.pack(">L", 1) + b"\1"),
            pdu(P_DATA, struct.pack(">L", 2) + b"\1\3"),
            pdu(0, b""),
            pdu(255, b"\xff" * 100),
            b"GET / HTTP/1.1\r\n\r\n",
        )
    )
    place = chance.randrange(len(pieces) + 1)
    return [*pieces[:place], odd, *pieces[place:]]


def _cut(pieces: _Pieces, chance: random.Random) -> _Pieces:
    place = _some(pieces, chance)
    return [*pieces[:place], pieces[place][: chance.randrange(len(pieces[place]))]]


def _in_crumbs(pieces: _Pieces, chance: random.Random) -> _Pieces:
    """Cut at places that mean nothing; one of the breakings that must do no harm."""
    whole = b"".join(pieces)
    size = chance.choice((7, 100, 1000))
    start = chance.randrange(0, max(1, len(whole) - 50 * size))
    crumbs = [whole[n : n + size] for n in range(start, start + 50 * size, size)]
    return [whole[:start], *crumbs, whole[start + 50 * size :]]


_BREAKINGS: tuple[Callable[[_Pieces, random.Random], _Pieces], ...] = (
    _pdu_length,
    _pdu_type,
    _item_length,
    _item_type,
    _odd_request,
    _fragment_length,
    _fragment_context,
    _control_header,
    _command_element,
    _command_bytes,
    _any_bytes,
    _out_of_order,
    _twice,
    _left_out,
    _out_of_place,
    _cut,
    _in_crumbs,
)
