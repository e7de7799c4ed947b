"""Streams of PDUs broken by grammar: no crash, nothing outside the tree, and others are served."""

from __future__ import annotations

import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import structlog.testing

from tests.support.broken_streams import BrokenStream, Leaving, a_broken_stream
from tests.support.dicom import a_ct_series, encoded
from tests.support.gateway import an_open_door
from tests.support.raw_peer import ASSOCIATE_AC, RawPeer, a_raw_peer

STREAMS = int(os.environ.get("TRITOME_FUZZ", "60"))
FIRST_SEED = int(os.environ.get("TRITOME_FUZZ_SEED", "1"))
AT_ONCE = 8
_PATIENCE_S = 2.5
"""The door's. The honest peer has no more of it, and shares two cores with everybody here."""


def test_broken_streams_harm_nobody(tmp_path: Path) -> None:
    """Each is ended in order; an honest series flows beside them, and its bytes are kept."""
    (sample,) = a_ct_series(1, rows=64, columns=64)
    data_set = encoded(sample)
    streams = [a_broken_stream(seed, data_set) for seed in range(FIRST_SEED, FIRST_SEED + STREAMS)]
    over = threading.Event()
    with (
        structlog.testing.capture_logs() as logs,
        an_open_door(tmp_path, idle_timeout_s=_PATIENCE_S, handshake_timeout_s=_PATIENCE_S) as door,
    ):
        honest = threading.Thread(target=_stores_all_the_while, args=(door.port, over, kept := []))
        honest.start()
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for _ in pool.map(lambda one: _send(one, door.port), streams):
                    pass
        finally:
            over.set()
            honest.join(60)
        assert not honest.is_alive()
        door.wait_until(lambda: not door.receiver.undecided)
        came = {one.sop_instance_uid: one.path.read_bytes() for one in door.kept}
    assert kept
    assert all(came[uid].endswith(data) for uid, data in kept)
    strange = [
        log
        for log in logs
        if log["log_level"] in ("error", "critical")
        or log.get("exc_info")
        or ("code" not in log and log["event"] == "instance refused")
    ]
    assert strange == []


def test_the_same_seed_breaks_the_same_way() -> None:
    """A failure can be looked at again: TRITOME_FUZZ_SEED=seed TRITOME_FUZZ=1."""
    assert a_broken_stream(7, b"x" * 500) == a_broken_stream(7, b"x" * 500)
    assert len({a_broken_stream(seed, b"x" * 500).what for seed in range(60)}) > 15


def _send(stream: BrokenStream, port: int) -> None:
    with a_raw_peer(port, timeout_s=30.0) as peer, suppress(ConnectionError, BrokenPipeError):
        for number, piece in enumerate(stream.pieces):
            peer.say(piece)
            if number == 0 and stream.listens:
                _hear_a_little(peer)
        if stream.leaving is Leaving.WAIT:
            peer.until_shown_out()
        elif stream.leaving is Leaving.RESET:
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif stream.leaving is Leaving.RELEASE:
            peer.say(b"\5\0\0\0\0\4\0\0\0\0")
            _hear_a_little(peer)


def _hear_a_little(peer: RawPeer) -> None:
    peer.socket.settimeout(0.3)
    with suppress(OSError):
        peer.socket.recv(4096)
    peer.socket.settimeout(30.0)


def _stores_all_the_while(port: int, over: threading.Event, kept: list[tuple[str, bytes]]) -> None:
    """Associates, stores two, echoes and leaves, again and again."""
    while not over.is_set():
        # Before it associates: what takes time here would be silence on the line.
        series = [(str(ds.SOPInstanceUID), encoded(ds)) for ds in a_ct_series(2)]
        with a_raw_peer(port) as peer:
            assert peer.associate(calling="HONEST") == ASSOCIATE_AC
            for uid, data_set in series:
                assert peer.store(data_set, uid) == 0x0000
                kept.append((uid, data_set))
            assert peer.echo() == 0x0000
        over.wait(0.1)
