"""How long a SEG takes, beside plain highdicom on the same mask in the same run.

Comes in: nothing; the series and the mask are generated. Goes out: a line each, medians. Both
objects are read back and held against each other: equal segments, frames, places and pixels.

    python -m perf.seg [--slices 300] [--segments 5] [--runs 5]
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
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

_ANATOMY = CodedConcept("91723000", "SCT", "Anatomical Structure")
_ORGAN = CodedConcept("39607008", "SCT", "Lung")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5)
    wanted = parser.parse_args()
    with TemporaryDirectory(prefix="tritome-seg-") as folder:
        volume = _a_volume(Path(folder), wanted.slices, wanted.size)
        mask = _a_mask(wanted.slices, wanted.size, wanted.segments)
        output = _an_output(wanted.segments)
        print(compare(volume, mask, output, Path(folder), runs=wanted.runs))


def compare(
    volume: Volume, mask: NDArray[np.uint8], output: Output, folder: Path, *, runs: int
) -> str:
    """Times both, in turn, and proves that they say the same.

    Raises:
        AssertionError: they don't.
    """
    contract = _a_contract(output)
    origin = Origin(volume, contract, _a_job("0" * 32), 0, read_sources(volume))
    images = [pydicom.dcmread(path) for path in volume.headers]
    ours_s, theirs_s = [], []
    for _ in range(runs):
        ours, seconds = _timed(lambda: _ours(mask, output, origin))
        ours_s.append(seconds)
        theirs, seconds = _timed(lambda: _theirs(mask, output, images))
        theirs_s.append(seconds)
    assert_equal(pydicom.dcmread(io.BytesIO(ours)), pydicom.dcmread(io.BytesIO(theirs)))
    _, checked_s = _timed(
        lambda: encode_segmentation(mask, volume, contract, output, _a_job("1" * 32), folder)
    )
    ours_ms, theirs_ms = (1000 * statistics.median(one) for one in (ours_s, theirs_s))
    return (
        f"{'x'.join(map(str, mask.shape))}, {len(output.segments)} segments: "
        f"tritome {ours_ms:.0f} ms, highdicom {theirs_ms:.0f} ms, ratio "
        f"{ours_ms / theirs_ms:.2f} (encoding and writing, equal content); with sources read, "
        f"synced and through the geometry gate {1000 * checked_s:.0f} ms"
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


def _a_mask(slices: int, size: int, segments: int) -> NDArray[np.uint8]:
    """An ellipsoid for each segment, side by side."""
    mask = np.zeros((slices, size, size), np.uint8)
    j, i = np.indices((size, size)) / size
    for number in range(1, segments + 1):
        middle = (number - 0.5) / segments
        for k in range(slices):
            height = (k / slices - 0.5) / 0.4
            reach = 1 - height * height
            if reach > 0:
                inside = ((i - middle) * segments / 0.9) ** 2 + ((j - 0.5) / 0.3) ** 2 < reach / 4
                mask[k][inside] = number
    return mask


def _an_output(segments: int) -> Output:
    return Output(
        "MASK",
        "labelmap",
        "UINT8",
        (-1, -1, -1),
        tuple(Segment(n, f"Organ {n}", _ANATOMY, _ORGAN) for n in range(1, segments + 1)),
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


def _a_job(job_id: str) -> Job:
    state, priority = JobState.RUNNING, Priority.NORMAL
    return Job(job_id, "organs", "A", "B", "1", "1", priority, state, 1, 1, (), 0.0, 0.0)


def _a_volume(folder: Path, slices: int, size: int) -> Volume:
    """Headers of a CT series; its pixels are left out, for nobody looks at them here."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    places, paths = [], []
    for k in range(slices):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame
        ds.PatientID = ds.PatientName = ds.PatientBirthDate = ds.PatientSex = ""
        ds.StudyDate = ds.StudyTime = ds.StudyID = ds.AccessionNumber = ""
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", 1, k + 1
        ds.Rows = ds.Columns = size
        ds.ImagePositionPatient = [-180.0, -180.0, -400.0 + k]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [0.7, 0.7], 1.0
        paths.append(folder / f"{k:04}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
        places.append(Slice(str(ds.SOPInstanceUID), 1, (-180.0, -180.0, -400.0 + k)))
    affine = np.diag([0.7, 0.7, 1.0, 1.0])
    affine[:3, 3] = (-180, -180, -400)
    return Volume(
        ArenaSpan("", 0, 0),
        "INT16",
        (slices, size, size),
        np.ones((slices, 2)),
        affine,
        tuple(places),
        tuple(paths),
        Series(series, study, "CT", "A", "B", ()),
    )


if __name__ == "__main__":
    main()
