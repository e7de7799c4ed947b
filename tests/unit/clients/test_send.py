"""`tritome send` against real peers: dcmtk's storescp and pynetdicom."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread, dcmwrite
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import AE, dsutils, evt
from pynetdicom.association import Association

from clients.commands.send import run
from clients.errors import ClientError, NotAccepted
from clients.send import (
    MAX_CONTEXTS,
    Found,
    Outcome,
    Peer,
    Report,
    Tls,
    batches,
    explain_status,
    find_instances,
    send,
)
from tests.support.certificates import an_authority
from tests.support.dicom import CANARY, a_ct_series, encoded, write_series
from tests.support.gateway import an_open_door
from tests.support.patience import until
from tests.support.peers import free_port, storescp
from tests.support.scripted_pacs import delay_negotiation_until_closed


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Five CT instances, and two files that are no DICOM."""
    folder = tmp_path / "study"
    write_series(folder / "a" / "b", a_ct_series(frames=5, rows=16, columns=16))
    (folder / "notes.txt").write_text("not an image", encoding="utf-8")
    (folder / "empty").touch()
    return folder


@contextmanager
def a_peer(
    contexts: list[tuple[str, str]], status: int = 0, *, titles: tuple[str, ...] = ()
) -> Iterator[tuple[int, list[str]]]:
    """A pynetdicom receiver that takes `contexts` and answers `status`; gives port, UIDs."""
    taken: list[str] = []

    def keep(event: Any) -> int:
        taken.append(str(event.request.AffectedSOPInstanceUID))
        return status

    ae = AE(ae_title="PEER")
    for sop_class, syntax in contexts:
        ae.add_supported_context(sop_class, syntax)
    if titles:
        ae.require_calling_aet = list(titles)
    ae.require_called_aet = True
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    assert server is not None
    try:
        yield server.server_address[1], taken
    finally:
        server.shutdown()


def test_files_are_found_and_the_others_counted(study: Path) -> None:
    """Folders are searched to the bottom; what is no DICOM file is skipped."""
    search = find_instances([study])
    assert len(search.instances) == 5
    assert {path.name for path in search.skipped} == {"notes.txt", "empty"}
    assert {found.context for found in search.instances} == {
        (CTImageStorage, ExplicitVRLittleEndian)
    }


def test_a_path_that_is_not_there_is_said(tmp_path: Path) -> None:
    """A mistyped folder is an error, never an empty study."""
    with pytest.raises(ClientError, match="doesn't exist"):
        find_instances([tmp_path / "nowhere"])


def test_dcmtk_receives_every_byte_as_it_was(study: Path, tmp_path: Path) -> None:
    """The data sets arrive unchanged: nothing is decoded or encoded again."""
    found = find_instances([study]).instances
    with storescp(tmp_path / "got", "STORESCP") as peer:
        report = send(found, Peer(peer.host, peer.port, "STORESCP", "TRITOME_SEND"))
        arrived = peer.wait_for(5)
        assert report.complete
        pixels = {str(ds.SOPInstanceUID): ds.PixelData for ds in map(dcmread, arrived)}
    assert pixels == {f.sop_instance_uid: dcmread(f.path).PixelData for f in found}


def test_a_compressed_series_stays_compressed(tmp_path: Path) -> None:
    """The file's own transfer syntax is proposed, and used."""
    series = a_ct_series(frames=3, rows=16, columns=16, transfer_syntax_uid=RLELossless)
    write_series(tmp_path / "rle", series)
    with storescp(tmp_path / "got") as peer:
        report = send(
            find_instances([tmp_path / "rle"]).instances,
            Peer(peer.host, peer.port, "STORESCP", "TRITOME_SEND"),
        )
        arrived = peer.wait_for(3)
        assert report.complete
        assert {dcmread(f).file_meta.TransferSyntaxUID for f in arrived} == {RLELossless}


def test_a_transfer_syntax_that_the_peer_does_not_take_is_refused_by_name(tmp_path: Path) -> None:
    """Never transcoded: the object is not sent, and the reason names its syntax."""
    mixed = [
        *a_ct_series(frames=2, rows=16, columns=16),
        *a_ct_series(frames=2, rows=16, columns=16, transfer_syntax_uid=RLELossless),
    ]
    write_series(tmp_path / "mixed", mixed)
    found = find_instances([tmp_path / "mixed"]).instances
    with a_peer([(CTImageStorage, ExplicitVRLittleEndian)]) as (port, taken):
        report = send(found, Peer("127.0.0.1", port, "PEER", "TRITOME_SEND"))
    assert report.accepted == len(taken) == 2
    assert report.troubles() == [("the peer doesn't take CT Image Storage in RLE Lossless", 2)]


def test_a_peer_that_takes_none_of_it_is_said(study: Path) -> None:
    """No presentation context in common is no silent success."""
    with (
        a_peer([(MRImageStorage, JPEGLSLossless)]) as (port, _),
        pytest.raises(NotAccepted, match="takes none of these kinds of object: CT Image Storage"),
    ):
        send(find_instances([study]).instances, Peer("127.0.0.1", port, "PEER", "ME"))


@pytest.mark.parametrize(
    ("called", "calling", "said"),
    [
        ("WRONG", "TRITOME_SEND", "it isn't called 'WRONG'"),
        ("PEER", "STRANGER", "it doesn't know our name 'STRANGER'"),
    ],
)
def test_a_rejection_says_which_name_was_not_known(
    study: Path, called: str, calling: str, said: str
) -> None:
    """The reason of A-ASSOCIATE-RJ is told in words, with what to do."""
    contexts: list[tuple[str, str]] = [(CTImageStorage, ExplicitVRLittleEndian)]
    with (
        a_peer(contexts, titles=("TRITOME_SEND",)) as (port, _),
        pytest.raises(NotAccepted, match=said),
    ):
        send(find_instances([study]).instances, Peer("127.0.0.1", port, called, calling))


def test_a_rejection_that_comes_too_quickly_is_told_all_the_same(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine: the connection is closed again before our thread has its turn."""
    delay_negotiation_until_closed(monkeypatch)
    contexts: list[tuple[str, str]] = [(CTImageStorage, ExplicitVRLittleEndian)]
    with (
        a_peer(contexts, titles=("TRITOME_SEND",)) as (port, _),
        pytest.raises(NotAccepted, match="it doesn't know our name 'STRANGER'"),
    ):
        send(find_instances([study]).instances, Peer("127.0.0.1", port, "PEER", "STRANGER"))


def test_nothing_waits_for_a_delayed_acknowledgement(study: Path) -> None:
    """The connection sends small PDUs at once."""
    at_once: list[int] = []

    def look(_outcome: Outcome) -> None:
        at_once.extend(
            one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for one in gc.get_objects()
            # By type: isinstance asks an object for its class, and lazy modules answer that
            # with a warning.
            if issubclass(type(one), socket.socket) and one.fileno() >= 0 and _leads_to(one, port)
        )

    with a_peer([(CTImageStorage, ExplicitVRLittleEndian)]) as (port, _):
        found = find_instances([study]).instances[:1]
        send(found, Peer("127.0.0.1", port, "PEER", "ME"), on_outcome=look)

    assert at_once == [1]


def _leads_to(one: socket.socket, port: int) -> bool:
    try:
        return bool(one.getpeername()[1] == port)
    except (OSError, IndexError):
        return False


def test_dcmtk_refusing_the_association_is_said(study: Path, tmp_path: Path) -> None:
    """A rejection without a reason is told as one."""
    with (
        storescp(tmp_path / "got", options=["--refuse"]) as peer,
        pytest.raises(NotAccepted, match="rejected the association"),
    ):
        send(find_instances([study]).instances, Peer(peer.host, peer.port, "STORESCP", "ME"))


def test_a_refused_object_is_counted_with_its_status(study: Path) -> None:
    """A failure status is no acceptance; a warning is."""
    contexts: list[tuple[str, str]] = [(CTImageStorage, ExplicitVRLittleEndian)]
    found = find_instances([study]).instances
    with a_peer(contexts, status=0xA700) as (port, _):
        refused = send(found, Peer("127.0.0.1", port, "PEER", "ME"))
    assert (refused.accepted, refused.complete) == (0, False)
    assert refused.troubles()[0][0].startswith("0xA700, refused, the peer is out of resources")
    with a_peer(contexts, status=0xB000) as (port, _):
        warned = send(found, Peer("127.0.0.1", port, "PEER", "ME"))
    assert (warned.accepted, warned.complete) == (5, True)
    assert warned.troubles() == [("0xB000, accepted with a warning", 5)]


def test_a_connection_lost_midway_leaves_the_rest_unsent(study: Path, tmp_path: Path) -> None:
    """Objects after a lost connection are reported, never counted."""
    with storescp(tmp_path / "got", options=["--abort-during"]) as peer:
        report = send(
            find_instances([study]).instances, Peer(peer.host, peer.port, "STORESCP", "ME")
        )
    assert report.accepted == 0
    assert len(report.outcomes) == 5
    assert all("connection was lost" in outcome.note for outcome in report.outcomes)


def test_a_peer_that_goes_while_a_file_is_read_ends_the_sending(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk, a peer that aborts meanwhile: nothing waits for it any more."""
    read = dsutils.split_dataset
    before = set(threading.enumerate())

    def read_slowly(path: Path) -> Any:
        new = set(threading.enumerate()) - before
        peers = [one for one in new if isinstance(one, Association)]
        for one in peers:
            if one.is_acceptor and one.is_established:
                one.abort()
        until(lambda: not any(one.is_alive() for one in peers))
        return read(path)

    monkeypatch.setattr(dsutils, "split_dataset", read_slowly)
    reports: list[Report] = []
    with a_peer([(CTImageStorage, ExplicitVRLittleEndian)]) as (port, _):
        peer = Peer("127.0.0.1", port, "PEER", "SENDER")
        found = find_instances([study]).instances
        sending = threading.Thread(
            target=lambda: reports.append(send(found, peer, timeout_s=600)), daemon=True
        )
        sending.start()
        sending.join(60)
    assert [(one.accepted, len(one.outcomes)) for one in reports] == [(0, 5)]


def test_more_kinds_than_one_association_can_offer_are_split() -> None:
    """129 (SOP class, transfer syntax) pairs need two associations, each within the limit."""
    found = [
        Found(Path(f"{n}.dcm"), f"1.2.{n % 129}", f"1.3.{n}", ExplicitVRLittleEndian, 1)
        for n in range(200)
    ]
    groups = batches(found)
    assert [len({f.context for f in group}) for group in groups] == [MAX_CONTEXTS, 1]
    assert sorted(f.sop_instance_uid for g in groups for f in g) == sorted(
        f.sop_instance_uid for f in found
    )


def test_the_command_says_how_many_and_fails_when_not_all(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counts and reasons are printed, without a patient attribute; all or exit code 1."""
    contexts: list[tuple[str, str]] = [(CTImageStorage, ExplicitVRLittleEndian)]
    with a_peer(contexts) as (port, _):
        run([study], Peer("127.0.0.1", port, "PEER", "ME"), timeout_s=30)
    printed = " ".join(capsys.readouterr().out.split())
    assert "5 of 5 instances accepted by PEER" in printed
    assert "2 other file(s) skipped" in printed
    with (
        a_peer(contexts, status=0xC000) as (port, _),
        pytest.raises(NotAccepted, match=r"5 instance\(s\) were not accepted"),
    ):
        run([study], Peer("127.0.0.1", port, "PEER", "ME"), timeout_s=30)
    refused = capsys.readouterr().out
    assert "0xC000" in refused
    assert CANARY not in printed + refused


def test_nothing_to_send_is_an_error(tmp_path: Path) -> None:
    """An empty folder is told apart from a sent study."""
    with pytest.raises(ClientError, match="no DICOM files"):
        run([tmp_path], Peer("127.0.0.1", 1, "PEER", "ME"), timeout_s=5)


# pynetdicom drops the socket of a refused connection without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nobody_listening_is_said(study: Path) -> None:
    """A closed port is an error that names it."""
    port = free_port()
    with pytest.raises(NotAccepted, match=f"nobody answered at 127.0.0.1:{port}"):
        send(find_instances([study]).instances, Peer("127.0.0.1", port, "A", "B"))


@pytest.mark.parametrize("address", ["somewhere", "host:", ":104", "host:0", "host:70000"])
def test_a_bad_address_is_refused(address: str) -> None:
    """HOST:PORT or nothing."""
    with pytest.raises(ClientError, match="is no HOST:PORT"):
        Peer.parse(address, "A", "B")


@pytest.mark.parametrize("title", ["", "SEVENTEEN_LETTERS", "BACK\\SLASH", " OUTER"])
def test_what_is_no_ae_title_is_refused(title: str) -> None:
    """Ours or theirs, in a sentence that says what one looks like."""
    with pytest.raises(ClientError, match="1 to 16 printable ASCII characters"):
        Peer.parse("host:104", title, "B")
    with pytest.raises(ClientError, match="1 to 16 printable ASCII characters"):
        Peer.parse("host:104", "A", title)


def test_an_address_is_read() -> None:
    """Names, addresses, and IPv6 in brackets."""
    assert Peer.parse("pacs.example:104", "A", "B") == Peer("pacs.example", 104, "A", "B")
    assert Peer.parse("[::1]:104", "A", "B").host == "::1"


@pytest.mark.parametrize(
    ("status", "accepted"), [(0x0000, True), (0xB007, True), (0xA900, False), (0x0122, False)]
)
def test_acceptance_follows_the_standard(status: int, accepted: bool) -> None:
    """Success and warnings keep the object (PS3.4 B.2.3); everything else doesn't."""
    found = Found(Path("a"), CTImageStorage, "1.2", ExplicitVRLittleEndian, 1)
    assert Outcome(found, status).accepted is accepted
    assert explain_status(status).startswith(f"0x{status:04X}")


def with_other_uids_in_the_file_meta(folder: Path, count: int = 2) -> list[Path]:
    """Files whose file meta information names another object than their data set is."""
    files = write_series(folder, a_ct_series(frames=count, rows=16, columns=16))
    for path in files:
        ds = dcmread(path)
        ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{path.stat().st_ino}"
        ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dcmwrite(path, ds, overwrite=True)
    return files


def test_an_object_is_announced_by_its_own_uids(tmp_path: Path) -> None:
    """Not by those of the file meta information, where an archive has changed only one of them."""
    files = with_other_uids_in_the_file_meta(tmp_path / "odd")
    before = [path.read_bytes() for path in files]
    found = find_instances(files).instances
    with an_open_door(tmp_path / "store") as door:
        report = send(found, Peer("127.0.0.1", door.port, "LUNG", "ME"))
        assert report.complete, report.troubles()
        kept = {one.sop_instance_uid: one.path.read_bytes() for one in door.kept}
    for path, raw in zip(files, before, strict=True):
        ds = dcmread(path)
        assert path.read_bytes() == raw
        assert kept[ds.SOPInstanceUID].endswith(encoded(ds))


def test_what_real_archives_hold_is_taken(tmp_path: Path, repository_root: Path) -> None:
    """The files whose data set has another UID than their file meta: v04, v06 and v08."""
    shared = repository_root.parent / "shared" / "dicom"
    folders = [folder for name in ("v04", "v06", "v08") for folder in shared.glob(f"{name}_*")]
    if not folders:
        pytest.skip("the shared studies are not on this machine")
    found = find_instances(folders).instances
    with an_open_door(tmp_path / "store") as door:
        report = send(found, Peer("127.0.0.1", door.port, "LUNG", "ME"))
    assert report.complete, report.troubles()
    assert report.accepted == len(found) >= 12


def test_a_refusal_of_our_own_gateway_says_why(tmp_path: Path) -> None:
    """The error comment of the C-STORE response reaches the person who sends."""
    write_series(tmp_path / "study", a_ct_series(frames=1, rows=512, columns=512))
    found = find_instances([tmp_path / "study"]).instances
    with an_open_door(tmp_path / "store", max_instance_bytes=100_000) as door:
        report = send(found, Peer("127.0.0.1", door.port, "LUNG", "ME"))
    ((reason, count),) = report.troubles()
    assert (count, reason.partition(": ")[2]) == (1, "larger than the 100000 bytes that are taken")


# pynetdicom drops the socket of a refused connection without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_files_go_by_tls_where_that_is_asked_for(study: Path, tmp_path: Path) -> None:
    """With our certificate; and what is wrong is said: no trust, no certificate, no TLS there."""
    authority = an_authority(tmp_path / "authority")
    ours, gateway = authority.sign("sender"), authority.sign("gateway")
    found = find_instances([study]).instances
    tls = {
        "port": 0,
        "certificate-file": gateway.certificate,
        "key-file": gateway.key,
        "client-ca-file": authority.certificate,
    }
    known = Tls(authority.certificate, ours.certificate, ours.key)
    with an_open_door(tmp_path / "store", tls=tls) as door:
        assert send(found, Peer("localhost", door.tls_port, "LUNG", "ME", known)).complete
        wrong = {
            "its certificate is not trusted": (door.tls_port, Tls()),
            "it refuses ours": (door.tls_port, Tls(authority.certificate)),
            "is this its TLS port": (door.port, known),
        }
        for said, (port, how) in wrong.items():
            with pytest.raises(NotAccepted, match=said):
                send(found, Peer("localhost", port, "LUNG", "ME", how), timeout_s=10.0)
        gc.collect()  # pynetdicom drops the sockets of refused connections without closing them
