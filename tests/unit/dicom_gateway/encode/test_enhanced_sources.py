"""Where frames lie is what their functional groups say: on their own, or for all at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.volume import assemble_volume
from dicom_gateway.encode.gate import read_sources_anew
from dicom_gateway.errors import EncodingFailed
from dicom_gateway.records import ObjectKind, Volume
from tests.support.dicom import a_ct_series, an_enhanced_series, as_enhanced_frame
from tests.support.results import pixels_of, results_of
from tests.support.series import a_kept_series, two_boxes

SMALL: dict[str, Any] = {"rows": 24, "columns": 28}
OF_ANOTHER_PLACE: dict[str, Any] = {
    "ImagePositionPatient": [1, 2, 3],
    "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
    "PixelSpacing": [3, 2],
}


def with_elements(ds: Dataset, elements: dict[str, Any]) -> Dataset:
    """The same object with more at its top level."""
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def everything_is_made(volume: Volume, folder: Path) -> None:
    """Objects of all kinds, and all of them pass the gate."""
    pixels = pixels_of(volume) if len(set(volume.headers)) > 1 else None
    made = results_of(two_boxes(volume), volume, folder, pixels=pixels)
    assert set(made) == set(ObjectKind) - (set() if pixels else {ObjectKind.SECONDARY_CAPTURE})


@pytest.mark.parametrize("shared", [True, False], ids=["for all frames", "of its own"])
def test_objects_of_one_frame_have_all_kinds_of_results(
    tmp_path: Path, arena: Arena, pool: DecoderPool, shared: bool
) -> None:
    """A place in the shared groups is a place, so there are volumes and contours."""
    singles = a_ct_series(6, **SMALL)
    objects = [as_enhanced_frame(one, shared=shared) for one in singles]
    volume = assemble_volume(a_kept_series(tmp_path / "source", objects), arena, pool)
    everything_is_made(volume, tmp_path)
    truth = read_sources_anew(volume)
    stated = [[float(mm) for mm in one.ImagePositionPatient] for one in singles]
    np.testing.assert_allclose([plane.origin for plane in truth.planes], stated)


def test_objects_of_one_frame_may_say_it_twice(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """In the groups and at the top level, where an enhanced object has no place to say it."""
    singles = a_ct_series(6, **SMALL)
    objects = [
        with_elements(as_enhanced_frame(one), {key: one[key].value for key in OF_ANOTHER_PLACE})
        for one in singles
    ]
    volume = assemble_volume(a_kept_series(tmp_path / "source", objects), arena, pool)
    everything_is_made(volume, tmp_path)


@pytest.mark.parametrize("keyword", OF_ANOTHER_PLACE)
def test_the_top_level_of_a_multi_frame_object_places_no_frame(
    tmp_path: Path, arena: Arena, pool: DecoderPool, keyword: str
) -> None:
    """Some converters leave there what the first of their single frames had."""
    source = with_elements(
        an_enhanced_series(6, shuffled=True, **SMALL), {keyword: OF_ANOTHER_PLACE[keyword]}
    )
    volume = assemble_volume(a_kept_series(tmp_path / "source", [source]), arena, pool)
    everything_is_made(volume, tmp_path)


def test_a_volume_that_lies_where_only_the_top_level_says_is_held(
    tmp_path: Path, arena: Arena, pool: DecoderPool
) -> None:
    """The gate goes by the groups, whoever went by something else."""
    source = an_enhanced_series(6, **SMALL)
    volume = assemble_volume(a_kept_series(tmp_path / "source", [source]), arena, pool)
    moved = [10.0, 0.0, 0.0]
    path = volume.headers[0]
    ds = pydicom.dcmread(path)
    ds.ImagePositionPatient = [a + b for a, b in zip(volume.affine_lps[:3, 3], moved, strict=True)]
    ds.save_as(path)
    affine = volume.affine_lps.copy()
    affine[:3, 3] += moved
    slices = tuple(
        dataclasses.replace(one, position_lps_mm=tuple(np.add(one.position_lps_mm, moved)))
        for one in volume.slices
    )
    with pytest.raises(EncodingFailed, match="doesn't lie on its source") as caught:
        read_sources_anew(dataclasses.replace(volume, affine_lps=affine, slices=slices))
    assert caught.value.code == "result_misplaced"
