"""Which volumes a series holds: the contract decides, the order of arrival never does."""

from __future__ import annotations

import dataclasses
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydicom import Dataset

from dicom_gateway.assemble.headers import read_header
from dicom_gateway.assemble.plan import VolumePlan, plan_images, plan_volumes
from dicom_gateway.assemble.policy import Allowance, allowance
from dicom_gateway.config import AssemblySettings
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.records import Series
from tests.support.dicom import CORONAL, a_ct_series, an_enhanced_series
from tests.support.series import a_contract, a_kept_series, a_real_series, joined

EVERYTHING = Allowance(resample=True, split=True)
EXAMPLES = int(os.environ.get("TRITOME_FUZZ", "25"))

# Contract and site -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contract", "site", "allowed"),
    [
        (None, None, set()),  # nobody says anything: refused
        (None, ("resample",), {"resample"}),  # the site decides
        ((), ("resample", "split"), set()),  # the contract refuses
        (("resample", "split"), None, {"resample", "split"}),
        (("resample", "split"), ("split",), {"split"}),  # the site narrows
        (("split",), ("resample",), set()),
    ],
)
def test_a_site_can_only_narrow_what_a_contract_allows(
    contract: tuple[Any, ...] | None, site: tuple[Any, ...] | None, allowed: set[str]
) -> None:
    """Where the contract says nothing, the site alone decides."""
    wanted = dataclasses.replace(a_contract(), irregular=contract)
    irregular = {} if site is None else {wanted.pipeline: site}
    found = allowance(wanted, AssemblySettings(irregular=irregular, max_gap_mm=3.0))
    assert found == Allowance("resample" in allowed, "split" in allowed, max_gap_mm=3.0)


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        ("resample", ("resample",)),
        ("refuse", ()),
        (["resample", "split"], ("resample", "split")),
        ([], ()),
    ],
)
def test_a_site_says_it_in_one_word_or_a_list(said: object, allowed: tuple[str, ...]) -> None:
    """As it stands in gateway.yaml under `assembly.irregular`."""
    found = AssemblySettings.model_validate({"irregular": {"lung_ct": said}, "max-gap-mm": 6})
    assert found.irregular == {"lung_ct": allowed}


@pytest.mark.parametrize("said", ["guess", ["resample", "guess"], 3])
def test_a_site_that_says_anything_else_is_told_so(said: object) -> None:
    """A typing mistake doesn't become a permission."""
    with pytest.raises(ValidationError, match="irregular"):
        AssemblySettings.model_validate({"irregular": {"lung_ct": said}})


cached_header = lru_cache(maxsize=1024)(read_header)

# Order -----------------------------------------------------------------------------------


def two_echoes() -> list[Dataset]:
    """Two volumes at the same places."""
    first, second = a_ct_series(6, rows=4, columns=4), a_ct_series(6, rows=4, columns=4)
    for ds in first:
        ds.EchoTime = 10
    for ds in second:
        ds.EchoTime = 20
    return joined(first, second)


SERIES = {
    "regular": lambda: a_ct_series(8, rows=4, columns=4),
    "gap": lambda: a_ct_series(8, rows=4, columns=4, gap_at=3),
    "tilt": lambda: a_ct_series(8, rows=4, columns=4, tilt_degrees=12.0),
    "echoes": two_echoes,
    "planes": lambda: joined(
        a_ct_series(5, rows=4, columns=4), a_ct_series(5, rows=4, columns=4, orientation=CORONAL)
    ),
    "duplicate": lambda: a_ct_series(8, rows=4, columns=4, duplicate_at=2),
    "enhanced": lambda: [an_enhanced_series(4, times=2, rows=4, columns=4, shuffled=True)],
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Series]:
    """Each kind of series, as the store has it."""
    folder = tmp_path_factory.mktemp("series")
    return {name: a_kept_series(folder / name, make()) for name, make in SERIES.items()}


def verdict(series: Series, allowed: Allowance) -> object:
    """The volumes with their frames and affines, or the refusal's code and sentence."""
    try:
        return [told(plan) for plan in plan_volumes(series, allowed, cached_header)]
    except UnusableSeries as error:
        return error.code, str(error)


def told(plan: VolumePlan) -> tuple[object, ...]:
    """All of a plan that can be compared."""
    frames = tuple((frame.sop_instance_uid, frame.number) for frame in plan.frames)
    return plan.name, frames, plan.shape_kji, plan.affine_lps.tobytes(), plan.notes


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), name=st.sampled_from(sorted(SERIES)), allow=st.booleans())
def test_any_order_gives_the_same_volumes_or_the_same_refusal(
    kept: dict[str, Series], data: st.DataObject, name: str, allow: bool
) -> None:
    """Late, interleaved, backwards: names, frames, affines and sentences to the last bit.

    Other bytes under a known UID are set apart by the store; they change nothing either.
    """
    series = kept[name]
    allowed = EVERYTHING if allow else Allowance()
    apart = [dataclasses.replace(one, conflicts=True) for one in series.instances]
    again = data.draw(st.lists(st.sampled_from(apart), max_size=3))
    mixed = dataclasses.replace(
        series, instances=tuple(data.draw(st.permutations([*series.instances, *again])))
    )
    assert verdict(mixed, allowed) == verdict(series, allowed)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), name=st.sampled_from(sorted(SERIES)))
def test_any_missing_slices_give_the_same_verdict_in_any_order(
    kept: dict[str, Series], data: st.DataObject, name: str
) -> None:
    """Whatever has not come: never a volume with another affine than in order."""
    series = kept[name]
    there = data.draw(
        st.lists(st.integers(0, len(series.instances) - 1), min_size=1, unique=True).filter(bool)
    )
    mixed = dataclasses.replace(series, instances=tuple(series.instances[n] for n in there))
    ordered = dataclasses.replace(
        series, instances=tuple(series.instances[n] for n in sorted(there))
    )
    for allowed in (EVERYTHING, Allowance()):
        assert verdict(mixed, allowed) == verdict(ordered, allowed)


# What is allowed -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gap", "tilt", "echoes", "planes"])
def test_what_is_not_allowed_is_refused(kept: dict[str, Series], name: str) -> None:
    """Resampling doesn't allow splitting, and splitting doesn't allow resampling."""
    other = {"gap": "split", "tilt": "split"}.get(name, "resample")
    with pytest.raises(UnusableSeries):
        plan_volumes(kept[name], Allowance(**{other: True}))
    assert plan_volumes(kept[name], EVERYTHING)


def test_a_part_that_can_t_be_used_is_named(tmp_path: Path) -> None:
    """A person reads which of the volumes it is."""
    bad = a_ct_series(6, rows=4, columns=4, orientation=CORONAL, gap_at=2)
    series = a_kept_series(tmp_path, joined(a_ct_series(6, rows=4, columns=4), bad))
    with pytest.raises(UnusableSeries, match="of its volumes, 'coronal' can't be used") as caught:
        plan_volumes(series, Allowance(split=True))
    assert caught.value.code == "missing_slices"


def test_each_part_is_resampled_by_itself(tmp_path: Path) -> None:
    """Split first, then each as it needs; the notes say which."""
    tilted = a_ct_series(8, rows=4, columns=4, orientation=CORONAL, tilt_degrees=10.0)
    series = a_kept_series(tmp_path, joined(a_ct_series(9, rows=4, columns=4), tilted))
    axial, coronal = plan_volumes(series, EVERYTHING)
    assert (axial.name, axial.grid, axial.notes) == ("axial", None, ())
    assert coronal.name == "coronal"
    assert coronal.grid is not None
    assert "gantry_tilt" in coronal.notes[0]


@pytest.mark.parametrize(
    ("name", "volumes", "shape"), [("v08", 2, (2, 288, 288)), ("v09", 10, (15, 64, 64))]
)
def test_real_series_are_split(name: str, volumes: int, shape: tuple[int, int, int]) -> None:
    """Two orientations, ten time points without any time in their headers."""
    plans = plan_volumes(a_real_series(name)[0][0], EVERYTHING)
    assert [plan.shape_kji for plan in plans] == [shape] * volumes
    assert len({plan.name for plan in plans}) == volumes


# Pictures --------------------------------------------------------------------------------


def test_a_picture_that_is_shown_inverted_is_inverted(tmp_path: Path) -> None:
    """MONOCHROME1: the rescale turns it round, and the story says so."""
    (ds,) = a_ct_series(1, rows=4, columns=4, bits_stored=12, signed=False, intercept=0.0)
    ds.PhotometricInterpretation = "MONOCHROME1"
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, keyword)
    ds.ImagerPixelSpacing = [0.2, 0.1]
    (plan,) = plan_images(a_kept_series(tmp_path, [ds]))
    assert plan.invert
    assert "inverted" in plan.notes[0]
    np.testing.assert_array_equal(np.diag(plan.affine_lps), [0.1, 0.2, 1, 1])


@pytest.mark.parametrize(
    ("shape", "photometric", "inverted"),
    [
        ("INVERSE", "MONOCHROME2", True),
        ("INVERSE", "MONOCHROME1", True),
        ("IDENTITY", "MONOCHROME2", False),
        ("", "MONOCHROME1", True),
        ("", "MONOCHROME2", False),
    ],
)
def test_either_of_two_attributes_says_that_small_is_white(
    tmp_path: Path, shape: str, photometric: str, inverted: bool
) -> None:
    """Photometric Interpretation or Presentation LUT Shape."""
    (ds,) = a_ct_series(1, rows=4, columns=4)
    ds.PhotometricInterpretation = photometric
    if shape:
        ds.PresentationLUTShape = shape
    (plan,) = plan_images(a_kept_series(tmp_path, [ds]))
    assert plan.invert is inverted


def test_every_picture_of_a_series_is_its_own(tmp_path: Path) -> None:
    """Two views, in the order of their numbers, each with a name."""
    views = a_ct_series(2, rows=4, columns=4, backwards=True)
    for ds, view in zip(views, ("LL", "PA"), strict=True):
        ds.ViewPosition = view
    plans = plan_images(a_kept_series(tmp_path, views))
    assert [plan.name for plan in plans] == ["image 1 of 2 (PA)", "image 2 of 2 (LL)"]


# What must never be one volume -------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "what"),
    [("PatientID", "2 patients"), ("StudyInstanceUID", "2 studies")],
)
@pytest.mark.parametrize("allowed", [Allowance(), EVERYTHING])
def test_images_of_two_patients_or_studies_are_never_one_series(
    tmp_path: Path, keyword: str, what: str, allowed: Allowance
) -> None:
    """Whatever their UID says; and the sentence names nobody."""
    datasets = a_ct_series(6, rows=4, columns=4)
    for ds in datasets[4:]:
        setattr(ds, keyword, "1.2.826.0.1.3680043.8.498.77")
    series = a_kept_series(tmp_path, datasets)
    with pytest.raises(UnusableSeries, match=rf"of {what} came.*\(4 and 2 images\)") as refusal:
        plan_volumes(series, allowed)
    assert refusal.value.code == "mixed_identity"
    assert "498.77" not in str(refusal.value)
    with pytest.raises(UnusableSeries, match=what):
        plan_images(series)


def test_spaces_around_a_patient_id_are_no_other_patient(tmp_path: Path) -> None:
    """Some senders fill it up."""
    datasets = a_ct_series(6, rows=4, columns=4)
    for number, ds in enumerate(datasets):
        ds.PatientID = "A 1" if number % 2 else " A 1  "
    assert len(plan_volumes(a_kept_series(tmp_path, datasets))) == 1


def _with_a_localizer(**how: Any) -> list[Dataset]:
    """In one row with the slices, as the next of them."""
    localizer = a_ct_series(
        1,
        rows=4,
        columns=4,
        origin_lps_mm=(-120.0, -110.0, -302.5),
        image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"),
    )
    for keyword in how.get("without", ()):
        delattr(localizer[0], keyword)
    return joined(a_ct_series(6, rows=4, columns=4), localizer)


@pytest.mark.parametrize("without", [(), ("ImagePositionPatient", "ImageOrientationPatient")])
def test_a_localizer_among_the_slices_is_no_slice(tmp_path: Path, without: tuple[str, ...]) -> None:
    """Refused, or left out and said; also one that doesn't say where it lies."""
    series = a_kept_series(tmp_path, _with_a_localizer(without=without))
    with pytest.raises(UnusableSeries, match="1 localizer") as refusal:
        plan_volumes(series, Allowance(resample=True))
    assert refusal.value.code == "several_orientations"
    (plan,) = plan_volumes(series, EVERYTHING)
    assert len(plan.frames) == 6
    assert plan.notes == ("1 localizer image(s) left out",)


def _two_stacks(offset_mm: tuple[float, float]) -> list[Dataset]:
    """As an MR of both breasts, or of two joints."""
    sideways_mm, along_mm = offset_mm
    parts = [
        a_ct_series(6, rows=4, columns=4),
        a_ct_series(
            6, rows=4, columns=4, origin_lps_mm=(-120.0 + sideways_mm, -110.0, -300.0 + along_mm)
        ),
    ]
    for number, part in enumerate(parts, start=1):
        for ds in part:
            ds.StackID = str(number)
    return joined(*parts)


@pytest.mark.parametrize("offset_mm", [(0.0, 90.0), (150.0, 1.25)])
def test_stacks_that_lie_apart_are_volumes_of_their_own(
    tmp_path: Path, offset_mm: tuple[float, float]
) -> None:
    """Far apart, or beside each other: they say themselves which is which."""
    series = a_kept_series(tmp_path, _two_stacks(offset_mm))
    with pytest.raises(UnusableSeries, match=r"several stacks \(Stack ID\)") as refusal:
        plan_volumes(series)
    assert refusal.value.code == "mixed_geometry"
    plans = plan_volumes(series, EVERYTHING)
    assert [(plan.name, len(plan.frames)) for plan in plans] == [
        ("stack 1 of 2", 6),
        ("stack 2 of 2", 6),
    ]


def _two_passes(
    offset_mm: float, slices: int, *, told: bool = True, missing: int | None = None
) -> list[Dataset]:
    """As without and with contrast medium, each pass from where the table was."""
    passes = [
        a_ct_series(10, rows=4, columns=4, spacing_mm=5.0, gap_at=missing),
        a_ct_series(
            slices,
            rows=4,
            columns=4,
            spacing_mm=5.0,
            origin_lps_mm=(-120.0, -110.0, -300.0 + offset_mm),
        ),
    ]
    for number, one in enumerate(passes, start=1):
        for ds in one:
            ds.AcquisitionNumber = number if told else 1
            ds.InstanceNumber += 100 * number
    return joined(*passes)


@pytest.mark.parametrize(("offset_mm", "slices"), [(1.0, 10), (0.4, 25), (-21.3, 8)])
@pytest.mark.parametrize("told", ["acquisition", "pass"])
def test_two_passes_over_one_body_are_never_mixed(
    tmp_path: Path, offset_mm: float, slices: int, told: str
) -> None:
    """No two slices share a place, and between two of one pass lies one of the other."""
    made = _two_passes(offset_mm, slices, told=told == "acquisition")
    series = a_kept_series(tmp_path, made)
    with pytest.raises(UnusableSeries, match=rf"several volumes \({told}\)") as refusal:
        plan_volumes(series, Allowance(resample=True))
    assert refusal.value.code == "mixed_geometry"
    plans = plan_volumes(series, EVERYTHING)
    assert [(plan.name.split()[:2], len(plan.frames)) for plan in plans] == [
        ([told, "1"], 10),
        ([told, "2"], slices),
    ]


@pytest.mark.parametrize("told", [True, False])
def test_slices_in_two_packages_are_one_volume(tmp_path: Path, told: bool) -> None:
    """Every other slice first, then those between them: even together, one missing or not."""
    series = a_kept_series(tmp_path, _two_passes(2.5, 10, told=told, missing=4))
    (plan,) = plan_volumes(series, EVERYTHING)
    assert len(plan.frames) == 19


def test_stacks_in_one_row_are_one_volume(tmp_path: Path) -> None:
    """The second continues the first: slices in two packages."""
    series = a_kept_series(tmp_path, _two_stacks((0.0, 15.0)))
    (plan,) = plan_volumes(series, EVERYTHING)
    assert len(plan.frames) == 12


@pytest.mark.parametrize(("noise", "accepted"), [(3e-5, True), (4e-4, True), (9e-4, False)])
def test_directions_may_differ_by_rounding_and_no_more(
    tmp_path: Path, noise: float, accepted: bool
) -> None:
    """What carries a corner half a pixel on is no rounding; the gate would hold the result."""
    datasets = a_ct_series(6, rows=512, columns=512, pixel_spacing_mm=(0.7, 0.7))
    for number, ds in enumerate(datasets):
        turn = noise if number % 2 else 0.0
        ds.ImageOrientationPatient = [1, turn, 0, -turn, 1, 0]
    series = a_kept_series(tmp_path, datasets)
    if accepted:
        assert len(plan_volumes(series)) == 1
    else:
        with pytest.raises(UnusableSeries, match="don't agree with each other") as refusal:
            plan_volumes(series)
        assert refusal.value.code == "mixed_geometry"


@pytest.mark.parametrize("keyword", ["ImageOrientationPatient", "PixelSpacing"])
def test_frames_of_a_thousand_grids_are_refused_before_each_is_held_against_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyword: str
) -> None:
    """A peer could fill a day with them."""
    monkeypatch.setattr("dicom_gateway.assemble.stack.MOST_GRIDS", 5)
    datasets = a_ct_series(12, rows=4, columns=4)

    def planned(grids: int) -> int:
        for number, ds in enumerate(datasets):
            turn = 0.05 * (number % grids)
            if keyword == "PixelSpacing":
                ds.PixelSpacing = [f"{0.7 + turn:.3f}"] * 2
            else:
                cosines = (np.cos(turn), np.sin(turn), 0, -np.sin(turn), np.cos(turn), 0)
                ds.ImageOrientationPatient = [f"{cosine:.6f}" for cosine in cosines]
        return len(plan_volumes(a_kept_series(tmp_path, datasets), EVERYTHING))

    assert planned(5) == 5
    with pytest.raises(UnusableSeries, match="more than 5 orientations or pixel spacings"):
        planned(6)
