"""The door, with real peers: dcmtk and pynetdicom outside, a real store inside."""

from __future__ import annotations

import mmap
import socket
import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SegmentationStorage,
    UID_dictionary,
    generate_uid,
)
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind, Verification

from dicom_gateway.config import ScpSettings
from dicom_gateway.errors import ConfigurationError, DatabaseUnavailable
from dicom_gateway.receive import Receiver
from dicom_gateway.records import Arrival, Instance
from tests.support.associations import an_association, status_of
from tests.support.dicom import CANARY, a_ct_series, encoded, write_series
from tests.support.gateway import Door, an_open_door
from tests.support.peers import echoscu, storescu
from tests.support.raw_peer import (
    ASSOCIATE_AC,
    P_DATA,
    a_c_store,
    a_fragment,
    a_raw_peer,
    pdu,
)

NO_SYNTAX_OF_OBJECTS = frozenset(
    (
        "1.2.840.10008.1.2.6.1",  # RFC 2557 MIME encapsulation
        "1.2.840.10008.1.2.6.2",  # XML encoding
        "1.2.840.10008.1.20",  # Papyrus 3
    )
)
PRIVATE_CLASS = "1.3.12.2.1107.5.9.1"
RETIRED_CLASS = "1.2.840.10008.5.1.4.1.1.5"


def rejection_of(door: Door, **titles: str) -> tuple[int, int, int]:
    """(result, source, reason) of the A-ASSOCIATE-RJ."""
    with an_association(door, **titles) as association:
        assert association.is_rejected
        answer = association.acceptor.primitive
        assert answer is not None
        return answer.result, answer.result_source, answer.diagnostic


# Who may come in ------------------------------------------------------------------------


def test_echo_is_answered(tmp_path: Path) -> None:
    """Dcmtk's echoscu finds us well."""
    with an_open_door(tmp_path) as door:
        assert echoscu("127.0.0.1", door.port, called="LUNG").exit_code == 0


def test_an_unknown_called_ae_title_is_rejected_by_that_reason(tmp_path: Path) -> None:
    """PS3.8 9.3.4: permanent, service user, called AE title not recognised."""
    with an_open_door(tmp_path) as door:
        assert rejection_of(door, called="NOBODY") == (1, 1, 7)
        answer = echoscu("127.0.0.1", door.port, called="NOBODY")
        assert "Called AE Title Not Recognized" in answer.output
        assert door.ended == []


def test_every_listed_ae_title_is_answered_to(tmp_path: Path) -> None:
    """One port, several called AE titles."""
    titles = [{"ae-title": name, "pipelines": ["lung_ct"]} for name in ("LUNG", "LIVER")]
    with an_open_door(tmp_path, ae_titles=titles) as door:
        for title in ("LUNG", "LIVER"):
            assert echoscu("127.0.0.1", door.port, called=title).exit_code == 0


def test_an_unknown_calling_ae_title_is_rejected_by_that_reason(tmp_path: Path) -> None:
    """PS3.8 9.3.4: permanent, service user, calling AE title not recognised."""
    sources = [{"ae-title": "SENDER"}]
    with an_open_door(tmp_path, sources=sources, reject_unknown_sources=True) as door:
        assert rejection_of(door, calling="STRANGER") == (1, 1, 3)
        assert echoscu("127.0.0.1", door.port, "SENDER", "LUNG").exit_code == 0


def test_a_known_title_from_another_address_is_rejected(tmp_path: Path) -> None:
    """A name alone is easily taken; where an address is given it counts."""
    sources = [
        {"ae-title": "HERE", "host-ip": "127.0.0.1"},
        {"ae-title": "ELSEWHERE", "host-ip": "10.1.2.3"},
    ]
    with an_open_door(tmp_path, sources=sources, reject_unknown_sources=True) as door:
        assert rejection_of(door, calling="ELSEWHERE") == (1, 1, 3)
        assert echoscu("127.0.0.1", door.port, "HERE", "LUNG").exit_code == 0


def test_one_association_too_many_is_told_to_come_back(tmp_path: Path) -> None:
    """PS3.8 9.3.4: transient, presentation related, local limit exceeded; then it is let in."""
    with an_open_door(tmp_path, max_associations=1) as door:
        with an_association(door) as first:
            assert first.is_established
            assert rejection_of(door) == (2, 3, 2)
        door.wait_until(lambda: len(door.ended) == 1)
        assert echoscu("127.0.0.1", door.port, called="LUNG").exit_code == 0


def test_silent_connections_take_no_place(tmp_path: Path) -> None:
    """Sixty of them, more than we keep waiting, and an honest peer still gets in."""
    with an_open_door(tmp_path, max_associations=2) as door:
        silent = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(60)]
        try:
            closed = [connection for connection in silent if _is_closed(connection)]
            assert closed
            for connection in silent:
                connection.close()
            door.wait_until(lambda: not door.receiver.undecided)
            assert echoscu("127.0.0.1", door.port, called="LUNG").exit_code == 0
        finally:
            for connection in silent:
                connection.close()


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


NONSENSE = {
    "4 GiB announced": struct.pack(">BBL", 1, 0, 0xFFFFFFF0) + b"\0" * 100_000,
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "garbage": struct.pack(">BBL", 1, 0, 300) + b"\xff" * 300,
    "data before association": struct.pack(">BBL", 4, 0, 10) + b"\0" * 10,
    "half a request, never the rest": struct.pack(">BBL", 1, 0, 200) + b"\0" * 20,
    "silence": b"",
}


def test_strangers_who_talk_nonsense_are_shown_out(tmp_path: Path) -> None:
    """Each is cut off when its time is over, others are served, no place is lost."""
    with an_open_door(tmp_path) as door:
        strangers = {}
        for what, opening in NONSENSE.items():
            strangers[what] = socket.create_connection(("127.0.0.1", door.port), timeout=30)
            with suppress(ConnectionError):
                strangers[what].sendall(opening)
        assert echoscu("127.0.0.1", door.port, called="LUNG").exit_code == 0
        for stranger in strangers.values():
            with stranger, suppress(ConnectionError):
                while stranger.recv(4096):
                    pass
        door.wait_until(lambda: not door.receiver.undecided)
        assert door.kept == []
        assert len(door.ended) == 1


# What is kept ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_what_storescu_sends_is_kept_byte_for_byte(tmp_path: Path, syntax: str) -> None:
    """In each transfer syntax, compressed ones too."""
    series = a_ct_series(3, transfer_syntax_uid=syntax)
    files = write_series(tmp_path / "study", series)
    # Of the uncompressed ones storescu prefers explicit VR and converts to it.
    options = ["--propose-implicit"] if syntax == ImplicitVRLittleEndian else []
    with an_open_door(tmp_path / "store") as door:
        sent = storescu(files, "127.0.0.1", door.port, called="LUNG", options=options)

        assert sent.exit_code == 0, sent.output
        assert {i.transfer_syntax_uid for i in door.kept} == {syntax}
        kept = {i.sop_instance_uid: i.path.read_bytes() for i in door.kept}
        for ds in series:
            assert kept[ds.SOPInstanceUID].endswith(encoded(ds))


def test_every_storage_class_is_accepted(tmp_path: Path) -> None:
    """All that pynetdicom knows, in two associations of at most 128 contexts."""
    known = [str(cx.abstract_syntax) for cx in AllStoragePresentationContexts]
    with an_open_door(tmp_path) as door:
        accepted = set()
        for part in (known[:100], known[100:]):
            contexts = [(one, [ExplicitVRLittleEndian]) for one in part]
            with an_association(door, contexts) as association:
                accepted |= {str(cx.abstract_syntax) for cx in association.accepted_contexts}
    assert accepted == set(known)


@pytest.mark.parametrize("sop_class", [SegmentationStorage, PRIVATE_CLASS, RETIRED_CLASS])
def test_unusual_classes_are_kept_too(tmp_path: Path, sop_class: str) -> None:
    """Result objects, private and retired classes."""
    (ds,) = a_ct_series(1, sop_class_uid=sop_class)
    with (
        an_open_door(tmp_path) as door,
        an_association(door, [(sop_class, [ExplicitVRLittleEndian])]) as association,
    ):
        assert status_of(association, ds) == 0x0000
        assert door.kept[0].sop_class_uid == sop_class


def test_every_transfer_syntax_but_the_deflated_ones_is_accepted(tmp_path: Path) -> None:
    """All that pydicom knows, retired ones too, each in a context of its own."""
    known = [
        uid
        for uid, (name, kind, _, _, _) in UID_dictionary.items()
        if kind == "Transfer Syntax" and uid not in NO_SYNTAX_OF_OBJECTS
    ]
    deflated = [uid for uid in known if "eflate" in UID(uid).name]
    assert len(known) - len(deflated) > 50
    with an_open_door(tmp_path) as door:
        contexts = [(CTImageStorage, [syntax]) for syntax in known]
        with an_association(door, contexts) as association:
            accepted = {str(cx.transfer_syntax[0]) for cx in association.accepted_contexts}
    assert accepted == set(known) - set(deflated)


def test_private_classes_are_a_matter_of_settings(tmp_path: Path) -> None:
    """All of them, or those that are listed; the standard's are taken in any case."""
    contexts: list[tuple[str, list[str]]] = [
        (one, [ExplicitVRLittleEndian]) for one in (PRIVATE_CLASS, "1.2.3.4", CTImageStorage)
    ]
    with (
        an_open_door(tmp_path, private_sop_classes=(PRIVATE_CLASS,)) as door,
        an_association(door, contexts) as association,
    ):
        accepted = {str(cx.abstract_syntax) for cx in association.accepted_contexts}
        assert accepted == {PRIVATE_CLASS, CTImageStorage}


def test_what_could_explode_or_is_no_storage_is_not_accepted(tmp_path: Path) -> None:
    """Deflated is left out, big endian is not, and queries have no place here."""
    contexts: list[tuple[str, list[str]]] = [
        (CTImageStorage, [DeflatedExplicitVRLittleEndian]),
        (SegmentationStorage, [ExplicitVRBigEndian]),
        (PatientRootQueryRetrieveInformationModelFind, [ImplicitVRLittleEndian]),
        (Verification, [ImplicitVRLittleEndian]),
    ]
    with an_open_door(tmp_path) as door, an_association(door, contexts) as association:
        accepted = {cx.abstract_syntax for cx in association.accepted_contexts}
        assert accepted == {SegmentationStorage, Verification}


# What is refused ------------------------------------------------------------------------


def test_a_uid_that_is_a_path_is_refused(tmp_path: Path) -> None:
    """0xC000, and nothing is written anywhere."""
    (ds,) = a_ct_series(1)
    ds.SeriesInstanceUID = "1.2.3"
    with an_open_door(tmp_path / "store") as door, an_association(door) as association:
        status = _send_raw(
            association, encoded(ds).replace(b"1.2.3\0", b"../../"), str(ds.SOPInstanceUID)
        )

        assert status == 0xC000
        assert door.keeping.files() == []


def test_a_uid_in_the_request_that_is_a_path_is_refused(tmp_path: Path) -> None:
    """The command is a stranger's word as well."""
    (ds,) = a_ct_series(1)
    with an_open_door(tmp_path / "store") as door, an_association(door) as association:
        assert _send_raw(association, encoded(ds), "../../../evil") == 0xA900
        assert door.keeping.files() == []


def test_an_object_other_than_announced_is_refused(tmp_path: Path) -> None:
    """0xA900: data set does not match."""
    (ds,) = a_ct_series(1)
    with an_open_door(tmp_path) as door, an_association(door) as association:
        assert _send_raw(association, encoded(ds), generate_uid()) == 0xA900


def test_a_truncated_data_set_is_refused_and_the_next_one_is_kept(tmp_path: Path) -> None:
    """0xC000 for the one, 0x0000 for the other, on the same association."""
    first, second = a_ct_series(2)
    with an_open_door(tmp_path) as door, an_association(door) as association:
        assert _send_raw(association, encoded(first)[:-100], first.SOPInstanceUID) == 0xC000
        assert _send_raw(association, encoded(first)[:200], first.SOPInstanceUID) == 0xC000
        assert status_of(association, second) == 0x0000
        assert [i.sop_instance_uid for i in door.kept] == [second.SOPInstanceUID]


def test_an_instance_past_the_limit_is_refused_and_the_next_one_is_kept(tmp_path: Path) -> None:
    """0xA700 once it is over; its bytes are dropped while they come."""
    (large,) = a_ct_series(1, rows=512, columns=512)
    (small,) = a_ct_series(1)
    with (
        an_open_door(tmp_path, max_instance_bytes=100_000) as door,
        an_association(door) as association,
    ):
        assert status_of(association, large) == 0xA700
        assert status_of(association, small) == 0x0000
        assert [i.sop_instance_uid for i in door.kept] == [small.SOPInstanceUID]


def test_a_data_set_without_end_ends_the_association(tmp_path: Path) -> None:
    """One that is too large hears why at its end; one that has none is cut off."""
    with an_open_door(tmp_path, max_instance_bytes=100_000) as door:
        with a_raw_peer(door.port) as peer:
            assert peer.associate() == ASSOCIATE_AC
            command = a_c_store(generate_uid())
            peer.say(pdu(P_DATA, a_fragment(3, command, command=True, last=True)))
            piece = pdu(P_DATA, a_fragment(3, b"\0" * 130_000, command=False, last=False))
            with suppress(ConnectionError):
                while True:
                    peer.say(piece)
        door.wait_until(lambda: bool(door.ended))
        assert echoscu("127.0.0.1", door.port, called="LUNG").exit_code == 0


def test_a_large_instance_lies_on_the_disk_while_it_comes(tmp_path: Path) -> None:
    """In the store's own folder, without a name, and is kept byte for byte."""
    (large,) = a_ct_series(1, rows=1024, columns=1024)
    seen: list[Any] = []

    def keep_and_look(arrival: Arrival) -> Instance:
        seen.append(type(arrival.encoded_dataset))
        return door.keeping.store.keep(arrival)

    with an_open_door(tmp_path, keep=keep_and_look) as door, an_association(door) as association:
        assert status_of(association, large) == 0x0000
        assert seen == [mmap.mmap]
        assert door.kept[0].path.read_bytes().endswith(encoded(large))
        assert [one for one in door.keeping.files() if one.suffix != ".dcm"] == []


def test_a_disk_without_room_is_told_before_all_of_it_has_come(tmp_path: Path) -> None:
    """A large instance is dropped while it comes; the association goes on."""
    (large,) = a_ct_series(1, rows=3000, columns=3000)
    with (
        an_open_door(tmp_path, min_free_bytes=1 << 60) as door,
        an_association(door) as association,
    ):
        answer = association.send_c_store(large)
        assert (answer.Status, answer.ErrorComment) == (
            0xA700,
            "the disk is full; send again later",
        )
        assert status_of(association, a_ct_series(1)[0]) == 0xA700
        assert door.keeping.files() == []


def test_a_refusal_says_why_in_the_error_comment(tmp_path: Path) -> None:
    """At most 64 characters (PS3.7 C.1), cut at a word; nothing of a patient."""
    (ds,) = a_ct_series(1)
    with an_open_door(tmp_path) as door, an_association(door) as association:
        del ds.SeriesInstanceUID
        answer = association.send_c_store(ds)
        assert (answer.Status, answer.ErrorComment) == (
            0xC000,
            "Series Instance UID (0020,000E) is missing",
        )
        ds.SeriesInstanceUID = "1.2.a"
        comment = str(association.send_c_store(ds).ErrorComment)
        assert comment.startswith("Series Instance UID (0020,000E) is no UID")
        assert comment.endswith("...")
        assert len(comment) <= 64


def test_a_full_disk_is_answered_with_out_of_resources(tmp_path: Path) -> None:
    """0xA700, so that the sender tries again later."""
    with (
        an_open_door(tmp_path, min_free_bytes=1 << 60) as door,
        an_association(door) as association,
    ):
        assert status_of(association, a_ct_series(1)[0]) == 0xA700
        assert door.keeping.files() == []


def _database_is_away(_arrival: Arrival) -> Instance:
    raise DatabaseUnavailable("the index does not answer")


def _has_a_bug(_arrival: Arrival) -> Instance:
    raise RuntimeError(f"{CANARY} in a foreign error")


@pytest.mark.parametrize(("keep", "status"), [(_database_is_away, 0xA700), (_has_a_bug, 0xC000)])
def test_what_goes_wrong_inside_is_answered_not_dropped(
    tmp_path: Path, keep: Any, status: int
) -> None:
    """An absent index means later, a bug means failure; the association goes on."""
    first, second = a_ct_series(2)
    with an_open_door(tmp_path, keep=keep) as door, an_association(door) as association:
        assert status_of(association, first) == status
        assert status_of(association, second) == status


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """The operator learns which, and what it may come from."""
    with an_open_door(tmp_path) as door:
        settings = ScpSettings.model_validate(
            {
                "host": "127.0.0.1",
                "port": door.port,
                "ae-titles": [{"ae-title": "LUNG", "pipelines": ["lung_ct"]}],
                "reject-unknown-sources": False,
            }
        )
        second = Receiver(settings, door.keeping.store.keep, lambda _id, _in_order: None)
        with pytest.raises(ConfigurationError, match=f"port {door.port} can't be listened on"):
            second.start()


def test_nothing_of_a_patient_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither by us nor by pynetdicom, whether kept, refused or broken."""
    first, second = a_ct_series(2)
    with structlog.testing.capture_logs() as logs, caplog.at_level("DEBUG"):
        caplog.clear()
        with an_open_door(tmp_path) as door, an_association(door) as association:
            status_of(association, first)
            _send_raw(association, encoded(second)[:-50], second.SOPInstanceUID)
            _send_raw(association, encoded(second), f"{CANARY}^X")
    assert any(log["event"] == "instance refused" for log in logs)
    assert CANARY not in str(logs) + caplog.text + "".join(capfd.readouterr())


def _send_raw(association: Association, data_set: bytes, sop_instance_uid: str) -> int:
    """Sends bytes as they are, under any SOP Instance UID."""
    request = C_STORE()
    request.MessageID = 7
    request.AffectedSOPClassUID = CTImageStorage
    request.AffectedSOPInstanceUID = sop_instance_uid
    request.Priority = 2
    request.DataSet = BytesIO(data_set)
    context = association.accepted_contexts[0].context_id
    assert context is not None
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    assert isinstance(answer, C_STORE)
    assert answer.Status is not None
    return int(answer.Status)
