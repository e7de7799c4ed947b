"""Kept series as the store would give them, and the real ones in the shared folder.

Comes in: data sets, or the name of a real series. Goes out: a `Series` whose files exist.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from dicom_gateway.records import (
    CodedConcept,
    Contract,
    Instance,
    Job,
    JobState,
    Output,
    Priority,
    Segment,
    Series,
    Volume,
)
from tests.support.dicom import write_series

REAL_SERIES = Path(__file__).resolve().parents[3] / "shared" / "dicom"
"""Real series lie beside the checkout, where they are at all; none of them is in it."""

_LUNG = CodedConcept("39607008", "SCT", "Lung")
_ANATOMY = CodedConcept("91723000", "SCT", "Anatomical Structure")
LEFT_LUNG = Segment(
    1, "Left lung", _ANATOMY, _LUNG, CodedConcept("7771000", "SCT", "Left"), None, (220, 90, 80)
)
RIGHT_LUNG = Segment(
    2, "Right lung", _ANATOMY, _LUNG, CodedConcept("24028007", "SCT", "Right"), None, (70, 130, 220)
)
LUNGS = Output("MASK", "labelmap", "UINT8", (-1, -1, -1), (LEFT_LUNG, RIGHT_LUNG))


def a_kept_series(folder: Path, datasets: Iterable[Dataset]) -> Series:
    """Writes the data sets and describes them as the store would."""
    return series_of_files(write_series(folder, datasets))[0]


def joined(*parts: Sequence[Dataset]) -> list[Dataset]:
    """Several generated series as one: one Series, Study and Frame of Reference UID."""
    first = parts[0][0]
    for part in parts:
        for ds in part:
            ds.SeriesInstanceUID = first.SeriesInstanceUID
            ds.StudyInstanceUID = first.StudyInstanceUID
            ds.FrameOfReferenceUID = first.FrameOfReferenceUID
    return [ds for part in parts for ds in part]


def series_of_files(paths: Iterable[Path]) -> list[Series]:
    """One `Series` for each Series Instance UID among the files."""
    by_uid: dict[str, list[Instance]] = {}
    for path in paths:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        instance = Instance(
            sop_instance_uid=str(ds.SOPInstanceUID),
            sop_class_uid=str(ds.SOPClassUID),
            transfer_syntax_uid=str(ds.file_meta.TransferSyntaxUID),
            series_instance_uid=str(ds.SeriesInstanceUID),
            study_instance_uid=str(ds.StudyInstanceUID),
            modality=str(ds.Modality),
            path=path,
            sha256="",
            size_bytes=path.stat().st_size,
        )
        by_uid.setdefault(instance.series_instance_uid, []).append(instance)
    return [
        Series(uid, kept[0].study_instance_uid, kept[0].modality, "LUNG", "SENDER", tuple(kept))
        for uid, kept in by_uid.items()
    ]


def a_real_series(name: str) -> tuple[list[Series], dict[str, Any]]:
    """The series of a shared folder such as `v01`, and its golden volumes by series UID.

    Skips the test where the shared folder is not there.
    """
    folders = sorted(REAL_SERIES.glob(f"{name}_*"))
    if not folders:
        pytest.skip("the real series are not on this machine; generated ones are tested always")
    golden = json.loads((folders[0] / "golden.json").read_text(encoding="utf-8"))
    files = sorted(path for path in (folders[0] / "dicom").rglob("*") if path.is_file())
    by_uid = {volume["series_uid"]: volume for volume in golden["volumes"]}
    return series_of_files(files), by_uid


def a_contract(output: Output = LUNGS, *, description: str = "Left and right lung") -> Contract:
    """The contract of a pipeline with one label map."""
    return Contract(
        pipeline="lung_ct",
        version="1.0.0",
        input_kind="volume",
        modality="CT",
        outputs=(output,),
        peak_bytes_per_voxel=40.0,
        builder_version="0.1.0",
        description=description,
        weights={"sha256": "5ec7" * 16, "source": "tritome"},
    )


def a_job(job_id: str = "8d0b6f2c55f34a3fa2a1a8f4f2f7c1de") -> Job:
    """A job that a worker has claimed."""
    return Job(
        job_id=job_id,
        pipeline="lung_ct",
        called_ae_title="LUNG",
        calling_ae_title="SENDER",
        study_instance_uid="1.2",
        series_instance_uid="1.2.3",
        priority=Priority.NORMAL,
        state=JobState.RUNNING,
        attempts=1,
        fence=1,
        destinations=(),
        created_at_s=0.0,
        not_before_s=0.0,
    )


def two_boxes(volume: Volume) -> NDArray[np.uint8]:
    """A mask [K, J, I]: label 1 where the patient's left is, 2 on the right, not symmetric."""
    mask = np.zeros(volume.shape_kji, dtype=np.uint8)
    slices, rows, columns = volume.shape_kji
    mask[1:, rows // 4 : rows // 2, columns // 2 + 2 : columns - 3] = 1
    mask[: slices - 1, rows // 3 : rows // 2 + 3, 2 : columns // 2 - 4] = 2
    return mask
