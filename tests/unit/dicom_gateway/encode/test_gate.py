"""The geometry gate holds whatever is misplaced, of every kind of object.

Each mutation is one that a mistake of ours, of a library or of a contract could make. CI runs
each on a few random masks; TRITOME_MUTATIONS says on how many.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from dicom_gateway.encode import encode_results
from dicom_gateway.encode.gate import read_sources_anew
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import Inference, ObjectKind, Result, Volume
from tests.support.results import (
    OBLIQUE,
    a_volume,
    pass_gate,
    pixels_of,
    random_lungs,
    results_of,
    unit,
)
from tests.support.series import LEFT_LUNG, LUNGS, RIGHT_LUNG, a_contract, a_job

MASKS = int(os.environ.get("TRITOME_MUTATIONS", "2"))
SEG, LABELMAP = ObjectKind.SEGMENTATION, ObjectKind.LABELMAP_SEGMENTATION
SR, RT = ObjectKind.STRUCTURED_REPORT, ObjectKind.RT_STRUCTURE_SET
SC = ObjectKind.SECONDARY_CAPTURE
PLACED = (SEG, LABELMAP, RT, SC)
"""Kinds that say where each voxel lies."""

Mutation = Callable[[Dataset], Any]


@pytest.fixture(scope="module", params=range(MASKS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A volume (axial, oblique, tilted in turn), a random mask, and its five right objects."""
    seed = int(request.param)
    folder = tmp_path_factory.mktemp("gate")
    how: dict[str, Any] = [
        {},
        {"orientation": unit(OBLIQUE)},
        {"tilt_degrees": 12.0},
    ][seed % 3]
    volume = a_volume(folder, frames=7, rows=23, columns=31, **how)
    mask = random_lungs(volume, seed)
    yield volume, mask, made_of(mask, volume, folder), folder


def made_of(mask: NDArray[np.uint8], volume: Volume, folder: Path) -> Mapping[ObjectKind, Result]:
    """All five."""
    made = results_of(mask, volume, folder, pixels=pixels_of(volume))
    assert set(made) == set(ObjectKind)
    return made


def is_held(result: Result, mask: NDArray[Any], volume: Volume, seg: Result | None) -> bool:
    """True where the gate holds it, with the right code."""
    try:
        pass_gate(result, mask, volume, segmentation=seg)
    except EncodingFailed as error:
        assert error.code == "result_misplaced"
        return True
    return False


def test_right_objects_pass(case: Any) -> None:
    """Of every kind; otherwise all that follows would show nothing."""
    volume, mask, made, _ = case
    for kind, result in made.items():
        assert not is_held(result, mask, volume, made[SEG]), kind


def rolled(axis: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """Moves a mask by one voxel along an axis."""
    return lambda mask: np.roll(mask, 1, axis)


def flipped(axis: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """Mirrors a mask."""
    return lambda mask: np.flip(mask, axis)


def turned(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows become columns as far as there are any, as a mixed-up order of axes does."""
    out = np.zeros_like(mask)
    least = min(mask.shape[1:])
    out[:, :least, :least] = mask[:, :least, :least].transpose(0, 2, 1)
    return out


WRONG_MASKS = {
    "flipped k": flipped(0),
    "flipped j": flipped(1),
    "flipped i": flipped(2),
    "one slice up": rolled(0),
    "one row down": rolled(1),
    "one column on": rolled(2),
    "transposed": turned,
    "segments swapped": lambda mask: np.array([0, 2, 1], np.uint8)[mask],
    "one voxel less": lambda mask: mask * (np.cumsum(mask.ravel() > 0).reshape(mask.shape) != 1),
}


@pytest.mark.parametrize("name", WRONG_MASKS)
def test_objects_of_a_wrongly_placed_mask_are_held(case: Any, tmp_path: Path, name: str) -> None:
    """Made from a mask that is not the one that Triton gave."""
    volume, mask, _, _ = case
    wrong = np.ascontiguousarray(WRONG_MASKS[name](mask))
    crossed = dataclasses.replace(LUNGS, segments=(plain(LEFT_LUNG), plain(RIGHT_LUNG)))
    made = results_of(wrong, volume, tmp_path, output=crossed, pixels=pixels_of(volume))
    for kind in PLACED:
        shown = kind is not SC or (wrong != mask)[_shown(made[SC], volume)].any()
        if shown:
            try:
                pass_gate(made[kind], mask, volume, crossed)
            except EncodingFailed as error:
                assert error.code == "result_misplaced"
                continue
            pytest.fail(f"{kind} of a mask {name} passed")


def plain(segment: Any) -> Any:
    """Without a side, so that only the voxels tell the segments apart."""
    return dataclasses.replace(segment, type_modifier=None)


def _shown(result: Result, volume: Volume) -> list[int]:
    named = [
        str(one.ReferencedSOPInstanceUID)
        for one in pydicom.dcmread(result.path).SourceImageSequence
    ]
    return [[one.sop_instance_uid for one in volume.slices].index(uid) for uid in named]


@pytest.mark.parametrize("segments", [True, False], ids=["segments crossed", "table crossed"])
def test_left_on_the_right_is_held_before_it_leaves(tmp_path: Path, segments: bool) -> None:
    """Mask and objects agree, but the patient doesn't: nothing is made, one is kept aside."""
    volume = a_volume(tmp_path)
    mask = random_lungs(volume, 5)
    output = LUNGS
    if segments:
        mask = np.array([0, 2, 1], np.uint8)[mask]
    else:
        left, right = LUNGS.segments
        output = dataclasses.replace(
            LUNGS,
            segments=(
                dataclasses.replace(left, type_modifier=right.type_modifier),
                dataclasses.replace(right, type_modifier=left.type_modifier),
            ),
        )
    with pytest.raises(EncodingFailed, match="coded as left") as caught:
        results_of(mask, volume, tmp_path, output=output, held=tmp_path / "held")
    assert caught.value.code == "result_misplaced"
    assert not list((tmp_path / "results").iterdir())
    assert len(list((tmp_path / "held").iterdir())) == 1


def test_overlapping_masks_on_the_wrong_sides_are_held(tmp_path: Path) -> None:
    """Each is an object of one segment; its counterpart is found in another one."""
    volume = a_volume(tmp_path)
    mask = random_lungs(volume, 5)
    output = dataclasses.replace(LUNGS, kind="masks", dims=(2, -1, -1, -1))
    contract = dataclasses.replace(a_contract(LUNGS), outputs=(output,))
    for left, right, folder in ((1, 2, "right"), (2, 1, "crossed")):
        masks = {"MASK_1": (mask == left), "MASK_2": (mask == right)}
        inference = Inference({name: one.astype(np.uint8) for name, one in masks.items()}, 1.0)
        kinds = (SEG, SR, RT)
        if folder == "right":
            made = encode_results(inference, volume, contract, a_job(), tmp_path / folder, kinds)
            assert len(made) == 6
            continue
        for kind in kinds:
            with pytest.raises(EncodingFailed, match="coded as left") as caught:
                encode_results(inference, volume, contract, a_job(), tmp_path / folder, (kind,))
            assert caught.value.code == "result_misplaced"
        assert not list((tmp_path / folder).iterdir())


def test_a_crossed_pair_is_not_excused_by_another_output(tmp_path: Path) -> None:
    """Two label maps with lungs each: the one that is right says nothing for the other."""
    volume = a_volume(tmp_path)
    mask = random_lungs(volume, 5)
    twice = (LUNGS, dataclasses.replace(LUNGS, name="AGAIN"))
    contract = dataclasses.replace(a_contract(LUNGS), outputs=twice)
    crossed = np.array([0, 2, 1], np.uint8)[mask]
    inference = Inference({"MASK": mask, "AGAIN": crossed}, 1.0)
    with pytest.raises(EncodingFailed, match="coded as left"):
        encode_results(inference, volume, contract, a_job(), tmp_path / "results", (SEG,))
    assert len(list((tmp_path / "results").iterdir())) == 1


# ---- mistakes in an object itself -------------------------------------------------------------


def set_in(ds: Dataset, keyword: str, value: Any) -> None:
    """Sets an element wherever it is."""
    ds.walk(lambda parent, one: setattr(parent, keyword, value) if one.keyword == keyword else None)


def other_study(ds: Dataset) -> None:
    """The result would be filed elsewhere."""
    ds.StudyInstanceUID = "1.2.3"


def other_patient(ds: Dataset) -> None:
    """The worst of all."""
    ds.PatientID = "SOMEBODY"


def says(keyword: str, value: str) -> Mutation:
    """Something else about the patient, or the study, than the sources say."""

    def mutate(ds: Dataset) -> None:
        assert ds.get(keyword) != value
        setattr(ds, keyword, value)

    mutate.__name__ = f"another_{keyword}"
    return mutate


def birth_date_lost(ds: Dataset) -> None:
    """Though the source has a right one."""
    assert ds.PatientBirthDate
    ds.PatientBirthDate = ""


def other_frame_of_reference(ds: Dataset) -> None:
    """Also deeper down."""
    set_in(ds, "FrameOfReferenceUID", "1.2.3")


def _measures(ds: Dataset) -> Dataset:
    return ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


def _orientation(ds: Dataset) -> Dataset:
    return ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]


def wrong_spacing(ds: Dataset) -> None:
    """One per cent is enough."""
    spacing = [float(mm) * 1.01 for mm in _measures(ds).PixelSpacing]
    _measures(ds).PixelSpacing = spacing


def swapped_spacing(ds: Dataset) -> None:
    """Between rows for between columns."""
    _measures(ds).PixelSpacing = list(_measures(ds).PixelSpacing)[::-1]


def wrong_distance(ds: Dataset) -> None:
    """Twice that between slices."""
    _measures(ds).SpacingBetweenSlices = 5.0


def mirrored(ds: Dataset) -> None:
    """Rows run the other way."""
    one = [float(x) for x in _orientation(ds).ImageOrientationPatient]
    _orientation(ds).ImageOrientationPatient = [-x for x in one[:3]] + one[3:]


def transposed(ds: Dataset) -> None:
    """Rows for columns."""
    one = list(_orientation(ds).ImageOrientationPatient)
    _orientation(ds).ImageOrientationPatient = one[3:] + one[:3]


def _groups(ds: Dataset) -> list[Dataset]:
    return list(ds.PerFrameFunctionalGroupsSequence)


def all_one_slice_on(ds: Dataset) -> None:
    """Positions and references together: in itself it is sound."""
    groups = _groups(ds)
    places = {_uid(one): one for one in groups}
    uids = sorted(places, key=lambda uid: float(_position(places[uid])[2]))
    following = dict(zip(uids, [*uids[1:], uids[0]], strict=True))
    found = {
        uid: (deepcopy(one.PlanePositionSequence), deepcopy(one.DerivationImageSequence))
        for uid, one in places.items()
    }
    for one in groups:
        position, derivation = found[following[_uid(one)]]
        one.PlanePositionSequence = deepcopy(position)
        one.DerivationImageSequence = deepcopy(derivation)


def _uid(groups: Dataset) -> str:
    return str(groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)


def _position(groups: Dataset) -> list[Any]:
    return list(groups.PlanePositionSequence[0].ImagePositionPatient)


def moved_in_plane(ds: Dataset) -> None:
    """By one column."""
    for one in _groups(ds):
        x, y, z = (float(mm) for mm in _position(one))
        one.PlanePositionSequence[0].ImagePositionPatient = [round(x + 0.7, 6), y, z]


def references_exchanged(ds: Dataset) -> None:
    """Of two frames on different slices."""
    first, last = _groups(ds)[0], _groups(ds)[-1]
    first.DerivationImageSequence, last.DerivationImageSequence = (
        deepcopy(last.DerivationImageSequence),
        deepcopy(first.DerivationImageSequence),
    )
    if _uid(first) == _uid(last):
        first.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def numbers_exchanged(ds: Dataset) -> None:
    """Frames of segment 1 for those of 2, with their indices."""
    for one in _groups(ds):
        item = one.SegmentIdentificationSequence[0]
        item.ReferencedSegmentNumber = 3 - item.ReferencedSegmentNumber
        index = one.FrameContentSequence[0]
        index.DimensionIndexValues = [
            3 - index.DimensionIndexValues[0],
            index.DimensionIndexValues[1],
        ]


def index_of_another_segment(ds: Dataset) -> None:
    """Viewers group frames by it."""
    index = _groups(ds)[0].FrameContentSequence[0]
    index.DimensionIndexValues = [2, index.DimensionIndexValues[1]]


def index_out_of_order(ds: Dataset) -> None:
    """Viewers sort frames by it."""
    ranks = {1: 2, 2: 1}
    for one in _groups(ds):
        index = one.FrameContentSequence[0]
        values = index.DimensionIndexValues
        if isinstance(values, int):
            index.DimensionIndexValues = ranks.get(values, values)
        else:
            index.DimensionIndexValues = [values[0], ranks.get(values[1], values[1])]


def a_frame_less(ds: Dataset) -> None:
    """With its pixels."""
    frames = pixels_by_frame(ds)
    ds.PerFrameFunctionalGroupsSequence = _groups(ds)[:-1]
    put_pixels(ds, frames[:-1])


def a_frame_twice(ds: Dataset) -> None:
    """With its pixels."""
    frames = pixels_by_frame(ds)
    ds.PerFrameFunctionalGroupsSequence = [*_groups(ds), deepcopy(_groups(ds)[-1])]
    put_pixels(ds, np.concatenate([frames, frames[-1:]]))


def an_empty_frame(ds: Dataset) -> None:
    """In place of one with content."""
    frames = pixels_by_frame(ds)
    frames[-1] = 0
    put_pixels(ds, frames)


def frames_mirrored(ds: Dataset) -> None:
    """The pixels alone."""
    put_pixels(ds, pixels_by_frame(ds)[:, :, ::-1])


def pixels_by_frame(ds: Dataset) -> NDArray[np.uint8]:
    """[F, J, I]."""
    shape = int(ds.NumberOfFrames), int(ds.Rows), int(ds.Columns)
    raw = np.frombuffer(ds.PixelData, np.uint8)
    if ds.BitsAllocated == 1:
        raw = np.unpackbits(raw, bitorder="little")
    return raw[: np.prod(shape)].reshape(shape).copy()


def put_pixels(ds: Dataset, frames: NDArray[np.uint8]) -> None:
    """The way back."""
    ds.NumberOfFrames = len(frames)
    flat = frames.ravel()
    raw = (np.packbits(flat, bitorder="little") if ds.BitsAllocated == 1 else flat).tobytes()
    ds.PixelData = raw + b"\0" * (len(raw) % 2)


def _described(ds: Dataset) -> list[Dataset]:
    return [one for one in ds.SegmentSequence if one.SegmentNumber]


def names_exchanged(ds: Dataset) -> None:
    """Left lung for right lung, in words."""
    one, other = _described(ds)
    one.SegmentLabel, other.SegmentLabel = other.SegmentLabel, one.SegmentLabel


def _types(ds: Dataset) -> list[Dataset]:
    return [one.SegmentedPropertyTypeCodeSequence[0] for one in _described(ds)]


def sides_exchanged(ds: Dataset) -> None:
    """Left for right, in codes."""
    one, other = _types(ds)
    key = "SegmentedPropertyTypeModifierCodeSequence"
    first = deepcopy(one[key].value)
    one[key].value = deepcopy(other[key].value)
    other[key].value = first


def side_lost(ds: Dataset) -> None:
    """A lung, whichever."""
    del _types(ds)[0].SegmentedPropertyTypeModifierCodeSequence


def another_organ(ds: Dataset) -> None:
    """A kidney."""
    _types(ds)[0].CodeValue = "64033007"


def another_series(ds: Dataset) -> None:
    """As the source."""
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def a_source_less(ds: Dataset) -> None:
    """In the list of all."""
    items = ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence = list(items)[:-1]


OF_ALL: tuple[Mutation, ...] = (
    other_study,
    other_patient,
    says("IssuerOfPatientID", "SOMEWHERE"),
    says("PatientName", "Some^Body"),
    says("PatientBirthDate", "19010203"),
    says("PatientSex", "F"),
    says("AccessionNumber", "OTHER"),
    says("StudyID", "OTHER"),
    says("StudyDate", "19010203"),
    says("StudyTime", "010203"),
    birth_date_lost,
)
OF_BOTH_SEGS: tuple[Mutation, ...] = (
    other_frame_of_reference,
    wrong_spacing,
    swapped_spacing,
    wrong_distance,
    mirrored,
    transposed,
    all_one_slice_on,
    moved_in_plane,
    references_exchanged,
    index_out_of_order,
    a_frame_less,
    a_frame_twice,
    an_empty_frame,
    frames_mirrored,
    names_exchanged,
    sides_exchanged,
    side_lost,
    another_organ,
    another_series,
    a_source_less,
)


def _contours(ds: Dataset) -> list[Dataset]:
    return [one for region in ds.ROIContourSequence for one in region.get("ContourSequence", [])]


def _moved(ds: Dataset, change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
    for contour in _contours(ds):
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        contour.ContourData = [round(float(mm), 5) for mm in change(points).ravel()]


def contours_mirrored(ds: Dataset) -> None:
    """About the middle of all."""
    everything = np.concatenate(
        [np.array(one.ContourData, float).reshape(-1, 3) for one in _contours(ds)]
    )
    middle = (everything[:, 0].min() + everything[:, 0].max()) / 2
    _moved(ds, lambda points: points * (-1, 1, 1) + (2 * middle, 0, 0))


def contours_a_slice_on(ds: Dataset) -> None:
    """In millimetres alone."""
    _moved(ds, lambda points: points + np.array([0, 0, 2.5]))


def contours_a_pixel_on(ds: Dataset) -> None:
    """In millimetres alone."""
    _moved(ds, lambda points: points + np.array([0.7, 0, 0]))


def contours_transposed(ds: Dataset) -> None:
    """X for y."""
    _moved(ds, lambda points: points[:, [1, 0, 2]])


def contours_scaled(ds: Dataset) -> None:
    """As with a wrong pixel spacing."""
    _moved(ds, lambda points: points * (1.05, 1.05, 1))


def a_contour_less(ds: Dataset) -> None:
    """The last one."""
    region = ds.ROIContourSequence[-1]
    region.ContourSequence = list(region.ContourSequence)[:-1]


def a_contour_twice(ds: Dataset) -> None:
    """Some viewers would cut it out."""
    region = ds.ROIContourSequence[0]
    region.ContourSequence = [*region.ContourSequence, deepcopy(region.ContourSequence[0])]


def contours_on_other_images(ds: Dataset) -> None:
    """Each names the image of the next."""
    contours = ds.ROIContourSequence[0].ContourSequence
    names = [one.ContourImageSequence[0].ReferencedSOPInstanceUID for one in contours]
    for contour, name in zip(contours, [*names[1:], "1.2.3"], strict=True):
        contour.ContourImageSequence[0].ReferencedSOPInstanceUID = name


def regions_exchanged(ds: Dataset) -> None:
    """Contours of one under the number of the other."""
    for one in ds.ROIContourSequence:
        one.ReferencedROINumber = 3 - one.ReferencedROINumber


def region_names_exchanged(ds: Dataset) -> None:
    """Left for right, in words."""
    one, other = ds.StructureSetROISequence
    one.ROIName, other.ROIName = other.ROIName, one.ROIName


def region_sides_exchanged(ds: Dataset) -> None:
    """Left for right, in codes."""
    for one in ds.RTROIObservationsSequence:
        one.ReferencedROINumber = 3 - one.ReferencedROINumber


def region_elsewhere(ds: Dataset) -> None:
    """One region in another frame of reference."""
    ds.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3"


def open_contour(ds: Dataset) -> None:
    """Which encloses nothing."""
    _contours(ds)[0].ContourGeometricType = "OPEN_PLANAR"


def structure_of_another_series(ds: Dataset) -> None:
    """As the source."""
    study = ds.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def _items(ds: Dataset, value_type: str) -> list[Dataset]:
    found = []

    def look(item: Dataset) -> None:
        for child in item.get("ContentSequence", []):
            if child.ValueType == value_type:
                found.append(child)
            look(child)

    look(ds)
    return found


def volumes_exchanged(ds: Dataset) -> None:
    """Of the two segments."""
    one, other = _items(ds, "NUM")
    one.MeasuredValueSequence, other.MeasuredValueSequence = (
        deepcopy(other.MeasuredValueSequence),
        deepcopy(one.MeasuredValueSequence),
    )


def volume_too_large(ds: Dataset) -> None:
    """By a thousandth."""
    value = _items(ds, "NUM")[0].MeasuredValueSequence[0]
    value.NumericValue = round(float(value.NumericValue) * 1.001, 8)


def volume_in_litres(ds: Dataset) -> None:
    """A unit is a factor."""
    unit_code = _items(ds, "NUM")[0].MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0]
    unit_code.CodeValue = "L"


def segments_of_report_exchanged(ds: Dataset) -> None:
    """The left lung's volume under the right lung's segment."""
    for item in _items(ds, "IMAGE"):
        reference = item.ReferencedSOPSequence[0]
        reference.ReferencedSegmentNumber = 3 - reference.ReferencedSegmentNumber


def another_segmentation(ds: Dataset) -> None:
    """Of some other job."""
    for item in _items(ds, "IMAGE"):
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _sides(ds: Dataset) -> list[Dataset]:
    return [
        one
        for one in _items(ds, "CODE")
        if one.ConceptNameCodeSequence[0].CodeMeaning == "Laterality"
    ]


def report_sides_exchanged(ds: Dataset) -> None:
    """Left for right, in codes."""
    one, other = (item.ConceptCodeSequence[0] for item in _sides(ds))
    one.CodeValue, other.CodeValue = other.CodeValue, one.CodeValue


def a_group_less(ds: Dataset) -> None:
    """The right lung wasn't measured."""
    container = ds.ContentSequence[-1]
    container.ContentSequence = list(container.ContentSequence)[:-1]


def a_group_twice(ds: Dataset) -> None:
    """Three lungs."""
    container = ds.ContentSequence[-1]
    container.ContentSequence = [*container.ContentSequence, deepcopy(container.ContentSequence[0])]


def another_finding(ds: Dataset) -> None:
    """A kidney."""
    for one in _items(ds, "CODE"):
        if one.ConceptNameCodeSequence[0].CodeMeaning == "Finding":
            one.ConceptCodeSequence[0].CodeValue = "64033007"


def _evidence(ds: Dataset) -> Dataset:
    return ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[-1]


def evidence_less(ds: Dataset) -> None:
    """A source is missing."""
    for series in ds.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence:
        series.ReferencedSOPSequence = list(series.ReferencedSOPSequence)[:-1]


def evidence_elsewhere(ds: Dataset) -> None:
    """In another series."""
    _evidence(ds).SeriesInstanceUID = "1.2.3"


def another_source_series(ds: Dataset) -> None:
    """Of the segment."""
    for item in _items(ds, "UIDREF"):
        if item.ConceptNameCodeSequence[0].CodeMeaning.startswith("Source Series"):
            item.UID = "1.2.3"


def picture_mirrored(ds: Dataset) -> None:
    """The whole of it."""
    _redrawn(ds, lambda picture: picture[:, ::-1])


def picture_a_pixel_on(ds: Dataset) -> None:
    """The tiles aren't where they should be."""
    _redrawn(ds, lambda picture: np.roll(picture, 11, axis=1))


def picture_upside_down(ds: Dataset) -> None:
    """The whole of it."""
    _redrawn(ds, lambda picture: picture[::-1])


def colours_exchanged(ds: Dataset) -> None:
    """Red for blue."""
    _redrawn(ds, lambda picture: picture[..., ::-1])


def no_overlay(ds: Dataset) -> None:
    """Only greys."""
    _redrawn(ds, lambda picture: np.repeat(picture[..., :1], 3, axis=2))


def _redrawn(ds: Dataset, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
    shape = int(ds.Rows), int(ds.Columns), 3
    raw = np.frombuffer(ds.PixelData, np.uint8)[: np.prod(shape)].reshape(shape)
    data = np.ascontiguousarray(change(raw)).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)


def _exchanged(ds: Dataset, one: tuple[slice, slice], other: tuple[slice, slice]) -> None:
    """Two parts of a picture of the same size."""

    def change(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = picture.copy()
        out[one], out[other] = picture[other], picture[one]
        assert (out != picture).any()
        return out

    _redrawn(ds, change)


def _line(ds: Dataset, n: int) -> slice:
    """Rows of line n of a legend of two, which stands at the bottom."""
    top = int(ds.Rows) - 96 + 11 + 26 * n
    return slice(top, top + 26)


EVERYTHING = slice(None)


def legend_lines_exchanged(ds: Dataset) -> None:
    """Colours, names and volumes: each line in itself is right, but for its place."""
    _exchanged(ds, (_line(ds, 0), EVERYTHING), (_line(ds, 1), EVERYTHING))


def legend_names_exchanged(ds: Dataset) -> None:
    """The left lung's colour beside the right lung's name."""
    _exchanged(ds, (_line(ds, 0), slice(50, 200)), (_line(ds, 1), slice(50, 200)))


def legend_volumes_exchanged(ds: Dataset) -> None:
    """The left lung's millilitres beside the right lung's name."""
    _exchanged(ds, (_line(ds, 0), slice(300, None)), (_line(ds, 1), slice(300, None)))


def legend_colours_exchanged(ds: Dataset) -> None:
    """What is red in the slices is called by the other's name."""
    _exchanged(ds, (_line(ds, 0), slice(0, 50)), (_line(ds, 1), slice(0, 50)))


def all_colours_exchanged(ds: Dataset) -> None:
    """In slices and legend alike, so that only the contract tells: left is red there."""
    both = np.array([LEFT_LUNG.colour_rgb, RIGHT_LUNG.colour_rgb], float)

    def change(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = picture.astype(float)
        for rgb, other in (both, both[::-1]):
            over = np.abs(np.diff(picture.astype(float)) - 0.4 * np.diff(rgb)).max(axis=2) <= 1
            out[over] += 0.4 * (other - rgb)
            out[(picture == rgb).all(axis=2)] = other
        return np.clip(np.rint(out), 0, 255).astype(np.uint8)

    _redrawn(ds, change)


def letters_exchanged(ds: Dataset) -> None:
    """R for L beside the first slice."""
    high, wide = 23 * 8, 31 * 8  # the slices of this test, enlarged
    rows = slice(62 + high // 2 - 10, 62 + high // 2 + 10)
    _exchanged(ds, (rows, slice(0, 22)), (rows, slice(22 + wide, 44 + wide)))


def letter_lost(ds: Dataset) -> None:
    """Nothing says where left is."""

    def change(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        out = picture.copy()
        out[62:200, :22] = 16
        return out

    _redrawn(ds, change)


def directions_turned(ds: Dataset) -> None:
    """Patient Orientation for that of the other side."""
    opposite = str.maketrans("LRAPFH", "RLPAHF")
    ds.PatientOrientation = [str(one).translate(opposite) for one in ds.PatientOrientation]


def directions_exchanged(ds: Dataset) -> None:
    """Rows for columns."""
    ds.PatientOrientation = list(ds.PatientOrientation)[::-1]


def a_direction_less(ds: Dataset) -> None:
    """Empty, as of a projection."""
    ds.PatientOrientation = ["", ""]


def pixels_of_another_shape(ds: Dataset) -> None:
    """Twice as high as they are wide."""
    ds.PixelAspectRatio = [2, 1]


def picture_of_other_slices(ds: Dataset) -> None:
    """Each tile names the slice of the next."""
    names = [one.ReferencedSOPInstanceUID for one in ds.SourceImageSequence]
    for item, name in zip(ds.SourceImageSequence, [*names[1:], names[0]], strict=True):
        item.ReferencedSOPInstanceUID = name


def picture_of_nothing_known(ds: Dataset) -> None:
    """A tile names an instance of somebody else."""
    ds.SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def a_slice_less(ds: Dataset) -> None:
    """One tile more than slices are named."""
    ds.SourceImageSequence = list(ds.SourceImageSequence)[:-1]


MUTATIONS: list[tuple[ObjectKind, Mutation]] = [
    *((kind, one) for kind in ObjectKind for one in OF_ALL),
    *((kind, one) for kind in (SEG, LABELMAP) for one in OF_BOTH_SEGS),
    *((SEG, one) for one in (numbers_exchanged, index_of_another_segment)),
    *(
        (RT, one)
        for one in (
            other_frame_of_reference,
            region_elsewhere,
            contours_mirrored,
            contours_a_slice_on,
            contours_a_pixel_on,
            contours_transposed,
            contours_scaled,
            a_contour_less,
            a_contour_twice,
            contours_on_other_images,
            regions_exchanged,
            region_names_exchanged,
            region_sides_exchanged,
            open_contour,
            structure_of_another_series,
        )
    ),
    *(
        (SR, one)
        for one in (
            volumes_exchanged,
            volume_too_large,
            volume_in_litres,
            segments_of_report_exchanged,
            another_segmentation,
            report_sides_exchanged,
            a_group_less,
            a_group_twice,
            another_finding,
            evidence_less,
            evidence_elsewhere,
            another_source_series,
        )
    ),
    *(
        (SC, one)
        for one in (
            picture_mirrored,
            picture_a_pixel_on,
            picture_upside_down,
            colours_exchanged,
            no_overlay,
            legend_lines_exchanged,
            legend_names_exchanged,
            legend_volumes_exchanged,
            legend_colours_exchanged,
            all_colours_exchanged,
            letters_exchanged,
            letter_lost,
            directions_turned,
            directions_exchanged,
            a_direction_less,
            pixels_of_another_shape,
            picture_of_other_slices,
            picture_of_nothing_known,
            a_slice_less,
        )
    ),
]


@pytest.mark.parametrize(
    ("kind", "mutate"), MUTATIONS, ids=[f"{kind.value}-{one.__name__}" for kind, one in MUTATIONS]
)
def test_a_mutated_object_is_held(
    case: Any, tmp_path: Path, kind: ObjectKind, mutate: Mutation
) -> None:
    """Every one of them."""
    volume, mask, made, _ = case
    ds = pydicom.dcmread(made[kind].path)
    mutate(ds)
    path = tmp_path / "mutated.dcm"
    ds.save_as(path)
    mutated = dataclasses.replace(made[kind], path=path)
    assert is_held(mutated, mask, volume, made[SEG])


# ---- a volume that isn't where its files are ----------------------------------------------------


def with_affine(change: Callable[[NDArray[np.float64]], None]) -> Callable[[Volume], Volume]:
    """A volume with another affine."""

    def wrong(volume: Volume) -> Volume:
        affine = volume.affine_lps.copy()
        change(affine)
        return dataclasses.replace(volume, affine_lps=affine)

    return wrong


def _flip(axis: int) -> Callable[[NDArray[np.float64]], None]:
    def change(affine: NDArray[np.float64]) -> None:
        affine[:3, axis] *= -1

    return change


def _exchange(affine: NDArray[np.float64]) -> None:
    affine[:3, [0, 1]] = affine[:3, [1, 0]]


def _shift(affine: NDArray[np.float64]) -> None:
    affine[:3, 3] += affine[:3, 2]


def _stretch(affine: NDArray[np.float64]) -> None:
    affine[:3, 2] *= 1.01


WRONG_VOLUMES: dict[str, Callable[[Volume], Volume]] = {
    **{f"flipped {'ijk'[axis]}": with_affine(_flip(axis)) for axis in range(3)},
    "transposed": with_affine(_exchange),
    "one slice on": with_affine(_shift),
    "stretched": with_affine(_stretch),
    "slices in another order": lambda volume: dataclasses.replace(
        volume, slices=volume.slices[::-1], headers=volume.headers[::-1]
    ),
    "files in another order": lambda volume: dataclasses.replace(
        volume, headers=volume.headers[1:] + volume.headers[:1]
    ),
}


@pytest.mark.parametrize("name", WRONG_VOLUMES)
def test_a_volume_that_is_not_where_its_files_are_is_held(case: Any, name: str) -> None:
    """The mask was made under its affine: nothing of it may leave."""
    volume, _, _, _ = case
    with pytest.raises(EncodingFailed) as caught:
        read_sources_anew(WRONG_VOLUMES[name](volume))
    assert caught.value.code == "result_misplaced"
