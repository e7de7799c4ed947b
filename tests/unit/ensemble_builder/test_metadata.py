"""What a bundle's metadata.json says, in the words of DICOM and of the gateway."""

from __future__ import annotations

from typing import Any

import pytest

from ensemble_builder.metadata import channel_names, image_names, modality_of, text_of
from ensemble_builder.segments import classes_of, segments_of


@pytest.mark.parametrize(
    ("stated", "word"),
    [
        ("CT", "CT"),
        ("MRI", "MR"),
        (" mr ", "MR"),
        ("Mammogram", "MG"),
        (["CT"], "CT"),
        ("n/a", ""),
        (None, ""),
    ],
)
def test_a_modality_becomes_dicom_s_word(stated: Any, word: str) -> None:
    """Whatever the bundle calls it."""
    assert modality_of({"image": {"modality": stated}}) == (word, "")


@pytest.mark.parametrize("stated", ["H&E", "CT, MR", ["CT", "MR"], "fluorescence"])
def test_a_modality_that_no_series_has_is_left_out_and_said(stated: Any) -> None:
    """The pipeline would take no series at all."""
    word, note = modality_of({"image": {"modality": stated}})
    assert word == ""
    assert repr(stated) in note


def test_images_are_named_in_the_order_of_their_numbers() -> None:
    """The tenth comes after the ninth, wherever it stands in the file."""
    described = {"channel_def": {str(n): f"b{n}" for n in (10, 2, 0, 1, *range(3, 10))}}
    assert image_names(described) == tuple(f"b{n}" for n in range(11))


@pytest.mark.parametrize("names", [["T1 (pre)", "t1-pre"], ["T1", ""], ["T1", "+"]])
def test_names_that_don_t_tell_images_apart_are_none(names: list[str]) -> None:
    """No rule could have a role for each: they are called channel-1, channel-2 then."""
    assert image_names({"channel_def": {str(n): name for n, name in enumerate(names)}}) == ()


@pytest.mark.parametrize(
    "described", [None, {}, {"channel_def": ["a"]}, {"channel_def": {"\u00b2": 1}}]
)
def test_channels_that_can_t_be_read_have_no_names(described: Any) -> None:
    """Lists, words in place of numbers, nothing at all."""
    assert channel_names(described) == {}


def test_an_empty_name_is_none() -> None:
    """A label and a score without one are counted: DICOM wants a name for each."""
    named = channel_names({"channel_def": {"0": "nothing", "1": " ", "2": " thing "}})
    assert classes_of({}, named, 3) == ("nothing", "class 1", "thing")
    assert [row.name for row in segments_of({}, named, {1: 1, 2: 2})] == ["Label 1", "thing"]


def test_nothing_is_no_text() -> None:
    """Null is not the word None; the next key is asked."""
    assert text_of({"license": None, "copyright": "c"}, "license", "copyright") == "c"
    assert text_of({"description": None}, "description") == ""
