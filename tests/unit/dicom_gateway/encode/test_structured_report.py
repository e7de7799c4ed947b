"""Reports say how large and how likely, of what, where, and who found it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.uid import ComprehensiveSRStorage

from dicom_gateway.records import ObjectKind
from tests.support.dicom import PATIENT_NAME
from tests.support.peers import dciodvfy
from tests.support.results import FINDINGS, a_volume, results_of
from tests.support.series import two_boxes

SEG, SR = ObjectKind.SEGMENTATION, ObjectKind.STRUCTURED_REPORT


def items(ds: Dataset, meaning: str) -> Iterator[Dataset]:
    """Content items of this name, anywhere in the tree."""
    for item in ds.get("ContentSequence", []):
        names = item.get("ConceptNameCodeSequence")
        if names and names[0].CodeMeaning == meaning:
            yield item
        yield from items(item, meaning)


def numbers(ds: Dataset, meaning: str) -> list[float]:
    """The values of all measurements of this name."""
    return [float(one.MeasuredValueSequence[0].NumericValue) for one in items(ds, meaning)]


def test_volumes_are_the_voxels_of_each_segment(tmp_path: Path) -> None:
    """In millilitres, with the segment they are of in our own SEG."""
    volume = a_volume(tmp_path)
    mask = two_boxes(volume)
    made = results_of(mask, volume, tmp_path, (SEG, SR))
    ds = pydicom.dcmread(made[SR].path)
    voxel_ml = 0.7 * 0.8 * 2.5 / 1000
    expected = [(mask == label).sum() * voxel_ml for label in (1, 2)]
    np.testing.assert_allclose(numbers(ds, "Volume"), expected, rtol=1e-5)
    references = [one.ReferencedSOPSequence[0] for one in items(ds, "Referenced Segment")]
    assert [one.ReferencedSegmentNumber for one in references] == [1, 2]
    assert {one.ReferencedSOPInstanceUID for one in references} == {made[SEG].sop_instance_uid}
    sides = [one.ConceptCodeSequence[0].CodeMeaning for one in items(ds, "Laterality")]
    assert sides == ["Left", "Right"]


def test_uneven_slices_count_as_far_as_they_reach(tmp_path: Path) -> None:
    """Each half-way to its neighbours: that is the volume that the slices fill."""
    volume = a_volume(tmp_path, frames=6, gap_at=2)  # positions 0, 1, 3, 4, 5
    made = results_of(np.ones(volume.shape_kji, np.uint8), volume, tmp_path, (SR,))
    left, right = numbers(pydicom.dcmread(made[SR].path), "Volume")
    area_mm2 = 23 * 29 * 0.7 * 0.8
    assert left == pytest.approx(area_mm2 * 2.5 * (1 + 1.5 + 1.5 + 1 + 1) / 1000, rel=1e-5)
    assert right == 0


def test_without_a_segmentation_the_images_are_named(tmp_path: Path) -> None:
    """Those that the segment lies on, and no others."""
    volume = a_volume(tmp_path)
    mask = two_boxes(volume)
    made = results_of(mask, volume, tmp_path, (SR,))
    ds = pydicom.dcmread(made[SR].path)
    named = [
        one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for one in items(ds, "Source of Measurement")
    ]
    uids = [one.sop_instance_uid for one in volume.slices]
    assert named == [*uids[1:], *uids[:-1]]


def test_scores_come_with_their_codes(tmp_path: Path) -> None:
    """A class without a code gets a private one, which stays the same."""
    volume = a_volume(tmp_path)
    scores = np.array([0.875, 0.03125], np.float32)
    made = results_of(None, volume, tmp_path, output=FINDINGS, scores=scores, kinds=(SEG, SR))
    assert list(made) == [SR]
    ds = pydicom.dcmread(made[SR].path)
    assert numbers(ds, "Pneumothorax") == [0.875]
    (private,) = items(ds, "Something of our own")
    assert private.ConceptNameCodeSequence[0].CodingSchemeDesignator == "99TRITOME"
    assert float(private.MeasuredValueSequence[0].NumericValue) == 0.03125
    assert len(list(items(ds, "Source of Measurement"))) == len(volume.slices)
    assert dciodvfy(made[SR].path) == []


def test_a_report_is_valid_and_says_who_observed(tmp_path: Path) -> None:
    """Of the source's patient, by a device with its pipeline's name; highdicom reads it."""
    volume = a_volume(tmp_path)
    for kinds in ((SEG, SR), (SR,)):
        made = results_of(two_boxes(volume), volume, tmp_path / str(len(kinds)), kinds)
        assert dciodvfy(made[SR].path) == []
        report = hd.sr.srread(made[SR].path)
        assert report.SOPClassUID == made[SR].sop_class_uid == ComprehensiveSRStorage
        source = pydicom.dcmread(volume.headers[0])
        for keyword in ("StudyInstanceUID", "PatientID", "AccessionNumber", "StudyDate"):
            assert report[keyword].value == source[keyword].value, keyword
        assert report.PatientName == PATIENT_NAME
        assert report.SpecificCharacterSet == source.SpecificCharacterSet
        (observer,) = items(report, "Device Observer Name")
        assert observer.TextValue == "lung_ct 1.0.0"
        assert len(list(items(report, "Algorithm Name"))) == 2


def test_nothing_found_is_a_volume_of_zero(tmp_path: Path) -> None:
    """Looked and found nothing is something to say."""
    volume = a_volume(tmp_path)
    made = results_of(two_boxes(volume) * 0, volume, tmp_path, (SEG, SR))
    assert numbers(pydicom.dcmread(made[SR].path), "Volume") == [0, 0]
    assert dciodvfy(made[SR].path) == []
