"""How associations end: in order, broken off, idle, or with the gateway; a real store inside."""

from __future__ import annotations

import socket
import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dicom_gateway.errors import DatabaseUnavailable
from dicom_gateway.records import Arrival, Instance
from tests.support.associations import an_association, status_of
from tests.support.dicom import a_ct_series, write_series
from tests.support.gateway import an_open_door
from tests.support.peers import echoscu, storescu

# How it ends ----------------------------------------------------------------------------


def test_a_release_is_noted_once_and_after_the_last_instance(tmp_path: Path) -> None:
    """The series counts as released when the peer has released."""
    files = write_series(tmp_path / "study", a_ct_series(4))
    with an_open_door(tmp_path / "store") as door:
        storescu(files, "127.0.0.1", door.port, called="LUNG")
        door.wait_until(lambda: bool(door.ended))

        (opened,) = door.keeping.index.open_series()
        assert opened.instances == 4
        assert not opened.association_open
        assert not opened.broken_off
    assert len(door.ended) == 1


def test_an_abort_is_noted_once(tmp_path: Path) -> None:
    """What came before it is kept, and there may be more to come."""
    with an_open_door(tmp_path) as door:
        with an_association(door) as association:
            assert status_of(association, a_ct_series(1)[0]) == 0x0000
            association.abort()
        door.wait_until(lambda: bool(door.ended))

        (opened,) = door.keeping.index.open_series()
        assert (opened.association_open, opened.broken_off) == (False, True)
    assert len(door.ended) == 1


def test_a_lost_connection_is_noted_once(tmp_path: Path) -> None:
    """Also when the peer just disappears, in the middle of an instance."""
    with an_open_door(tmp_path) as door:
        with an_association(door) as association:
            assert status_of(association, a_ct_series(1)[0]) == 0x0000
            raw = association.dul.socket.socket  # type: ignore[union-attr]
            assert raw is not None
            raw.sendall(struct.pack(">BBL", 4, 0, 50_000) + b"\0" * 1000)
            raw.shutdown(socket.SHUT_RDWR)
            door.wait_until(lambda: bool(door.ended))
        assert len(door.kept) == 1
        assert door.keeping.index.open_series()[0].broken_off
    assert len(door.ended) == 1


def test_an_idle_association_is_ended(tmp_path: Path) -> None:
    """A peer that falls silent does not keep its place for ever."""
    with an_open_door(tmp_path, idle_timeout_s=0.5) as door, an_association(door) as association:
        assert association.is_established
        door.wait_until(lambda: bool(door.ended))


def test_a_clock_that_is_set_ends_no_association(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pause of a virtual machine, say, its time of day is put on by an hour."""
    first, second = a_ct_series(2)
    with an_open_door(tmp_path) as door, an_association(door) as association:
        association.network_timeout = None  # the peer's own clock is set as well
        assert status_of(association, first) == 0x0000
        later = SimpleNamespace(time=lambda: time.time() + 3600.0)
        monkeypatch.setattr("pynetdicom.timer.time", later)
        threading.Event().wait(0.5)  # ten times as often as anybody looks
        assert status_of(association, second) == 0x0000


def test_a_peer_that_waits_for_its_answer_is_not_idle(tmp_path: Path) -> None:
    """A slow disk costs it time, not its association."""
    first, second = a_ct_series(2)
    idle_timeout_s = 0.5

    def keep(_arrival: Arrival) -> Instance:
        threading.Event().wait(2 * idle_timeout_s)
        raise DatabaseUnavailable("the index does not answer")

    with (
        an_open_door(tmp_path, keep=keep, idle_timeout_s=idle_timeout_s) as door,
        an_association(door) as association,
    ):
        assert status_of(association, first) == 0xA700
        assert status_of(association, second) == 0xA700


def test_bytes_that_are_no_message_end_the_association(tmp_path: Path) -> None:
    """A command set of garbage is answered with an abort, and the gateway goes on."""
    with an_open_door(tmp_path) as door:
        with an_association(door) as association:
            raw = association.dul.socket.socket  # type: ignore[union-attr]
            assert raw is not None
            command = b"\x03" + b"\xff" * 40
            value = struct.pack(">LB", len(command) + 1, 1) + command
            raw.sendall(struct.pack(">BBL", 4, 0, len(value)) + value)
            door.wait_until(lambda: bool(door.ended))
        assert echoscu("127.0.0.1", door.port, called="LUNG").exit_code == 0


def test_stopping_ends_the_open_associations(tmp_path: Path) -> None:
    """The port is free afterwards and every association has been told of."""
    with an_open_door(tmp_path) as door:
        port = door.port
        with an_association(door) as association:
            assert association.is_established
            door.receiver.stop()
            assert len(door.ended) == 1
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", port))


def test_stopping_waits_for_the_instance_that_is_being_kept(tmp_path: Path) -> None:
    """What the store has begun it finishes; only then is the association's end told."""
    begun, may_end = threading.Event(), threading.Event()
    story = []

    def keep_slowly(arrival: Arrival) -> Instance:
        begun.set()
        may_end.wait(30)
        instance = door.keeping.store.keep(arrival)
        story.append("kept")
        return instance

    with an_open_door(tmp_path, keep=keep_slowly) as door:
        (ds,) = a_ct_series(1)
        with an_association(door) as association:
            sender = threading.Thread(target=association.send_c_store, args=(ds,))
            sender.start()
            assert begun.wait(30)
            stopper = threading.Thread(target=door.receiver.stop)
            stopper.start()
            door.wait_until(lambda: not association.is_established)
            story.append("told to end")
            may_end.set()
            stopper.join()
            story += ["ended"] * len(door.ended)
            sender.join()

        assert story == ["told to end", "kept", "ended"]
