"""The elements of an encoded data set, one after the other, without decoding any of them.

In: bytes, and which elements are wanted. Out: their raw values. Only the top level is looked
at, nothing is recursed into, nothing is allocated by a length that a peer claims; so it is
quick, and safe with bytes of strangers. What the values mean is for others to say.

Source: PS3.5 7.1 (elements), 7.5 (sequences).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

Encoded: TypeAlias = bytes | bytearray | mmap.mmap

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
"""Float Pixel Data, Double Float Pixel Data, Pixel Data."""

_LONG_LENGTH_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
"""These have two reserved bytes and a 32-bit length (PS3.5 Table 7.1-1)."""
_UNDEFINED = 0xFFFFFFFF
_VALUE_LIMIT_BYTES = 64 * 1024
"""Nothing that anybody asks for is as long: a peer must not choose how much is copied."""
_ELEMENTS_LIMIT = 1_000_000
"""In all, in sequences of undefined length too: an enhanced object of ten thousand frames has
half as many; each takes a microsecond."""
ITEMS_LIMIT = 500_000
"""Ten thousand frames of an enhanced object have some 140,000 between them; pydicom makes an
object of a kilobyte of each, whether anybody asks for it or not."""
_ITEM = 0xFFFEE000
ITEM_BEGINNINGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""(FFFE,E000) in either byte order."""
_CHUNK_BYTES = 4 << 20
_ITEM_END = 0xFFFEE00D
_SEQUENCE_END = 0xFFFEE0DD


@dataclass(frozen=True, slots=True)
class Raw:
    """One element as it stands there.

    Attributes:
        vr: Two letters; empty where the transfer syntax has implicit VR.
        value: Its bytes; None where its length is undefined, or more than anybody asks for.
    """

    vr: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Walked:
    """What a walk has met.

    Attributes:
        elements: The wanted ones that are there, by tag.
        pixels: The tag of the pixels; 0 where there are none.
        missing_bytes: Of pixels that are cut off.
        odd: Why the walk ended before the end; empty where it didn't.
        ended_at: Where the next element would begin, in bytes.
        too_long: Tags of wanted ones that are longer than anything that is asked for.
        too_many: There are more elements than any real object has; the walk ended there.
    """

    elements: dict[int, Raw]
    pixels: int
    missing_bytes: int
    odd: str
    ended_at: int
    too_long: frozenset[int] = frozenset()
    too_many: bool = False


def has_too_many_items(path: Path) -> bool:
    """Whether pydicom had better not read a file: a peer has filled it with sequence items.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return count_items(file, path.stat().st_size) > ITEMS_LIMIT


def count_items(file: BinaryIO, limit_bytes: int) -> int:
    """How often the beginning of an item (FFFE,E000) stands in the next bytes of a file.

    Wherever that is: what is oddly encoded can't hide one. In pixels it stands by chance in
    one file of some gigabytes.
    """
    count, left_bytes, end = 0, limit_bytes, b""
    while left_bytes > 0 and (chunk := file.read(min(_CHUNK_BYTES, left_bytes))):
        found = end + chunk
        count += sum(map(found.count, ITEM_BEGINNINGS))
        end, left_bytes = chunk[-3:], left_bytes - len(chunk)
    return count


class _Odd(Exception):
    """The bytes at hand don't look like an element."""


def walk(
    encoded: Encoded,
    wanted: Set[int],
    *,
    transfer_syntax_uid: str,
    begins_at: int = 0,
    last_group: int = 0xFFFF,
) -> Walked:
    """Looks at every element of the top level, as far as they can be read.

    Args:
        encoded: The data set; bytes before `begins_at` are not looked at.
        wanted: Tags.
        transfer_syntax_uid: How it is encoded; not a deflated one.
        begins_at: Where it begins.
        last_group: Elements of later groups are not looked at.
    """
    pass_ = _Pass(
        encoded,
        wanted,
        explicit=transfer_syntax_uid != IMPLICIT_LITTLE_ENDIAN,
        byte_order=">" if transfer_syntax_uid == EXPLICIT_BIG_ENDIAN else "<",
    )
    odd = ""
    try:
        pass_.go(begins_at, last_group)
    except struct.error:
        odd = "they end in the middle of an element"
    except _Odd as error:
        odd = str(error)
    return Walked(
        pass_.elements,
        pass_.pixels,
        pass_.missing_bytes,
        odd,
        pass_.place,
        frozenset(pass_.too_long),
        pass_.left <= 0,
    )


class _Pass:
    """One pass over the top level of an encoded data set; its attributes are `Walked`'s."""

    def __init__(
        self, encoded: Encoded, wanted: Set[int], *, explicit: bool, byte_order: str
    ) -> None:
        self._bytes = encoded
        self._wanted = wanted
        self._explicit = explicit
        self._tag = struct.Struct(f"{byte_order}HH").unpack_from
        self._explicit_head = struct.Struct(f"{byte_order}HH2sH").unpack_from
        self._long = struct.Struct(f"{byte_order}I").unpack_from
        self.elements: dict[int, Raw] = {}
        self.pixels = 0
        self.missing_bytes = 0
        self.place = 0
        self.too_long: set[int] = set()
        self.left = _ELEMENTS_LIMIT

    def go(self, place: int, last_group: int) -> None:
        """From `place` on."""
        encoded, wanted, end, last = self._bytes, self._wanted, len(self._bytes), -1
        while place < end:
            self.place = place
            # Before it is read as an element: what follows may be encoded in another way.
            if last_group < 0xFFFF and self._tag(encoded, place)[0] > last_group:
                return
            tag, vr, length, value = self._element(place, explicit=self._explicit)
            if tag <= last:
                msg = "elements are not in ascending order"  # PS3.5 7.1
                raise _Odd(msg)
            last = tag
            if tag in PIXELS:
                self.pixels = tag
                if length == _UNDEFINED:
                    return  # encapsulated; whether it decodes is not asked here
                self.missing_bytes = max(0, value + length - end)
                if self.missing_bytes:
                    return
            elif length == _UNDEFINED:
                if tag in wanted:
                    self.elements[tag] = Raw(vr, None)
                place = self._after_sequence(value, explicit=self._explicit and vr != b"UN")
                continue
            elif value + length > end:
                msg = f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) is longer than what is left"
                raise _Odd(msg)
            elif tag in wanted and length > _VALUE_LIMIT_BYTES:
                self.elements[tag] = Raw(vr, None)
                self.too_long.add(tag)
            elif tag in wanted:
                self.elements[tag] = Raw(vr, bytes(encoded[value : value + length]))
            place = value + length
        self.place = place

    def _element(self, place: int, *, explicit: bool) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty where implicit), length, and where the value begins."""
        self.left -= 1
        if self.left <= 0:
            msg = f"there are more than {_ELEMENTS_LIMIT} elements"
            raise _Odd(msg)
        if not explicit:
            group, element = self._tag(self._bytes, place)
            return group << 16 | element, b"", self._long(self._bytes, place + 4)[0], place + 8
        group, element, vr, length = self._explicit_head(self._bytes, place)
        tag = group << 16 | element
        if group == 0xFFFE:
            return tag, b"", self._long(self._bytes, place + 4)[0], place + 8
        if vr in _LONG_LENGTH_VRS:
            return tag, vr, self._long(self._bytes, place + 8)[0], place + 12
        if vr.isalpha() and vr.isupper():
            return tag, vr, length, place + 8
        msg = "an element has no value representation"
        raise _Odd(msg)

    def _after_sequence(self, place: int, *, explicit: bool) -> int:
        """Where the element after a sequence of undefined length begins.

        Nested sequences are counted, not recursed into: a peer chooses their depth.
        """
        # True for explicit VR inside; a UN of undefined length holds implicit VR (PS3.5 6.2.2).
        open_levels = [explicit]
        while open_levels:
            tag, vr, length, value = self._element(place, explicit=open_levels[-1])
            if tag in (_SEQUENCE_END, _ITEM_END):
                if tag == _SEQUENCE_END:
                    open_levels.pop()
                place = value
            elif length != _UNDEFINED:
                if value + length > len(self._bytes):
                    msg = "a sequence is longer than what is left"
                    raise _Odd(msg)
                place = value + length
            else:
                if tag != _ITEM:
                    open_levels.append(open_levels[-1] and vr != b"UN")
                place = value
        return place
