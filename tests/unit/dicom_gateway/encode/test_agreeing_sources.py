"""How far the source images of one volume may differ, in place and in whose they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from dicom_gateway.encode.gate import read_sources_anew
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import ObjectKind, Volume
from tests.support.dicom import PATIENT_ID, a_ct_series
from tests.support.results import OBLIQUE, a_volume, pixels_of, results_of, unit
from tests.support.series import two_boxes

OURS = "Please report this"


def with_odd_slices(
    folder: Path,
    orientation: tuple[float, ...] | None = None,
    spacing: tuple[float, float] | None = None,
    **how: Any,
) -> Volume:
    """A volume, every other slice of which says another direction or spacing."""
    series = a_ct_series(**{"frames": 5, "rows": 41, "columns": 51, **how})
    for ds in series[1::2]:
        if orientation is not None:
            ds.ImageOrientationPatient = [round(one, 8) for one in orientation]
        if spacing is not None:
            ds.PixelSpacing = list(spacing)
    return a_volume(folder, series)


def held_for(volume: Volume) -> str:
    """Why the gate holds a volume."""
    with pytest.raises(EncodingFailed) as caught:
        read_sources_anew(volume)
    assert caught.value.code == "result_misplaced"
    return str(caught.value)


ROUNDED: dict[str, dict[str, Any]] = {
    "PET, cosines rounded": {
        "orientation": (1, 0, 0, 0, 0.99999, 0.00003),
        "pixel_spacing_mm": (4.07283, 4.07283),
    },
    "four digits": {"orientation": (0.9999, 0.0004, 0.0002, -0.0004, 0.9999, 0.0003)},
    "out of the plane": {"orientation": (1, 0, 0.0009, 0, 1, 0.0009)},
    "oblique": {
        "orientation": tuple(round(one, 3) for one in unit(OBLIQUE)),
        "orientation_of_others": unit(OBLIQUE),
    },
    "spacing rounded": {"spacing": (0.977, 0.977), "pixel_spacing_mm": (0.9765625, 0.9765625)},
}


@pytest.mark.parametrize("name", ROUNDED)
def test_slices_that_round_differently_have_results(tmp_path: Path, name: str) -> None:
    """Of all kinds: where voxels land differs by less than anybody could see."""
    how = dict(ROUNDED[name])
    odd = how.pop("orientation", None)
    if "orientation_of_others" in how:
        series = a_ct_series(5, rows=41, columns=51, orientation=how.pop("orientation_of_others"))
        for ds in series[1::2]:
            ds.ImageOrientationPatient = list(odd)
        volume = a_volume(tmp_path, series)
    else:
        volume = with_odd_slices(tmp_path, odd, **how)
    made = results_of(two_boxes(volume), volume, tmp_path, pixels=pixels_of(volume))
    assert set(made) == set(ObjectKind)


@pytest.mark.parametrize(
    ("spacing_mm", "most_mm"), [(0.2, 0.1), (0.7, 0.35), (4.0, 0.5)], ids=["fine", "CT", "PET"]
)
@pytest.mark.parametrize("what", ["turned", "out of the plane", "columns", "rows", "both"])
def test_a_corner_may_be_off_by_half_a_pixel_or_half_a_millimetre(
    tmp_path: Path, spacing_mm: float, most_mm: float, what: str
) -> None:
    """Whichever is less; a little more is held, and nobody is asked to report it."""
    wide, high = 50 * spacing_mm, 40 * spacing_mm  # between the outermost centres
    for share in (0.97, 1.03):
        off = share * most_mm
        orientation, spacing = None, None
        if what == "turned":
            orientation = (1, off / np.hypot(wide, high), 0, -off / np.hypot(wide, high), 1, 0)
        elif what == "out of the plane":
            orientation = (1, 0, off / (wide + high), 0, 1, off / (wide + high))
        else:
            part = off / np.sqrt(2) if what == "both" else off
            spacing = (
                spacing_mm + (0 if what == "columns" else part / 40),
                spacing_mm - (0 if what == "rows" else part / 50),
            )
        volume = with_odd_slices(
            tmp_path / str(share), orientation, spacing, pixel_spacing_mm=(spacing_mm, spacing_mm)
        )
        if share < 1:
            read_sources_anew(volume)
        else:
            why = held_for(volume)
            assert "source images don't agree with each other in direction or pixel spacing" in why
            assert "slice 2" in why
            assert OURS not in why


def test_what_is_carried_from_slice_to_slice_is_the_first_one_s(tmp_path: Path) -> None:
    """An error can't grow along the stack: every slice is held against the same one."""
    series = a_ct_series(9, rows=41, columns=51, pixel_spacing_mm=(0.7, 0.7))
    for k, ds in enumerate(series):
        ds.PixelSpacing = [0.7, round(0.7 + 0.002 * k, 6)]
    assert "slice 5" in held_for(a_volume(tmp_path, series))


@pytest.mark.parametrize("axis", [0, 1], ids=["columns", "rows"])
@pytest.mark.parametrize("change", ["scaled", "turned"])
def test_a_volume_off_its_first_slice_is_ours_to_report(
    tmp_path: Path, axis: int, change: str
) -> None:
    """Its affine is made of the same numbers, so nothing is forgiven: not a thousandth."""
    volume = a_volume(tmp_path)
    affine = volume.affine_lps.copy()
    affine[axis if change == "scaled" else 1 - axis, axis] += 0.0007
    why = held_for(dataclasses.replace(volume, affine_lps=affine))
    assert "the volume is turned or scaled" in why
    assert OURS in why


def in_another(keyword: str, value: str) -> list[Dataset]:
    """A series one image of which says something else."""
    series = a_ct_series(5, rows=23, columns=29)
    setattr(series[2], keyword, value)
    return series


@pytest.mark.parametrize(
    ("keyword", "value", "whose"),
    [
        ("PatientID", "SOMEBODY", "patients"),
        ("PatientID", "", "patients"),
        ("StudyInstanceUID", "1.2.3.4", "studies"),
    ],
)
def test_images_of_several_patients_or_studies_are_held(
    tmp_path: Path, keyword: str, value: str, whose: str
) -> None:
    """Whoever let them become one volume: the result would be filed under the first."""
    volume = a_volume(tmp_path, in_another(keyword, value))
    why = held_for(volume)
    assert f"its source images are of several {whose}" in why
    assert keyword in why
    assert "SOMEBODY" not in why
    assert PATIENT_ID not in why
    assert OURS not in why
    with pytest.raises(EncodingFailed, match="source images are of several"):
        results_of(two_boxes(volume), volume, tmp_path)
    assert not list((tmp_path / "results").iterdir())


def test_spaces_make_no_other_patient(tmp_path: Path) -> None:
    """They don't count (PS3.5 6.2)."""
    volume = a_volume(tmp_path, in_another("PatientID", f" {PATIENT_ID}  "))
    assert results_of(two_boxes(volume), volume, tmp_path, (ObjectKind.SEGMENTATION,))
