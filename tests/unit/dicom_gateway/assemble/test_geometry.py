"""From headers to slice order and affine, and every kind of refusal by its name."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from dicom_gateway.assemble.geometry import Geometry, arrange, find_gaps
from dicom_gateway.assemble.headers import Header, read_header
from dicom_gateway.errors import UnusableSeries
from tests.support.dicom import CORONAL, a_ct_series, an_object_without_pixels, write_series

OBLIQUE = (0.9396926, 0.3420201, 0.0, -0.2961981, 0.8137977, 0.5)


def headers_of(folder: Path, datasets: list[Dataset]) -> list[Header]:
    """The headers of data sets, as read from files."""
    return [read_header(path) for path in write_series(folder, datasets)]


def arranged(folder: Path, **how: Any) -> Geometry:
    """The geometry of a generated series."""
    return arrange(headers_of(folder, a_ct_series(rows=8, columns=6, **how)))


def refusal(folder: Path, datasets: list[Dataset]) -> tuple[str, str]:
    """Code and sentence with which a series is refused."""
    with pytest.raises(UnusableSeries) as caught:
        arrange(headers_of(folder, datasets))
    return caught.value.code, str(caught.value)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), CORONAL, OBLIQUE])
def test_the_affine_puts_every_voxel_where_its_slice_says(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    """Index i along the rows, j along the columns, k along the positions, in LPS millimetres."""
    geometry = arranged(tmp_path, frames=5, orientation=orientation, shuffled=True)
    for k, header in enumerate(geometry.headers):
        assert header.position_lps_mm is not None
        np.testing.assert_allclose(
            geometry.affine_lps @ [0, 0, k, 1], [*header.position_lps_mm, 1], atol=1e-4
        )
    np.testing.assert_allclose(
        geometry.affine_lps[:3, 0], 0.7 * np.array(orientation[:3]), atol=1e-6
    )
    np.testing.assert_allclose(
        geometry.affine_lps[:3, 1], 0.8 * np.array(orientation[3:]), atol=1e-6
    )
    assert geometry.spacing_mm == pytest.approx(2.5)


def test_the_order_of_arrival_makes_no_difference(tmp_path: Path) -> None:
    """Sorted by position, whatever came first and whatever Instance Number says."""
    series = a_ct_series(frames=9, rows=8, columns=6)
    for number, ds in enumerate(reversed(series)):
        ds.InstanceNumber = number
    forwards = arrange(headers_of(tmp_path / "a", series))
    mixed = arrange(headers_of(tmp_path / "b", series[::2] + series[1::2]))
    np.testing.assert_array_equal(forwards.affine_lps, mixed.affine_lps)
    assert [h.sop_instance_uid for h in forwards.headers] == [
        h.sop_instance_uid for h in mixed.headers
    ]


def test_a_missing_slice_is_named_with_its_place(tmp_path: Path) -> None:
    """A person reads which slice to look for."""
    code, message = refusal(
        tmp_path,
        a_ct_series(frames=10, gap_at=5, spacing_mm=2.5, origin_lps_mm=(0, 0, 0)),
    )
    assert code == "missing_slices"
    assert "1 slice(s) missing between 10 and 15 mm" in message
    assert "9 of 10" in message


def test_of_three_slices_left_the_smaller_gap_is_the_usual_one(tmp_path: Path) -> None:
    """Four slices less one leave two gaps; the larger one is the hole."""
    code, _ = refusal(tmp_path, a_ct_series(frames=4, gap_at=2))
    assert code == "missing_slices"


def test_many_holes_are_counted(tmp_path: Path) -> None:
    """Two holes of one and two slices are three missing slices."""
    _, message = refusal(tmp_path, a_ct_series(frames=20, gap_at=(4, 11, 12)))
    assert message.startswith("3 slice(s) missing")


def test_two_orientations_are_refused(tmp_path: Path) -> None:
    """A localizer in the series is no volume."""
    code, message = refusal(tmp_path, a_ct_series(frames=6, two_orientations=True))
    assert code == "several_orientations"
    assert "3 and 3" in message


def test_two_instances_at_one_position_are_refused(tmp_path: Path) -> None:
    """Time points and echoes aren't stacked on each other."""
    code, message = refusal(tmp_path, a_ct_series(frames=6, duplicate_at=2))
    assert code == "duplicate_positions"
    assert "7 images lie at 6 position(s)" in message


@pytest.mark.parametrize("tilt_degrees", [0.5, -18.5])
def test_a_tilted_gantry_shows_in_the_positions(tmp_path: Path, tilt_degrees: float) -> None:
    """No tilt tag is needed, and none is believed."""
    code, message = refusal(tmp_path, a_ct_series(frames=20, tilt_degrees=tilt_degrees))
    assert code == "gantry_tilt"
    assert f"{abs(tilt_degrees):.1f} degrees" in message


def test_uneven_spacing_is_refused_as_such(tmp_path: Path) -> None:
    """A gap that is no multiple of the usual one is no missing slice."""
    series = a_ct_series(frames=6, origin_lps_mm=(0, 0, 0), spacing_mm=2)
    for ds, z in zip(series, (0, 2, 4, 6, 9.2, 11.2), strict=True):
        ds.ImagePositionPatient = [0, 0, z]
    code, message = refusal(tmp_path, series)
    assert code == "irregular_spacing"
    assert "from 2 to 3.2 mm" in message


def test_gaps_that_grow_little_by_little_are_refused(tmp_path: Path) -> None:
    """Each within its tolerance, and in the middle a slice lies a whole slice beside."""
    along = np.cumsum([0.0, *([1.0] * 150), *([1.0095] * 150)])
    series = a_ct_series(frames=len(along), rows=4, columns=4)
    for ds, z in zip(series, along, strict=True):
        ds.ImagePositionPatient = [0, 0, f"{z:.4f}"]
    code, message = refusal(tmp_path, series)
    assert code == "irregular_spacing"
    assert "little by little" in message


def test_thin_slices_then_thick_ones_are_not_called_missing(tmp_path: Path) -> None:
    """A head CT of 2.5 and 5 mm is irregular, however well 5 divides by 2.5."""
    series = a_ct_series(frames=7, origin_lps_mm=(0, 0, 0))
    for ds, z in zip(series, (0, 2.5, 5, 10, 15, 20, 25), strict=True):
        ds.ImagePositionPatient = [0, 0, z]
    assert refusal(tmp_path, series)[0] == "irregular_spacing"


def test_rounded_positions_are_still_regular(tmp_path: Path) -> None:
    """A scanner that writes two decimals makes no irregular series, one that jitters does."""
    series = a_ct_series(frames=30, spacing_mm=0.625)
    for k, ds in enumerate(series):
        ds.ImagePositionPatient = [0.004 * (k % 2), 0, round(0.625 * k, 2)]
    assert len(arrange(headers_of(tmp_path / "rounded", series)).headers) == 30
    series[7].ImagePositionPatient = [0, 0, 0.625 * 7 + 0.03]
    assert refusal(tmp_path / "jittering", series)[0] == "irregular_spacing"


def test_a_slice_beside_the_line_is_refused(tmp_path: Path) -> None:
    """One slice with another centre would be shifted in the volume."""
    series = a_ct_series(frames=5)
    x, y, z = series[2].ImagePositionPatient
    series[2].ImagePositionPatient = [float(x) + 4, y, z]
    code, message = refusal(tmp_path, series)
    assert code == "irregular_spacing"
    assert "4.0 mm beside" in message


@pytest.mark.parametrize(
    ("keyword", "value", "code"),
    [
        ("Rows", 16, "mixed_geometry"),
        ("PixelSpacing", [0.9, 0.9], "mixed_geometry"),
        ("FrameOfReferenceUID", "1.2.3", "mixed_geometry"),
        ("ImagePositionPatient", None, "no_geometry"),
        ("ImagePositionPatient", ["0", "0", "1e308"], "no_geometry"),
        ("ImageOrientationPatient", ["1e200", "0", "0", "0", "1e200", "0"], "no_geometry"),
        ("PixelSpacing", ["1e308", "1e308"], "no_geometry"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "no_geometry"),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0], "no_geometry"),
        ("PixelSpacing", [0, 0.9], "no_geometry"),
        ("NumberOfFrames", 12, "no_geometry"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"], "unsupported_object"),
    ],
)
def test_one_odd_instance_makes_the_series_unusable(
    tmp_path: Path, keyword: str, value: object, code: str
) -> None:
    """An odd size, grid, frame or place is refused by name, never averaged away."""
    series = a_ct_series(frames=4)
    setattr(series[1], keyword, value)
    assert refusal(tmp_path, series)[0] == code


def test_one_slice_is_no_volume(tmp_path: Path) -> None:
    """A single cross-section has no slice axis."""
    assert refusal(tmp_path, a_ct_series(frames=1))[0] == "too_few_slices"


def test_a_report_is_no_volume(tmp_path: Path) -> None:
    """An object without an image says so."""
    assert refusal(tmp_path, [an_object_without_pixels()])[0] == "no_pixel_data"


def test_no_message_holds_a_patient_attribute(tmp_path: Path) -> None:
    """Refusals speak of numbers and tags only."""
    for number, how in enumerate(({"gap_at": 2}, {"tilt_degrees": 9.0}, {"duplicate_at": 1})):
        series = a_ct_series(frames=6, **how)  # type: ignore[arg-type]
        assert "CANARY" not in refusal(tmp_path / str(number), series)[1]


def test_malformed_numbers_read_as_missing(tmp_path: Path) -> None:
    """A header whose decimal strings are none is read, and refused by name."""
    series = a_ct_series(frames=3)
    path = write_series(tmp_path, series)[0]
    raw = path.read_bytes()
    spacing = b"0.8\\0.7"
    assert raw.count(spacing) == 1
    path.write_bytes(raw.replace(spacing, b"eight\\."))
    assert read_header(path).pixel_spacing_mm is None


def test_no_file_is_read_as_no_file(tmp_path: Path) -> None:
    """A vanished or foreign file is a refusal, not a traceback."""
    (tmp_path / "x.dcm").write_bytes(b"nothing of DICOM")
    for name in ("x.dcm", "gone.dcm"):
        with pytest.raises(UnusableSeries) as caught:
            read_header(tmp_path / name)
        assert caught.value.code == "unsupported_object"


def test_gaps_are_seen_in_sorted_positions_only_where_there_are_any() -> None:
    """Fewer than three positions say nothing about gaps."""
    assert find_gaps([0.0, 50.0]) == ()
    assert find_gaps([0.0, 2.0, 4.0, 6.1]) == ()
    (gap,) = find_gaps([0.0, 2.0, 4.0, 10.0])
    assert dataclasses.astuple(gap) == (4.0, 10.0, 2)


def test_a_gap_that_no_number_can_hold_is_no_count_of_slices() -> None:
    """Damaged positions end in no arithmetic error."""
    (gap,) = find_gaps([0.0, 2.0, 4.0, math.inf])
    assert dataclasses.astuple(gap) == (4.0, math.inf, 0)
