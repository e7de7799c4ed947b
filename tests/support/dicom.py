"""Builders of small, true DICOM objects for the tests: `a_ct_series(frames=40, gap_at=17)`.

Every data set is made here, none is copied from a patient. Texts a log must never show
carry the word `CANARY`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

from dicom_gateway.records import Arrival

CANARY = "CANARY"
PATIENT_NAME = "CANARY^SECRET^PERSON"
PATIENT_ID = "CANARY-4711"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def a_ct_series(
    frames: int = 40,
    *,
    gap_at: int | Iterable[int] | None = None,
    rows: int = 32,
    columns: int = 32,
    pixel_spacing_mm: tuple[float, float] = (0.8, 0.7),
    spacing_mm: float = 2.5,
    slice_thickness_mm: float | None = None,
    origin_lps_mm: tuple[float, float, float] = (-120.0, -110.0, -300.0),
    orientation: Sequence[float] = AXIAL,
    two_orientations: bool = False,
    tilt_degrees: float = 0.0,
    duplicate_at: int | None = None,
    signed: bool = True,
    slope: float | Sequence[float] = 1.0,
    intercept: float | Sequence[float] = -1024.0,
    pixels: NDArray[np.integer] | None = None,
    bits_stored: int = 16,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
    modality: str = "CT",
    sop_class_uid: str = CTImageStorage,
    image_type: Sequence[str] = ("ORIGINAL", "PRIMARY", "AXIAL"),
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    frame_of_reference_uid: str | None = None,
    patient_name: str = PATIENT_NAME,
    broken_at: int | None = None,
    backwards: bool = False,
    shuffled: bool = False,
) -> list[Dataset]:
    """Makes single-frame CT instances, in the order of their position along the normal.

    Args:
        frames: Number of positions; those named by `gap_at` (0-based) are left out.
        gap_at: The missing frame, or frames.
        rows: Of each frame.
        columns: Of each frame.
        pixel_spacing_mm: Between rows, between columns (PS3.3 10.7.1.3).
        spacing_mm: Between the positions of neighbouring frames.
        slice_thickness_mm: As `spacing_mm` where not given.
        origin_lps_mm: Image Position (Patient) of frame 0.
        orientation: Image Orientation (Patient).
        two_orientations: The second half of the frames is turned by 90 degrees.
        tilt_degrees: Gantry tilt: positions shift along the columns' direction while the
            orientation stays.
        duplicate_at: This frame comes twice, under two SOP Instance UIDs.
        signed: Pixel Representation 1 (int16) or 0 (uint16).
        slope: Rescale Slope: one number, or one per frame.
        intercept: Rescale Intercept: one number, or one per frame.
        pixels: Stored values [K, J, I]; a pattern without any symmetry where not given.
        bits_stored: Of the 16 allocated.
        transfer_syntax_uid: Also compressed ones that pydicom can write.
        modality: CT, or what is to be claimed.
        sop_class_uid: CT Image Storage, or what is to be claimed.
        image_type: Image Type; a localizer has LOCALIZER in it.
        study_instance_uid: A new one where not given; so for the two below.
        series_instance_uid: Of all frames.
        frame_of_reference_uid: Of all frames.
        patient_name: Holds the canary.
        broken_at: The pixel data of this frame is cut to half its length.
        backwards: Instances in falling order of position.
        shuffled: Instances in a fixed, mixed order.

    Returns:
        Data sets with file meta information, ready to be sent, encoded or written.
    """
    gaps = {gap_at} if isinstance(gap_at, int) else set(gap_at or ())
    stored = a_pattern((frames, rows, columns), signed=signed) if pixels is None else pixels
    frames, rows, columns = stored.shape
    slopes = _one_per_frame(slope, frames)
    intercepts = _one_per_frame(intercept, frames)
    study_instance_uid = study_instance_uid or generate_uid()
    series_instance_uid = series_instance_uid or generate_uid()
    frame_of_reference_uid = frame_of_reference_uid or generate_uid()
    row_lps, column_lps = np.array(orientation[:3]), np.array(orientation[3:])
    step_lps_mm = spacing_mm * np.cross(row_lps, column_lps)
    step_lps_mm = step_lps_mm + np.tan(np.radians(tilt_degrees)) * spacing_mm * column_lps

    series = []
    for k in range(frames):
        if k in gaps:
            continue
        for copy in range(2 if k == duplicate_at else 1):
            turned = two_orientations and k >= frames // 2
            ds = Dataset()
            ds.SpecificCharacterSet = "ISO_IR 100"
            ds.ImageType = list(image_type)
            ds.SOPClassUID = sop_class_uid
            ds.SOPInstanceUID = generate_uid()
            ds.StudyDate = "20260102"
            ds.StudyTime = "101112"
            ds.AccessionNumber = "CANARY-ACC"
            ds.Modality = modality
            ds.Manufacturer = "tritome tests"
            ds.PatientName = patient_name
            ds.PatientID = PATIENT_ID
            ds.PatientBirthDate = "19500102"
            ds.PatientSex = "O"
            ds.ReferringPhysicianName = ""
            ds.StudyID = "1"
            ds.SliceThickness = spacing_mm if slice_thickness_mm is None else slice_thickness_mm
            ds.BodyPartExamined = "CHEST"
            ds.KVP = "120"
            ds.PatientPosition = "HFS"
            ds.StudyInstanceUID = study_instance_uid
            ds.SeriesInstanceUID = series_instance_uid
            ds.SeriesNumber = 3
            ds.AcquisitionNumber = 1
            ds.InstanceNumber = k + 1 + copy * frames
            ds.ImagePositionPatient = _decimals(np.array(origin_lps_mm) + k * step_lps_mm)
            other = SAGITTAL if tuple(orientation) == AXIAL else AXIAL
            ds.ImageOrientationPatient = _decimals(other if turned else orientation)
            ds.FrameOfReferenceUID = frame_of_reference_uid
            ds.PositionReferenceIndicator = ""
            ds.SamplesPerPixel = 1
            ds.PhotometricInterpretation = "MONOCHROME2"
            ds.Rows, ds.Columns = rows, columns
            ds.PixelSpacing = _decimals(pixel_spacing_mm)
            ds.BitsAllocated = 16
            ds.BitsStored = bits_stored
            ds.HighBit = bits_stored - 1
            ds.PixelRepresentation = int(signed)
            ds.RescaleIntercept, ds.RescaleSlope = _decimals((intercepts[k], slopes[k]))
            ds.RescaleType = "HU"
            ds.PixelData = stored[k].astype("<i2" if signed else "<u2").tobytes()
            ds["PixelData"].VR = "OW"
            _set_transfer_syntax(ds, transfer_syntax_uid)
            if k == broken_at:
                break_pixel_data(ds)
            series.append(ds)
    if backwards:
        series.reverse()
    if shuffled:
        order = np.random.default_rng(7).permutation(len(series))
        series = [series[place] for place in order]
    return series


def an_enhanced_series(
    frames: int = 8,
    *,
    times: int = 1,
    shuffled: bool = False,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
    slopes: Sequence[float] | None = None,
    **how: Any,
) -> Dataset:
    """Makes one Enhanced CT object, of the same place and pixels as `a_ct_series(frames)`.

    Args:
        frames: Positions at each time.
        times: Time points; each has its pixels raised by 100 over the one before.
        shuffled: Frames in a fixed, mixed order; else position within time.
        transfer_syntax_uid: Also compressed ones that pydicom can write.
        slopes: Rescale Slope of each frame before mixing; 1 where not given.
        how: More of `a_ct_series`.
    """
    singles, stored = [], []
    for time in range(times):
        for ds in a_ct_series(frames, **how):
            singles.append((time, ds))
            stored.append(np.frombuffer(ds.PixelData, "<i2").astype(int) + 100 * time)
    order = list(range(len(singles)))
    if shuffled:
        order = [int(n) for n in np.random.default_rng(11).permutation(len(singles))]
    first = singles[0][1]
    ds = Dataset()
    for element in first:
        if element.keyword not in _OF_A_FRAME:
            ds.add(element)
    ds.SOPClassUID = EnhancedCTImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.NumberOfFrames = len(singles)
    ds.ContentDate, ds.ContentTime = "20260102", "101112"
    organization = generate_uid()
    ds.DimensionOrganizationSequence = [_item(DimensionOrganizationUID=organization)]
    ds.DimensionIndexSequence = [
        _item(
            DimensionOrganizationUID=organization,
            DimensionIndexPointer=pointer,
            FunctionalGroupPointer=0x00209111,
        )
        for pointer in (0x00209128, 0x00209057)
    ]
    shared = _item(
        PlaneOrientationSequence=[_item(ImageOrientationPatient=first.ImageOrientationPatient)],
        PixelMeasuresSequence=[
            _item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
        ],
    )
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for place in order:
        time, single = singles[place]
        slope = 1.0 if slopes is None else slopes[place]
        groups.append(
            _item(
                PlanePositionSequence=[_item(ImagePositionPatient=single.ImagePositionPatient)],
                PixelValueTransformationSequence=[
                    _item(RescaleSlope=slope, RescaleIntercept=-1024, RescaleType="HU")
                ],
                FrameContentSequence=[
                    _item(
                        StackID="1",
                        InStackPositionNumber=place % frames + 1,
                        TemporalPositionIndex=time + 1,
                        DimensionIndexValues=[time + 1, place % frames + 1],
                    )
                ],
            )
        )
    ds.PerFrameFunctionalGroupsSequence = groups
    ds.PixelData = b"".join(stored[place].astype("<i2").tobytes() for place in order)
    ds["PixelData"].VR = "OW"
    _set_transfer_syntax(ds, transfer_syntax_uid)
    return ds


def an_object_without_pixels(
    sop_class_uid: str = "1.2.840.10008.5.1.4.1.1.88.11", modality: str = "SR"
) -> Dataset:
    """Makes a small composite object that no volume pipeline wants (Basic Text SR)."""
    ds = Dataset()
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = generate_uid()
    ds.StudyDate = "20260102"
    ds.Modality = modality
    ds.PatientName = PATIENT_NAME
    ds.PatientID = PATIENT_ID
    ds.StudyInstanceUID = generate_uid()
    ds.SeriesInstanceUID = generate_uid()
    ds.SeriesNumber = 1
    ds.InstanceNumber = 1
    _set_transfer_syntax(ds, ExplicitVRLittleEndian)
    return ds


def a_pattern(shape_kji: tuple[int, int, int], *, signed: bool = True) -> NDArray[np.integer]:
    """Stored values [K, J, I] that look different under every flip and swap of axes."""
    k, j, i = np.indices(shape_kji)
    values = (3 * i + 7 * j + 31 * k + (i * j * (k + 1)) % 13) % 3000
    return values.astype(np.int16 if signed else np.uint16)


def break_pixel_data(ds: Dataset) -> None:
    """Leaves only the first half of the pixel data (of the first fragment if compressed)."""
    whole = ds.PixelData
    if ds.file_meta.TransferSyntaxUID.is_compressed:
        frame = next(generate_frames(whole, number_of_frames=1))
        half = len(frame) // 2
        ds.PixelData = encapsulate([frame[: half + half % 2]])
    else:
        half = len(whole) // 2
        ds.PixelData = whole[: half + half % 2]


def encoded(ds: Dataset) -> bytes:
    """The data set's bytes in its transfer syntax, without preamble and file meta."""
    syntax = UID(ds.file_meta.TransferSyntaxUID)
    buffer = DicomBytesIO()
    buffer.is_little_endian = syntax.is_little_endian
    buffer.is_implicit_VR = syntax.is_implicit_VR
    write_dataset(buffer, ds)
    return buffer.getvalue()


def as_file_bytes(ds: Dataset) -> bytes:
    """The whole PS3.10 file."""
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def an_arrival(
    ds: Dataset,
    *,
    called_ae_title: str = "LUNG",
    calling_ae_title: str = "SENDER",
    association_id: str = "a1",
) -> Arrival:
    """The data set as it would come through the door."""
    return Arrival(
        encoded_dataset=encoded(ds),
        sop_class_uid=str(ds.SOPClassUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        transfer_syntax_uid=str(ds.file_meta.TransferSyntaxUID),
        calling_ae_title=calling_ae_title,
        called_ae_title=called_ae_title,
        association_id=association_id,
    )


def write_series(folder: Path, datasets: Iterable[Dataset]) -> list[Path]:
    """Writes one file per data set, named by its place in the list."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(datasets, start=1):
        path = folder / f"{number:04d}.dcm"
        path.write_bytes(as_file_bytes(ds))
        paths.append(path)
    return paths


_OF_A_FRAME = frozenset(
    {
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "RescaleSlope",
        "RescaleIntercept",
        "RescaleType",
        "PixelData",
    }
)
"""What an enhanced object has in its functional groups instead."""


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def _one_per_frame(value: float | Sequence[float], frames: int) -> list[float]:
    return [float(value)] * frames if isinstance(value, int | float) else list(value)


def _decimals(values: Iterable[float]) -> list[str]:
    # DS holds at most 16 characters (PS3.5 6.2).
    return [f"{value:.10g}"[:16] for value in values]


def _set_transfer_syntax(ds: Dataset, transfer_syntax_uid: str) -> None:
    syntax = UID(transfer_syntax_uid)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_compressed else syntax
    if syntax.is_compressed:
        ds.compress(syntax, generate_instance_uid=False)
    elif syntax not in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        message = "the builders write little endian and compressed transfer syntaxes"
        raise ValueError(message)


def as_enhanced_frame(single: Dataset, *, shared: bool = True) -> Dataset:
    """The same slice as an Enhanced CT object of one frame.

    Args:
        single: Of `a_ct_series`; it stays as it is.
        shared: Where it lies is said for all frames at once, which is right for a single one;
            else in the frame's own functional groups.
    """
    ds = Dataset()
    for element in single:
        if element.keyword not in _OF_A_FRAME or element.keyword == "PixelData":
            ds.add(element)
    ds.SOPClassUID = EnhancedCTImageStorage
    ds.NumberOfFrames = 1
    content = [_item(StackID="1", InStackPositionNumber=1, DimensionIndexValues=[1, 1])]
    place = {
        "PlanePositionSequence": [_item(ImagePositionPatient=single.ImagePositionPatient)],
        "PlaneOrientationSequence": [_item(ImageOrientationPatient=single.ImageOrientationPatient)],
        "PixelMeasuresSequence": [
            _item(PixelSpacing=single.PixelSpacing, SliceThickness=single.SliceThickness)
        ],
    }
    own = {"FrameContentSequence": content}
    ds.SharedFunctionalGroupsSequence = [_item(**(place if shared else {}))]
    ds.PerFrameFunctionalGroupsSequence = [_item(**(own if shared else {**own, **place}))]
    _set_transfer_syntax(ds, ExplicitVRLittleEndian)
    return ds
