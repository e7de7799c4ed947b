"""Peers that are in a hurry, take only little at a time, or come when nothing is left."""

from __future__ import annotations

import errno
import os
import struct
import threading
from pathlib import Path

import pytest

from tests.support.dicom import a_ct_series, encoded
from tests.support.gateway import an_open_door
from tests.support.patience import until
from tests.support.raw_peer import (
    ASSOCIATE_AC,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    a_raw_peer,
    a_store,
    an_association_request,
    an_echo,
    pdu,
    usual_contexts,
)

_RELEASE = pdu(RELEASE_RQ, b"\0\0\0\0")


def test_a_release_right_behind_an_instance_waits_until_it_is_kept(tmp_path: Path) -> None:
    """Who asks for the end without waiting for the last answer gets both, in this order."""
    with an_open_door(tmp_path) as door:
        for _ in range(25):
            (ds,) = a_ct_series(1, rows=8, columns=8)
            uid = str(ds.SOPInstanceUID)
            store = a_store(encoded(ds), uid)
            with a_raw_peer(door.port) as peer:
                assert peer.associate() == ASSOCIATE_AC
                for _ in range(2):
                    peer.say(store)
                    assert peer.hear()[0] == P_DATA
                peer.say(store + _RELEASE)
                assert [peer.hear()[0], peer.hear()[0]] == [P_DATA, RELEASE_RP]
            assert door.kept[-1].sop_instance_uid == uid
        assert len(door.kept) == 75


@pytest.mark.parametrize("maximum", [None, 0, 1, 6, 7, 16])
def test_a_peer_that_takes_odd_lengths_is_answered(tmp_path: Path, maximum: int | None) -> None:
    """No Maximum Length at all, or one that leaves no room: its answers are as short as can be."""
    (ds,) = a_ct_series(1, rows=8, columns=8)
    with an_open_door(tmp_path) as door, a_raw_peer(door.port) as peer:
        peer.say(an_association_request(usual_contexts(), maximum_length=maximum))
        assert peer.hear()[0] == ASSOCIATE_AC
        for ask in (a_store(encoded(ds), str(ds.SOPInstanceUID)), an_echo()):
            peer.say(ask)
            answer, is_last = b"", False
            while not is_last:
                kind, value = peer.hear()
                assert kind == P_DATA
                if maximum:
                    assert len(value) <= max(7, maximum)
                answer, is_last = answer + value[6:], bool(value[5] & 2)
            assert struct.pack("<HHLH", 0, 0x0900, 2, 0) in answer
        assert len(door.kept) == 1


def test_a_connection_for_which_no_descriptor_is_left_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It doesn't hang for ever: its thread ends, and the next one is served."""

    def none_left(*_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with an_open_door(tmp_path) as door:
        with monkeypatch.context() as without, a_raw_peer(door.port) as peer:
            without.setattr("dicom_gateway.receive.waiting.os.eventfd", none_left)
            peer.say(an_association_request(usual_contexts()))
            peer.until_shown_out()
        until(lambda: not [one for one in threading.enumerate() if "association" in one.name])
        with a_raw_peer(door.port) as peer:
            assert peer.associate() == ASSOCIATE_AC
