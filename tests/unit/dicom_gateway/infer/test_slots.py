"""Which image of a study goes where in a request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dicom_gateway.errors import ContractMismatch
from dicom_gateway.infer import fill, slots_of
from dicom_gateway.records import Contract, Input
from tests.support.series import a_contract

TENSORS = {"image": "IMAGE", "rescale": "RESCALE", "affine": "AFFINE"}


def an_input(name: str, layout: Any = "volume", channels: tuple[str, ...] = ()) -> Input:
    """An input of the contract."""
    dims = (len(channels) or 2, -1, -1, -1) if layout == "channels" else (-1, -1, -1)
    return Input(name, layout, "MR", channels, TENSORS, "INT16", dims)


def a_contract_of(*inputs: Input) -> Contract:
    """Of a pipeline with these inputs."""
    return replace(a_contract(), input_kind="inputs", inputs=inputs)


def test_a_contract_without_a_list_takes_one_volume() -> None:
    """As contracts of the first builders are."""
    [slot] = slots_of(a_contract())
    assert (slot.name, slot.is_flat) == ("image", False)
    assert fill(a_contract(), {"": "series"}, "") == ("series",)


def test_inputs_are_filled_by_their_names_in_the_pipelines_order() -> None:
    """Whatever order the rule has; case and punctuation don't matter."""
    contract = a_contract_of(an_input("t1"), an_input("FLAIR_raw"))
    assert fill(contract, {"flair-raw": "b", "t1": "a"}, "brain") == ("a", "b")


def test_channels_are_filled_by_their_names() -> None:
    """The contrasts of a BraTS bundle."""
    contract = a_contract_of(an_input("image", "channels", ("T1c", "T1", "T2", "FLAIR")))
    roles = {"flair": 3, "t1": 1, "t1c": 0, "t2": 2}
    assert fill(contract, roles, "brain") == (0, 1, 2, 3)


def test_channels_without_names_are_numbered() -> None:
    """So that a bundle that names nothing can be fed all the same."""
    contract = a_contract_of(an_input("image", "channels"))
    assert fill(contract, {"channel-2": "b", "channel-1": "a"}, "brain") == ("a", "b")


@pytest.mark.parametrize(
    ("roles", "sentence"),
    [
        ({"": 1}, "a role for each: t1, flair"),
        ({"t1": 1, "t2": 2}, "has the roles t1, t2 and 'lung_ct' takes t1, flair"),
        ({"t1": 1, "flair": 2, "t2": 3}, "call the rule's roles so"),
        ({"t1": 1, "T-1": 2}, "call the rule's roles so"),
    ],
)
def test_other_roles_are_refused_with_the_right_names(roles: dict[str, int], sentence: str) -> None:
    """A wrong contrast in a slot would be a silently wrong result."""
    with pytest.raises(ContractMismatch, match=sentence):
        fill(a_contract_of(an_input("t1"), an_input("flair")), roles, "brain")


def test_several_roles_for_one_image_are_refused() -> None:
    """The pipeline has no place for the second."""
    with pytest.raises(ContractMismatch, match="without roles"):
        fill(a_contract(), {"a": 1, "b": 2}, "lungs")


@pytest.mark.parametrize(("layout", "what"), [("rgb", "colour"), ("points", "points")])
def test_what_no_series_brings_is_refused_by_name(layout: str, what: str) -> None:
    """Photographs and clicks need a person."""
    with pytest.raises(ContractMismatch, match=what):
        slots_of(a_contract_of(an_input("image", layout)))
