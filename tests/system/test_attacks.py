"""What a stranger can do to the door: it grows by little, goes on answering, and writes nowhere.

A real gateway process, attacked through its real port, with an honest peer beside each attack.
The times of the honest peer's echoes are asserted (one second) where TRITOME_TIMES is set: on a
loaded machine they say more about the machine.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, generate_uid

from tests.support.certificates import an_authority
from tests.support.dicom import a_ct_series, encoded
from tests.support.patience import until
from tests.support.processes import free_port
from tests.support.raw_peer import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RQ,
    P_DATA,
    a_c_store,
    a_context,
    a_fragment,
    a_raw_peer,
    an_association_request,
    item,
    pdu,
    usual_contexts,
)
from tests.support.road import GatewayProcess, a_gateway

pytestmark = pytest.mark.system

GROWTH_LIMIT_BYTES = 64 * 1024 * 1024
ECHO_LIMIT_S = 1.0
ENDLESS_BYTES = int(os.environ.get("TRITOME_ENDLESS_MB", "192")) << 20
STRICT_TIMES = bool(os.environ.get("TRITOME_TIMES"))


@dataclass
class Attacked:
    """A gateway under attack, and what its honest peer sees."""

    gateway: GatewayProcess
    tls_port: int
    temporary: Path
    echoes_s: list[float] = field(default_factory=list)

    @property
    def port(self) -> int:
        """The plain one."""
        return self.gateway.port

    def memory_bytes(self) -> int:
        """Of the gateway and its receiving processes: what belongs to them alone."""
        assert self.gateway.process is not None
        process = psutil.Process(self.gateway.process.pid)
        total = 0
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                if one.pid == process.pid or "dicom_gateway.receiving" in one.cmdline():
                    total += _anonymous_bytes(one.pid)
        return total

    def echo(self) -> None:
        """The honest peer: from the attackers' own address, and with its own association."""
        began_s = time.monotonic()
        with a_raw_peer(self.port) as peer:
            assert peer.associate(calling="HONEST") == ASSOCIATE_AC
            assert peer.echo() == 0x0000
        self.echoes_s.append(time.monotonic() - began_s)
        assert not STRICT_TIMES or self.echoes_s[-1] < ECHO_LIMIT_S

    def strange_files(self) -> list[str]:
        """What lies where nothing should: outside the store, or in it under another name."""
        folder = self.gateway.folder
        found = [str(one) for one in self.temporary.rglob("*")]
        for one in folder.rglob("*"):
            inside = one.relative_to(folder).as_posix()
            if one.is_file() and not re.fullmatch(
                r"gateway\.(yaml|log)|ready\.json|data/[a-z0-9_./-]+", inside
            ):
                found.append(inside)
        for one in (folder / "data" / "instances").rglob("*"):
            if one.is_file() and not re.fullmatch(r"[0-9a-f]{64}\.dcm", one.name):
                found.append(one.name)
        return found


def _anonymous_bytes(process_id: int) -> int:
    # Source: proc(5), /proc/PID/status. Pages of files that are mapped are the system's to drop.
    text = Path(f"/proc/{process_id}/status").read_text(encoding="ascii")
    (found,) = re.findall(r"RssAnon:\s+(\d+) kB", text)
    return int(found) * 1024


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Attacked]]:
    """Gateways by their number of receiving processes, each started when it is first needed."""
    with ExitStack() as stack:
        running: dict[int, Attacked] = {}

        def gateway(processes: int) -> Attacked:
            if processes not in running:
                folder = tmp_path_factory.mktemp(f"attacked{processes}")
                running[processes] = stack.enter_context(_a_victim(folder, processes))
            return running[processes]

        yield gateway


@pytest.fixture
def attacked(request: pytest.FixtureRequest, gateways: Callable[[int], Attacked]) -> Attacked:
    """The one with as many receiving processes as the test asks for."""
    return gateways(request.param)


@contextmanager
def _a_victim(folder: Path, processes: int) -> Iterator[Attacked]:
    """A gateway with a plain and a TLS port; its Triton is away, which is no matter here."""
    own = an_authority(folder / "authority").sign("gateway")
    temporary = folder / "temporary"
    temporary.mkdir()
    tls_port = free_port()
    scp = {
        "host": "127.0.0.1",
        "port": 0,
        "processes": processes,
        "tls": {
            "port": tls_port,
            "certificate-file": str(own.certificate),
            "key-file": str(own.key),
        },
        "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
        "reject-unknown-sources": False,
        "handshake-timeout-s": 3.0,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        with a_gateway(folder / "gateway", triton="127.0.0.1:9", dicom={"scp": scp}) as gateway:
            found = Attacked(gateway, tls_port, temporary)
            for _ in range(12):  # what a first association costs is no growth
                found.echo()
            yield found


# The attacks ----------------------------------------------------------------------------------

Attack = Callable[["Attacked", threading.Event], None]


def a_pdu_of_four_gigabytes(attacked: Attacked, over: threading.Event) -> None:
    """Announces it and begins to send it, again and again, before and after it is let in."""
    while not over.is_set():
        for let_in in (False, True):
            with a_raw_peer(attacked.port) as peer, suppress(ConnectionError):
                if let_in:
                    assert peer.associate() == ASSOCIATE_AC
                peer.say(pdu(P_DATA if let_in else ASSOCIATE_RQ, b"", length=0xFFFFFFF0))
                for _ in range(256):
                    peer.say(b"\0" * 131072)


def an_endless_c_store(attacked: Attacked, over: threading.Event) -> None:
    """A data set that never ends; four at once."""

    def one() -> None:
        with a_raw_peer(attacked.port) as peer, suppress(ConnectionError):
            assert peer.associate() == ASSOCIATE_AC
            command = a_c_store(generate_uid())
            peer.say(pdu(P_DATA, a_fragment(3, command, command=True, last=True)))
            piece = pdu(P_DATA, a_fragment(3, b"\0" * 130_000, command=False, last=False))
            for _ in range(ENDLESS_BYTES // 4 // len(piece)):
                peer.say(piece)
            over.wait(60)

    _together([one] * 4)


def four_hundred_silent_sockets(attacked: Attacked, over: threading.Event) -> None:
    """They connect, and connect anew when they are shown out."""
    with ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(socket.create_connection(("127.0.0.1", attacked.port)))
        over.wait(60)


def silent_tls_peers(attacked: Attacked, over: threading.Event) -> None:
    """Half of them say the beginning of a handshake."""
    with ExitStack() as stack:
        for number in range(100):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", attacked.tls_port)))
            if number % 2:
                with suppress(ConnectionError):
                    peer.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        over.wait(60)


def half_requests(attacked: Attacked, over: threading.Event) -> None:
    """One byte of an association request after the other, never the last."""
    with ExitStack() as stack:
        peers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", attacked.port)))
            for _ in range(100)
        ]
        request = an_association_request(usual_contexts())
        for byte in request[:-1]:
            for peer in peers:
                with suppress(OSError):
                    peer.sendall(bytes((byte,)))
            if over.wait(0.02):
                return


def requests_of_tiny_items(attacked: Attacked, over: threading.Event) -> None:
    """Thousands of items in each association request."""
    empty = item(0x20, b"\1\0\0\0") * 7500
    nested = item(0x20, b"\1\0\0\0" + item(0x40, b"") * 15000)
    while not over.is_set():
        for stuffed in (empty, nested):
            with a_raw_peer(attacked.port) as peer, suppress(ConnectionError):
                peer.say(an_association_request([stuffed]))
                peer.until_shown_out()


def pdus_of_tiny_fragments(attacked: Attacked, over: threading.Event) -> None:
    """A megabyte of empty presentation data values."""
    flood = pdu(P_DATA, a_fragment(3, b"", command=False, last=False) * 170_000)
    while not over.is_set():
        with a_raw_peer(attacked.port) as peer, suppress(ConnectionError):
            assert peer.associate() == ASSOCIATE_AC
            peer.say(flood)
            peer.until_shown_out()


def data_sets_full_of_bombs(attacked: Attacked, over: threading.Event) -> None:
    """Lengths of 4 GiB, and sequences a hundred thousand deep: refused, one by one."""
    (ds,) = a_ct_series(1)
    whole, uid = encoded(ds), str(ds.SOPInstanceUID)
    deep = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    deep = whole[:200] + (deep + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)) * 100_000
    long = whole[:200] + struct.pack("<HH2sHL", 0x0009, 0x0010, b"OB", 0, 0xFFFFFFF0) + b"\0" * 999
    while not over.is_set():
        with a_raw_peer(attacked.port) as peer:
            assert peer.associate() == ASSOCIATE_AC
            for bomb in (deep, long):
                status = peer.store(bomb, uid)
                assert status is not None
                assert status >= 0xA700


def commands_that_are_bombs(attacked: Attacked, over: threading.Event) -> None:
    """Command sets of claimed lengths, of nested sequences, and without end."""
    claimed = struct.pack("<HHL", 0, 0x0002, 0xFFFFFFF0) + b"1.2"
    nested = struct.pack("<HHL", 0x0008, 0x1140, 0xFFFFFFFF)
    nested = (nested + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)) * 4000
    while not over.is_set():
        for bomb in (claimed, nested):
            with a_raw_peer(attacked.port) as peer, suppress(ConnectionError):
                assert peer.associate() == ASSOCIATE_AC
                peer.say(pdu(P_DATA, a_fragment(3, bomb, command=True, last=True)))
                peer.until_shown_out()
        with a_raw_peer(attacked.port) as peer, suppress(ConnectionError):
            assert peer.associate() == ASSOCIATE_AC
            for _ in range(200):
                peer.say(pdu(P_DATA, a_fragment(3, b"\0" * 8000, command=True, last=False)))
            peer.until_shown_out()


ATTACKS: list[Attack] = [
    a_pdu_of_four_gigabytes,
    an_endless_c_store,
    four_hundred_silent_sockets,
    silent_tls_peers,
    half_requests,
    requests_of_tiny_items,
    pdus_of_tiny_fragments,
    data_sets_full_of_bombs,
    commands_that_are_bombs,
]


both = pytest.mark.parametrize("attacked", [1, 2], indirect=True, ids="{} receiving".format)

# Several processes share the code of one; what differs is who accepts and who serves.
OF_SEVERAL = (an_endless_c_store, four_hundred_silent_sockets, silent_tls_peers)


@pytest.mark.parametrize(
    ("attacked", "attack"),
    [
        *((1, one) for one in ATTACKS),
        *((2, one) for one in OF_SEVERAL),
    ],
    indirect=["attacked"],
    ids=lambda value: value.__name__ if callable(value) else f"{value} receiving",
)
def test_an_attack_costs_little_and_shuts_out_nobody(attacked: Attacked, attack: Attack) -> None:
    """Memory grows by less than 64 MB, an honest echo is answered, nothing strange is written."""
    before_bytes = attacked.memory_bytes()
    attacked.echoes_s.clear()
    peak_bytes = 0
    with _under(attack, attacked) as still_on:
        for _ in range(40 if STRICT_TIMES else 5):
            attacked.echo()
            peak_bytes = max(peak_bytes, attacked.memory_bytes())
            still_on.wait(0.15)
    peak_bytes = max(peak_bytes, attacked.memory_bytes())
    print(
        f"{attack.__name__}: memory +{(peak_bytes - before_bytes) / 2**20:.1f} MB, "
        f"slowest echo {1000 * max(attacked.echoes_s):.0f} ms"
    )
    assert peak_bytes - before_bytes < GROWTH_LIMIT_BYTES
    assert attacked.strange_files() == []
    attacked.echo()
    assert "Traceback" not in attacked.gateway.log()


@both
def test_uids_that_are_paths_and_deflated_bytes_are_not_taken(attacked: Attacked) -> None:
    """Failure statuses and a refused context; nothing of it is kept, anywhere."""
    (ds,) = a_ct_series(1)
    whole, uid = encoded(ds), str(ds.SOPInstanceUID)
    evil = ("../" * 20 + "tmp/evil.dcm")[: len(uid)].ljust(len(uid), "/")
    kept = _instances(attacked)
    with a_raw_peer(attacked.port) as peer:
        assert peer.associate() == ASSOCIATE_AC
        for announced in (evil, uid):
            status = peer.store(whole.replace(uid.encode(), evil.encode()), announced)
            assert status is not None
            assert status >= 0xA700
        assert peer.store(whole, evil) == 0xA900
    with a_raw_peer(attacked.port) as peer:
        peer.say(
            an_association_request([a_context(3, CTImageStorage, [DeflatedExplicitVRLittleEndian])])
        )
        kind, answer = peer.hear()
        assert (kind, answer[answer.index(b"\x21\x00") + 6]) == (ASSOCIATE_AC, 3)
        assert peer.store(whole, uid) is None  # it doesn't come in all the same
        peer.until_shown_out()
    assert _instances(attacked) == kept
    assert attacked.strange_files() == []
    assert not Path("/tmp/evil.dcm").exists()


@both
def test_after_all_that_a_series_is_kept(attacked: Attacked) -> None:
    """And nothing of the attacks has left a place taken."""
    series = a_ct_series(5)
    with a_raw_peer(attacked.port) as peer:
        assert peer.associate() == ASSOCIATE_AC
        for ds in series:
            assert peer.store(encoded(ds), str(ds.SOPInstanceUID)) == 0x0000
        peer.say(pdu(ABORT, b"\0\0\0\0"))
    assert _instances(attacked) >= 5


def _instances(attacked: Attacked) -> int:
    folder = attacked.gateway.folder / "data" / "instances"
    return sum(one.is_file() for one in folder.rglob("*"))


@contextmanager
def _under(attack: Attack, attacked: Attacked) -> Iterator[threading.Event]:
    """The attack goes on while the block lasts, in a thread; what it asserts is asserted."""
    over = threading.Event()
    troubles: list[BaseException] = []

    def run() -> None:
        try:
            attack(attacked, over)
        except (AssertionError, OSError) as trouble:
            # The attacker may be the one who finds no place; that is no trouble of ours.
            if not over.is_set() and isinstance(trouble, AssertionError):
                troubles.append(trouble)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        over.wait(0.3)
        yield over
    finally:
        over.set()
        thread.join(120)
    until(lambda: not thread.is_alive())
    assert troubles == []


def _together(actions: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
