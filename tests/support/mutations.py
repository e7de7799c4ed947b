"""Instances as no scanner would make them: true ones, changed by somebody who knows the grammar.

Comes in: a number. Goes out: `Mutant`, the same for the same number: encoded bytes, how they
are announced, and what was done to them, so that a finding can be made again.

Source: PS3.5 7.1 (elements), 7.5 (sequences), 6.2 (value representations), A.4 (encapsulated
pixel data).
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from clients.send import Found
from tests.support.dicom import a_ct_series, as_file_bytes, encoded

_LONG = frozenset((b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OD", b"OF", b"OL", b"OV"))
_SYNTAXES = (
    ExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
)
_PIXELS = 0x7FE00010
_UIDS = (0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00200052)
_GEOMETRY = (0x00200032, 0x00200037, 0x00280030, 0x00180050, 0x00281052, 0x00281053, 0x00201041)
_LAYOUT = (
    0x00280010,
    0x00280011,
    0x00280100,
    0x00280101,
    0x00280102,
    0x00280103,
    0x00280002,
)


@dataclass
class Element:
    """One element of the top level; `claims` is the length it will claim, if not its own."""

    tag: int
    vr: bytes
    value: bytes
    claims: int | None = None


@dataclass
class Mutant:
    """One changed instance.

    Attributes:
        series_instance_uid: Of the true one; the changed bytes may say another.
        done: What was done to it.
    """

    number: int
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    encoded_dataset: bytes
    done: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> Found:
        """As a file whose head says what it was before."""
        (true,) = a_ct_series(1, rows=2, columns=2)
        true.SOPInstanceUID = true.file_meta.MediaStorageSOPInstanceUID = self.sop_instance_uid
        true.file_meta.TransferSyntaxUID = self.transfer_syntax_uid
        del true.PixelData
        true.clear()
        true.SOPClassUID, true.SOPInstanceUID = self.sop_class_uid, self.sop_instance_uid
        head = as_file_bytes(true)
        path = folder / f"{self.number:05d}.dcm"
        begins_at = 144 + struct.unpack_from("<I", head, 140)[0]
        path.write_bytes(head[:begins_at] + self.encoded_dataset)
        return Found(
            path,
            self.sop_class_uid,
            self.sop_instance_uid,
            self.transfer_syntax_uid,
            len(self.encoded_dataset),
        )


def a_mutant(number: int) -> Mutant:
    """The instance of that number, with one to three changes."""
    rng = random.Random(number)
    syntax = rng.choice(_SYNTAXES)
    size = rng.choice((32, 40, 64))
    (true,) = a_ct_series(
        1,
        rows=size,
        columns=size,
        transfer_syntax_uid=syntax,
        series_instance_uid=f"1.2.826.{number}.1",
        study_instance_uid=f"1.2.826.{number}",
        frame_of_reference_uid=f"1.2.826.{number}.2",
    )
    true.SOPInstanceUID = f"1.2.826.{number}.1.1"
    mutant = Mutant(
        number,
        str(true.SOPClassUID),
        str(true.SOPInstanceUID),
        str(true.SeriesInstanceUID),
        str(syntax),
        encoded(true),
    )
    explicit = syntax != ImplicitVRLittleEndian
    elements = _parse(mutant.encoded_dataset, explicit=explicit)
    for _ in range(rng.randint(1, 3)):
        change = rng.choice(CHANGES)
        change(rng, elements)
        mutant.done.append(change.__name__.removeprefix("_"))
    mutant.encoded_dataset = _encode(elements, explicit=explicit)
    if rng.random() < 0.2:
        change_bytes = rng.choice((_cut_off, _flip_bytes, _junk_behind))
        mutant.encoded_dataset = change_bytes(rng, mutant.encoded_dataset)
        mutant.done.append(change_bytes.__name__.removeprefix("_"))
    return mutant


def _parse(encoded_dataset: bytes, *, explicit: bool) -> list[Element]:
    elements, place = [], 0
    while place < len(encoded_dataset):
        group, number = struct.unpack_from("<HH", encoded_dataset, place)
        vr = encoded_dataset[place + 4 : place + 6] if explicit else b""
        if not explicit:
            length, begins = struct.unpack_from("<I", encoded_dataset, place + 4)[0], place + 8
        elif vr in _LONG:
            length, begins = struct.unpack_from("<I", encoded_dataset, place + 8)[0], place + 12
        else:
            length, begins = struct.unpack_from("<H", encoded_dataset, place + 6)[0], place + 8
        claims = None
        if length == 0xFFFFFFFF:  # encapsulated pixel data, the last element
            claims, length = length, len(encoded_dataset) - begins
        value = encoded_dataset[begins : begins + length]
        elements.append(Element(group << 16 | number, vr, value, claims))
        place = begins + length
    return elements


def _encode(elements: list[Element], *, explicit: bool) -> bytes:
    pieces = []
    for one in elements:
        length = len(one.value) if one.claims is None else one.claims
        tag = struct.pack("<HH", one.tag >> 16, one.tag & 0xFFFF)
        if not explicit:
            head = struct.pack("<I", length & 0xFFFFFFFF)
        elif one.vr in _LONG:
            head = one.vr + struct.pack("<HI", 0, length & 0xFFFFFFFF)
        else:
            head = one.vr + struct.pack("<H", length & 0xFFFF)
        pieces += [tag, head, one.value]
    return b"".join(pieces)


# Changes of elements ------------------------------------------------------------------


def _length_lies(rng: random.Random, elements: list[Element]) -> None:
    one = rng.choice(elements)
    true = len(one.value)
    one.claims = rng.choice(
        (0, 1, true + 1, true + 2, max(0, true - 2), 0x7FFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
    )


def _other_vr(rng: random.Random, elements: list[Element]) -> None:
    one = rng.choice(elements)
    one.vr = rng.choice((b"SQ", b"UN", b"OB", b"US", b"DS", b"PN", b"AT", b"FD", b"ZZ", b"\0\0"))


def _nested(rng: random.Random, elements: list[Element]) -> None:
    depth = rng.choice((1, 10, 500, 3000))
    opened = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    close = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    closed = depth if rng.random() < 0.7 else depth // 2
    value = item + (opened + item) * depth + close * closed + close
    _put(elements, Element(0x00081140, b"SQ", value, 0xFFFFFFFF))


def _many_items(rng: random.Random, elements: list[Element]) -> None:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    _put(elements, Element(0x00081140, b"SQ", item * rng.choice((100, 20_000))))


def _odd_uid(rng: random.Random, elements: list[Element]) -> None:
    one = _one_of(rng, elements, _UIDS)
    one.value = rng.choice(
        (
            b"",
            b"../../../../etc/passwd",
            b"1.2.3/../../x ",
            b"1." * 60,
            b"1.2.\0\0\0",
            b"1..2",
            b".1",
            b"CANARY^SECRET",
            b"\xff\xfe\xfd\xfc",
            b"1.2.3\\4.5.6 ",
            b"0" * 64,
            b"1.2.840.99".ljust(64, b"\0"),
        )
    )


def _odd_charset(rng: random.Random, elements: list[Element]) -> None:
    _put(
        elements,
        Element(
            0x00080005,
            b"CS",
            rng.choice(
                (b"ISO_IR 192", b"ISO 2022 IR 87", b"GB18030 ", b"\\ISO 2022 IR 149 ", b"NOPE", b"")
            ),
        ),
    )
    names = (0x00100010, 0x00081030, 0x00080080)
    value = bytes(rng.randrange(256) for _ in range(2 * rng.randint(1, 40)))
    _put(elements, Element(rng.choice(names), b"PN", value))


def _odd_geometry(rng: random.Random, elements: list[Element]) -> None:
    one = _one_of(rng, elements, _GEOMETRY)
    one.value = rng.choice(
        (
            b"",
            b"NaN ",
            b"nan\\nan\\nan ",
            b"inf\\inf\\inf ",
            b"1e308\\-1e308\\1e308 ",
            b"0\\0\\0\\0\\0\\0 ",
            b"1\\0\\0\\1\\0\\0 ",
            b"1e-320\\0\\0\\0\\1\\0 ",
            b"1\\2 ",
            b"1\\2\\3\\4\\5\\6\\7 ",
            b"CANARY",
            b"0 ",
            b"-1",
            b"1,5 ",
            b"9" * 400,
            b"\\\\\\ ",
            b"\xff\xff",
        )
    )


def _odd_layout(rng: random.Random, elements: list[Element]) -> None:
    one = _one_of(rng, elements, _LAYOUT)
    one.value = rng.choice(
        (
            b"",
            b"\0\0",
            b"\1\0",
            b"\xff\xff",
            b"\7\0",
            b"\x0c\0",
            b"\x40\0",
            b"\1\0\1\0",
            b"\0",
            b"text",
        )
    )


def _odd_frames(rng: random.Random, elements: list[Element]) -> None:
    value = rng.choice(
        (b"0 ", b"-1", b"312 ", b"99999999999 ", b"x ", b"", b"1\\2 ", b"2147483648")
    )
    _put(elements, Element(0x00280008, b"IS", value))


def _odd_photometry(rng: random.Random, elements: list[Element]) -> None:
    names = (
        b"RGB ",
        b"PALETTE COLOR ",
        b"YBR_FULL_422",
        b"MONOCHROME1 ",
        b"",
        b"NOPE",
        b"\xff\xff",
    )
    _put(elements, Element(0x00280004, b"CS", rng.choice(names)))


def _other_pixels(rng: random.Random, elements: list[Element]) -> None:
    one = _one_of(rng, elements, (_PIXELS,))
    one.value = rng.choice(
        (
            b"",
            one.value[: len(one.value) // 2],
            one.value + b"\0" * rng.choice((2, 10_000)),
            bytes(rng.randrange(256) for _ in range(200)),
            _rle_bomb(),
            _fragments(b"\xff\xd8\xff\xf7" + bytes(60)),
            _fragments(b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60)),
            _fragments(b""),
            struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFF0),
        )
    )


def _dropped(rng: random.Random, elements: list[Element]) -> None:
    elements.remove(rng.choice(elements))
    if not elements:
        elements.append(Element(0x00080018, b"UI", b"1.2 "))


def _doubled(rng: random.Random, elements: list[Element]) -> None:
    place = rng.randrange(len(elements))
    one = elements[place]
    elements.insert(place, Element(one.tag, one.vr, one.value, one.claims))


def _disordered(rng: random.Random, elements: list[Element]) -> None:
    rng.shuffle(elements)


def _private(rng: random.Random, elements: list[Element]) -> None:
    value = bytes(rng.randrange(256) for _ in range(2 * rng.randint(0, 60)))
    _put(elements, Element(rng.choice((0x00091001, 0x00290010, 0x7FE11010)), b"UN", value))


CHANGES: tuple[Callable[[random.Random, list[Element]], None], ...] = (
    _length_lies,
    _other_vr,
    _nested,
    _many_items,
    _odd_uid,
    _odd_charset,
    _odd_geometry,
    _odd_geometry,
    _odd_layout,
    _odd_layout,
    _odd_frames,
    _odd_photometry,
    _other_pixels,
    _other_pixels,
    _dropped,
    _doubled,
    _disordered,
    _private,
)


# Changes of bytes ---------------------------------------------------------------------


def _cut_off(rng: random.Random, encoded_dataset: bytes) -> bytes:
    return encoded_dataset[: rng.randrange(1, max(2, len(encoded_dataset)))]


def _flip_bytes(rng: random.Random, encoded_dataset: bytes) -> bytes:
    changed = bytearray(encoded_dataset)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _junk_behind(rng: random.Random, encoded_dataset: bytes) -> bytes:
    return encoded_dataset + bytes(rng.randrange(256) for _ in range(rng.randint(1, 64)))


# Pieces -------------------------------------------------------------------------------


def _put(elements: list[Element], new: Element) -> None:
    """In its place by tag, for the element that is there."""
    elements[:] = [one for one in elements if one.tag != new.tag]
    place = sum(one.tag < new.tag for one in elements)
    elements.insert(place, new)


def _one_of(rng: random.Random, elements: list[Element], tags: tuple[int, ...]) -> Element:
    there = [one for one in elements if one.tag in tags]
    return rng.choice(there or elements)


def _fragments(*fragments: bytes) -> bytes:
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(one)) + one for one in fragments)
    offsets = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    return offsets + items + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _rle_bomb() -> bytes:
    """Few bytes that claim to be very many (PS3.5 G.5)."""
    return _fragments(struct.pack("<16I", 15, *([64] * 15)) + b"\x81\0" * 2)
