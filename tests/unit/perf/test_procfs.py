"""What the kernel says about processes."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np

from perf.procfs import (
    MemoryWatch,
    anonymous_bytes,
    cpu_s,
    family,
    file_share_bytes,
    files_below,
    kib_of,
    machine_cpu_s,
    open_files,
    shared_memory_of,
    threads,
)

_GONE = 2**22 + 1  # above what Linux gives
_MIB = 2**20


def _computes(pipe: Connection) -> None:
    while time.process_time() < 0.2:
        pass
    pipe.send("done")
    pipe.recv()


def test_a_line_of_status_is_read_by_its_name() -> None:
    """Not by one that begins alike; 0 where there is none, as kernel threads have it."""
    text = "Name:\tpython\nRssAnonymous:\t1 kB\nRssAnon:\t    1234 kB\nThreads:\t7\n"
    assert (kib_of(text, "RssAnon"), kib_of(text, "Threads"), kib_of(text, "VmHWM")) == (1234, 7, 0)


def test_memory_of_ones_own_is_seen_and_shared_memory_isnt() -> None:
    """Shared memory is counted once, where it lies."""
    me = [os.getpid()]
    before = anonymous_bytes(me)
    shared = SharedMemory(create=True, size=64 * _MIB)
    try:
        np.ndarray((64 * _MIB,), np.uint8, buffer=shared.buf)[:] = 1
        assert anonymous_bytes(me) - before < 32 * _MIB
        assert shared_memory_of(me)[shared.name.lstrip("/")] == 64 * _MIB
        assert shared_memory_of((), [shared.name.lstrip("/")[:8]])
    finally:
        shared.close()
        shared.unlink()
    own = np.ones(64 * _MIB, np.uint8)
    assert anonymous_bytes(me) - before > 32 * _MIB
    assert own[0] == 1


def test_another_process_s_processor_time_is_seen() -> None:
    """To the millisecond, while it still runs."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_computes, args=(there,))
    process.start()
    try:
        assert process.pid is not None
        assert process.pid in family(os.getpid())
        here.recv()
        assert 0.2 <= cpu_s(process.pid) < 60
    finally:
        here.send("end")
        process.join()


def test_a_process_that_has_ended_counts_as_nothing() -> None:
    """It may end between the list of processes and the question."""
    gone = [_GONE]
    assert (anonymous_bytes(gone), file_share_bytes(gone), threads(gone), open_files(gone)) == (
        0,
        0,
        0,
        0,
    )
    assert (cpu_s(_GONE), family(_GONE), shared_memory_of(gone)) == (0.0, [], {})


def test_guests_are_busy_once() -> None:
    """They are in the user's time already (proc(5))."""
    hz = os.sysconf("SC_CLK_TCK")
    busy, idle = machine_cpu_s("cpu  100 10 20 500 30 4 5 1 77 7\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert (busy * hz, idle * hz) == (140, 530)


def test_open_files_threads_and_temporary_files_are_counted(tmp_path: Path) -> None:
    """So that a descriptor that is never closed shows."""
    me = [os.getpid()]
    before = open_files(me)
    (tmp_path / "below").mkdir()
    with (tmp_path / "below" / "a").open("wb"), (tmp_path / "b").open("wb"):
        assert open_files(me) == before + 2
    assert open_files(me) == before
    assert files_below(tmp_path) == 2
    assert threads(me) >= 1
    assert file_share_bytes(me) > 0


def test_the_most_memory_of_each_side_is_kept() -> None:
    """Also when it is given back before anybody asks."""
    me = os.getpid()
    before = anonymous_bytes([me])
    with MemoryWatch(lambda: {"gateway": [me], "gateway decoders": [_GONE]}) as watch:
        held = np.ones(200 * _MIB, np.uint8)
        time.sleep(0.5)
        del held
        time.sleep(0.2)
    assert watch.peaks["gateway"] - before > 100 * _MIB
    assert watch.peak_sum["gateway"] == watch.peaks["gateway"]
