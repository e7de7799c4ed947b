"""Images that go into a network together must lie on one grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_gateway.assemble.grids import check_same_grid
from dicom_gateway.assemble.plan import VolumePlan, plan_volumes
from dicom_gateway.errors import UnusableSeries
from tests.support.dicom import a_ct_series
from tests.support.series import a_kept_series


def a_plan(folder: Path, change: Callable[[Dataset], None], **series: int) -> VolumePlan:
    """The plan of a series whose instances were changed."""
    datasets = a_ct_series(4, rows=8, columns=8, **series)  # type: ignore[arg-type]
    for ds in datasets:
        ds.FrameOfReferenceUID = "1.2.840.1"
        change(ds)
    (plan,) = plan_volumes(a_kept_series(folder, datasets))
    return plan


def _nothing(_ds: Dataset) -> None:
    pass


def _moved(ds: Dataset) -> None:
    x, y, z = ds.ImagePositionPatient
    ds.ImagePositionPatient = [x + 3.0, y, z]


def _a_hair_off(ds: Dataset) -> None:
    x, y, z = ds.ImagePositionPatient
    ds.ImagePositionPatient = [x + 0.001, y, z]


def _elsewhere(ds: Dataset) -> None:
    ds.FrameOfReferenceUID = "1.2.840.2"


@pytest.mark.parametrize("change", [_nothing, _a_hair_off])
def test_one_grid_is_one_grid(tmp_path: Path, change: Callable[[Dataset], None]) -> None:
    """Rounding in the headers is no other grid."""
    first = a_plan(tmp_path / "a", _nothing)
    check_same_grid({"t1": first, "flair": a_plan(tmp_path / "b", change)})


@pytest.mark.parametrize(
    ("change", "what"), [(_moved, "voxels apart"), (_elsewhere, "Frame of Reference")]
)
def test_another_place_is_refused_by_name(
    tmp_path: Path, change: Callable[[Dataset], None], what: str
) -> None:
    """Voxel to voxel it would be other tissue."""
    plans = {"t1": a_plan(tmp_path / "a", _nothing), "flair": a_plan(tmp_path / "b", change)}
    with pytest.raises(UnusableSeries, match=what) as refusal:
        check_same_grid(plans)
    assert refusal.value.code == "different_grids"
    assert "t1 and flair" in str(refusal.value)


def test_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    """The sentence has both."""
    datasets = a_ct_series(5, rows=8, columns=8)
    (other,) = plan_volumes(a_kept_series(tmp_path / "b", datasets))
    with pytest.raises(UnusableSeries, match="4 x 8 x 8 and 5 x 8 x 8"):
        check_same_grid({"t1": a_plan(tmp_path / "a", _nothing), "flair": other})


def test_another_patient_is_refused(tmp_path: Path) -> None:
    """Though the grids are the same, and the study, too."""

    def another(ds: Dataset) -> None:
        ds.PatientID = "SOMEBODY^ELSE"

    plans = {"t1": a_plan(tmp_path / "a", _nothing), "flair": a_plan(tmp_path / "b", another)}
    with pytest.raises(UnusableSeries, match="t1 and flair have different Patient IDs") as refusal:
        check_same_grid(plans)
    assert refusal.value.code == "mixed_identity"
    assert "SOMEBODY" not in str(refusal.value)
