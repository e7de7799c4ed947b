"""A phantom chest CT as a DICOM study: what a scanner would have sent.

In: the thorax phantom (HU and labels on a grid in LPS millimetres). Out: one CT Image
Storage file per slice and the truth to compare a result with. The same seed gives the same
bytes, UIDs included.

Source: PS3.3 A.3 (CT Image IOD), C.7.6.2 (Image Plane), C.8.2.1 (CT Image).
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clients.errors import MissingExtra

if TYPE_CHECKING:
    from pydicom import Dataset

_NAMESPACE = uuid.UUID("8f2f5a2e-6f53-4e0b-9d0c-3c1c4b7a7d10")
_TAKEN_AT = datetime(2026, 1, 5, 10, 30, 0)
_INTERCEPT_HU = -1024
_MAX_STORED = 4095
LUNGS = {1: "Left lung", 2: "Right lung"}
"""Labels of the phantom's truth."""


@dataclass(frozen=True)
class PhantomStudy:
    """A written study and what is true of it.

    Attributes:
        files: One per slice, in the order of k.
        labels: uint8 [K, J, I]: 1 the left lung, 2 the right one.
        affine_lps: float64 [4, 4]: (i, j, k, 1) -> LPS millimetres, of `labels`.
    """

    folder: Path
    files: tuple[Path, ...]
    labels: NDArray[np.uint8]
    affine_lps: NDArray[np.float64]
    series_instance_uid: str


def write_phantom_study(
    folder: Path,
    *,
    seed: int = 7,
    shape_kji: tuple[int, int, int] = (80, 512, 512),
    spacing_mm: tuple[float, float, float] = (4.0, 0.75, 0.75),
) -> PhantomStudy:
    """Generates a thorax phantom and writes it as a CT series.

    Args:
        folder: Where the files go; made if it isn't there.
        seed: Another seed is another patient.
        shape_kji: Slices, rows, columns.
        spacing_mm: Between neighbours along k, j, i.

    Raises:
        MissingExtra: the phantom generator's packages are not installed.
    """
    try:
        from ensemble_builder.phantoms.thorax import thorax_phantom  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "scipy", "server") from error
    phantom = thorax_phantom(seed, shape_kji=shape_kji, spacing_mm=spacing_mm)
    return write_ct_series(
        folder,
        hu=np.asarray(phantom.hu),
        labels=np.asarray(phantom.labels, dtype=np.uint8),
        affine_lps=np.asarray(phantom.affine_lps, dtype=np.float64),
        seed=seed,
    )


def write_ct_series(
    folder: Path,
    *,
    hu: NDArray[np.int16],
    labels: NDArray[np.uint8],
    affine_lps: NDArray[np.float64],
    seed: int = 0,
) -> PhantomStudy:
    """Writes a volume as a CT series in Explicit VR Little Endian.

    Args:
        folder: Where the files go; made if it isn't there.
        hu: int16 [K, J, I] Hounsfield units; stored as 12 bits above -1024 HU, as most
            scanners do.
        labels: uint8 [K, J, I], handed back with the study.
        affine_lps: float64 [4, 4], (i, j, k, 1) -> LPS millimetres.
        seed: Of the UIDs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.clip(hu.astype(np.int32) - _INTERCEPT_HU, 0, _MAX_STORED).astype("<u2")
    common = _series_header(seed, affine_lps, stored.shape)
    files = []
    for k, plane in enumerate(stored):
        ds = _instance(common, seed, k, affine_lps)
        ds.PixelData = plane.tobytes()
        path = folder / f"ct-{k + 1:04d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        files.append(path)
    return PhantomStudy(folder, tuple(files), labels, affine_lps, str(common.SeriesInstanceUID))


def _uid(seed: int, *parts: object) -> str:
    # PS3.5 B.2: a UUID as a UID. Derived, so that the same phantom is the same object.
    name = "/".join(str(part) for part in (seed, *parts))
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


def _series_header(
    seed: int, affine_lps: NDArray[np.float64], shape_kji: tuple[int, ...]
) -> Dataset:
    from pydicom import Dataset  # noqa: PLC0415
    from pydicom.uid import CTImageStorage  # noqa: PLC0415

    spacing_mm = np.linalg.norm(affine_lps[:3, :3], axis=0)
    along_i, along_j = (affine_lps[:3, n] / spacing_mm[n] for n in (0, 1))
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = f"{_TAKEN_AT:%Y%m%d}"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = f"{_TAKEN_AT:%H%M%S}"
    ds.AccessionNumber = ""
    ds.Modality = "CT"
    ds.Manufacturer = "tritome"
    ds.ManufacturerModelName = "Thorax phantom generator"
    ds.InstitutionName = "No hospital"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "Phantom chest CT"
    ds.SeriesDescription = "Chest, generated"
    ds.PatientName = "PHANTOM^CHEST"
    ds.PatientID = f"PHANTOM-{seed}"
    ds.PatientBirthDate = ""
    ds.PatientSex = "O"
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = "Generated by software; there is no patient"
    ds.BodyPartExamined = "CHEST"
    ds.SliceThickness = _decimal(spacing_mm[2])
    ds.KVP = "120"
    ds.XRayTubeCurrent = "200"
    ds.ConvolutionKernel = "NONE"
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID = _uid(seed, "study")
    ds.SeriesInstanceUID = _uid(seed, "series", shape_kji, affine_lps.tolist())
    ds.StudyID = str(seed)
    ds.SeriesNumber = "2"
    ds.AcquisitionNumber = "1"
    ds.ImageOrientationPatient = [_decimal(v) for v in (*along_i, *along_j)]
    ds.FrameOfReferenceUID = _uid(seed, "frame of reference")
    ds.PositionReferenceIndicator = ""
    _describe_pixels(ds, shape_kji, spacing_mm)
    return ds


def _describe_pixels(
    ds: Dataset, shape_kji: tuple[int, ...], spacing_mm: NDArray[np.float64]
) -> None:
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = shape_kji[1], shape_kji[2]
    ds.PixelSpacing = [_decimal(spacing_mm[1]), _decimal(spacing_mm[0])]
    ds.BitsAllocated = 16
    ds.BitsStored = 12
    ds.HighBit = 11
    ds.PixelRepresentation = 0
    ds.WindowCenter = ["-600", "40"]
    ds.WindowWidth = ["1500", "400"]
    ds.WindowCenterWidthExplanation = ["LUNG", "MEDIASTINUM"]
    ds.RescaleIntercept = str(_INTERCEPT_HU)
    ds.RescaleSlope = "1"
    ds.RescaleType = "HU"


def _instance(common: Dataset, seed: int, k: int, affine_lps: NDArray[np.float64]) -> Dataset:
    from pydicom import Dataset  # noqa: PLC0415
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415
    from pydicom.uid import ExplicitVRLittleEndian  # noqa: PLC0415

    position_mm = affine_lps[:3, 3] + k * affine_lps[:3, 2]
    ds = Dataset()
    ds.update(common)
    ds.SOPInstanceUID = _uid(seed, common.SeriesInstanceUID, k)
    ds.InstanceNumber = str(k + 1)
    ds.ImagePositionPatient = [_decimal(v) for v in position_mm]
    ds.SliceLocation = _decimal(position_mm[2])
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def _decimal(value: float) -> str:
    # DS holds 16 characters (PS3.5 6.2); six decimals of a millimetre are plenty.
    return f"{round(float(value), 6) + 0.0:.6f}".rstrip("0").rstrip(".")
