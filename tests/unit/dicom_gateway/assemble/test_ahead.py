"""Frames are decoded before their job asks, and nothing depends on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import JPEGLSLossless

from dicom_gateway.assemble.ahead import Ahead
from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.headers import read_header
from dicom_gateway.assemble.pixels import PixelTask, plan_pixels
from dicom_gateway.assemble.plan import plan_volumes
from dicom_gateway.assemble.volume import assemble
from tests.support.dicom import a_ct_series, a_pattern, an_enhanced_series, write_series
from tests.support.patience import until
from tests.support.series import a_kept_series

SIZE = 32
FRAME_BYTES = 2 * SIZE * SIZE
PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    """Two decoders for all tests here."""
    with DecoderPool(2) as pool:
        yield pool


@pytest.fixture
def arena() -> Iterator[Arena]:
    """Where volumes go."""
    with Arena(1 << 20) as arena:
        yield arena


@contextmanager
def running(pool: DecoderPool, room_bytes: int = 1 << 20) -> Iterator[tuple[Ahead, Arena]]:
    """One that decodes, and the room in which it does; all of that is given back at the end."""
    with Arena(room_bytes) as room:
        ahead = Ahead(room, pool)
        thread = threading.Thread(target=ahead.run)
        thread.start()
        try:
            yield ahead, room
        finally:
            ahead.stop()
            thread.join(30)
        assert not thread.is_alive()
        assert room.free_bytes == room.size_bytes


def files(folder: Path, frames: int = 3) -> list[Path]:
    """A small series."""
    return write_series(folder, a_ct_series(frames=frames, rows=SIZE, columns=SIZE))


def wanted(paths: list[Path]) -> list[tuple[int, PixelTask]]:
    """All its frames, one behind the other."""
    tasks = [plan_pixels(read_header(path)) for path in paths]
    return [(k * FRAME_BYTES, task) for k, task in enumerate(tasks)]


def all_decoded(room: Arena, frames: int) -> None:
    """Waits until so many have been taken in; the last may still be in a decoder's hand."""
    until(lambda: room.size_bytes - room.free_bytes == frames * PAGE_BYTES)


def test_what_came_early_is_only_copied(tmp_path: Path, pool: DecoderPool, arena: Arena) -> None:
    """Nothing is left to decode, and the pixels are those of the files."""
    paths = files(tmp_path)
    with running(pool) as (ahead, room):
        for path in paths:
            ahead.arrived(path)
        all_decoded(room, 3)
        until(lambda: all(one.begun for one in ahead._frames.values()))
        with arena.borrow(3 * FRAME_BYTES) as span:
            assert ahead.take(arena, wanted(paths)) == []
            found = arena.view(span, np.int16, (3, SIZE, SIZE))
            np.testing.assert_array_equal(found, a_pattern((3, SIZE, SIZE)))


def test_what_never_came_is_left_to_the_job(
    tmp_path: Path, pool: DecoderPool, arena: Arena
) -> None:
    """Also a second time: what was taken is gone."""
    paths = files(tmp_path)
    with running(pool) as (ahead, room):
        ahead.arrived(paths[1])
        all_decoded(room, 1)
        until(lambda: all(one.begun for one in ahead._frames.values()))
        with arena.borrow(3 * FRAME_BYTES):
            frames = wanted(paths)
            assert ahead.take(arena, frames) == [frames[0], frames[2]]
            assert ahead.take(arena, frames) == frames


def test_a_broken_image_is_left_to_the_job(tmp_path: Path, pool: DecoderPool, arena: Arena) -> None:
    """Who meets it again there, and names it; a file that is no image is nobody's trouble."""
    broken, good = files(tmp_path, frames=2)
    tasks = wanted([broken, good])
    broken.write_bytes(broken.read_bytes()[:-100])
    (tmp_path / "odd").write_bytes(b"no DICOM at all")
    with running(pool) as (ahead, room):
        for path in (tmp_path / "odd", broken, good):
            ahead.arrived(path)
        all_decoded(room, 2)
        until(lambda: all(one.begun for one in ahead._frames.values()))
        with arena.borrow(2 * FRAME_BYTES):
            assert ahead.take(arena, tasks) == [tasks[0]]


def test_the_oldest_give_way(tmp_path: Path, pool: DecoderPool, arena: Arena) -> None:
    """Room for two frames: of four that come, the last two are there."""
    paths = files(tmp_path, frames=4)
    with running(pool, 2 * PAGE_BYTES) as (ahead, _), arena.borrow(4 * FRAME_BYTES):
        for path in paths:
            ahead.arrived(path)
            key = plan_pixels(read_header(path))
            until(lambda key=key: key in ahead._frames and ahead._frames[key].ended.is_set())  # type: ignore[misc]
        frames = wanted(paths)
        assert ahead.take(arena, frames) == frames[:2]


def test_what_does_not_fit_at_all_is_left_to_the_job(
    tmp_path: Path, pool: DecoderPool, arena: Arena
) -> None:
    """A frame larger than the room takes nobody else's place."""
    big = write_series(tmp_path / "big", a_ct_series(frames=1, rows=128, columns=128))
    small = files(tmp_path / "small", frames=1)
    with running(pool, PAGE_BYTES) as (ahead, room), arena.borrow(FRAME_BYTES):
        ahead.arrived(small[0])
        all_decoded(room, 1)
        ahead.arrived(big[0])
        ahead.arrived(small[0])  # comes behind it in the same queue
        until(lambda: all(one.begun for one in ahead._frames.values()))
        assert ahead.take(arena, wanted(small)) == []


@pytest.mark.parametrize("enhanced", [False, True])
def test_a_volume_is_the_same_with_and_without(
    tmp_path: Path, pool: DecoderPool, arena: Arena, enhanced: bool
) -> None:
    """Single frames and one multi-frame object; some of it early, some not."""
    made = (
        [an_enhanced_series(5, rows=SIZE, columns=SIZE)]
        if enhanced
        else a_ct_series(5, rows=SIZE, columns=SIZE)
    )
    series = a_kept_series(tmp_path, made)
    (plan,) = plan_volumes(series)
    expected = assemble(plan, series, arena, pool)
    with running(pool) as (ahead, room):
        for instance in series.instances[: 1 if enhanced else 3]:
            ahead.arrived(instance.path)
        all_decoded(room, 5 if enhanced else 3)
        found = assemble(plan, series, arena, pool, ahead=ahead)
        shape = expected.shape_kji
        np.testing.assert_array_equal(
            arena.view(found.image, np.int16, shape), arena.view(expected.image, np.int16, shape)
        )
        until(lambda: room.free_bytes == room.size_bytes)
    for volume in (expected, found):
        arena.free(volume.image)


def test_many_take_while_more_come(tmp_path: Path, pool: DecoderPool, arena: Arena) -> None:
    """Arrivals, evictions and jobs at the same time: every frame is right or left to the job."""
    paths = write_series(
        tmp_path,
        a_ct_series(frames=24, rows=SIZE, columns=SIZE, transfer_syntax_uid=JPEGLSLossless),
    )
    frames = wanted(paths)
    expected = a_pattern((24, SIZE, SIZE))
    taken = 0
    with running(pool, 6 * PAGE_BYTES) as (ahead, _), arena.borrow(24 * FRAME_BYTES) as span:
        feeder = threading.Thread(target=lambda: [ahead.arrived(p) for p in paths * 4])
        feeder.start()
        view = arena.view(span, np.int16, (24, SIZE, SIZE))
        for _ in range(60):
            view[...] = -1
            left = {offset for offset, _ in ahead.take(arena, frames)}
            for k, (offset, _) in enumerate(frames):
                if offset not in left:
                    taken += 1
                    np.testing.assert_array_equal(view[k], expected[k])
        feeder.join()
        until(lambda: bool(len(ahead.take(arena, frames)) < 24 or taken))
