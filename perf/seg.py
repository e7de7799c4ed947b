"""How long a SEG takes, beside plain highdicom on the same mask in the same run.

Comes in: how large a mask; it and its series are generated. Goes out: seconds of both, in turns.
Both objects are read back and held against each other: equal segments, frames, places and pixels.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from dicom_gateway.encode.origin import Origin
from dicom_gateway.encode.results import encode_segmentation
from dicom_gateway.encode.segmentation import make_segmentation
from dicom_gateway.encode.sources import read_sources
from dicom_gateway.records import (
    ArenaSpan,
    CodedConcept,
    Contract,
    Job,
    JobState,
    ObjectKind,
    Output,
    Priority,
    Segment,
    Series,
    Slice,
    Volume,
)
from perf.measure import Measurement, ratio
from perf.report import Shown
from perf.sections import Found

SEGMENTS = 5
SHARE = 0.5
"""Of plain highdicom's time: most of what ours may take."""
OURS = "tritome, encoding and writing"
THEIRS = "highdicom, encoding and writing"
CHECKED = "tritome, with sources read, synced and through the geometry gate"

_ANATOMY = CodedConcept("91723000", "SCT", "Anatomical Structure")
_ORGAN = CodedConcept("39607008", "SCT", "Lung")


def measure(folder: Path, shape_kji: tuple[int, int, int], rounds: int) -> Found:
    """The part of a bench: times both in turns, and proves that they say the same.

    Args:
        folder: For the series and the results.
        shape_kji: Of the mask.
        rounds: That count; one more before them warms up.

    Raises:
        AssertionError: they don't say the same.
    """
    folder.mkdir()
    mask = a_mask(shape_kji)
    output = _an_output()
    volume = _a_volume(folder, shape_kji)
    contract = _a_contract(output)
    origin = Origin(volume, contract, _a_job(0), 0, read_sources(volume))
    images = [pydicom.dcmread(path) for path in volume.headers]
    seconds: dict[str, list[float]] = {OURS: [], THEIRS: [], CHECKED: []}
    for number in range(rounds + 1):
        ours, ours_s = _timed(lambda: _ours(mask, output, origin))
        theirs, theirs_s = _timed(lambda: _theirs(mask, output, images))
        # A job of its own each time: a result that is there already isn't made again.
        encode = partial(encode_segmentation, mask, volume, contract, output, _a_job(number))
        _, checked_s = _timed(partial(encode, folder))
        if number:  # the first warms up
            for name, took_s in ((OURS, ours_s), (THEIRS, theirs_s), (CHECKED, checked_s)):
                seconds[name].append(took_s)
        else:
            assert_equal(pydicom.dcmread(io.BytesIO(ours)), pydicom.dcmread(io.BytesIO(theirs)))
    name = f"SEG, {' x '.join(map(str, shape_kji))}, {SEGMENTS} segments"
    words = f"{name}: share of plain highdicom's time (encoding and writing, equal content)"
    share = ratio(seconds[OURS], seconds[THEIRS])
    return Found(
        [Measurement.of(f"{name}: {who}", durations_s) for who, durations_s in seconds.items()],
        [Shown(words, share, SHARE, at_most=True, n=rounds)],
    )


def assert_equal(ours: Dataset, theirs: Dataset) -> None:
    """The same segments, geometry, frames in the same order, and pixels."""
    for keyword in ("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "FrameOfReferenceUID"):
        assert ours[keyword].value == theirs[keyword].value, keyword
    assert ours.SharedFunctionalGroupsSequence == theirs.SharedFunctionalGroupsSequence
    assert ours.SegmentSequence == theirs.SegmentSequence
    for one, other in zip(
        ours.PerFrameFunctionalGroupsSequence, theirs.PerFrameFunctionalGroupsSequence, strict=True
    ):
        assert one == other
    assert ours.PixelData == theirs.PixelData


def _ours(mask: NDArray[np.uint8], output: Output, origin: Origin) -> bytes:
    file = io.BytesIO()
    make_segmentation(mask, output, origin, ObjectKind.SEGMENTATION).write(file)
    return file.getvalue()


def _theirs(mask: NDArray[np.uint8], output: Output, images: Sequence[Dataset]) -> bytes:
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.name,
            segmented_property_category=_code(segment.category),
            segmented_property_type=_code(segment.type),
            algorithm_type="AUTOMATIC",
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name="organs",
                family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
                version="1.0.0",
            ),
        )
        for number, segment in enumerate(output.segments, start=1)
    ]
    segmentation = hd.seg.Segmentation(
        source_images=images,
        pixel_array=mask,
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="tritome",
        manufacturer_model_name="organs",
        software_versions="1",
        device_serial_number="0",
    )
    file = io.BytesIO()
    segmentation.save_as(file)
    return file.getvalue()


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    made = call()
    return made, time.perf_counter() - started


def _code(concept: CodedConcept) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(concept.value, concept.scheme_designator, concept.meaning)


def a_mask(shape_kji: tuple[int, int, int]) -> NDArray[np.uint8]:
    """An ellipsoid for each segment, side by side: uint8 [K, J, I]."""
    mask = np.zeros(shape_kji, np.uint8)
    slices, rows, columns = shape_kji
    j, i = np.indices((rows, columns)) / [[[rows]], [[columns]]]
    for number in range(1, SEGMENTS + 1):
        middle = (number - 0.5) / SEGMENTS
        for k in range(slices):
            height = (k / slices - 0.5) / 0.4
            reach = 1 - height * height
            if reach > 0:
                inside = ((i - middle) * SEGMENTS / 0.9) ** 2 + ((j - 0.5) / 0.3) ** 2 < reach / 4
                mask[k][inside] = number
    return mask


def _an_output() -> Output:
    return Output(
        "MASK",
        "labelmap",
        "UINT8",
        (-1, -1, -1),
        tuple(Segment(n, f"Organ {n}", _ANATOMY, _ORGAN) for n in range(1, SEGMENTS + 1)),
    )


def _a_contract(output: Output) -> Contract:
    contract = Contract(
        pipeline="organs",
        version="1.0.0",
        input_kind="volume",
        modality="CT",
        outputs=(),
        peak_bytes_per_voxel=40.0,
        builder_version="0.1.0",
    )
    return replace(contract, outputs=(output,))


def _a_job(number: int) -> Job:
    job_id = f"{number:032x}"
    state, priority = JobState.RUNNING, Priority.NORMAL
    return Job(job_id, "organs", "A", "B", "1", "1", priority, state, 1, 1, (), 0.0, 0.0)


def _a_volume(folder: Path, shape_kji: tuple[int, int, int]) -> Volume:
    """Headers of a CT series; its pixels are left out, for nobody looks at them here."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    places, paths = [], []
    slices, rows, columns = shape_kji
    for k in range(slices):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.PatientID = ds.PatientName = ds.PatientBirthDate = ds.PatientSex = ""
        ds.StudyDate = ds.StudyTime = ds.StudyID = ds.AccessionNumber = ""
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", 1, k + 1
        ds.Rows, ds.Columns = rows, columns
        ds.ImagePositionPatient = [-180.0, -180.0, -400.0 + k]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [0.7, 0.7], 1.0
        paths.append(folder / f"{k:04}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
        uid = str(ds.SOPInstanceUID)
        places.append(Slice(CTImageStorage, uid, 1, (-180.0, -180.0, -400.0 + k)))
    affine = np.diag([0.7, 0.7, 1.0, 1.0])
    affine[:3, 3] = (-180, -180, -400)
    return Volume(
        ArenaSpan("", 0, 0),
        "INT16",
        shape_kji,
        np.ones((slices, 2)),
        affine,
        tuple(places),
        tuple(paths),
        Series(series, study, "CT", "A", "B", ()),
    )
