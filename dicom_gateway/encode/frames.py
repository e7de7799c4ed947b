"""The frames of a Segmentation, encoded in one pass: functional groups and pixels.

In: segment numbers on the source frames. Out: for each frame that has content its segment,
its plane and its bits, and the bytes of the Per-Frame Functional Groups Sequence.

A library builds a thousand frames from ten thousand objects, each of them validated. All
frames say the same in the same words, but for a position, a reference and two numbers; so
they are put together from their bytes here, which takes a tenth of the time. What comes out
is held against what a library makes of the same mask by the tests and `perf/seg.py`.

Source: PS3.3 C.7.6.16 (functional groups), C.8.20.2 (BINARY), C.8.20.3; PS3.5 7.1, 7.5, 8.1.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_VR, tag_for_keyword

from dicom_gateway.encode.sources import FrameReference

_LONG = frozenset({"OB", "OW", "SQ", "UN"})
"""VRs whose length has four bytes in explicit VR (PS3.5 7.1.2)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame to be.

    Attributes:
        number: Its segment; 0 in a label map, whose frames hold all of them.
        plane: Index of the source frame it lies on.
        rank: 1, 2, ... of its plane among those that have content, in the order of frames.
    """

    number: int
    plane: int
    rank: int


@dataclass(frozen=True, slots=True)
class Frames:
    """All frames with content, in their order, and their pixels.

    Attributes:
        pixels: BINARY: one bit a voxel, packed across frames. LABELMAP: [F, J, I] numbers.
    """

    frames: tuple[Frame, ...]
    pixels: bytes


def binary_frames(
    numbered: NDArray[np.uint8] | NDArray[np.uint16], order: Sequence[int], segments: int
) -> Frames:
    """One frame for each segment on each plane where it has a voxel.

    Args:
        numbered: [K, J, I] segment numbers, 0 is background.
        order: Planes, in the order that frames of a segment are to have.
        segments: How many there are.

    Returns:
        The frames, segment by segment. A mask without any voxel gives one empty frame for
        each segment on the first plane, so that "looked and found nothing" can be told from
        "never looked".
    """
    whole_bytes = numbered[0].size % 8 == 0
    kept: list[list[tuple[int, NDArray[np.uint8]]]] = [[] for _ in range(segments)]
    for plane in order:
        # Slice by slice: what is compared and packed stays in the processor's cache.
        labels = numbered[plane]
        if not labels.any():
            continue
        for number in range(1, segments + 1):
            bits = labels == number
            if bits.any():
                packed = np.packbits(bits, axis=None, bitorder="little") if whole_bytes else None
                kept[number - 1].append(
                    (plane, bits.ravel().view(np.uint8) if packed is None else packed)
                )
    planes = sorted({plane for one in kept for plane, _ in one}, key=list(order).index)
    if not planes:
        empty = tuple(Frame(number, order[0], 1) for number in range(1, segments + 1))
        return Frames(empty, bytes(-(-segments * numbered[0].size // 8)))
    rank = {plane: place for place, plane in enumerate(planes, start=1)}
    frames = tuple(
        Frame(number, plane, rank[plane])
        for number, one in enumerate(kept, start=1)
        for plane, _ in one
    )
    pixels = [bits for one in kept for _, bits in one]
    if whole_bytes:
        return Frames(frames, b"".join(bits.tobytes() for bits in pixels))
    # Eight frames are whole bytes, whatever their size.
    packed_ones = (
        np.packbits(np.concatenate(pixels[at : at + 8]), bitorder="little").tobytes()
        for at in range(0, len(pixels), 8)
    )
    return Frames(frames, b"".join(packed_ones))


def labelmap_frames(
    numbered: NDArray[np.uint8] | NDArray[np.uint16], order: Sequence[int], bits: int
) -> Frames:
    """One frame for each plane that has a voxel; one empty frame where none has.

    Args:
        numbered: [K, J, I] segment numbers, 0 is background; they fit into `bits`.
        order: Planes, in the order that frames are to have.
        bits: Of a pixel: Bits Allocated of the object, whatever the mask was given in.
    """
    planes = [plane for plane in order if numbered[plane].any()] or [order[0]]
    frames = tuple(Frame(0, plane, rank) for rank, plane in enumerate(planes, start=1))
    little = np.dtype(f"<u{bits // 8}")
    pixels = b"".join(numbered[plane].astype(little, copy=False).tobytes() for plane in planes)
    return Frames(frames, pixels)


def functional_groups(
    frames: Iterable[Frame],
    positions: Sequence[str],
    references: Sequence[FrameReference],
    *,
    identify: bool,
) -> bytes:
    """The items of the Per-Frame Functional Groups Sequence, explicit VR little endian.

    Args:
        frames: In their order.
        positions: Image Position (Patient) of each plane, as DICOM writes it.
        references: The source frame of each plane.
        identify: Each frame names its segment; a label map's don't.
    """
    derivation = _item("DerivationCodeSequence", _code("113076", "DCM", "Segmentation"))
    purpose = _item(
        "PurposeOfReferenceCodeSequence",
        _code("121322", "DCM", "Source image for image processing operation"),
    )
    sources = [_source(one, purpose) for one in references]
    items = []
    for frame in frames:
        index = [frame.number, frame.rank] if identify else [frame.rank]
        groups = _item("DerivationImageSequence", sources[frame.plane] + derivation)
        groups += _item("FrameContentSequence", _element("DimensionIndexValues", _ul(index)))
        position = _element("ImagePositionPatient", positions[frame.plane].encode("ascii"))
        groups += _item("PlanePositionSequence", position)
        if identify:
            number = _element("ReferencedSegmentNumber", struct.pack("<H", frame.number))
            groups += _item("SegmentIdentificationSequence", number)
        items.append(_framed(groups))
    return b"".join(items)


def element_bytes(keyword: str, value: bytes, vr: str | None = None) -> bytes:
    """One element, explicit VR little endian; odd lengths are padded (PS3.5 7.1.1)."""
    return _element(keyword, value, vr)


def _source(reference: FrameReference, purpose: bytes) -> bytes:
    elements = _element("ReferencedSOPClassUID", reference.sop_class_uid.encode("ascii"))
    elements += _element("ReferencedSOPInstanceUID", reference.sop_instance_uid.encode("ascii"))
    if reference.frame_number:
        elements += _element("ReferencedFrameNumber", str(reference.frame_number).encode("ascii"))
    elements += _element("SpatialLocationsPreserved", b"YES")
    return _item("SourceImageSequence", elements + purpose)


def _code(value: str, scheme: str, meaning: str) -> bytes:
    return (
        _element("CodeValue", value.encode("ascii"))
        + _element("CodingSchemeDesignator", scheme.encode("ascii"))
        + _element("CodeMeaning", meaning.encode("ascii"))
    )


def _ul(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}L", *values)


def _item(keyword: str, content: bytes) -> bytes:
    return _element(keyword, _framed(content))


def _framed(content: bytes) -> bytes:
    """An item of a sequence (PS3.5 7.5.1)."""
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


_HEADS: dict[str, tuple[bytes, str, bytes]] = {}


def _element(keyword: str, value: bytes, vr: str | None = None) -> bytes:
    if keyword not in _HEADS:
        tag = tag_for_keyword(keyword)
        assert tag is not None
        known = vr or dictionary_VR(tag)
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + known.encode("ascii")
        _HEADS[keyword] = head, known, b"\0" if known in {"UI", "OB"} else b" "
    head, known, padding = _HEADS[keyword]
    if len(value) % 2:
        value += padding
    if known in _LONG:
        return head + struct.pack("<HL", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value
