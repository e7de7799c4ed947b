"""A series of several volumes is taken apart, each with a name; or stays whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_gateway.assemble.frames import Frame, frames_of
from dicom_gateway.assemble.headers import read_header
from dicom_gateway.assemble.split import Part, split
from dicom_gateway.errors import UnusableSeries
from tests.support.dicom import CORONAL, SAGITTAL, a_ct_series, an_enhanced_series, write_series
from tests.support.series import joined

PLACES = 5


def frames_in(folder: Path, datasets: Sequence[Dataset]) -> list[Frame]:
    """The frames of data sets, as read from files."""
    paths = write_series(folder, datasets)
    return [frame for path in paths for frame in frames_of(read_header(path))]


def parts_of(folder: Path, datasets: Sequence[Dataset]) -> tuple[Part, ...]:
    """What a series is taken apart into."""
    return split(frames_in(folder, datasets))[0]


def volumes(count: int, change: Callable[[Dataset, int], None]) -> list[Dataset]:
    """The same places several times in one series, told apart by `change(ds, number)`."""
    made = []
    for number in range(count):
        part = a_ct_series(PLACES, rows=4, columns=4)
        for ds in part:
            ds.InstanceNumber = len(made) + 1
            change(ds, number)
        made.append(part)
    return joined(*made)


def echo_time(ds: Dataset, number: int) -> None:
    """MR echoes."""
    ds.EchoTime = 12.5 * (number + 1)


def b_value(ds: Dataset, number: int) -> None:
    """Diffusion."""
    ds.DiffusionBValue = 1000.0 * number


def image_type(ds: Dataset, number: int) -> None:
    """Magnitude and phase."""
    ds.ImageType = ["ORIGINAL", "PRIMARY", "MP"[number % 2]]


def temporal_position(ds: Dataset, number: int) -> None:
    """Perfusion."""
    ds.TemporalPositionIdentifier = number + 1


def acquisition_number(ds: Dataset, number: int) -> None:
    """Phases of contrast in one series."""
    ds.AcquisitionNumber = number + 1


@pytest.mark.parametrize(
    ("change", "count", "names"),
    [
        (echo_time, 2, ["echo time 12.5 ms", "echo time 25 ms"]),
        (b_value, 2, ["b=0 s/mm2", "b=1000 s/mm2"]),
        (image_type, 2, ["M", "P"]),
        (temporal_position, 3, [f"time point {n} of 3" for n in (1, 2, 3)]),
        (acquisition_number, 2, ["acquisition 1", "acquisition 2"]),
    ],
)
def test_what_a_volume_shares_tells_it_from_the_others(
    tmp_path: Path, change: Callable[[Dataset, int], None], count: int, names: list[str]
) -> None:
    """Each part has every place once and a name that a person understands."""
    parts = parts_of(tmp_path, volumes(count, change))
    assert [part.name for part in parts] == names
    assert [len(part.frames) for part in parts] == [PLACES] * count


def test_echoes_within_time_points_are_told_apart_by_both(tmp_path: Path) -> None:
    """Two times two volumes."""

    def both(ds: Dataset, number: int) -> None:
        echo_time(ds, number % 2)
        temporal_position(ds, number // 2)

    parts = parts_of(tmp_path, volumes(4, both))
    assert [part.name for part in parts] == [
        "echo time 12.5 ms, time point 1 of 2",
        "echo time 12.5 ms, time point 2 of 2",
        "echo time 25 ms, time point 1 of 2",
        "echo time 25 ms, time point 2 of 2",
    ]


@pytest.mark.parametrize("keyword", ["AcquisitionTime", "ContentTime", "TriggerTime"])
def test_times_that_change_from_slice_to_slice_give_the_order(tmp_path: Path, keyword: str) -> None:
    """The n-th image at each place makes the n-th volume; no two slices share a time."""
    series = volumes(3, lambda ds, number: None)
    for number, ds in enumerate(series):
        time, place = divmod(number, PLACES)
        ds.InstanceNumber = 1
        if keyword == "TriggerTime":
            ds.TriggerTime = 100 * time + place
        else:
            setattr(ds, keyword, f"1011{10 * time + place:02d}")
    parts = parts_of(tmp_path, series)
    assert [part.name for part in parts] == [f"time point {n} of 3" for n in (1, 2, 3)]
    for time, part in enumerate(parts):
        expected = {ds.SOPInstanceUID for ds in series[time * PLACES : (time + 1) * PLACES]}
        assert {frame.sop_instance_uid for frame in part.frames} == expected


def test_instance_number_is_the_last_resort(tmp_path: Path) -> None:
    """Where nothing else differs, the order of things does."""
    parts = parts_of(tmp_path, volumes(2, lambda ds, number: None))
    assert [part.name for part in parts] == ["time point 1 of 2", "time point 2 of 2"]


def test_frames_of_one_object_are_split_by_their_own_traits(tmp_path: Path) -> None:
    """Enhanced objects say it in their functional groups."""
    parts = parts_of(tmp_path, [an_enhanced_series(4, times=3, rows=4, columns=4, shuffled=True)])
    assert [part.name for part in parts] == [f"time point {n} of 3" for n in (1, 2, 3)]
    assert [len({frame.position_lps_mm for frame in part.frames}) for part in parts] == [4, 4, 4]


def test_orientations_are_named_by_their_plane(tmp_path: Path) -> None:
    """The largest first."""
    planes = [
        a_ct_series(count, rows=4, columns=4, orientation=orientation)
        for count, orientation in ((3, SAGITTAL), (6, (1, 0, 0, 0, 1, 0)), (4, CORONAL))
    ]
    parts = parts_of(tmp_path, joined(*planes))
    assert [(part.name, len(part.frames)) for part in parts] == [
        ("axial", 6),
        ("coronal", 4),
        ("sagittal", 3),
    ]


def test_localizers_and_single_images_beside_a_volume_are_left_out_and_said(
    tmp_path: Path,
) -> None:
    """A scout in the series is no volume, and nobody loses it in silence."""
    scouts = a_ct_series(
        2, rows=4, columns=4, orientation=CORONAL, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")
    )
    lonely = a_ct_series(1, rows=4, columns=4, orientation=SAGITTAL)
    series = joined(a_ct_series(6, rows=4, columns=4), scouts, lonely)
    parts, notes = split(frames_in(tmp_path, series))
    assert [(part.name, len(part.frames)) for part in parts] == [("", 6)]
    assert "2 localizer image(s) left out" in notes
    assert any(note.startswith("1 single image(s)") for note in notes)


def test_images_in_all_directions_are_no_volume(tmp_path: Path) -> None:
    """A localizer that doesn't say that it is one."""
    series = joined(
        *(
            a_ct_series(1, rows=4, columns=4, orientation=one)
            for one in (CORONAL, SAGITTAL, (1, 0, 0, 0, 1, 0))
        )
    )
    with pytest.raises(UnusableSeries) as caught:
        parts_of(tmp_path, series)
    assert caught.value.code == "several_orientations"


def test_what_can_t_be_told_apart_stays_together(tmp_path: Path) -> None:
    """One double image doesn't make two volumes; whoever stacks the part refuses it."""
    (part,) = parts_of(tmp_path, a_ct_series(6, rows=4, columns=4, duplicate_at=2))
    assert len(part.frames) == 7


def test_a_value_of_single_slices_makes_no_volume(tmp_path: Path) -> None:
    """Acquisition numbers that count slices are not taken for volumes."""
    series = volumes(2, lambda ds, number: None)
    for number, ds in enumerate(series):
        ds.AcquisitionNumber = ds.InstanceNumber = number + 1
    parts = parts_of(tmp_path, series)
    assert [len(part.frames) for part in parts] == [PLACES, PLACES]


def test_names_carry_no_time_of_day_and_no_free_text(tmp_path: Path) -> None:
    """Dates belong to the patient, and a code string may hold anything."""
    series = volumes(2, image_type)
    for number, ds in enumerate(series):
        ds.ImageType = ["ORIGINAL", "PRIMARY", "Doe^Jane" if number < PLACES else "Roe^Jim"]
        ds.AcquisitionTime = "101112"
    names = " ".join(part.name for part in parts_of(tmp_path, series))
    assert "101112" not in names
    assert "ane" not in names


def voltage(ds: Dataset, number: int) -> None:
    """Dual energy."""
    ds.KVP = (80, 140)[number]


def kernel(ds: Dataset, number: int) -> None:
    """Two reconstructions."""
    ds.ConvolutionKernel = ("B30f", "B70f")[number]


def flip_angle(ds: Dataset, number: int) -> None:
    """Mapping of T1."""
    ds.FlipAngle = (5, 20)[number]


def inversion_time(ds: Dataset, number: int) -> None:
    """The same by inversion."""
    ds.InversionTime = (700, 2500)[number]


def thickness(ds: Dataset, number: int) -> None:
    """Thick slices at the places of thin ones."""
    ds.SliceThickness = (1, 5)[number]


def original_or_derived(ds: Dataset, number: int) -> None:
    """Measured, and computed from that."""
    ds.ImageType = [("ORIGINAL", "DERIVED")[number], "PRIMARY", "AXIAL"]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (voltage, ["80 kV", "140 kV"]),
        (kernel, ["kernel 1 of 2", "kernel 2 of 2"]),
        (flip_angle, ["flip angle 5 degrees", "flip angle 20 degrees"]),
        (inversion_time, ["inversion time 700 ms", "inversion time 2500 ms"]),
        (thickness, ["slices of 1 mm", "slices of 5 mm"]),
        (original_or_derived, ["ORIGINAL/PRIMARY", "DERIVED/PRIMARY"]),
    ],
)
def test_images_made_in_two_ways_are_two_volumes_in_whatever_order_they_are_numbered(
    tmp_path: Path, change: Callable[[Dataset, int], None], names: list[str]
) -> None:
    """The second one is numbered from its other end: by number they would be mixed."""
    datasets = volumes(2, change)
    for number, ds in enumerate(reversed(datasets[PLACES:]), start=1):
        ds.InstanceNumber = number
    parts = parts_of(tmp_path, datasets)
    assert sorted(part.name for part in parts) == sorted(names)
    before = {ds.SOPInstanceUID for ds in datasets[:PLACES]}
    found = [{frame.sop_instance_uid for frame in part.frames} & before for part in parts]
    assert sorted(len(members) for members in found) == [0, PLACES]


def test_no_order_of_images_mixes_two_ways_of_making_them(tmp_path: Path) -> None:
    """Echo times that make no whole volumes: by number, one of them would be in both."""
    datasets = volumes(2, lambda ds, number: None)
    for ds, echo_time_ms in zip(datasets, (10, 10, 30, 30, 10, 20, 20, 10, 20, 20), strict=True):
        ds.EchoTime = echo_time_ms
    for number, ds in enumerate(datasets, start=1):
        ds.InstanceNumber = number
    (part,) = parts_of(tmp_path, datasets)
    assert len(part.frames) == 2 * PLACES


@pytest.mark.parametrize("keyword", ["AcquisitionTime", "ContentTime"])
def test_times_without_a_date_that_pass_midnight_give_no_order(
    tmp_path: Path, keyword: str
) -> None:
    """By time of day the slices of after midnight would come first; their numbers are right."""
    datasets = volumes(2, lambda ds, number: None)
    for number, ds in enumerate(datasets, start=1):
        ds.InstanceNumber = number
        for unwanted in ("AcquisitionDate", "ContentDate", "AcquisitionTime", "ContentTime"):
            if unwanted in ds:
                delattr(ds, unwanted)
        setattr(ds, keyword, f"2359{52 + number:02d}" if number < 8 else f"0000{number:02d}")
    parts = parts_of(tmp_path, datasets)
    assert [{frame.header.instance_number for frame in part.frames} for part in parts] == [
        set(range(1, PLACES + 1)),
        set(range(PLACES + 1, 2 * PLACES + 1)),
    ]


def test_rounding_of_the_pixel_spacing_makes_no_further_volume(tmp_path: Path) -> None:
    """0.4885 and 0.48850001 round to two numbers of three decimals."""
    datasets = volumes(2, echo_time)
    for number, ds in enumerate(datasets):
        ds.PixelSpacing = (
            ["0.4885", "0.4885"] if number % PLACES % 2 else ["0.48850001", "0.48850001"]
        )
    parts = parts_of(tmp_path, datasets)
    assert [len(part.frames) for part in parts] == [PLACES, PLACES]
