"""Objects and those that were there before: of an earlier attempt, and of an earlier job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from dicom_gateway.encode import encode_results
from dicom_gateway.encode.identity import result_series_uid, result_uid, series_uid_of_result
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import Inference, ObjectKind, ReplacedResult, Result, Volume
from tests.support.peers import dciodvfy
from tests.support.results import FINDINGS, a_volume, pass_gate, pixels_of, random_lungs, results_of
from tests.support.series import LUNGS, a_contract, a_job

SEG, SR = ObjectKind.SEGMENTATION, ObjectKind.STRUCTURED_REPORT


def made_of(
    mask: NDArray[np.uint8],
    volume: Volume,
    folder: Path,
    *,
    version: str = "1.0.0",
    **more: Any,
) -> dict[ObjectKind, Result]:
    """SEG and SR of one job by one version of its pipeline."""
    contract = replace(a_contract(LUNGS), version=version)
    inference = Inference({"MASK": mask}, 1.0)
    seg, report = encode_results(inference, volume, contract, a_job(), folder, (SEG, SR), **more)
    return {SEG: seg, SR: report}


def test_a_segmentation_of_another_mask_is_made_anew(tmp_path: Path) -> None:
    """The report was held and the bundle rebuilt: the new report gets a SEG of the new mask."""
    volume = a_volume(tmp_path)
    first = results_of(random_lungs(volume, 1), volume, tmp_path, (SEG,))[SEG]
    mask = random_lungs(volume, 2)
    again = made_of(mask, volume, tmp_path / "results")
    assert again[SEG].path == first.path
    for one in again.values():
        pass_gate(one, mask, volume, segmentation=again[SEG])
    assert hd.seg.segread(again[SEG].path).get_volume().array.sum() == (mask > 0).sum()


def test_an_object_names_the_version_that_made_the_others(tmp_path: Path) -> None:
    """The same mask by a newer version: all objects say the newer one."""
    volume = a_volume(tmp_path)
    mask = random_lungs(volume, 1)
    made_of(mask, volume, tmp_path, version="1.0.0")
    for one in made_of(mask, volume, tmp_path, version="1.0.1").values():
        assert pydicom.dcmread(one.path).SoftwareVersions[1] == "lung_ct 1.0.1"


def test_an_announced_object_never_changes(tmp_path: Path) -> None:
    """A peer may have it: the job fails and says so, and nothing new is made beside it."""
    volume = a_volume(tmp_path)
    first = made_of(random_lungs(volume, 1), volume, tmp_path)
    before = {kind: one.path.read_bytes() for kind, one in first.items()}
    with pytest.raises(EncodingFailed, match="never changes under its UID") as caught:
        made_of(random_lungs(volume, 2), volume, tmp_path, is_announced=lambda _: True)
    assert caught.value.code == "result_changed"
    assert {kind: one.path.read_bytes() for kind, one in first.items()} == before


def test_an_announced_object_that_is_right_is_kept_whatever_made_it(tmp_path: Path) -> None:
    """A retry after an update of the pipeline that finds the same sends the same bytes."""
    volume = a_volume(tmp_path)
    mask = random_lungs(volume, 1)
    first = made_of(mask, volume, tmp_path)
    before = first[SEG].path.read_bytes()
    uid = first[SEG].sop_instance_uid
    made_of(mask, volume, tmp_path, version="2.0.0", is_announced=lambda one: one == uid)
    assert first[SEG].path.read_bytes() == before


def test_other_scores_are_told_in_another_report(tmp_path: Path) -> None:
    """Reports of scores are held against the new scores too."""
    volume = a_volume(tmp_path)
    for scores in ([0.25, 0.5], [0.75, 0.125]):
        made = results_of(
            None, volume, tmp_path, (SR,), output=FINDINGS, scores=np.array(scores, np.float32)
        )
        report = hd.sr.srread(made[SR].path)
        assert [f"{one}" in str(report) for one in scores] == [True, True]


def test_a_broken_file_is_made_anew(tmp_path: Path) -> None:
    """Of a disk that lied, say."""
    volume = a_volume(tmp_path)
    mask = random_lungs(volume, 1)
    path = made_of(mask, volume, tmp_path)[SEG].path
    path.write_bytes(path.read_bytes()[:700])
    pass_gate(made_of(mask, volume, tmp_path)[SEG], mask, volume)


def test_results_name_those_whose_place_they_take(tmp_path: Path) -> None:
    """Of the same kind and output, where each kind of object has room for it; all are valid."""
    volume = a_volume(tmp_path)
    mask = random_lungs(volume, 1)
    earlier = "00000000000000000000000000000001"
    pixels = pixels_of(volume)
    old = results_of(mask, volume, tmp_path, job_id=earlier, pixels=pixels)
    replaced = [
        ReplacedResult(one.sop_class_uid, one.sop_instance_uid, one.output, one.job_id)
        for one in old.values()
    ]
    new = results_of(mask, volume, tmp_path, pixels=pixels, replaced=replaced)
    for kind, one in new.items():
        ds = pydicom.dcmread(one.path)
        before = pydicom.dcmread(old[kind].path)
        if kind is SR:
            (document,) = ds.PredecessorDocumentsSequence
            assert document.StudyInstanceUID == before.StudyInstanceUID
            (series,) = document.ReferencedSeriesSequence
            assert series.SeriesInstanceUID == before.SeriesInstanceUID
            (named,) = series.ReferencedSOPSequence
        elif kind is ObjectKind.RT_STRUCTURE_SET:
            (named,) = ds.PredecessorStructureSetSequence
        else:
            (named,) = ds.ReferencedImageSequence
        assert named.ReferencedSOPClassUID == before.SOPClassUID
        assert named.ReferencedSOPInstanceUID == before.SOPInstanceUID
        if kind is not ObjectKind.LABELMAP_SEGMENTATION:  # younger than the program
            assert dciodvfy(one.path) == []


def test_the_series_of_a_later_volume_s_result_is_known() -> None:
    """The number of the volume is found by the UID; somebody else's UID has no series of ours."""
    job = a_job().job_id
    uid = result_uid(job, "MASK", 3, SR)
    assert series_uid_of_result(uid, job, "MASK", SR) == result_series_uid(job, "MASK", 3, SR)
    assert series_uid_of_result("1.2.3", job, "MASK", SR) is None


def test_every_kind_of_object_is_kept_by_a_retry_that_finds_the_same(tmp_path: Path) -> None:
    """The same file with the same bytes, the reports and pictures too."""
    volume = a_volume(tmp_path)
    mask = random_lungs(volume, 1)
    first = results_of(mask, volume, tmp_path, pixels=pixels_of(volume))
    assert set(first) == set(ObjectKind)
    before = {kind: (one.path.stat().st_ino, one.path.read_bytes()) for kind, one in first.items()}
    again = results_of(mask, volume, tmp_path, pixels=pixels_of(volume))
    after = {kind: (one.path.stat().st_ino, one.path.read_bytes()) for kind, one in again.items()}
    assert after == before
