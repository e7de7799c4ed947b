"""One study sent many times is many studies."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf.studies import StudyTemplate
from tests.support.dicom import a_ct_series, write_series


def test_a_renewed_study_is_new_and_whole(tmp_path: Path) -> None:
    """All UIDs are new, its instances stay together, and the geometry stays as it was."""
    write_series(tmp_path, a_ct_series(frames=3))
    study = StudyTemplate(tmp_path)
    before = [(one.SOPInstanceUID, one.SeriesInstanceUID, one.StudyInstanceUID) for one in study]
    positions = [one.ImagePositionPatient for one in study]

    study_instance_uid = study.renew()

    after = [(one.SOPInstanceUID, one.SeriesInstanceUID, one.StudyInstanceUID) for one in study]
    assert len({uid for uids in before + after for uid in uids}) == 2 * (3 + 1 + 1)
    assert {uids[2] for uids in after} == {study_instance_uid}
    assert [one.file_meta.MediaStorageSOPInstanceUID for one in study] == [u[0] for u in after]
    assert [one.ImagePositionPatient for one in study] == positions


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    """A readme among the instances is no reason to stop."""
    write_series(tmp_path, a_ct_series(frames=2))
    (tmp_path / "README.md").write_text("about this study", encoding="utf-8")
    assert len(StudyTemplate(tmp_path)) == 2


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    """The message names the folder."""
    with pytest.raises(ValueError, match="holds no DICOM file"):
        StudyTemplate(tmp_path)
