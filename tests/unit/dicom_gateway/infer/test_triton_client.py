"""A real tritonserver, a real arena: what goes in, what comes out, what goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.config import TritonSettings
from dicom_gateway.errors import (
    ContractMismatch,
    InferenceRejected,
    RequestLost,
    TritonUnavailable,
    VolumeTooLarge,
)
from dicom_gateway.infer import TritonClient, check_room
from dicom_gateway.records import Contract, Series, Volume
from tests.support.patience import until
from tests.support.processes import free_port
from tests.support.small_triton import SmallTriton, a_repository

SHAPE = (5, 40, 48)
SLEEP, REFUSE, DIE, BREAK = -1.0, -2.0, -3.0, -4.0


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallTriton]:
    """One small server for the tests that leave it alive."""
    with SmallTriton(tmp_path_factory.mktemp("triton")) as server:
        yield server


@pytest.fixture
def mortal_triton(tmp_path: Path) -> Iterator[SmallTriton]:
    """A server of its own, to be killed."""
    with SmallTriton(tmp_path) as server:
        yield server


@pytest.fixture
def arena() -> Iterator[Arena]:
    """Four megabytes of shared memory."""
    with Arena(4 << 20) as made:
        yield made


def a_client(server: SmallTriton, folder: Path, timeout_s: float = 60.0) -> TritonClient:
    """A client of that server."""
    return TritonClient(
        TritonSettings(url=server.url, request_timeout_s=timeout_s), folder / "contracts"
    )


@pytest.fixture
def client(triton: SmallTriton, arena: Arena, tmp_path: Path) -> Iterator[TritonClient]:
    """A client that knows the arena."""
    made = a_client(triton, tmp_path)
    made.use_arena(arena)
    yield made
    made.close()


@pytest.fixture
def contract(client: TritonClient) -> Contract:
    """What the small pipeline says of itself."""
    return client.contract("threshold")


def a_volume(
    arena: Arena, wish: float = 1.0, amount: float = 0.0
) -> tuple[Volume, NDArray[np.bool_]]:
    """A volume in the arena, and the mask to expect of it."""
    image = arena.allocate(int(np.prod(SHAPE)) * 2)
    voxels = np.random.default_rng(1).integers(-500, 500, SHAPE, dtype=np.int16)
    arena.view(image, np.int16, SHAPE)[:] = voxels
    rescale = np.tile([1.0, -20.0], (SHAPE[0], 1))
    expected = voxels - 20.0 > 0
    if wish < 0:
        rescale[:] = (1.0, 0.0)
        rescale[0] = wish, amount
        expected = voxels > 0
    series = Series("1.2.3", "1.2", "CT", "LUNG", "CT_1", ())
    affine = np.diag([0.7, 0.8, 2.5, 1.0])
    return (
        Volume(image, "INT16", SHAPE, rescale, affine, (), (), series),
        expected,
    )


def test_a_volume_goes_in_and_its_mask_comes_out(
    client: TritonClient, contract: Contract, arena: Arena
):
    """Both through the arena, which is all free afterwards; the mask is a copy."""
    volume, expected = a_volume(arena)

    inference = client.infer(volume, contract, arena, "a" * 32)

    mask = inference.labelmaps["MASK"]
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, expected)
    assert arena.free_bytes == arena.size_bytes
    arena.view(arena.allocate(arena.size_bytes), np.uint8, (arena.size_bytes,))[:] = 7
    assert np.array_equal(mask, expected)


def test_triton_knows_the_arena_under_its_name_while_it_is_used(
    triton: SmallTriton, client: TritonClient, contract: Contract, arena: Arena
):
    """Whole, from offset 0; and no longer after `close`."""
    volume, _ = a_volume(arena)
    client.infer(volume, contract, arena, "a" * 32)
    observer = InferenceServerClient(triton.url)

    region = observer.get_system_shared_memory_status().regions[arena.name]
    assert (region.key, region.offset, region.byte_size) == (arena.key, 0, arena.size_bytes)

    client.close()
    assert arena.name not in observer.get_system_shared_memory_status().regions
    observer.close()


def test_several_workers_share_one_arena(client: TritonClient, contract: Contract, arena: Arena):
    """Each gets its own mask."""
    made = [a_volume(arena) for _ in range(6)]
    masks: dict[int, bool] = {}

    def work(number: int) -> None:
        volume, expected = made[number]
        inference = client.infer(volume, contract, arena, f"{number:032d}")
        masks[number] = bool(np.array_equal(inference.labelmaps["MASK"], expected))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert masks == dict.fromkeys(range(6), True)
    assert arena.free_bytes == arena.size_bytes


def test_the_inputs_fault_is_told_in_tritons_words(
    client: TritonClient, contract: Contract, arena: Arena
):
    """INVALID_ARG is permanent; the arena is free again."""
    volume, _ = a_volume(arena, REFUSE)

    with pytest.raises(InferenceRejected, match="too_thin: fewer slices than it takes") as refusal:
        client.infer(volume, contract, arena, "a" * 32)

    assert refusal.value.code == "inference_rejected"
    assert arena.free_bytes == arena.size_bytes


def test_a_mistake_in_the_model_fails_without_paths(
    client: TritonClient, contract: Contract, arena: Arena
):
    """A person must look; the traceback stays in Triton's log. The memory comes back."""
    volume, _ = a_volume(arena, BREAK)

    with pytest.raises(InferenceRejected, match="a mistake in the model") as failure:
        client.infer(volume, contract, arena, "a" * 32)

    assert failure.value.code == "inference_failed"
    assert "/" not in str(failure.value)
    client.check_ready("threshold")
    assert arena.free_bytes == arena.size_bytes


def test_memory_of_a_request_that_took_too_long_is_not_reused_too_early(
    triton: SmallTriton, arena: Arena, contract: Contract, tmp_path: Path
):
    """Triton still writes its mask: the spans stay lent until it has let go of them."""
    client = a_client(triton, tmp_path, timeout_s=0.5)
    client.use_arena(arena)
    volume, _ = a_volume(arena, SLEEP, 4.0)

    with pytest.raises(RequestLost, match=r"triton\.request-timeout-s"):
        client.infer(volume, contract, arena, "a" * 32)

    lent = int(np.prod(SHAPE)) * 3
    assert client.quarantined_bytes(arena) == lent
    client.check_ready("threshold")  # the other instance answers, the first still sleeps
    assert client.quarantined_bytes(arena) == lent
    assert arena.free_bytes <= arena.size_bytes - lent

    # Another request goes through beside it.
    other, expected = a_volume(arena)
    assert np.array_equal(
        client.infer(other, contract, arena, "b" * 32).labelmaps["MASK"], expected
    )

    def let_go() -> bool:
        client.check_ready("threshold")
        return client.quarantined_bytes(arena) == 0

    until(let_go)
    assert arena.free_bytes == arena.size_bytes
    client.close()


def test_a_stopped_job_does_not_wait_for_triton(
    client: TritonClient, contract: Contract, arena: Arena
):
    """It ends at once, and its memory comes back when Triton is done with it."""
    volume, _ = a_volume(arena, SLEEP, 3.0)
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()

    with pytest.raises(TritonUnavailable) as stopped:
        client.infer(volume, contract, arena, "a" * 32, stop)

    assert not isinstance(stopped.value, RequestLost)

    assert client.quarantined_bytes(arena) > 0

    def let_go() -> bool:
        client.check_ready("threshold")
        return client.quarantined_bytes(arena) == 0

    until(let_go)


def test_a_volume_whose_mask_finds_no_room_is_refused(
    client: TritonClient, contract: Contract, arena: Arena
):
    """With the figures, and the volume's own memory comes back."""
    image = arena.allocate(2 << 20)
    volume = Volume(
        image,
        "INT16",
        (1, 8192, 1024),
        np.array([[1.0, 0.0]]),
        np.eye(4),
        (),
        (),
        Series("1.2.3", "1.2", "CT", "LUNG", "CT_1", ()),
    )

    with pytest.raises(VolumeTooLarge, match="arena"):
        client.infer(volume, contract, arena, "a" * 32)

    assert arena.free_bytes == arena.size_bytes


def test_a_volume_that_fits_only_without_its_mask_is_refused_and_not_tried_for_ever(
    client: TritonClient, contract: Contract, arena: Arena
):
    """IMAGE fits and MASK fits, but not both: the sentence has the size to set."""
    voxels = (3 << 20) // 2  # 3 MiB of IMAGE, 1.5 MiB of MASK, in 4 MiB
    with pytest.raises(VolumeTooLarge, match=f"at least {4608 * 1024}") as refusal:
        check_room(contract, arena, voxels)
    assert "triton.arena-bytes" in str(refusal.value)

    image = arena.allocate(2 * voxels)
    shape = (3, 512, 1024)
    rescale = np.tile([1.0, 0.0], (3, 1))
    series = Series("1.2.3", "1.2", "CT", "LUNG", "CT_1", ())
    volume = Volume(image, "INT16", shape, rescale, np.eye(4), (), (), series)
    with pytest.raises(VolumeTooLarge, match="arena-bytes"):
        client.infer(volume, contract, arena, "a" * 32)

    assert arena.free_bytes == arena.size_bytes


def test_a_volume_that_fits_with_its_mask_to_the_last_page_has_room(
    contract: Contract, arena: Arena
):
    """Each begins on a page of its own."""
    pages = arena.size_bytes // 4096
    check_room(contract, arena, (pages - 1) // 3 * 4096)

    with pytest.raises(VolumeTooLarge):
        check_room(contract, arena, (pages - 1) // 3 * 4096 + 4096)


def test_regions_of_killed_gateways_are_forgotten(
    triton: SmallTriton, client: TritonClient, contract: Contract, arena: Arena
):
    """Triton holds a patient's voxels in memory whose file is long gone."""
    observer = InferenceServerClient(triton.url)
    with Arena(1 << 20) as gone, Arena(1 << 20) as living:
        for one in (gone, living):
            observer.register_system_shared_memory(one.name, one.key, one.size_bytes)
        gone.close()
        volume, _ = a_volume(arena)

        client.infer(volume, contract, arena, "a" * 32)

        regions = set(observer.get_system_shared_memory_status().regions)
        assert gone.name not in regions
        assert {arena.name, living.name} <= regions
        observer.unregister_system_shared_memory(living.name)
    observer.close()


def test_a_triton_that_does_not_share_our_memory_is_told_from_a_dead_one(
    triton: SmallTriton, tmp_path: Path
):
    """Two containers without a common /dev/shm: the sentence says what to share."""
    client = a_client(triton, tmp_path)
    contract = client.contract("threshold")
    with Arena(4 << 20, folder=tmp_path) as elsewhere:
        client.use_arena(elsewhere)
        volume, _ = a_volume(elsewhere)

        with pytest.raises(TritonUnavailable, match="must share /dev/shm"):
            client.infer(volume, contract, elsewhere, "a" * 32)

        assert elsewhere.free_bytes == elsewhere.size_bytes
        assert not client.has_lost_an_arena  # a new start of the gateway would change nothing
    client.close()


def test_an_arena_that_triton_does_not_find_any_more_is_lost(
    mortal_triton: SmallTriton, arena: Arena, tmp_path: Path
):
    """Its container was started anew and has another /dev/shm: only a new arena helps."""
    client = a_client(mortal_triton, tmp_path)
    client.use_arena(arena)
    contract = client.contract("threshold")
    volume, _ = a_volume(arena)
    client.infer(volume, contract, arena, "a" * 32)
    assert not client.has_lost_an_arena

    arena.path.unlink()  # as the new server sees it
    mortal_triton.kill()
    mortal_triton.start()
    volume, _ = a_volume(arena)
    with pytest.raises(TritonUnavailable, match="must share /dev/shm"):
        client.infer(volume, contract, arena, "b" * 32)

    assert client.has_lost_an_arena
    client.close()


def test_a_killed_and_restarted_server_gets_the_arena_again(
    mortal_triton: SmallTriton, arena: Arena, tmp_path: Path
):
    """Killed in mid-inference: the job waits, and nothing of the first life is believed."""
    client = a_client(mortal_triton, tmp_path)
    client.use_arena(arena)
    contract = client.contract("threshold")
    volume, _ = a_volume(arena, SLEEP, 60.0)
    killer = threading.Timer(1.0, mortal_triton.kill)
    killer.start()

    with pytest.raises(RequestLost):
        client.infer(volume, contract, arena, "a" * 32)
    killer.join()

    assert client.quarantined_bytes(arena) > 0
    with pytest.raises(TritonUnavailable) as away:
        client.check_ready("threshold")
    assert not isinstance(away.value, RequestLost)
    assert not client.is_ready()

    mortal_triton.start()
    until(client.is_ready)
    client.check_ready("threshold")
    again, expected = a_volume(arena)
    assert np.array_equal(
        client.infer(again, contract, arena, "a" * 32).labelmaps["MASK"], expected
    )
    assert arena.free_bytes == arena.size_bytes
    client.close()


def test_a_killed_stub_lets_the_job_wait(mortal_triton: SmallTriton, arena: Arena, tmp_path: Path):
    """The server says ready, its part is dead: that passes once somebody restarts it."""
    client = a_client(mortal_triton, tmp_path)
    client.use_arena(arena)
    volume, _ = a_volume(arena, DIE)

    with pytest.raises(RequestLost, match="not healthy"):
        client.infer(volume, client.contract("threshold"), arena, "a" * 32)

    client.check_ready("threshold")
    assert arena.free_bytes == arena.size_bytes
    client.close()


def test_only_the_request_that_killed_a_stub_is_lost(arena: Arena, tmp_path: Path):
    """A dead stub meets whoever comes next; that says nothing against the next job.

    Once the pipeline has computed again, the next one that finds it dead has killed it.
    """
    repository = a_repository(tmp_path / "models", "threshold")
    config = repository / "threshold" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 2", "count: 1"))
    (tmp_path / "triton").mkdir()
    with SmallTriton(tmp_path / "triton", repository) as server:
        client = a_client(server, tmp_path)
        client.use_arena(arena)
        contract = client.contract("threshold")

        def ask(wish: float) -> type[BaseException] | None:
            try:
                client.infer(a_volume(arena, wish)[0], contract, arena, "a" * 32)
            except TritonUnavailable as error:
                return type(error)
            return None

        assert ask(1.0) is None
        assert ask(DIE) is RequestLost
        assert [ask(1.0) for _ in range(3)] == [TritonUnavailable] * 3

        server.kill()
        server.start()
        until(client.is_ready)
        assert ask(1.0) is None
        assert ask(DIE) is RequestLost
        client.close()


def test_an_answer_of_another_version_is_not_believed(arena: Arena, tmp_path: Path):
    """Loaded while the volume was assembled: the same label may mean something else now."""
    repository = a_repository(tmp_path / "models", "threshold")
    config = repository / "threshold" / "config.pbtxt"
    (tmp_path / "triton").mkdir()
    with SmallTriton(tmp_path / "triton", repository, explicit=True) as server:
        client = a_client(server, tmp_path)
        client.use_arena(arena)
        before = client.contract("threshold")
        config.write_text(config.read_text().replace('"name": "Tissue"', '"name": "Bone"'))
        with InferenceServerClient(server.url) as operator:
            operator.load_model("threshold")

        for wish in (1.0, REFUSE):
            with pytest.raises(TritonUnavailable, match="another version"):
                client.infer(a_volume(arena, wish)[0], before, arena, "a" * 32)

        after = client.contract("threshold")
        client.infer(a_volume(arena)[0], after, arena, "a" * 32)
        with InferenceServerClient(server.url) as operator:
            operator.unload_model("threshold")
        with pytest.raises(TritonUnavailable):
            client.infer(a_volume(arena)[0], after, arena, "a" * 32)
        assert after.outputs[0].segments[0].name == "Bone"
        assert arena.free_bytes == arena.size_bytes
        client.close()


def test_the_contract_last_seen_serves_while_triton_is_away(triton: SmallTriton, tmp_path: Path):
    """Also after a restart of the gateway; one never seen is asked for again later."""
    client = a_client(triton, tmp_path)
    seen = client.contracts(["threshold"])
    client.close()
    away = TritonClient(TritonSettings(url=f"127.0.0.1:{free_port()}"), tmp_path / "contracts")

    assert away.contracts(["threshold"]) == seen
    with pytest.raises(TritonUnavailable):
        away.contract("spleen_ct")
    away.close()


def test_a_pipeline_that_triton_does_not_serve_is_waited_for(client: TritonClient):
    """It may be loading."""
    with pytest.raises(TritonUnavailable, match="spleen_ct"):
        client.contract("spleen_ct")
    with pytest.raises(TritonUnavailable, match="spleen_ct"):
        client.check_ready("spleen_ct")


def test_an_output_that_breaks_its_promise_is_refused(
    client: TritonClient, contract: Contract, arena: Arena
):
    """A contract that promises label maps of floats is none that we can read."""
    output = contract.outputs[0]
    lying = Contract(
        **{
            **{name: getattr(contract, name) for name in contract.__slots__},
            "outputs": (type(output)("MASK", "labelmap", "FP32", (-1, -1, -1)),),
        }
    )
    volume, _ = a_volume(arena)

    with pytest.raises(ContractMismatch, match="FP32"):
        client.infer(volume, lying, arena, "a" * 32)

    assert arena.free_bytes == arena.size_bytes
