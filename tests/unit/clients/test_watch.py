"""`tritome send --watch`: what appears in a folder is sent once, when it is whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clients.commands.send import watch
from clients.errors import ClientError, NotAccepted
from clients.found import Found, Search
from clients.send import Peer
from clients.watch import Memory, Watch, is_final
from tests.support.dicom import a_ct_series, write_series
from tests.support.gateway import an_open_door
from tests.support.patience import until


@dataclass
class Receiver:
    """Takes, refuses for now, or is away."""

    is_away: bool = False
    is_full: bool = False
    taken: list[Path] = field(default_factory=list)

    def send(self, search: Search) -> Iterable[Found]:
        """As the command does it."""
        if self.is_away:
            raise NotAccepted("nobody answered")
        if self.is_full:
            return []
        self.taken += [found.path for found in search.instances]
        return search.instances


def a_watch(folder: Path, receiver: Receiver, memory: Path) -> Watch:
    """One that takes a file for whole at the second look that finds it unchanged."""
    return Watch([folder], Memory(memory, "LUNG@gateway:104"), receiver.send, settled_after_s=0.0)


def files_in(folder: Path, count: int = 2) -> list[Path]:
    """Some DICOM files in a folder."""
    return write_series(folder, a_ct_series(count, rows=16, columns=16))


def test_each_file_is_sent_once(tmp_path: Path) -> None:
    """Also by the next life of the watcher; a changed file is a new one."""
    receiver, memory = Receiver(), tmp_path / "memory"
    first, second = files_in(tmp_path / "in")
    watching = a_watch(tmp_path / "in", receiver, memory)
    assert [watching.look(), watching.look()] == [2, 0]
    reborn = a_watch(tmp_path / "in", receiver, memory)
    assert reborn.look() == 0
    os.utime(first, (1, 1))
    assert reborn.look() == 1
    assert receiver.taken == [first, second, first]


def test_a_file_that_grows_is_waited_for(tmp_path: Path) -> None:
    """Only when it has stayed as it is for the time that was asked for."""
    receiver = Receiver()
    (path,) = files_in(tmp_path / "in", 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    memory = Memory(tmp_path / "memory", "LUNG@gateway:104")
    watching = Watch([tmp_path / "in"], memory, receiver.send, settled_after_s=3600.0)
    assert watching.look() == 0
    path.write_bytes(whole)
    assert watching.look() == 0
    watching = Watch([tmp_path / "in"], memory, receiver.send, settled_after_s=0.0)
    assert watching.look() == 1
    assert receiver.taken == [path]


def test_a_series_is_waited_for_as_a_whole(tmp_path: Path) -> None:
    """While one file of a folder is still new, the others wait; other folders don't."""
    receiver = Receiver()
    files_in(tmp_path / "in" / "growing", 2)
    (whole,) = files_in(tmp_path / "in" / "whole", 1)
    memory = Memory(tmp_path / "memory", "LUNG@gateway:104")
    watching = Watch([tmp_path / "in"], memory, receiver.send, settled_after_s=0.3)
    assert watching.look() == 0
    until(lambda: watching.look() or _grows(tmp_path / "in" / "growing"))
    assert receiver.taken == [whole]


def _grows(folder: Path) -> None:
    (folder / "0001.dcm").touch()


def test_what_is_no_dicom_file_is_looked_at_once(tmp_path: Path) -> None:
    """And hidden files, which other programs write beside, not at all."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "notes.txt").write_text("not an image", encoding="utf-8")
    (folder / ".image.dcm.x7f").write_bytes(b"half of what rsync brings")
    receiver = Receiver()
    watching = a_watch(folder, receiver, tmp_path / "memory")
    assert [watching.look(), watching.look()] == [1, 0]
    assert receiver.taken == []


def test_a_peer_that_is_away_gets_it_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered as sent that was not answered for good."""
    monkeypatch.setattr("clients.watch.TRY_AGAIN_AFTER_S", 0.0)
    receiver = Receiver(is_away=True)
    files = files_in(tmp_path / "in")
    watching = a_watch(tmp_path / "in", receiver, tmp_path / "memory")
    with pytest.raises(NotAccepted):
        watching.look()
    receiver.is_away, receiver.is_full = False, True
    assert watching.look() == 0
    receiver.is_full = False
    assert watching.look() == 2
    assert receiver.taken == files


def test_half_a_line_of_a_killed_watcher_is_no_harm(tmp_path: Path) -> None:
    """The other lines count."""
    receiver, memory = Receiver(), tmp_path / "memory"
    files_in(tmp_path / "in")
    a_watch(tmp_path / "in", receiver, memory).look()
    with memory.open("a", encoding="utf-8") as file:
        file.write('{"peer": "LUNG@gat')
    reborn = a_watch(tmp_path / "in", receiver, memory)
    assert reborn.look() == 0
    files_in(tmp_path / "in" / "more", 1)
    assert reborn.look() == 1
    assert a_watch(tmp_path / "in", receiver, memory).look() == 0


def test_only_folders_are_watched(tmp_path: Path) -> None:
    """A mistyped name is said at once."""
    with pytest.raises(ClientError, match="is no folder"):
        a_watch(tmp_path / "nowhere", Receiver(), tmp_path / "memory")


@pytest.mark.parametrize(("status", "final"), [(0, True), (0xC000, True), (0xA700, False)])
def test_what_would_be_answered_the_same_is_not_sent_again(status: int, final: bool) -> None:
    """Out of resources passes; a refusal of the object itself doesn't."""
    assert is_final(status) is final
    assert not is_final(None)


def test_the_command_sends_to_a_real_gateway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the folder to the store, whatever appears while it runs."""
    folder = tmp_path / "in"
    folder.mkdir()
    stop = threading.Event()
    with an_open_door(tmp_path / "store") as door:
        peer = Peer("127.0.0.1", door.port, "LUNG", "ME")
        running = threading.Thread(
            target=watch, args=([folder], peer), kwargs={"timeout_s": 30.0, "stop": stop}
        )
        running.start()
        try:
            files_in(folder / "study", 3)
            until(lambda: len(door.kept) == 3)
        finally:
            stop.set()
            running.join(60)
        assert len(door.kept) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "3 of 3 instances accepted by LUNG@127.0.0.1" in said
