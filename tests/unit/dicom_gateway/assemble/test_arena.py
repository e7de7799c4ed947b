"""The arena: room is lent and comes back, and nothing is left in /dev/shm."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from dicom_gateway.assemble.arena import ALIGNMENT_BYTES, PREFIX, Arena, remove_leftovers
from dicom_gateway.errors import ArenaFull, ConfigurationError, VolumeTooLarge
from dicom_gateway.records import ArenaSpan

PAGE = ALIGNMENT_BYTES

OWNER = """
import sys
from pathlib import Path
from dicom_gateway.assemble.arena import Arena
arena = Arena(4096, Path(sys.argv[1]))
print(arena.name, flush=True)
sys.stdin.read()
"""


def an_owner_in_another_process(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Starts a worker that holds an arena until it is ended; also gives the arena's name."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert owner.stdout is not None
    return owner, owner.stdout.readline().strip()


def test_the_file_has_all_its_pages_and_is_the_owner_s_alone() -> None:
    """All memory is there from the start, readable by nobody else."""
    with Arena(3 * PAGE) as arena:
        found = arena.path.stat()
        assert found.st_size == 3 * PAGE
        assert found.st_blocks * 512 >= 3 * PAGE
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert arena.key == f"/{arena.name}"


def test_nothing_is_left_after_close(tmp_path: Path) -> None:
    """Closing unlinks the file, also when a view is still held."""
    arena = Arena(PAGE, tmp_path)
    view = arena.view(arena.allocate(4), np.uint8, (4,))
    assert [path.name for path in tmp_path.iterdir()] == [arena.name]
    arena.close()
    arena.close()
    assert list(tmp_path.iterdir()) == []
    assert view.sum() == 0
    with pytest.raises(ValueError, match="closed"):
        arena.view(ArenaSpan(arena.name, 0, 4), np.uint8, (4,))


def test_what_is_written_through_a_view_is_in_the_file() -> None:
    """A view is the shared memory itself, at the span's offset."""
    with Arena(3 * PAGE) as arena:
        arena.allocate(PAGE)
        span = arena.allocate(12)
        arena.view(span, np.int16, (2, 3))[...] = [[1, 2, 3], [4, 5, -6]]
        raw = arena.path.read_bytes()[span.offset_bytes : span.offset_bytes + 12]
        assert np.frombuffer(raw, np.int16).tolist() == [1, 2, 3, 4, 5, -6]


def test_a_view_does_not_reach_beyond_its_span() -> None:
    """An array larger than the span is refused, though the arena has the room."""
    with Arena(2 * PAGE) as arena:
        span = arena.allocate(100)
        with pytest.raises(ValueError, match="doesn't fit"):
            arena.view(span, np.int16, (51,))


def test_a_gap_that_comes_back_is_lent_again() -> None:
    """First fit: the first gap that is large enough is used."""
    with Arena(4 * PAGE) as arena:
        spans = [arena.allocate(PAGE) for _ in range(4)]
        arena.free(spans[1])
        arena.free(spans[2])
        assert arena.free_bytes == 2 * PAGE
        assert arena.allocate(PAGE + 1).offset_bytes == PAGE


def test_a_full_arena_is_a_passing_state() -> None:
    """What would fit into an empty arena waits, and is told what to set."""
    with Arena(2 * PAGE) as arena:
        arena.allocate(PAGE + 1)
        with pytest.raises(ArenaFull, match=r"triton\.arena-bytes"):
            arena.allocate(1)


def test_what_never_fits_is_refused_with_figures() -> None:
    """More than the whole arena is no use to wait for."""
    with Arena(PAGE) as arena, pytest.raises(VolumeTooLarge, match=r"at least 8192"):
        arena.allocate(PAGE + 1)


def test_a_span_is_taken_back_only_once() -> None:
    """A second free would take the memory from whoever has it now."""
    with Arena(PAGE) as arena:
        span = arena.allocate(PAGE)
        arena.free(span)
        again = arena.allocate(PAGE)
        with pytest.raises(ValueError, match="freed twice"):
            arena.free(span)
        arena.free(again)


def test_borrowed_room_comes_back_after_an_error() -> None:
    """The context manager frees whatever happens."""
    with Arena(PAGE) as arena:
        with pytest.raises(RuntimeError), arena.borrow(PAGE):
            raise RuntimeError
        assert arena.free_bytes == PAGE


def test_threads_never_get_the_same_memory() -> None:
    """Eight threads that lend and write each find only their own numbers."""
    wrong = []
    with Arena(16 * PAGE) as arena:

        def work(number: int) -> None:
            for _ in range(100):
                with arena.borrow(2 * PAGE) as span:
                    view = arena.view(span, np.uint8, (2 * PAGE,))
                    view[:] = number
                    if (view != number).any():
                        wrong.append(number)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert arena.free_bytes == 16 * PAGE


def test_too_little_shared_memory_is_named_before_any_is_taken(tmp_path: Path) -> None:
    """More than /dev/shm has is a mistake in the configuration, and leaves no file."""
    with pytest.raises(ConfigurationError, match="--shm-size") as caught:
        Arena(1 << 50, tmp_path)
    assert caught.value.code == "shared_memory_full"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path) -> None:
    """Without /dev/shm there is a sentence, not a traceback."""
    with pytest.raises(ConfigurationError) as caught:
        Arena(PAGE, tmp_path / "nowhere")
    assert caught.value.code == "shared_memory_unusable"


def test_leftovers_of_a_killed_worker_are_removed_and_named(tmp_path: Path) -> None:
    """A kill -9 leaves a file without a lock; that is how it is recognised."""
    owner, name = an_owner_in_another_process(tmp_path)
    with owner:
        assert remove_leftovers(tmp_path) == ()
        owner.send_signal(signal.SIGKILL)
    assert (tmp_path / name).exists()
    assert remove_leftovers(tmp_path) == (name,)
    assert list(tmp_path.iterdir()) == []


def test_a_living_arena_and_strangers_files_are_left_alone(tmp_path: Path) -> None:
    """Only what has our prefix and no owner goes."""
    (tmp_path / "triton_python_backend_shm_region_1").write_bytes(b"x")
    with Arena(PAGE, tmp_path) as arena:
        assert remove_leftovers(tmp_path) == ()
        assert arena.path.exists()


def test_an_arena_that_we_may_not_remove_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sticky folder another user's file can be opened but not unlinked."""
    (tmp_path / f"{PREFIX}0000").touch()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        assert remove_leftovers(tmp_path) == ()
    assert remove_leftovers(tmp_path) == (f"{PREFIX}0000",)
