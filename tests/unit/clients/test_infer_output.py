"""What `tritome infer` writes of what came back: all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from clients.commands.infer import write_prediction
from clients.infer import Prediction, Scored, write_report
from dicom_gateway.records import Inference, Output
from tests.support.results import FINDINGS, a_volume, random_lungs
from tests.support.series import LUNGS, a_contract


def a_prediction(folder: Path, *, several: bool, scores: bool = False) -> Prediction:
    """Both lungs as one label map, or as a mask each; scores beside them where wanted."""
    volume = a_volume(folder)
    lungs = random_lungs(volume, 3)
    output, found = LUNGS, {"MASK": lungs}
    if several:
        output = replace(LUNGS, kind="masks", dims=(2, -1, -1, -1))
        found = {f"MASK_{n}": (lungs == n).astype(np.uint8) for n in (1, 2)}
    outputs = (output, FINDINGS) if scores else (output,)
    scored = {"SCORES": np.array([0.25, 0.75], np.float32)} if scores else {}
    contract = replace(a_contract(), outputs=outputs)
    return Prediction(contract, Inference(found, 1.0, scored), volume)


@pytest.mark.parametrize("several", [False, True])
def test_every_mask_becomes_a_seg(tmp_path: Path, several: bool) -> None:
    """One keeps the name that was asked for; several get their output's name."""
    prediction = a_prediction(tmp_path, several=several)
    written = write_prediction(prediction, tmp_path / "out" / "seg.dcm")
    names = ["seg-MASK_1.dcm", "seg-MASK_2.dcm"] if several else ["seg.dcm"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    segments = [s.SegmentLabel for path in written for s in dcmread(path).SegmentSequence]
    assert segments == [segment.name for segment in LUNGS.segments]


@pytest.mark.parametrize("several", [False, True])
def test_every_mask_becomes_a_nifti_file(tmp_path: Path, several: bool) -> None:
    """With its own voxels."""
    prediction = a_prediction(tmp_path, several=several)
    written = write_prediction(prediction, tmp_path / "m.nii.gz")
    names = ["m-MASK_1.nii.gz", "m-MASK_2.nii.gz"] if several else ["m.nii.gz"]
    assert [path.name for path in written] == names
    for path, mask in zip(written, prediction.inference.labelmaps.values(), strict=True):
        image = nibabel.load(path)
        np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), mask)


def test_scores_beside_a_mask_get_their_report(tmp_path: Path) -> None:
    """In a file of its own; the mask keeps the name that was asked for."""
    prediction = a_prediction(tmp_path, several=False, scores=True)
    written = write_prediction(prediction, tmp_path / "seg.dcm")
    assert [path.name for path in written] == ["seg.dcm", "seg-SCORES.dcm"]
    assert [dcmread(path).Modality for path in written] == ["SEG", "SR"]
    assert [score for _, score in prediction.scores] == [0.25, 0.75]


def test_several_scores_get_a_report_each(tmp_path: Path) -> None:
    """None is dropped."""
    outputs = (FINDINGS, replace(FINDINGS, name="MORE"))
    scores = {one.name: np.array([0.5, 0.5], np.float32) for one in outputs}
    contract = replace(a_contract(), outputs=outputs)
    scored = Scored(contract, Inference({}, 1.0, scores), a_volume(tmp_path))
    written = write_report(scored, tmp_path / "report.dcm")
    assert [path.name for path in written] == ["report-SCORES.dcm", "report-MORE.dcm"]


def test_what_nothing_keeps_is_named() -> None:
    """An image as an output is neither a label map nor a score."""
    contract = replace(a_contract(), outputs=(LUNGS, Output("HEAT", "image", "FP32", (-1, -1))))
    found = Inference({"MASK": np.zeros((1, 1, 1), np.uint8)}, 1.0)
    assert Prediction(contract, found, None).left_out == ["HEAT"]  # type: ignore[arg-type]
