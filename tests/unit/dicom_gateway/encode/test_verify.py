"""The last look before a result is announced: a misplaced one is held back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from dicom_gateway.encode import encode_segmentation, result_uid
from dicom_gateway.encode.gate import Gate, read_sources_anew
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import ArenaSpan, Output, Slice, Volume
from tests.support.dicom import a_ct_series
from tests.support.series import LUNGS, a_contract, a_job, a_kept_series, two_boxes

FRAMES, ROWS, COLUMNS = 5, 23, 29  # odd, so that frames don't begin on bytes


def verify_segmentation(
    path: Path, mask: NDArray[np.uint8], volume: Volume, output: Output
) -> None:
    """As it is done before a SEG is announced."""
    uid = result_uid(a_job().job_id, output.name)
    gate = Gate(path, read_sources_anew(volume), uid, SegmentationStorage, "segmentation")
    gate.segmentation(mask, output, binary=True)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """A volume as `assemble` describes it; its voxels aren't needed here."""
    datasets = a_ct_series(frames=FRAMES, rows=ROWS, columns=COLUMNS)
    series = a_kept_series(tmp_path / "source", datasets)
    affine = np.diag([0.7, 0.8, 2.5, 1.0])
    affine[:3, 3] = (-120, -110, -300)
    return Volume(
        image=ArenaSpan("", 0, 0),
        dtype="INT16",
        shape_kji=(FRAMES, ROWS, COLUMNS),
        rescale=np.ones((FRAMES, 2)),
        affine_lps=affine,
        slices=tuple(
            Slice(ds.SOPClassUID, ds.SOPInstanceUID, 1, (-120.0, -110.0, -300.0 + 2.5 * k))
            for k, ds in enumerate(datasets)
        ),
        headers=tuple(instance.path for instance in series.instances),
        series=series,
    )


@pytest.fixture
def result(tmp_path: Path, volume: Volume) -> Path:
    """A right result."""
    return encode_segmentation(
        two_boxes(volume), volume, a_contract(), LUNGS, a_job(), tmp_path / "results"
    ).path


def test_a_right_result_passes(volume: Volume, result: Path) -> None:
    """Nothing to say about it."""
    verify_segmentation(result, two_boxes(volume), volume, LUNGS)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flipped_mask_is_held(volume: Volume, result: Path, axis: int) -> None:
    """In any direction."""
    flipped = np.flip(two_boxes(volume), axis)
    with pytest.raises(EncodingFailed, match="held back") as caught:
        verify_segmentation(result, flipped, volume, LUNGS)
    assert caught.value.code == "result_misplaced"


def test_swapped_segments_are_held(volume: Volume, result: Path) -> None:
    """Left is not right."""
    swapped = np.array([0, 2, 1], np.uint8)[two_boxes(volume)]
    with pytest.raises(EncodingFailed):
        verify_segmentation(result, swapped, volume, LUNGS)


def test_a_shift_by_one_slice_is_held(volume: Volume, result: Path) -> None:
    """Also when only the sources moved."""
    shifted = dataclasses.replace(volume, slices=volume.slices[1:] + volume.slices[:1])
    with pytest.raises(EncodingFailed):
        verify_segmentation(result, two_boxes(volume), shifted, LUNGS)


def _another_frame_of_reference(ds: Dataset) -> None:
    ds.FrameOfReferenceUID = "1.2.3"


def _turned(ds: Dataset) -> None:
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


def _scaled(ds: Dataset) -> None:
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.7, 0.8]


def _moved(ds: Dataset) -> None:
    plane = ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence[0]
    x, y, z = plane.ImagePositionPatient
    plane.ImagePositionPatient = [x, y, float(z) + 0.01]


def _one_bit(ds: Dataset) -> None:
    bits = bytearray(ds.PixelData)
    bits[len(bits) // 2] ^= 1
    ds.PixelData = bytes(bits)


def _a_frame_less(ds: Dataset) -> None:
    groups = ds.PerFrameFunctionalGroupsSequence
    ds.PerFrameFunctionalGroupsSequence = groups[:-1]


def _a_segment_less(ds: Dataset) -> None:
    ds.SegmentSequence = ds.SegmentSequence[:1]


def _another_source(ds: Dataset) -> None:
    derivation = ds.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0]
    derivation.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _no_positions(ds: Dataset) -> None:
    del ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


@pytest.mark.parametrize(
    "spoil",
    [
        _another_frame_of_reference,
        _turned,
        _scaled,
        _moved,
        _one_bit,
        _a_frame_less,
        _a_segment_less,
        _another_source,
        _no_positions,
    ],
)
def test_a_spoilt_object_is_held(
    volume: Volume, result: Path, spoil: Callable[[Dataset], None]
) -> None:
    """Whatever is wrong with its place, its bits or its references."""
    ds = pydicom.dcmread(result)
    spoil(ds)
    ds.save_as(result)
    with pytest.raises(EncodingFailed) as caught:
        verify_segmentation(result, two_boxes(volume), volume, LUNGS)
    assert caught.value.code == "result_misplaced"


def test_a_cut_off_file_is_held(volume: Volume, result: Path) -> None:
    """Half a file is no result."""
    result.write_bytes(result.read_bytes()[: result.stat().st_size // 2])
    with pytest.raises(EncodingFailed):
        verify_segmentation(result, two_boxes(volume), volume, LUNGS)
