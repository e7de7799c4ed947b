"""What runs beside each other in a bench, and what one failing part leaves of the others."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from perf.peers.compare import OURS, OURS_TORCH, Comparison, _loaded
from perf.workers import PeerFailed, same_threads, told, worker


def _says_its_policy(pipe: Connection) -> None:
    pipe.send(os.environ.get("OMP_WAIT_POLICY"))
    pipe.recv()


def _ends_at_once(pipe: Connection) -> None:
    pipe.close()


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_every_side_waits_for_threads_as_triton_does(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    """A process that is started later has it; the environment may say otherwise."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # so that it is put back afterwards
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    same_threads()
    with worker(_says_its_policy) as pipe:
        assert told(pipe) == after


def test_a_side_that_ends_is_a_peer_that_failed() -> None:
    """The bench knows it, and goes on with its next part."""
    with pytest.raises(PeerFailed, match="ended before it answered"), worker(_ends_at_once) as pipe:
        told(pipe)


def test_our_row_is_named_after_what_was_loaded(tmp_path: Path) -> None:
    """Where OpenVINO isn't used, the row doesn't say so."""
    log = tmp_path / "triton.log"
    log.write_text(
        "I1 pb_stub.cc:1] small_torch_inferer: torch f32\n"
        "I1 pb_stub.cc:1] small_auto_inferer: torch f32, because openvino f32 is not used\n"
    )
    found = Comparison("small", "a", 1, loaded=_loaded(log, "small_auto"))
    assert (found.name(OURS), found.name(OURS_TORCH)) == (
        "tritome (torch by default)",
        "tritome (torch)",
    )
    with pytest.raises(PeerFailed, match="doesn't say"):
        _loaded(log, "other_auto")
