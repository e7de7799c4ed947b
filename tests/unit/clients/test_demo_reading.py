"""Reading a SEG back onto its source, and judging it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from clients.demo.reading import (
    ReceivedSegmentation,
    SourceVolume,
    read_segmentation,
    read_source,
    source_series_uid,
)
from clients.demo.verdict import Check, dice_per_lung, judge, write_report
from clients.errors import ClientError
from tests.support.dicom import a_ct_series, write_series
from tests.support.segmentations import BLUE, RED, a_lung_segmentation

SHAPE = (10, 32, 32)


def lungs() -> NDArray[np.uint8]:
    """Left lung (1) at high column numbers, right lung (2) at low ones, slices 2 to 7."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:8, 8:24, 20:28] = 1
    mask[2:8, 8:24, 4:12] = 2
    return mask


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Ten axial slices, sent in no particular order."""
    return write_series(tmp_path / "ct", a_ct_series(frames=SHAPE[0], shuffled=True))


@pytest.fixture
def source(files: list[Path]) -> SourceVolume:
    """The slices as a volume."""
    return read_source(files, str(dcmread(files[0]).SeriesInstanceUID))


def in_order(files: list[Path], source: SourceVolume) -> list[Path]:
    """The files in the order of the volume's slices."""
    by_uid = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): path for path in files}
    return [by_uid[uid] for uid in source.sop_instance_uids]


@pytest.fixture
def seg(tmp_path: Path, files: list[Path], source: SourceVolume) -> Path:
    """A SEG of two lungs."""
    return a_lung_segmentation(tmp_path / "seg.dcm", in_order(files, source), lungs())


def test_a_mask_comes_back_as_it_was(seg: Path, source: SourceVolume) -> None:
    """Every voxel, each segment's name, side and colour; frames exactly on their slices."""
    received = read_segmentation(seg, source)
    for segment, label in zip(received.segments, (1, 2), strict=True):
        np.testing.assert_array_equal(segment.mask, lungs() == label)
    assert [(s.name, s.side) for s in received.segments] == [
        ("Left lung", "left"),
        ("Right lung", "right"),
    ]
    for segment, colour in zip(received.segments, (RED, BLUE), strict=True):
        assert np.abs(np.subtract(segment.colour_rgb, colour)).max() <= 1
    assert received.frames == 12
    assert received.worst_offset_mm < 1e-6
    assert received.misreferenced_frames == 0


def test_the_source_series_is_named_in_the_seg(seg: Path, source: SourceVolume) -> None:
    """A SEG leads to the series it was made from."""
    assert source_series_uid(seg) == source.series_instance_uid


def test_a_frame_that_lies_elsewhere_is_seen(seg: Path, source: SourceVolume) -> None:
    """A shift of a hundredth of a millimetre fails the check; so does a wrong reference."""
    ds = dcmread(seg)
    frame = ds.PerFrameFunctionalGroupsSequence[3]
    x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
    frame.PlanePositionSequence[0].ImagePositionPatient = [x, y, float(z) + 0.01]
    image = frame.DerivationImageSequence[0].SourceImageSequence[0]
    image.ReferencedSOPInstanceUID = "1.2.3"
    ds.save_as(seg)
    received = read_segmentation(seg, source)
    assert received.worst_offset_mm == pytest.approx(0.01)
    failed = [check.what for check in judge(received, source, None) if not check.passed]
    assert failed == [
        "each frame lies on its source slice",
        "each frame refers to the slice it lies on",
    ]


def test_another_grid_is_refused(seg: Path, source: SourceVolume) -> None:
    """A SEG of other rows and columns is never drawn somewhere."""
    ds = dcmread(seg)
    shared = ds.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.5]
    ds.save_as(seg)
    with pytest.raises(ClientError, match="other rows and columns"):
        read_segmentation(seg, source)


def test_the_wrong_study_is_refused(files: list[Path]) -> None:
    """A SEG can only be laid on the study that it was made from."""
    with pytest.raises(ClientError, match="doesn't hold the slices"):
        read_source(files, "1.2.3")


def verdict_on(mask: NDArray[np.uint8], tmp_path: Path, files: list[Path]) -> list[Check]:
    """The checks on a SEG made of `mask`, against the true lungs."""
    source = read_source(files, str(dcmread(files[0]).SeriesInstanceUID))
    path = a_lung_segmentation(tmp_path / "judged.dcm", in_order(files, source), mask)
    return judge(read_segmentation(path, source), source, lungs())


def test_true_lungs_pass_every_check(tmp_path: Path, files: list[Path]) -> None:
    """Position, reference, side and overlap."""
    checks = verdict_on(lungs(), tmp_path, files)
    assert [check.passed for check in checks] == [True] * 6
    assert [check.detail for check in checks[-2:]] == ["Dice 1.0000", "Dice 1.0000"]


def test_mirrored_lungs_fail_side_and_overlap(tmp_path: Path, files: list[Path]) -> None:
    """Left and right exchanged: what the demo is there to show."""
    failed = {c.what for c in verdict_on(lungs()[:, :, ::-1], tmp_path, files) if not c.passed}
    assert failed == {
        "the left lung is on the patient's left",
        "Left lung agrees with the phantom",
        "Right lung agrees with the phantom",
    }


def test_an_empty_lung_fails(tmp_path: Path, files: list[Path]) -> None:
    """A segment without a voxel is no result to be proud of."""
    mask = lungs()
    mask[mask == 2] = 0
    failed = {c.what for c in verdict_on(mask, tmp_path, files) if not c.passed}
    assert "no segment is empty" in failed


def test_dice_counts_overlap(seg: Path, source: SourceVolume) -> None:
    """Half of a lung has Dice 2/3 with the whole."""
    truth = lungs()
    truth[5:] = 0
    dice = dice_per_lung(read_segmentation(seg, source).segments, truth)
    assert dice == {"Left lung": pytest.approx(2 / 3), "Right lung": pytest.approx(2 / 3)}


def test_the_report_holds_the_numbers(seg: Path, source: SourceVolume, tmp_path: Path) -> None:
    """Millilitres, seconds, Dice and checks, as JSON."""
    received: ReceivedSegmentation = read_segmentation(seg, source)
    write_report(
        tmp_path / "report.json",
        stages={"send by C-STORE": 1.23456},
        received=received,
        source=source,
        checks=judge(received, source, lungs()),
        truth=lungs(),
        instances=10,
    )
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    ml = 6 * 16 * 8 * 0.8 * 0.7 * 2.5 / 1000
    assert [s["ml"] for s in report["segmentation"]["segments"]] == pytest.approx([ml] * 2)
    assert report["seconds"] == {"send by C-STORE": 1.23456}
    assert report["dice"] == {"Left lung": 1.0, "Right lung": 1.0}
    assert all(check["passed"] for check in report["checks"])
