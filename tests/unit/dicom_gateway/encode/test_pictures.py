"""Key images show what was found, where, and nobody's name; label maps hold the same mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_gateway.encode.gate import Gate, read_sources_anew
from dicom_gateway.encode.secondary_capture import key_slices
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import ObjectKind, Segment
from tests.support.dicom import CANARY, CORONAL, a_ct_series
from tests.support.peers import dciodvfy
from tests.support.results import FINDINGS, a_volume, pass_gate, pixels_of, random_lungs, results_of
from tests.support.series import LEFT_LUNG, LUNGS, two_boxes

SC, LABELMAP = ObjectKind.SECONDARY_CAPTURE, ObjectKind.LABELMAP_SEGMENTATION


def test_the_picture_is_valid_and_names_its_slices(tmp_path: Path) -> None:
    """RGB, one source for each tile, the patient's directions, no patient in the pixels."""
    volume = a_volume(tmp_path, frames=20, rows=40, columns=50)
    mask = two_boxes(volume)
    made = results_of(mask, volume, tmp_path, (SC,), pixels=pixels_of(volume))[SC]
    assert made.sop_class_uid == SecondaryCaptureImageStorage
    assert dciodvfy(made.path) == []
    ds = pydicom.dcmread(made.path)
    assert ds.pixel_array.shape == (ds.Rows, ds.Columns, 3)
    assert (ds.BurnedInAnnotation, ds.ConversionType) == ("NO", "SYN")
    assert list(ds.PatientOrientation) == ["L", "P"]
    named = [one.ReferencedSOPInstanceUID for one in ds.SourceImageSequence]
    assert named == [volume.slices[k].sop_instance_uid for k in key_slices(mask)]
    assert CANARY not in str(ds.get("DerivationDescription", ""))


@pytest.mark.parametrize(("side", "told"), [("L", "L"), ("both", ""), (None, "")])
def test_a_series_that_names_no_body_part_gets_a_valid_picture(
    tmp_path: Path, side: str | None, told: str
) -> None:
    """Its side is the source's, or said to be unknown."""
    series = list(a_ct_series(frames=3, rows=40, columns=50))
    for ds in series:
        ds.pop("BodyPartExamined", None)
        if side is not None:
            ds.Laterality = side
    volume = a_volume(tmp_path, series)
    made = results_of(two_boxes(volume), volume, tmp_path, (SC,), pixels=pixels_of(volume))[SC]
    assert dciodvfy(made.path) == []
    assert pydicom.dcmread(made.path).Laterality == told


def test_key_slices_are_spread_over_what_was_found() -> None:
    """Nine at most, each the fullest of its part; one where nothing was found."""
    mask = np.zeros((90, 8, 8), np.uint8)
    mask[20:80, 2:4, 2:4] = 1
    mask[50, 2:6, 2:6] = 1
    chosen = key_slices(mask)
    assert len(chosen) == 9
    assert 50 in chosen
    assert chosen[0] < 30
    assert chosen[-1] > 70
    assert key_slices(mask * 0) == [45]


def test_other_directions_are_told(tmp_path: Path) -> None:
    """A coronal slice has the feet at the bottom."""
    volume = a_volume(tmp_path, frames=4, orientation=CORONAL)
    made = results_of(random_lungs(volume, 1), volume, tmp_path, (SC,), pixels=pixels_of(volume))
    assert list(pydicom.dcmread(made[SC].path).PatientOrientation) == ["L", "F"]


def test_scores_have_a_picture_too(tmp_path: Path) -> None:
    """Of a radiograph without a place in the patient, larger than a tile."""
    pixels = np.arange(1100 * 900, dtype=np.uint16).reshape(1, 1100, 900) % 4000
    (ds,) = a_ct_series(pixels=pixels, signed=False, modality="DX")
    volume = a_volume(tmp_path, [ds])
    scores = np.array([0.25, 0.5], np.float32)
    made = results_of(
        None, volume, tmp_path, output=FINDINGS, scores=scores, pixels=pixels_of(volume)
    )
    assert set(made) == {SC, ObjectKind.STRUCTURED_REPORT}
    assert dciodvfy(made[SC].path) == []


def test_more_segments_than_the_legend_has_lines_are_counted(tmp_path: Path) -> None:
    """Those without a line and a colour of the contract pass the gate by their one colour."""
    volume = a_volume(tmp_path, frames=4, rows=40, columns=60)
    mask = np.zeros(volume.shape_kji, np.uint8)
    segments = []
    for label in range(1, 31):
        mask[1:3, 3 : 20 + label, 2 * label - 1] = label
        segments.append(Segment(label, f"Organ {label}", LEFT_LUNG.category, LEFT_LUNG.type))
    output = replace(LUNGS, segments=tuple(segments))
    made = results_of(mask, volume, tmp_path, (SC,), output=output, pixels=pixels_of(volume))[SC]
    pass_gate(made, mask, volume, output)
    with pytest.raises(EncodingFailed, match="segments where the mask has them"):
        pass_gate(made, np.where(mask == 29, 0, mask), volume, output)


@pytest.mark.parametrize("scores", [[0.25, 0.5], [0.25, 0.75]])
def test_the_picture_of_scores_says_these_scores(tmp_path: Path, scores: list[float]) -> None:
    """Another score in the legend is held."""
    volume = a_volume(tmp_path)
    right = np.array([0.25, 0.5], np.float32)
    pixels = pixels_of(volume)
    made = results_of(None, volume, tmp_path, (SC,), output=FINDINGS, scores=right, pixels=pixels)[
        SC
    ]
    truth = read_sources_anew(volume)
    gate = Gate(made.path, truth, made.sop_instance_uid, made.sop_class_uid, "picture")
    if scores == [0.25, 0.5]:
        gate.picture(None, FINDINGS, pixels, np.array(scores, np.float32))
        return
    with pytest.raises(EncodingFailed, match="legend"):
        gate.picture(None, FINDINGS, pixels, np.array(scores, np.float32))


def test_a_label_map_holds_the_mask(tmp_path: Path) -> None:
    """One number a voxel, read back by highdicom, on the source's instances."""
    volume = a_volume(tmp_path)
    mask = random_lungs(volume, 2)
    made = results_of(mask, volume, tmp_path, (LABELMAP,))[LABELMAP]
    seg = hd.seg.segread(made.path)
    assert seg.segmentation_type is hd.seg.SegmentationTypeValues.LABELMAP
    uids = [one.sop_instance_uid for one in volume.slices]
    again = seg.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(again, mask)
