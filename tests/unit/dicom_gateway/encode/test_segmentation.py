"""A label map becomes a SEG that lies on its source instances, bit for bit."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.volume import assemble_volume
from dicom_gateway.encode import encode_segmentation
from dicom_gateway.errors import EncodingFailed, Retryable
from dicom_gateway.records import CodedConcept, Output, Result, Segment, Series, Volume
from tests.support.dicom import CORONAL, PATIENT_ID, PATIENT_NAME, a_ct_series
from tests.support.peers import dciodvfy
from tests.support.series import (
    LEFT_LUNG,
    LUNGS,
    RIGHT_LUNG,
    a_contract,
    a_job,
    a_kept_series,
    a_real_series,
    two_boxes,
)

SMALL = {"frames": 6, "rows": 24, "columns": 28}


@pytest.fixture
def volume(tmp_path: Path, arena: Arena, pool: DecoderPool) -> Volume:
    """A small chest CT, instances in mixed order."""
    series = a_kept_series(tmp_path / "source", a_ct_series(**SMALL, shuffled=True))  # type: ignore[arg-type]
    return assemble_volume(series, arena, pool)


def encoded(
    folder: Path, mask: NDArray[Any], volume: Volume, output: Output = LUNGS, **contract: Any
) -> tuple[Result, Dataset]:
    """The result of `mask`, and what is in its file."""
    result = encode_segmentation(
        mask, volume, a_contract(output, **contract), output, a_job(), folder / "results"
    )
    return result, pydicom.dcmread(result.path)


def frames_of(path: Path, volume: Volume) -> dict[tuple[str, int], NDArray[np.uint8]]:
    """(source SOP Instance UID, segment) -> frame, each checked to lie on its source."""
    positions = {s.sop_instance_uid: s.position_lps_mm for s in volume.slices}
    segmentation = hd.seg.segread(path)
    frames = {}
    for number, groups in enumerate(segmentation.PerFrameFunctionalGroupsSequence, start=1):
        (derivation,) = groups.DerivationImageSequence
        (source,) = derivation.SourceImageSequence
        uid = source.ReferencedSOPInstanceUID
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(position, positions[uid], rtol=0, atol=1e-3)
        segment = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        frames[uid, int(segment)] = segmentation.get_stored_frame(number)
    return frames


def assert_frames_equal_mask(path: Path, mask: NDArray[Any], volume: Volume) -> None:
    """Bit for bit, every frame with voxels and no other."""
    frames = frames_of(path, volume)
    expected = {
        (slice_.sop_instance_uid, label): mask[k] == label
        for k, slice_ in enumerate(volume.slices)
        for label in (1, 2)
        if (mask[k] == label).any()
    }
    assert frames.keys() == expected.keys()
    for key, frame in frames.items():
        np.testing.assert_array_equal(frame, expected[key])


def test_every_frame_lies_on_its_source_instance(tmp_path: Path, volume: Volume) -> None:
    """Positions within 0.001 mm, pixels bit for bit, empty frames left out."""
    mask = two_boxes(volume)
    result, ds = encoded(tmp_path, mask, volume)
    assert_frames_equal_mask(result.path, mask, volume)
    assert ds.NumberOfFrames == 10
    assert ds.FrameOfReferenceUID == pydicom.dcmread(volume.headers[0]).FrameOfReferenceUID
    (series,) = ds.ReferencedSeriesSequence
    referenced = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert referenced == {slice_.sop_instance_uid for slice_ in volume.slices}


def test_other_orientations_lie_rightly_too(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """Nothing assumes axial slices."""
    series = a_kept_series(tmp_path / "source", a_ct_series(**SMALL, orientation=CORONAL))  # type: ignore[arg-type]
    volume = assemble_volume(series, arena, pool)
    mask = two_boxes(volume)
    result, ds = encoded(tmp_path, mask, volume)
    assert_frames_equal_mask(result.path, mask, volume)
    (shared,) = ds.SharedFunctionalGroupsSequence
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == list(CORONAL)
    assert shared.PixelMeasuresSequence[0].PixelSpacing == [0.8, 0.7]
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == 2.5


def test_segments_are_coded_as_the_contract_says(tmp_path: Path, volume: Volume) -> None:
    """Left is left in words and in code, with its colour and what made it."""
    _, ds = encoded(tmp_path, two_boxes(volume), volume)
    left, right = ds.SegmentSequence
    for item, segment, side in ((left, LEFT_LUNG, "7771000"), (right, RIGHT_LUNG, "24028007")):
        assert item.SegmentNumber == segment.label
        assert item.SegmentLabel == segment.name
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        assert item.SegmentAlgorithmName == "lung_ct"
        (algorithm,) = item.SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmVersion == "1.0.0"
        (category,) = item.SegmentedPropertyCategoryCodeSequence
        assert category.CodeValue == "91723000"
        (kind,) = item.SegmentedPropertyTypeCodeSequence
        assert kind.CodeValue == "39607008"
        (modifier,) = kind.SegmentedPropertyTypeModifierCodeSequence
        assert (modifier.CodeValue, modifier.CodingSchemeDesignator) == (side, "SCT")
        assert segment.colour_rgb is not None
        shown = hd.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue).to_rgb()
        np.testing.assert_allclose(shown, segment.colour_rgb, atol=1)


def test_patient_and_study_are_the_source_s(tmp_path: Path, volume: Volume) -> None:
    """The result is filed where its source is, in a series of its own."""
    result, ds = encoded(tmp_path, two_boxes(volume), volume)
    source = pydicom.dcmread(volume.headers[0])
    assert (ds.PatientName, ds.PatientID) == (PATIENT_NAME, PATIENT_ID)
    for keyword in (
        "StudyInstanceUID",
        "StudyDate",
        "StudyTime",
        "StudyID",
        "AccessionNumber",
        "PatientBirthDate",
        "PatientSex",
        "SpecificCharacterSet",
        "BodyPartExamined",
    ):
        assert ds[keyword].value == source[keyword].value, keyword
    assert ds.SeriesInstanceUID != source.SeriesInstanceUID
    assert ds.SeriesDescription == "lung_ct: segmentation"
    assert ds.Manufacturer == "tritome"
    assert ds.SOPInstanceUID == result.sop_instance_uid
    assert ds.SOPClassUID == result.sop_class_uid == SegmentationStorage
    assert result.size_bytes == result.path.stat().st_size


def test_dciodvfy_finds_no_error(tmp_path: Path, volume: Volume) -> None:
    """A filled mask and an empty one are both valid objects."""
    for name, mask in (("filled", two_boxes(volume)), ("empty", two_boxes(volume) * 0)):
        result, _ = encoded(tmp_path / name, mask, volume)
        assert dciodvfy(result.path) == []


def test_an_empty_mask_is_a_result_too(tmp_path: Path, volume: Volume) -> None:
    """All segments are described, all sources referenced, and no pixel is set."""
    result, ds = encoded(tmp_path, two_boxes(volume) * 0, volume)
    assert [item.SegmentLabel for item in ds.SegmentSequence] == ["Left lung", "Right lung"]
    assert ds.NumberOfFrames == 2
    assert not any(frame.any() for frame in frames_of(result.path, volume).values())
    (series,) = ds.ReferencedSeriesSequence
    assert len(series.ReferencedInstanceSequence) == 6


def test_a_segment_without_a_voxel_is_still_described(tmp_path: Path, volume: Volume) -> None:
    """Nothing found of one segment is something to say."""
    mask = two_boxes(volume)
    mask[mask == 1] = 0
    result, ds = encoded(tmp_path, mask, volume)
    assert len(ds.SegmentSequence) == 2
    assert_frames_equal_mask(result.path, mask, volume)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_need_not_be_consecutive(tmp_path: Path, volume: Volume, dtype: type) -> None:
    """Segment numbers count from 1, labels are the pipeline's own."""
    odd = dataclasses.replace(
        LUNGS,
        segments=(
            dataclasses.replace(LEFT_LUNG, label=7),
            dataclasses.replace(RIGHT_LUNG, label=3),
        ),
    )
    mask = two_boxes(volume)
    relabelled = np.array([0, 7, 3], dtype=dtype)[mask]
    result, _ = encoded(tmp_path, relabelled, volume, odd)
    assert_frames_equal_mask(result.path, mask, volume)


def test_a_single_segment_is_fine(tmp_path: Path, volume: Volume) -> None:
    """The library files the segment's number elsewhere then; the check knows."""
    one = dataclasses.replace(LUNGS, segments=(LEFT_LUNG,))
    mask = (two_boxes(volume) == 1).astype(np.uint8)
    result, _ = encoded(tmp_path, mask, volume, one)
    assert hd.seg.segread(result.path).get_volume().array.sum() == mask.sum()


def test_a_retry_sends_the_same_bytes(tmp_path: Path, volume: Volume) -> None:
    """What is durable already, and right, is returned as it is."""
    first, _ = encoded(tmp_path, two_boxes(volume), volume)
    before = first.path.read_bytes()
    again, _ = encoded(tmp_path, two_boxes(volume), volume)
    assert again == first
    assert again.path.read_bytes() == before


def test_only_the_finished_file_is_there(tmp_path: Path, volume: Volume) -> None:
    """Named by its UID, and nothing temporary beside it."""
    result, _ = encoded(tmp_path, two_boxes(volume), volume)
    assert [path.name for path in result.path.parent.iterdir()] == [
        f"{result.sop_instance_uid}.dcm"
    ]


def test_a_place_that_can_t_be_written_is_tried_again(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk passes; the job isn't lost to it."""
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / unfinished_name()).symlink_to("/dev/full")
    with pytest.raises(Retryable) as caught:
        encoded(tmp_path, two_boxes(volume), volume)
    assert caught.value.code == "result_not_written"


def unfinished_name() -> str:
    """Under which name a result is written before it is renamed."""
    from dicom_gateway.encode.identity import result_uid  # noqa: PLC0415

    return f".{result_uid(a_job().job_id, 'MASK')}.dcm.{secrets.token_hex(8)}.part"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda mask: mask[:-1], "on its input's grid"),
        (lambda mask: mask + 4 * (mask == 2).astype(np.uint8), "label 6"),
    ],
)
def test_a_mask_that_doesn_t_fit_is_refused(
    tmp_path: Path, volume: Volume, spoil: Any, words: str
) -> None:
    """Another shape or an undescribed label is a pipeline's mistake, and said so."""
    with pytest.raises(EncodingFailed, match=words):
        encoded(tmp_path, spoil(two_boxes(volume)), volume)


def test_an_output_without_segments_is_refused(tmp_path: Path, volume: Volume) -> None:
    """Scores are no label map."""
    scores = dataclasses.replace(LUNGS, kind="scores", segments=())
    with pytest.raises(EncodingFailed, match="no segment table"):
        encoded(tmp_path, two_boxes(volume), volume, scores)


def test_a_vanished_source_is_named(tmp_path: Path, volume: Volume) -> None:
    """Not a traceback, and no path in the sentence."""
    volume.headers[2].unlink()
    with pytest.raises(EncodingFailed, match="can't be read any more") as caught:
        encoded(tmp_path, two_boxes(volume), volume)
    assert str(tmp_path) not in str(caught.value)


SLOPPY: list[dict[str, Any]] = [
    {"PatientBirthDate": "1950", "PatientSex": "female", "PatientAge": "fifty"},
    {"PatientName": "CANARY", "PatientID": None, "StudyID": None},
    {"PatientName": None, "StudyDate": None, "StudyTime": None, "AccessionNumber": None},
    {"StudyDate": "2026.01.02", "StudyTime": "10:11:12", "SliceThickness": None},
    {"FrameOfReferenceUID": None, "SpecificCharacterSet": None, "SeriesNumber": None},
    {"StudyDescription": "CANARY " * 20, "BodyPartExamined": "the chest, of course"},
    {"PatientName": "CANÁRY^José", "SpecificCharacterSet": "ISO_IR 100"},
    {"PatientName": "CANARY^Янис", "SpecificCharacterSet": "ISO_IR 192"},
]


@pytest.mark.parametrize("odd", SLOPPY, ids="-".join)
@pytest.mark.parametrize("missing", [True, False], ids=["missing", "empty"])
def test_sloppy_headers_still_give_a_valid_result(
    tmp_path: Path,
    arena: Arena,
    pool: DecoderPool,
    caplog: pytest.LogCaptureFixture,
    odd: dict[str, Any],
    missing: bool,
) -> None:
    """Missing, empty and malformed attributes are carried, emptied or left out; none is logged."""
    datasets = a_ct_series(frames=3, rows=24, columns=28)
    for ds in datasets:
        for keyword, value in odd.items():
            if value is None and missing:
                del ds[keyword]
            else:
                setattr(ds, keyword, value)
    caplog.set_level(logging.DEBUG)
    volume = assemble_volume(a_kept_series(tmp_path / "source", datasets), arena, pool)
    caplog.clear()
    result, written = encoded(tmp_path, two_boxes(volume), volume)
    assert "CAN" not in caplog.text
    assert [line for line in dciodvfy(result.path) if "StudyDescription" not in line] == []
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "StudyID"):
        assert (written.get(keyword) or "") == (datasets[0].get(keyword) or ""), keyword


def test_a_contract_beyond_ascii_makes_the_result_unicode(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """The source's character set is kept unless our own words need another."""
    datasets = a_ct_series(frames=3, rows=24, columns=28, patient_name="Émile^Zoë")
    volume = assemble_volume(a_kept_series(tmp_path / "source", datasets), arena, pool)
    german = dataclasses.replace(LEFT_LUNG, name="Linker Lungenflügel")
    output = dataclasses.replace(LUNGS, segments=(german, RIGHT_LUNG))
    result, ds = encoded(tmp_path, two_boxes(volume), volume, output)
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert ds.SegmentSequence[0].SegmentLabel == "Linker Lungenflügel"
    assert ds.PatientName == "Émile^Zoë"
    assert dciodvfy(result.path) == []


def test_an_anatomic_region_is_told(tmp_path: Path, volume: Volume) -> None:
    """Where the contract names one."""
    region = CodedConcept("51185008", "SCT", "Chest")
    placed = Segment(1, "Left lung", LEFT_LUNG.category, LEFT_LUNG.type, anatomic_region=region)
    output = dataclasses.replace(LUNGS, segments=(placed, RIGHT_LUNG))
    result, ds = encoded(tmp_path, two_boxes(volume), volume, output)
    assert ds.SegmentSequence[0].AnatomicRegionSequence[0].CodeValue == "51185008"
    assert dciodvfy(result.path) == []


@pytest.mark.parametrize("name", ["v01", "v02", "v10", "v11", "v18"])
def test_real_series_get_valid_results(
    name: str, tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """Real headers, with what is odd about them."""
    series = next(s for s in a_real_series(name)[0] if s.modality in ("CT", "MR"))
    assert isinstance(series, Series)
    volume = assemble_volume(series, arena, pool)
    mask = two_boxes(volume)
    result, ds = encoded(tmp_path, mask, volume)
    assert dciodvfy(result.path) == []
    assert_frames_equal_mask(result.path, mask, volume)
    source = pydicom.dcmread(volume.headers[0], stop_before_pixels=True)
    assert (ds.PatientID, ds.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
