"""SEGs of multi-frame sources, of several volumes of one series, and of resampled volumes."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.plan import plan_volumes
from dicom_gateway.assemble.policy import Allowance
from dicom_gateway.assemble.resample import land
from dicom_gateway.assemble.volume import assemble, assemble_volume
from dicom_gateway.encode import encode_segmentation
from dicom_gateway.encode.gate import Gate, read_sources_anew
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import Result, Volume
from tests.support.dicom import a_ct_series, an_enhanced_series
from tests.support.peers import dciodvfy
from tests.support.series import LUNGS, a_contract, a_job, a_kept_series, joined, two_boxes

EVERYTHING = Allowance(resample=True, split=True)


def encoded(folder: Path, mask: NDArray[np.uint8], volume: Volume, index: int = 0) -> Result:
    """The result of a mask on the slices of a volume."""
    return encode_segmentation(
        mask, volume, a_contract(), LUNGS, a_job(), folder / "results", index
    )


def sources_of(ds: Dataset) -> list[tuple[str, int, list[float]]]:
    """Instance, frame and position that each frame of a SEG claims."""
    found = []
    for groups in ds.PerFrameFunctionalGroupsSequence:
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        position = [float(mm) for mm in groups.PlanePositionSequence[0].ImagePositionPatient]
        number = int(source.get("ReferencedFrameNumber", 0))
        found.append((str(source.ReferencedSOPInstanceUID), number, position))
    return found


def test_frames_of_a_multi_frame_source_are_referenced_by_number(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """Each frame of the SEG names the frame of the source that lies where it lies."""
    source = an_enhanced_series(6, rows=24, columns=28, shuffled=True)
    volume = assemble_volume(a_kept_series(tmp_path / "source", [source]), arena, pool)
    mask = two_boxes(volume)
    result = encoded(tmp_path, mask, volume)
    ds = pydicom.dcmread(result.path)
    for uid, number, position in sources_of(ds):
        assert uid == source.SOPInstanceUID
        groups = source.PerFrameFunctionalGroupsSequence[number - 1]
        true = groups.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(position, [float(mm) for mm in true], atol=1e-3)
    (series,) = ds.ReferencedSeriesSequence
    (instance,) = series.ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert instance.ReferencedSOPClassUID == EnhancedCTImageStorage
    assert dciodvfy(result.path) == []
    seg = hd.seg.segread(result.path)
    numbers = [one.frame_number for one in volume.slices]
    again = seg.get_pixels_by_source_frame(
        source.SOPInstanceUID, numbers, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(again, mask)


def test_a_frame_that_names_another_frame_is_held_back(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """The right instance is not enough."""
    source = an_enhanced_series(6, rows=24, columns=28)
    volume = assemble_volume(a_kept_series(tmp_path / "source", [source]), arena, pool)
    mask = two_boxes(volume)
    result = encoded(tmp_path, mask, volume)
    ds = pydicom.dcmread(result.path)
    groups = ds.PerFrameFunctionalGroupsSequence[1]
    (wrong,) = groups.DerivationImageSequence[0].SourceImageSequence
    wrong.ReferencedFrameNumber = 1 if wrong.ReferencedFrameNumber != 1 else 2
    ds.save_as(result.path)
    with pytest.raises(EncodingFailed) as caught:
        gate = Gate(
            result.path,
            read_sources_anew(volume),
            result.sop_instance_uid,
            result.sop_class_uid,
            "segmentation",
        )
        gate.segmentation(mask, LUNGS, binary=True)
    assert caught.value.code == "result_misplaced"


def test_each_volume_of_a_series_has_its_own_result(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """Own UIDs, own series, and the name that tells them apart; a retry makes the same ones."""
    first, second = a_ct_series(4, rows=24, columns=28), a_ct_series(5, rows=24, columns=28)
    for ds in first:
        ds.EchoTime = 10
    for ds in second:
        ds.EchoTime = 20
    series = a_kept_series(tmp_path / "source", joined(first, second))
    made = []
    for index, plan in enumerate(plan_volumes(series, EVERYTHING)):
        volume = assemble(plan, series, arena, pool)
        result = encoded(tmp_path, two_boxes(volume), volume, index)
        assert encoded(tmp_path, two_boxes(volume), volume, index) == result
        ds = pydicom.dcmread(result.path)
        assert ds.ContentDescription == volume.name
        assert ds.SeriesDescription == f"lung_ct: segmentation: {volume.name}"
        mine = first if index == 0 else second
        assert {uid for uid, _, _ in sources_of(ds)} <= {one.SOPInstanceUID for one in mine}
        made.append((ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.SeriesNumber))
    assert len(set(made)) == len({uid for uid, _, _ in made}) == 2


@pytest.mark.parametrize("how", [{"tilt_degrees": 15.0}, {"gap_at": 2}])
def test_a_mask_of_a_resampled_volume_is_encoded_on_the_source_frames(
    tmp_path: Path, arena: Arena, pool: DecoderPool, how: dict[str, float]
) -> None:
    """As many rows and columns, the same positions; no distance is claimed that isn't there."""
    datasets = a_ct_series(7, rows=24, columns=28, **how)  # type: ignore[arg-type]
    series = a_kept_series(tmp_path / "source", datasets)
    volume = assemble_volume(series, arena, pool, allowed=EVERYTHING)
    labels, sources = land(np.full(volume.shape_kji, 1, np.uint8), volume)
    assert labels.all()
    result = encoded(tmp_path, labels, sources)
    ds = pydicom.dcmread(result.path)
    assert (ds.Rows, ds.Columns) == (24, 28)
    positions = {
        str(one.SOPInstanceUID): [float(mm) for mm in one.ImagePositionPatient] for one in datasets
    }
    found = {uid: position for uid, _, position in sources_of(ds)}
    assert found.keys() == positions.keys()
    for uid, position in found.items():
        np.testing.assert_allclose(position, positions[uid], atol=1e-3)
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert "SpacingBetweenSlices" not in measures
    assert dciodvfy(result.path) == []
