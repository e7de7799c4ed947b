"""Decoder children: a crash, a hang and a memory bomb cost one job and nobody else."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.headers import read_header
from dicom_gateway.assemble.pixels import PixelTask, plan_pixels
from dicom_gateway.errors import BrokenPixelData, Retryable, UnusableSeries
from tests.support.dicom import a_ct_series, a_pattern, write_series
from tests.support.patience import until

SIZE = 16


@pytest.fixture
def arena() -> Iterator[Arena]:
    """An arena of one megabyte."""
    with Arena(1 << 20) as arena:
        yield arena


def tasks_of(folder: Path, frames: int = 1) -> list[PixelTask]:
    """One task for each frame of a small series."""
    series = a_ct_series(frames=frames, rows=SIZE, columns=SIZE)
    return [plan_pixels(read_header(path)) for path in write_series(folder, series)]


def a_task_that_hangs(folder: Path) -> PixelTask:
    """Its file is a pipe that nobody writes to, so reading it never ends."""
    pipe = folder / "pipe.dcm"
    os.mkfifo(pipe)
    return dataclasses.replace(tasks_of(folder / "model")[0], path=str(pipe))


def assert_decodes(pool: DecoderPool, arena: Arena, folder: Path) -> None:
    """The pool is well: three frames come out as they went in."""
    tasks = tasks_of(folder, frames=3)
    with arena.borrow(3 * 2 * SIZE * SIZE) as span:
        start = span.offset_bytes
        pool.decode(
            arena.path, [(start + k * 2 * SIZE * SIZE, task) for k, task in enumerate(tasks)]
        )
        view = arena.view(span, np.int16, (3, SIZE, SIZE))
        np.testing.assert_array_equal(view, a_pattern((3, SIZE, SIZE)))


def test_frames_land_at_their_offsets(tmp_path: Path, arena: Arena) -> None:
    """Each child writes straight into the shared memory, also off a page's start."""
    arena.allocate(1)
    with DecoderPool(2) as pool:
        assert_decodes(pool, arena, tmp_path)


def test_how_many_decoders_live_is_known(tmp_path: Path, arena: Arena) -> None:
    """One that was killed is missing until it is needed."""
    with DecoderPool(1) as pool:
        assert pool.alive == 1
        os.kill(pool.process_ids[0], signal.SIGKILL)
        until(lambda: pool.alive == 0)
        assert_decodes(pool, arena, tmp_path)
        assert pool.alive == 1


def test_a_hanging_decoder_is_stopped_and_replaced(tmp_path: Path, arena: Arena) -> None:
    """The job gets a reason, the next one a fresh child."""
    with DecoderPool(1, timeout_s=0.2) as pool:
        before = pool.process_ids
        with pytest.raises(BrokenPixelData, match=r"took longer than 0\.2 s"):
            pool.decode(arena.path, [(0, a_task_that_hangs(tmp_path))])
    with DecoderPool(1, timeout_s=5) as pool:
        assert pool.process_ids != before
        assert_decodes(pool, arena, tmp_path)


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (signal.SIGSEGV, BrokenPixelData, "broken_pixel_data"),
        (signal.SIGKILL, Retryable, "decoder_unavailable"),
    ],
)
def test_a_crash_in_the_middle_is_this_job_s_only(
    tmp_path: Path, arena: Arena, number: signal.Signals, error: type[Exception], code: str
) -> None:
    """A crash is the data's fault; a kill from outside is nobody's, and tried again."""
    task = a_task_that_hangs(tmp_path)
    with DecoderPool(1) as pool:
        (victim,) = pool.process_ids

        def kill() -> None:
            # Opening for writing waits until the child has opened it for reading.
            with open(task.path, "wb"):  # noqa: PTH123
                os.kill(victim, number)
                time.sleep(0.2)  # the end of the pipe must not come before the signal

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(error) as caught:
            pool.decode(arena.path, [(0, task)])
        killer.join()
        assert caught.value.code == code  # type: ignore[attr-defined]
        assert_decodes(pool, arena, tmp_path)
        assert pool.process_ids != (victim,)


def test_a_child_that_died_idle_is_not_noticed(tmp_path: Path, arena: Arena) -> None:
    """Whatever killed it, the next job just gets another."""
    with DecoderPool(1) as pool:
        assert_decodes(pool, arena, tmp_path)
        (victim,) = pool.process_ids
        os.kill(victim, signal.SIGKILL)
        os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
        assert_decodes(pool, arena, tmp_path)


def test_a_shared_memory_that_is_gone_is_no_fault_of_the_data(tmp_path: Path, arena: Arena) -> None:
    """Somebody has removed the file: the series must not be sent again for that."""
    with DecoderPool(1) as pool:
        arena.path.unlink()
        with pytest.raises(Retryable, match="can't be opened"):
            pool.decode(arena.path, [(0, tasks_of(tmp_path)[0])])


def test_a_memory_bomb_meets_its_limit(tmp_path: Path, arena: Arena) -> None:
    """A frame that takes more address space than a child may have is broken data."""
    noise = np.zeros((1, 4096, 4096), np.int16)
    path = write_series(tmp_path, a_ct_series(frames=1, pixels=noise))[0]
    task = plan_pixels(read_header(path))
    with (
        Arena(64 << 20) as large,
        DecoderPool(1, headroom_bytes=48 << 20) as pool,
        pytest.raises(BrokenPixelData, match="memory"),
    ):
        pool.decode(large.path, [(0, task)])
    with DecoderPool(1) as pool:
        assert_decodes(pool, arena, tmp_path)


def test_a_child_s_refusal_keeps_its_name(tmp_path: Path, arena: Arena) -> None:
    """The code and the sentence come through the process boundary."""
    series = a_ct_series(frames=1)
    del series[0].PixelData
    task = plan_pixels(read_header(write_series(tmp_path, series)[0]))
    with DecoderPool(1) as pool, pytest.raises(UnusableSeries, match="no Pixel Data") as caught:
        pool.decode(arena.path, [(0, task)])
    assert caught.value.code == "no_pixel_data"


def test_a_library_s_words_stay_in_the_child(tmp_path: Path, arena: Arena) -> None:
    """An error text of pydicom may quote the data set; only its type comes through."""
    path = tmp_path / "CANARY.dcm"
    path.write_bytes(b"CANARY no DICOM")
    task = dataclasses.replace(tasks_of(tmp_path / "model")[0], path=str(path))
    with DecoderPool(1) as pool, pytest.raises(BrokenPixelData) as caught:
        pool.decode(arena.path, [(0, task)])
    assert "InvalidDicomError" in str(caught.value)
    assert "CANARY" not in str(caught.value)


def test_two_jobs_share_the_children(tmp_path: Path, arena: Arena) -> None:
    """While one job's data is broken, the other's volume comes out whole."""
    bad = [(0, dataclasses.replace(task, rows=SIZE + 1)) for task in tasks_of(tmp_path / "bad", 8)]
    refused = []

    def the_bad_one(pool: DecoderPool) -> None:
        with Arena(1 << 20) as other, pytest.raises(BrokenPixelData) as caught:
            pool.decode(other.path, bad)
        refused.append(caught.value.code)

    with DecoderPool(2) as pool:
        thread = threading.Thread(target=the_bad_one, args=(pool,))
        thread.start()
        for number in range(5):
            assert_decodes(pool, arena, tmp_path / str(number))
        thread.join()
    assert refused == ["broken_pixel_data"]


OWNER = """
import sys, threading
from pathlib import Path
from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.assemble.pixels import PixelTask
pool = DecoderPool(2, timeout_s=1.0)
arena = Arena(4096, Path(sys.argv[1]))
task = PixelTask(sys.argv[2], "1.2.840.10008.1.2.1", 4, 4, 16, 16, 15, True, "MONOCHROME2")
threading.Thread(target=pool.decode, args=(arena.path, [(0, task)])).start()
print(*pool.process_ids, flush=True)
sys.stdin.read()
"""


def test_children_don_t_outlive_a_killed_gateway(tmp_path: Path) -> None:
    """Neither the idle one nor the one that hangs, and the gateway had no time for either."""
    task = a_task_that_hangs(tmp_path)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), task.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    with owner:
        assert owner.stdout is not None
        children = [int(word) for word in owner.stdout.readline().split()]
        with open(task.path, "wb"):  # noqa: PTH123 - opens once a child reads it
            owner.kill()
            owner.wait()
            while any(_lives(child) for child in children):
                time.sleep(0.05)
    assert len(children) == 2


def _lives(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rsplit(")")[-1]
    except FileNotFoundError:
        return False
    return state.split()[0] != "Z"  # in a container nobody may collect it


def test_children_end_with_the_pool() -> None:
    """Nobody is left behind."""
    with DecoderPool(2) as pool:
        children = pool.process_ids
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
