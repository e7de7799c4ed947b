"""What `assemble` wants to know of one instance, read from its header alone.

In: the path of a kept DICOM file. Out: a frozen `Header`. Nothing is written. Values that
can't be read come out as None, so that whoever needs them can refuse by name; real headers
have empty, missing and malformed elements.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import pydicom.config
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

from dicom_gateway.errors import UnusableSeries

# pydicom's validation answers with warnings that quote the value, and a value may be a
# patient's name. We check what we use ourselves.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

UNREADABLE = (
    InvalidDicomError,
    BytesLengthException,
    ArithmeticError,  # among them OverflowError and decimal's
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,  # among them IndexError, KeyError, an unknown encoding
    OSError,
    RuntimeError,  # among them NotImplementedError and RecursionError
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on data sets that are none, and on values that are none."""

_KEYWORDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
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
]


@dataclass(frozen=True, slots=True)
class Header:
    """Geometry and pixel layout of one instance; None where the element is no use.

    Attributes:
        position_lps_mm: Image Position (Patient), centre of the first voxel.
        orientation: Image Orientation (Patient): direction of rising column index, then
            of rising row index; unit vectors in LPS.
        pixel_spacing_mm: Between rows, between columns (PS3.3 10.7.1.3).
        rescale: Slope, intercept; (1, 0) where absent.
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

    @property
    def is_localizer(self) -> bool:
        """True for a scout: its class is CT Image Storage too, only Image Type tells.

        Source: PS3.3 C.8.2.1.1.1 (value 3 of Image Type).
        """
        return any("LOCALIZER" in value.upper() for value in self.image_type)


def read_header(path: Path) -> Header:
    """Reads one header; about a millisecond, pixels are not touched.

    Raises:
        UnusableSeries: (unsupported_object) when the file is no DICOM file (any more).
    """
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_KEYWORDS))
        return _header(path, ds)
    except UNREADABLE as error:
        msg = (
            f"an instance of this series can't be read ({type(error).__name__}); "
            "send the series again"
        )
        raise UnusableSeries(msg, code="unsupported_object") from error


def _header(path: Path, ds: Dataset) -> Header:
    bits_allocated = _integer(ds, "BitsAllocated") or 0
    bits_stored = _integer(ds, "BitsStored") or bits_allocated
    high_bit = _integer(ds, "HighBit")
    return Header(
        path=path,
        sop_class_uid=_text(ds, "SOPClassUID"),
        sop_instance_uid=_text(ds, "SOPInstanceUID"),
        transfer_syntax_uid=str(ds.file_meta.get("TransferSyntaxUID", "")),
        frame_of_reference_uid=_text(ds, "FrameOfReferenceUID") or None,
        image_type=tuple(str(value) for value in _values(ds, "ImageType")),
        instance_number=_integer(ds, "InstanceNumber") or 0,
        number_of_frames=_integer(ds, "NumberOfFrames") or 1,
        position_lps_mm=_numbers(ds, "ImagePositionPatient", 3),
        orientation=_numbers(ds, "ImageOrientationPatient", 6),
        pixel_spacing_mm=_numbers(ds, "PixelSpacing", 2),
        rows=_integer(ds, "Rows"),
        columns=_integer(ds, "Columns"),
        samples_per_pixel=_integer(ds, "SamplesPerPixel") or 1,
        photometric_interpretation=_text(ds, "PhotometricInterpretation"),
        bits_allocated=bits_allocated,
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if high_bit is None else high_bit,
        signed=_integer(ds, "PixelRepresentation") == 1,
        rescale=_rescale(ds),
        has_modality_lut=bool(_values(ds, "ModalityLUTSequence")),
    )


def _values(ds: Dataset, keyword: str) -> list[Any]:
    try:
        value = ds.get(keyword)
    except UNREADABLE:
        return []
    if value is None or value == "":
        return []
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return list(value)
    return [value]


def _text(ds: Dataset, keyword: str) -> str:
    values = _values(ds, keyword)
    return str(values[0]).strip() if values else ""


def _integer(ds: Dataset, keyword: str) -> int | None:
    try:
        return int(_values(ds, keyword)[0])
    except UNREADABLE:
        return None


def _numbers(ds: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    values = _values(ds, keyword)
    if len(values) != count:
        return None
    try:
        numbers = tuple(float(value) for value in values)
    except UNREADABLE:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def _rescale(ds: Dataset) -> tuple[float, float] | None:
    slope = _numbers(ds, "RescaleSlope", 1) if _values(ds, "RescaleSlope") else (1.0,)
    intercept = _numbers(ds, "RescaleIntercept", 1) if _values(ds, "RescaleIntercept") else (0.0,)
    if slope is None or intercept is None or slope[0] == 0.0:
        return None
    return slope[0], intercept[0]
