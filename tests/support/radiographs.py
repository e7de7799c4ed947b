"""Generated radiographs as DICOM: `a_radiograph_file(seed, inverted=True)` reads aloud."""

from __future__ import annotations

import numpy as np
from pydicom import Dataset
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from ensemble_builder.phantoms.radiograph import radiograph
from tests.support.dicom import PATIENT_ID, PATIENT_NAME, _set_transfer_syntax


def a_radiograph(
    seed: int,
    shape_ji: tuple[int, int] = (300, 260),
    *,
    findings: tuple[bool, ...] | None = None,
    bits_stored: int = 12,
    inverted: bool = False,
    modality: str = "DX",
) -> Dataset:
    """One image as a detector (DX) or a storage plate (CR) would send it.

    Args:
        seed: Of the phantom.
        shape_ji: Rows and columns.
        findings: As `phantoms.radiograph`.
        bits_stored: 8 to 16.
        inverted: MONOCHROME1: the same picture with small values white.
        modality: DX or CR.
    """
    made = radiograph(seed, shape_ji, findings=findings, bits_stored=bits_stored)
    pixels = made.pixels
    if inverted:
        pixels = (2**bits_stored - 1 - pixels.astype(np.int64)).astype(np.uint16)
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    digital = modality == "DX"
    ds.SOPClassUID = (
        DigitalXRayImageStorageForPresentation if digital else ComputedRadiographyImageStorage
    )
    ds.SOPInstanceUID = generate_uid()
    ds.StudyDate, ds.StudyTime = "20260102", "101112"
    ds.AccessionNumber = "CANARY-ACC"
    ds.Modality = modality
    ds.Manufacturer = "tritome tests"
    ds.PatientName, ds.PatientID = PATIENT_NAME, PATIENT_ID
    ds.PatientBirthDate, ds.PatientSex = "19500102", "O"
    ds.ReferringPhysicianName, ds.StudyID = "", "1"
    ds.BodyPartExamined, ds.ViewPosition = "CHEST", "PA"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.SeriesNumber, ds.InstanceNumber = 1, 1
    ds.PatientOrientation = ["L", "F"]
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    if digital:
        ds.PresentationIntentType = "FOR PRESENTATION"
        ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
        ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    ds.Rows, ds.Columns = pixels.shape
    ds.ImagerPixelSpacing = [f"{mm:.4f}" for mm in made.spacing_mm]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits_stored, bits_stored - 1
    ds.PixelRepresentation = 0
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    _set_transfer_syntax(ds, ExplicitVRLittleEndian)
    return ds
