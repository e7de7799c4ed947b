"""The geometry gate holds whatever is misplaced, of every kind of object.

Each mutation is one that a mistake of ours, of a library or of a contract could make. CI runs
each on a few random masks; TRITOME_MUTATIONS says on how many.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from dicom_gateway.encode import encode_results
from dicom_gateway.encode.gate import read_sources_anew
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import Inference, ObjectKind, Result, Volume
from tests.support.mistakes import anything, picture, report, segmentation, structures
from tests.support.mistakes.anything import Mistake
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


MISTAKES: list[tuple[ObjectKind, Mistake]] = [
    *((kind, one) for kind in ObjectKind for one in anything.MISTAKES),
    *((kind, one) for kind in (SEG, LABELMAP) for one in segmentation.MISTAKES),
    *((SEG, one) for one in segmentation.OF_BITS),
    *((RT, one) for one in structures.MISTAKES),
    *((SR, one) for one in report.MISTAKES),
    *((SC, one) for one in picture.MISTAKES),
]


@pytest.mark.parametrize(
    ("kind", "mistake"), MISTAKES, ids=[f"{kind.value}-{one.__name__}" for kind, one in MISTAKES]
)
def test_a_mutated_object_is_held(
    case: Any, tmp_path: Path, kind: ObjectKind, mistake: Mistake
) -> None:
    """Every one of them."""
    volume, mask, made, _ = case
    ds = pydicom.dcmread(made[kind].path)
    mistake(ds)
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
