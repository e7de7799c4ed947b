"""Requests of other shapes than one INT16 volume, to a real tritonserver."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.config import TritonSettings
from dicom_gateway.errors import ContractMismatch, VolumeTooLarge
from dicom_gateway.infer import TritonClient, check_room
from dicom_gateway.records import Series, Volume
from tests.support.small_triton import SmallTriton

REPOSITORY = Path(__file__).parents[3] / "support" / "triton_inputs"
SHAPE = (3, 20, 24)
SERIES = Series("1.2.3", "1.2", "MR", "BRAIN", "MR_1", ())


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallTriton]:
    """Serves `contrasts` (two channels) and `picture` (2-D, FP32)."""
    with SmallTriton(tmp_path_factory.mktemp("triton"), REPOSITORY) as server:
        yield server


@pytest.fixture
def arena() -> Iterator[Arena]:
    """One megabyte of shared memory."""
    with Arena(1 << 20) as made:
        yield made


@pytest.fixture
def client(triton: SmallTriton, arena: Arena, tmp_path: Path) -> Iterator[TritonClient]:
    """A client that knows the arena."""
    made = TritonClient(TritonSettings(url=triton.url), tmp_path / "contracts")
    made.use_arena(arena)
    yield made
    made.close()


def a_volume(
    arena: Arena, seed: int, shape: tuple[int, int, int] = SHAPE, *, floating: bool = False
) -> tuple[Volume, NDArray[Any]]:
    """A volume in the arena and its values after rescaling."""
    dtype = np.dtype(np.float32 if floating else np.int16)
    rng = np.random.default_rng(seed)
    stored = rng.integers(-500, 700, shape).astype(dtype)
    span = arena.allocate(stored.nbytes)
    arena.view(span, dtype, shape)[:] = stored
    rescale = np.tile([2.0, -20.0 - seed], (shape[0], 1))
    kind = "FP32" if floating else "INT16"
    volume = Volume(span, kind, shape, rescale, np.eye(4), (), (), SERIES)  # type: ignore[arg-type]
    return volume, stored * 2.0 - 20.0 - seed


def test_channels_go_in_together_and_masks_come_out_one_by_one(
    client: TritonClient, arena: Arena
) -> None:
    """Two volumes become one [C, K, J, I]; masks may overlap; scores come along."""
    contract = client.contract("contrasts")
    (one, first), (other, second) = a_volume(arena, 1), a_volume(arena, 2)

    inference = client.infer([one, other], contract, arena, "a" * 32)

    assert list(inference.labelmaps) == ["MASKS_1", "MASKS_2"]
    np.testing.assert_array_equal(inference.labelmaps["MASKS_1"], first > 0)
    np.testing.assert_array_equal(inference.labelmaps["MASKS_2"], second > first)
    assert (inference.labelmaps["MASKS_1"] & inference.labelmaps["MASKS_2"]).any()
    expected = [first.mean(), second.mean()]
    np.testing.assert_allclose(inference.scores["SCORES"], expected, rtol=1e-5)
    assert arena.free_bytes == arena.size_bytes


def test_one_volume_is_not_enough_for_two_channels(client: TritonClient, arena: Arena) -> None:
    """The sentence says how many there must be, and the room goes back."""
    volume, _ = a_volume(arena, 1)
    with pytest.raises(ContractMismatch, match="takes 2 images and got 1"):
        client.infer(volume, client.contract("contrasts"), arena, "a" * 32)
    assert arena.free_bytes == arena.size_bytes


@pytest.mark.parametrize("floating", [False, True])
def test_a_pipeline_of_floats_takes_integers_too(
    client: TritonClient, arena: Arena, floating: bool
) -> None:
    """A picture goes in flat, as FP32 whatever it came as; its label map has one slice."""
    volume, values = a_volume(arena, 3, (1, 30, 41), floating=floating)

    inference = client.infer(volume, client.contract("picture"), arena, "a" * 32)

    np.testing.assert_array_equal(inference.labelmaps["MASK"], values > 0)
    np.testing.assert_allclose(inference.scores["SCORES"], values.mean(), rtol=1e-5)
    assert arena.free_bytes == arena.size_bytes


def test_floats_for_a_pipeline_of_integers_are_refused_with_the_remedy(
    client: TritonClient, arena: Arena
) -> None:
    """Nothing is rounded in silence."""
    volumes = [a_volume(arena, seed, floating=True)[0] for seed in (1, 2)]
    with pytest.raises(ContractMismatch, match="--input-datatype FP32"):
        client.infer(volumes, client.contract("contrasts"), arena, "a" * 32)
    assert arena.free_bytes == arena.size_bytes


def test_scores_that_are_no_numbers_are_no_result(client: TritonClient, arena: Arena) -> None:
    """NaN never reaches a report."""
    volume, _ = a_volume(arena, 1000, (1, 30, 41))
    with pytest.raises(ContractMismatch, match="no numbers"):
        client.infer(volume, client.contract("picture"), arena, "a" * 32)


def test_masks_without_a_name_for_each_are_refused(client: TritonClient, arena: Arena) -> None:
    """Nobody could say what they show."""
    contract = client.contract("contrasts")
    masks = replace(contract.outputs[0], segments=contract.outputs[0].segments[:1])
    nameless = replace(contract, outputs=(masks, contract.outputs[1]))
    with pytest.raises(ContractMismatch, match="what each of them is"):
        check_room(nameless, arena, 100)


def test_room_is_asked_for_all_channels_and_masks(client: TritonClient, arena: Arena) -> None:
    """What came and what is sent lie side by side for a moment: 8 bytes a voxel."""
    contract = client.contract("contrasts")
    check_room(contract, arena, arena.size_bytes // 8 - 4096)
    with pytest.raises(VolumeTooLarge, match="arena-bytes"):
        check_room(contract, arena, arena.size_bytes // 8 + 4096)
