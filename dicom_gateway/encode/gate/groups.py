"""What a SEG says of each of its frames, read from its bytes.

In: a SEG as it was re-read, whose functional groups nobody has touched yet. Out: a record for
each frame. A library makes twenty objects of each frame's items, which takes longer than all
other checks together. So the few elements that matter are read here, and strictly: another
encoding than ours, an element twice or out of order, a length that doesn't add up, or a value
of another VR is an error, never skipped.

Source: PS3.3 C.7.6.16 (functional groups), PS3.5 7.1.2 (explicit VR), 7.5 (items).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset

_PER_FRAME = 0x52009230
_ITEM = 0xFFFEE000
_LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT"})
"""VRs whose length has four bytes."""

_Item = dict[int, tuple[bytes, bytes]]
"""Elements by tag: VR and value."""


@dataclass(frozen=True, slots=True)
class FrameGroups:
    """One item of the Per-Frame Functional Groups Sequence, completed by the shared ones.

    Attributes:
        position: Image Position (Patient), millimetres.
        orientation: Image Orientation (Patient).
        spacing: Pixel Spacing, between rows first.
        segment: Referenced Segment Number; None where it names none.
        index: Dimension Index Values.
        sources: SOP class, instance and frame number (None without one) of each source image.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    segment: int | None
    index: tuple[int, ...]
    sources: tuple[tuple[str, str, int | None], ...]


def read_groups(ds: Dataset) -> list[FrameGroups]:
    """Reads all frames' groups.

    Raises:
        ValueError: they are not written as they should be.
        LookupError: something is missing.
    """
    raw = ds.get_item(_PER_FRAME)
    value = getattr(raw, "value", None)
    if not isinstance(value, bytes) or ds.original_encoding != (False, True):
        msg = "functional groups that are not explicit VR little endian of a known length"
        raise ValueError(msg)
    (shared,) = ds.SharedFunctionalGroupsSequence
    read = _Reader(shared)
    return [read.frame(_elements(item)) for item in _items(value)]


class _Reader:
    """Reads each distinct group once: frames on one slice have most of theirs in common."""

    def __init__(self, shared: Dataset) -> None:
        self._shared = shared
        self.position = self._either("PlanePositionSequence", "ImagePositionPatient", _decimals)
        self.orientation = self._either(
            "PlaneOrientationSequence", "ImageOrientationPatient", _decimals
        )
        self.spacing = self._either("PixelMeasuresSequence", "PixelSpacing", _decimals)
        self.segment = self._either(
            "SegmentIdentificationSequence", "ReferencedSegmentNumber", _unsigned
        )
        self.index = cache(lambda value: _unsigned(_value(_only(value), "DimensionIndexValues")))
        self.sources = cache(_sources)

    def frame(self, groups: _Item) -> FrameGroups:
        segment = self.segment(groups)
        return FrameGroups(
            position=_needed(self.position(groups), 3),
            orientation=_needed(self.orientation(groups), 6),
            spacing=_needed(self.spacing(groups), 2),
            segment=None if segment is None else int(segment[0]),
            index=self.index(_value(groups, "FrameContentSequence")),
            sources=self.sources(_value(groups, "DerivationImageSequence")),
        )

    def _either(
        self, group: str, keyword: str, convert: Callable[[bytes], tuple[Any, ...]]
    ) -> Callable[[_Item], tuple[Any, ...] | None]:
        """Gives the element of a frame's own group, or else of the shared one."""
        shared = self._shared[group].value[0][keyword].value if group in self._shared else None
        if shared is not None:
            shared = tuple(float(one) for one in ([shared] if isinstance(shared, int) else shared))
        tag, own = _tag(group), cache(lambda value: convert(_value(_only(value), keyword)))
        return lambda groups: own(_value(groups, group)) if tag in groups else shared


def _sources(value: bytes) -> tuple[tuple[str, str, int | None], ...]:
    found = []
    for derivation in _items(value):
        for item in _items(_value(_elements(derivation), "SourceImageSequence")):
            one = _elements(item)
            frame = None
            if _tag("ReferencedFrameNumber") in one:
                frame = int(_value(one, "ReferencedFrameNumber"))
            names = (_value(one, f"ReferencedSOP{what}UID") for what in ("Class", "Instance"))
            sop_class, instance = (name.rstrip(b"\0").decode("ascii") for name in names)
            found.append((sop_class, instance, frame))
    return tuple(found)


def _needed(values: tuple[Any, ...] | None, count: int) -> tuple[float, ...]:
    if values is None or len(values) != count:
        msg = "a functional group is missing, or has more or fewer values"
        raise LookupError(msg)
    return values


def _decimals(value: bytes) -> tuple[float, ...]:
    return tuple(float(one) for one in value.split(b"\\"))


def _unsigned(value: bytes) -> tuple[int, ...]:
    """US has one number here, UL as many as there are."""
    return struct.unpack("<H" if len(value) == 2 else f"<{len(value) // 4}L", value)


def _only(value: bytes) -> _Item:
    (item,) = _items(value)
    return _elements(item)


def _value(item: _Item, keyword: str) -> bytes:
    vr, value = item[_tag(keyword)]
    if vr != _vr(keyword):
        msg = f"{keyword} has the VR {vr!r}"
        raise ValueError(msg)
    return value


@cache
def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise LookupError(keyword)
    return tag


@cache
def _vr(keyword: str) -> bytes:
    return dictionary_VR(keyword).encode("ascii")


def _items(value: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(value):
        group, element, length = struct.unpack_from("<HHL", value, at)
        at += 8 + length
        if group << 16 | element != _ITEM or at > len(value):
            msg = "an item of another length than its own"
            raise ValueError(msg)
        yield value[at - length : at]


def _elements(value: bytes) -> _Item:
    found: _Item = {}
    at, last = 0, -1
    while at < len(value):
        group, element, vr, length = struct.unpack_from("<HH2sH", value, at)
        at += 8
        if vr in _LONG:
            (length,) = struct.unpack_from("<L", value, at)
            at += 4
        at += length
        tag = group << 16 | element
        if tag <= last or at > len(value):
            msg = "an element out of order, or longer than there is room"
            raise ValueError(msg)
        last = tag
        found[tag] = vr, value[at - length : at]
    return found
