"""What `assemble` wants to know of one instance, read from its header alone.

In: the path of a kept DICOM file. Out: a frozen `Header`. Nothing is written. Values that
can't be read come out as None, so that whoever needs them can refuse by name; real headers
have empty, missing and malformed elements.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydicom
import pydicom.config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from dicom_gateway.assemble import counts, traits
from dicom_gateway.assemble.counts import Counts
from dicom_gateway.assemble.elements import (
    UNREADABLE,
    Elements,
    RawElements,
    integer,
    numbers,
    rescale_of,
    text,
    values_of,
)
from dicom_gateway.assemble.traits import Traits
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.walk import (
    EXPLICIT_BIG_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    ITEMS_LIMIT,
    Raw,
    has_too_many_items,
    walk,
)

# pydicom's validation answers with warnings that quote the value, and a value may be a
# patient's name. We check what we use ourselves.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_KEYWORDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "FrameOfReferenceUID",
    "ImageType",
    "InstanceNumber",
    "NumberOfFrames",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PresentationLUTShape",
    "ImagerPixelSpacing",
    "ViewPosition",
    *counts.KEYWORDS,
    *traits.KEYWORDS,
]

_WANTED = frozenset(tag for keyword in _KEYWORDS if (tag := tag_for_keyword(keyword)))
_TRANSFER_SYNTAX_UID = 0x00020010
_DATA_SET_PREFIX = slice(128, 132)
_WALKED_NOT = frozenset((EXPLICIT_BIG_ENDIAN, str(DeflatedExplicitVRLittleEndian)))
"""Transfer syntaxes that are too rare, or too odd, for a second way to read them."""
_UID = re.compile(r"[0-9.]+")
_BINARY_VRS = frozenset((b"US", b"SS", b"UL", b"SL", b"FD", b"FL"))
_FLOATING = {0x7FE00008: 32, 0x7FE00009: 64}
"""Float Pixel Data and Double Float Pixel Data, and the bits of their pixels."""

_LIKE_NO_IMAGE = (
    "an instance of this series has elements as no image has them (a short value of more than "
    f"64 KiB, more than a million elements, or more than {ITEMS_LIMIT} sequence items); look at "
    "it with a DICOM viewer"
)


@dataclass(frozen=True, slots=True)
class Header:
    """Geometry and pixel layout of one instance; None where the element is no use.

    Attributes:
        position_lps_mm: Image Position (Patient), centre of the first voxel.
        orientation: Image Orientation (Patient): direction of rising column index, then
            of rising row index; unit vectors in LPS.
        pixel_spacing_mm: Between rows, between columns (PS3.3 10.7.1.3).
        rescale: Slope, intercept; (1, 0) where absent.
        float_bits: 32 or 64 where the pixels are floating point numbers, else 0.
        padding: Lowest and highest stored value that stand for "no pixel here".
        is_inverted: The smallest value is to be shown white (MONOCHROME1, or by the
            Presentation LUT Shape).
        imager_pixel_spacing_mm: Of projections, on the detector.
        traits: What tells its volume from others in the same series (`traits.py`).
        counts: How many there should be, as it states (`counts.py`).
        patient_id: Whose it is; "" where it isn't said.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    frame_of_reference_uid: str | None
    image_type: tuple[str, ...]
    instance_number: int
    number_of_frames: int
    position_lps_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing_mm: tuple[float, ...] | None
    rows: int | None
    columns: int | None
    samples_per_pixel: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    rescale: tuple[float, float] | None
    has_modality_lut: bool
    float_bits: int = 0
    padding: tuple[int, int] | None = None
    is_inverted: bool = False
    imager_pixel_spacing_mm: tuple[float, ...] | None = None
    view_position: str = ""
    traits: Traits = ()
    counts: Counts = field(default_factory=Counts)
    study_instance_uid: str = ""
    patient_id: str = field(default="", repr=False)

    @property
    def is_localizer(self) -> bool:
        """True for a scout: its class is CT Image Storage too, only Image Type tells.

        Source: PS3.3 C.8.2.1.1.1 (value 3 of Image Type).
        """
        return any("LOCALIZER" in value.upper() for value in self.image_type)


def read_header(path: Path) -> Header:
    """Reads one header, in less than a millisecond; pixels are not touched.

    Raises:
        UnusableSeries: (unsupported_object) when the file is no DICOM file (any more), or has
            elements as no image has them.
    """
    try:
        return _walked(path) or _read(path)
    except UNREADABLE as error:
        msg = (
            f"an instance of this series can't be read ({type(error).__name__}); "
            "send the series again"
        )
        raise UnusableSeries(msg, code="unsupported_object") from error


def _walked(path: Path) -> Header | None:
    """The header of a file that is as nearly all are; None for the others.

    pydicom takes some milliseconds for a header, most of them for elements that nobody wants
    and for values that all slices have in common.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as encoded:
        if encoded[_DATA_SET_PREFIX] != b"DICM":
            return None
        meta = walk(
            encoded,
            {_TRANSFER_SYNTAX_UID},
            transfer_syntax_uid=ExplicitVRLittleEndian,
            begins_at=_DATA_SET_PREFIX.stop,
            last_group=0x0002,
        )
        named = meta.elements.get(_TRANSFER_SYNTAX_UID)
        if named is None or named.value is None or meta.odd:
            return None
        syntax = named.value.rstrip(b"\0 ").decode("ascii", errors="replace")
        if syntax in _WALKED_NOT or not _UID.fullmatch(syntax):
            return None
        found = walk(encoded, _WANTED, transfer_syntax_uid=syntax, begins_at=meta.ended_at)
    if found.too_many or any(dictionary_VR(tag) != "SQ" for tag in found.too_long):
        # pydicom would read all of it into memory, and a peer has chosen how much that is.
        raise UnusableSeries(_LIKE_NO_IMAGE, code="unsupported_object")
    if found.odd or not all(_is_plain(tag, raw) for tag, raw in found.elements.items()):
        return None
    elements = RawElements(found.elements, is_implicit_vr=syntax == IMPLICIT_LITTLE_ENDIAN)
    return _header(path, elements, syntax, _FLOATING.get(found.pixels, 0))


def _is_plain(tag: int, raw: Raw) -> bool:
    """No sequence, and no text that needs a character set."""
    if raw.value is None or raw.vr in (b"SQ", b"UN"):
        return False
    vr = raw.vr or dictionary_VR(tag).encode()[:2]
    return vr in _BINARY_VRS or (vr != b"SQ" and raw.value.isascii() and b"\x1b" not in raw.value)


def _read(path: Path) -> Header:
    """The header as pydicom reads it."""
    if has_too_many_items(path):
        raise UnusableSeries(_LIKE_NO_IMAGE, code="unsupported_object")
    with path.open("rb") as file:
        ds = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_KEYWORDS))
        next_tag = file.read(4)  # where the pixels begin, whatever kind they are
    syntax = str(ds.file_meta.get("TransferSyntaxUID", ""))
    return _header(path, ds, syntax, _FLOATING.get(_tag(next_tag, ds), 0))


def _header(path: Path, ds: Elements, transfer_syntax_uid: str, float_bits: int) -> Header:
    bits_allocated = integer(ds, "BitsAllocated") or 0
    bits_stored = integer(ds, "BitsStored") or bits_allocated
    high_bit = integer(ds, "HighBit")
    signed = integer(ds, "PixelRepresentation") == 1
    return Header(
        path=path,
        sop_class_uid=text(ds, "SOPClassUID"),
        sop_instance_uid=text(ds, "SOPInstanceUID"),
        transfer_syntax_uid=transfer_syntax_uid,
        frame_of_reference_uid=text(ds, "FrameOfReferenceUID") or None,
        image_type=tuple(str(value) for value in values_of(ds, "ImageType")),
        instance_number=integer(ds, "InstanceNumber") or 0,
        number_of_frames=integer(ds, "NumberOfFrames") or 1,
        position_lps_mm=numbers(ds, "ImagePositionPatient", 3),
        orientation=numbers(ds, "ImageOrientationPatient", 6),
        pixel_spacing_mm=numbers(ds, "PixelSpacing", 2),
        rows=integer(ds, "Rows"),
        columns=integer(ds, "Columns"),
        samples_per_pixel=integer(ds, "SamplesPerPixel") or 1,
        photometric_interpretation=text(ds, "PhotometricInterpretation"),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if high_bit is None else high_bit,
        signed=signed,
        rescale=rescale_of(ds),
        has_modality_lut=bool(values_of(ds, "ModalityLUTSequence")),
        float_bits=float_bits,
        padding=None if float_bits else _padding(ds, bits_stored, signed=signed),
        is_inverted=_is_inverted(ds),
        imager_pixel_spacing_mm=numbers(ds, "ImagerPixelSpacing", 2),
        view_position=text(ds, "ViewPosition")[:16],
        traits=traits.of_instance(ds),
        counts=counts.of_instance(ds),
        study_instance_uid=text(ds, "StudyInstanceUID"),
        patient_id=text(ds, "PatientID"),
    )


def _tag(raw: bytes, ds: Dataset) -> int:
    if len(raw) < 4:
        return 0
    order: Literal["little", "big"] = "little" if ds.original_encoding[1] else "big"
    return int.from_bytes(raw[:2], order) << 16 | int.from_bytes(raw[2:], order)


def _padding(ds: Elements, bits_stored: int, *, signed: bool) -> tuple[int, int] | None:
    """As stored values; written as unsigned by some, whatever Pixel Representation says."""
    value = integer(ds, "PixelPaddingValue")
    if value is None or not bits_stored:
        return None
    limit = integer(ds, "PixelPaddingRangeLimit")
    ends = [value, value if limit is None else limit]
    if signed:
        ends = [end - (1 << 16) if end >= 1 << 15 else end for end in ends]
    return min(ends), max(ends)


def _is_inverted(ds: Elements) -> bool:
    # Both say the same where both are right (PS3.3 C.8.11.3.1.2); many write only the first.
    shape = text(ds, "PresentationLUTShape").upper()
    return text(ds, "PhotometricInterpretation") == "MONOCHROME1" or shape == "INVERSE"
