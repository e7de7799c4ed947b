"""What `tritome infer` sends, and what it refuses before it asks Triton anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import dcmread

from clients.commands.infer import run
from clients.errors import ClientError
from clients.infer import series_in
from dicom_gateway.errors import TritonUnavailable
from tests.support.dicom import a_ct_series, write_series
from tests.support.peers import free_port


def test_the_one_series_of_a_folder_is_taken(tmp_path: Path) -> None:
    """With its modality and all of its instances."""
    files = write_series(tmp_path, a_ct_series(frames=4, rows=16, columns=16))
    series = series_in([tmp_path])
    assert series.series_instance_uid == dcmread(files[0]).SeriesInstanceUID
    assert (series.modality, len(series.instances)) == ("CT", 4)
    assert {instance.path for instance in series.instances} == set(files)


def test_of_several_series_one_must_be_named(tmp_path: Path) -> None:
    """The list says which there are; naming one takes it."""
    short = write_series(tmp_path / "a", a_ct_series(frames=2, rows=16, columns=16))
    write_series(tmp_path / "b", a_ct_series(frames=5, rows=16, columns=16))
    uid = str(dcmread(short[0]).SeriesInstanceUID)
    with pytest.raises(ClientError, match="--series") as caught:
        series_in([tmp_path])
    assert f"{uid}  CT, 2 instances" in str(caught.value)
    assert len(series_in([tmp_path], uid).instances) == 2
    with pytest.raises(ClientError, match="--series"):
        series_in([tmp_path], "1.2.3")


def test_a_seg_of_a_nifti_file_is_refused(tmp_path: Path) -> None:
    """It would have nothing to refer to."""
    (tmp_path / "ct.nii").touch()
    with pytest.raises(ClientError, match="a DICOM SEG refers to DICOM images"):
        run(tmp_path / "ct.nii", "lung_ct", "127.0.0.1:1", tmp_path / "seg.dcm", None)


def test_an_unknown_kind_of_output_is_refused(tmp_path: Path) -> None:
    """The ending decides what is written."""
    with pytest.raises(ClientError, match=r"end it in \.dcm .* or \.nii\.gz"):
        run(tmp_path, "lung_ct", "127.0.0.1:1", tmp_path / "mask.png", None)


@pytest.mark.parametrize("name", ["mask.nii.gz", "seg.dcm"])
def test_an_output_that_cannot_be_written_is_told_before_the_inference(
    tmp_path: Path, name: str
) -> None:
    """Nobody waits for a result that has no place; Triton isn't asked."""
    write_series(tmp_path / "ct", a_ct_series(frames=4, rows=16, columns=16))
    (tmp_path / "file").touch()
    with pytest.raises(ClientError, match=r"can't be written \(Not a directory\)"):
        run(tmp_path / "ct", "lung_ct", "127.0.0.1:1", tmp_path / "file" / name, None)
    (tmp_path / name).mkdir()
    with pytest.raises(ClientError, match="is a folder"):
        run(tmp_path / "ct", "lung_ct", "127.0.0.1:1", tmp_path / name, None)


def test_looking_at_the_output_leaves_nothing_behind(tmp_path: Path) -> None:
    """A run that fails later makes no folder and touches no older result."""
    write_series(tmp_path / "ct", a_ct_series(frames=4, rows=16, columns=16))
    (tmp_path / "old.dcm").write_bytes(b"older")
    for output in (tmp_path / "new" / "deep" / "s.dcm", tmp_path / "old.dcm"):
        with pytest.raises(TritonUnavailable):
            run(tmp_path / "ct", "lung_ct", f"127.0.0.1:{free_port()}", output, None)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "old.dcm").read_bytes() == b"older"


def test_without_triton_it_says_so(tmp_path: Path) -> None:
    """An error of the gateway's own tree, and no output file."""
    write_series(tmp_path / "ct", a_ct_series(frames=4, rows=16, columns=16))
    with pytest.raises(TritonUnavailable):
        run(tmp_path / "ct", "lung_ct", f"127.0.0.1:{free_port()}", tmp_path / "s.dcm", None)
    assert not (tmp_path / "s.dcm").exists()
