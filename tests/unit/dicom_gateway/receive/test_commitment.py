"""Storage commitment against pynetdicom as the peer: asked, answered truly, never forgotten."""

from __future__ import annotations

import gc
import queue
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel

from dicom_gateway.database import storage_commitments
from tests.support.dicom import a_ct_series
from tests.support.gateway import Door, an_open_door
from tests.support.peers import free_port

WELL_KNOWN = "1.2.840.10008.1.20.1.1"


@dataclass
class Scanner:
    """Sends, asks for commitment, and takes reports, on its own association or on its port."""

    port: int = 0
    reports: queue.Queue[tuple[int, Dataset]] = field(default_factory=queue.Queue)
    status: int = 0x0000
    threads: list[threading.Thread] = field(default_factory=list)

    def take(self, event: evt.Event) -> tuple[int, None]:
        """Takes a report."""
        self.threads.append(threading.current_thread())
        self.reports.put((event.event_type, event.event_information))
        return self.status, None

    @contextmanager
    def association(self, door: Door) -> Iterator[Association]:
        """With storage and storage commitment."""
        entity = AE("SCANNER")
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        entity.add_requested_context(StorageCommitmentPushModel, ImplicitVRLittleEndian)
        association = entity.associate(
            "127.0.0.1",
            door.port,
            ae_title="LUNG",
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.take)],
        )
        assert association.is_established
        raw = association.dul.socket.socket if association.dul.socket is not None else None
        try:
            yield association
        finally:
            if association.is_established:
                association.release()
            association.join(10)
            if raw is not None:
                raw.close()  # after an abort pynetdicom leaves it to the garbage collector

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes reports on its port."""
        entity = AE("SCANNER")
        entity.add_supported_context(
            StorageCommitmentPushModel, ImplicitVRLittleEndian, scu_role=False, scp_role=True
        )
        server = entity.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.take)],
        )
        assert server is not None
        try:
            yield
        finally:
            server.shutdown()

    def report(self) -> tuple[int, dict[str, int | None], str]:
        """The next one: event type, SOP Instance UID -> failure reason, transaction."""
        event_type, told = self.reports.get(timeout=20)
        # pynetdicom answers a report in a thread beside the association's own, and the two
        # can wait for each other for ever.
        self.threads.pop(0).join(20)
        found: dict[str, int | None] = {
            str(item.ReferencedSOPInstanceUID): None
            for item in told.get("ReferencedSOPSequence", ())
        }
        for item in told.get("FailedSOPSequence", ()):
            found[str(item.ReferencedSOPInstanceUID)] = int(item.FailureReason)
        return event_type, found, str(told.TransactionUID)


def ask(association: Association, references: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """Asks for commitment; gives the status and the transaction."""
    wanted = Dataset()
    wanted.TransactionUID = generate_uid()
    wanted.ReferencedSOPSequence = []
    for sop_class, uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        wanted.ReferencedSOPSequence.append(item)
    status, _ = association.send_n_action(wanted, 1, StorageCommitmentPushModel, WELL_KNOWN)
    return int(status.Status), str(wanted.TransactionUID)


def stored(association: Association, series: Sequence[Dataset]) -> list[tuple[str, str]]:
    """Stores a series; gives the references to it."""
    assert all(association.send_c_store(ds).Status == 0 for ds in series)
    return [(str(ds.SOPClassUID), str(ds.SOPInstanceUID)) for ds in series]


def pending(door: Door) -> int:
    """How many requests wait for their report."""
    with door.keeping.engine.connect() as connection:
        return len(connection.execute(storage_commitments.select()).all())


def a_source(scanner: Scanner) -> list[dict[str, Any]]:
    """The scanner, as the settings list it."""
    return [{"ae-title": "SCANNER", "host-ip": "127.0.0.1", "port": scanner.port}]


def test_what_is_kept_is_reported_on_the_same_association(tmp_path: Path) -> None:
    """A peer that stays gets its report there: everything is safe."""
    scanner = Scanner()
    with an_open_door(tmp_path) as door, scanner.association(door) as association:
        references = stored(association, a_ct_series(3))
        status, transaction_uid = ask(association, references)
        assert status == 0x0000
        expected = {uid: None for _, uid in references}
        assert scanner.report() == (1, expected, transaction_uid)
        door.wait_until(lambda: not pending(door))


def test_what_is_not_kept_is_named_with_its_reason(tmp_path: Path) -> None:
    """Never came, came as another class, or its file is gone: no such promise is made."""
    scanner = Scanner()
    with an_open_door(tmp_path) as door, scanner.association(door) as association:
        first, second, third = stored(association, a_ct_series(3))
        door.kept[2].path.unlink()
        never = generate_uid()
        ask(association, [first, (MRImageStorage, second[1]), third, (CTImageStorage, never)])
        event_type, found, _ = scanner.report()
        assert event_type == 2
        assert found == {first[1]: None, second[1]: 0x0119, third[1]: 0x0112, never: 0x0112}


def test_a_peer_that_leaves_is_told_where_it_listens(tmp_path: Path) -> None:
    """On a new association, in the role of the provider."""
    scanner = Scanner(port=free_port())
    with an_open_door(tmp_path, sources=a_source(scanner)) as door, scanner.listening():
        with scanner.association(door) as association:
            references = stored(association, a_ct_series(2))
            status, transaction_uid = ask(association, references)
        assert status == 0x0000
        assert scanner.report() == (1, {uid: None for _, uid in references}, transaction_uid)
        door.wait_until(lambda: not pending(door))


# pynetdicom drops the socket of a refused connection without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_peer_that_is_away_is_told_after_the_next_start(tmp_path: Path) -> None:
    """Its port is closed, the gateway stops; another life of it reports."""
    scanner = Scanner(port=free_port())
    with an_open_door(tmp_path, sources=a_source(scanner)) as door:
        with scanner.association(door) as association:
            references = stored(association, a_ct_series(1))
            ask(association, references)
        assert pending(door) == 1
    with an_open_door(tmp_path, sources=a_source(scanner)) as door, scanner.listening():
        event_type, found, _ = scanner.report()
        assert (event_type, found) == (1, {references[0][1]: None})
        door.wait_until(lambda: not pending(door))


@contextmanager
def hanging_up(calls: list[None]) -> Iterator[int]:
    """Somebody who takes every connection and lets go of it; gives the port."""

    def hang_up() -> None:
        with suppress(OSError):
            while True:
                door.accept()[0].close()
                calls.append(None)

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield door.getsockname()[1]
        finally:
            door.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_peer_that_is_away_is_called_once_for_all_that_it_has_asked(tmp_path: Path) -> None:
    """Each call may take half a minute to fail, and reports to others wait for it."""
    calls: list[None] = []
    with hanging_up(calls) as port:
        scanner = Scanner(port=port)
        with an_open_door(tmp_path, sources=a_source(scanner)) as door:
            with scanner.association(door) as association:
                references = stored(association, a_ct_series(1))
                asked = [ask(association, references) for _ in range(10)]

            def tried() -> int:
                with door.keeping.engine.connect() as connection:
                    rows = connection.execute(storage_commitments.select()).all()
                return sum(row.attempts > 0 for row in rows)

            door.wait_until(lambda: tried() == len(asked))
            assert 0 < len(calls) < len(asked)
    gc.collect()  # pynetdicom drops the sockets of associations that don't come about


def test_a_peer_nobody_can_find_costs_nothing_for_ever(tmp_path: Path) -> None:
    """No port in the settings and no association left: said in the log, and forgotten."""
    scanner = Scanner()
    with an_open_door(tmp_path) as door:
        with scanner.association(door) as association:
            ask(association, stored(association, a_ct_series(1)))
        door.wait_until(lambda: not pending(door))


def test_a_report_that_is_refused_is_told_again(tmp_path: Path) -> None:
    """Processing failure is no answer: once it takes it, it is done."""
    scanner = Scanner(port=free_port(), status=0x0110)
    with an_open_door(tmp_path, sources=a_source(scanner)) as door, scanner.listening():
        with scanner.association(door) as association:
            ask(association, stored(association, a_ct_series(1)))
            scanner.report()
        scanner.report()
        assert pending(door) == 1
        scanner.status = 0x0000
        scanner.report()
        door.wait_until(lambda: not pending(door))


@pytest.mark.parametrize("wrong", ["no references", "a uid that is none", "another action"])
def test_a_request_that_is_none_is_refused_and_the_next_is_served(
    tmp_path: Path, wrong: str
) -> None:
    """0x0115 or 0x0123, nothing is noted, and the association goes on."""
    scanner = Scanner()
    with an_open_door(tmp_path) as door, scanner.association(door) as association:
        references = stored(association, a_ct_series(1))
        if wrong == "another action":
            status, _ = association.send_n_action(None, 7, StorageCommitmentPushModel, WELL_KNOWN)
            assert status.Status == 0x0123
        else:
            bad = [] if wrong == "no references" else [(CTImageStorage, "../../evil")]
            assert ask(association, bad)[0] == 0x0115
        assert pending(door) == 0
        assert ask(association, references)[0] == 0x0000
        assert scanner.report()[0] == 1


def test_a_request_of_more_items_than_any_has_is_not_even_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would take a hundred times the memory that it takes on the network."""
    monkeypatch.setattr("dicom_gateway.receive.messages._ITEMS_LIMIT", 3)
    scanner = Scanner()
    with an_open_door(tmp_path) as door:
        with scanner.association(door) as association:
            references = stored(association, a_ct_series(1))
            assert ask(association, 3 * references)[0] == 0x0000
        with scanner.association(door) as association:
            with pytest.raises(AttributeError, match="Status"):  # there is no answer
                ask(association, 4 * references)
            door.wait_until(lambda: len(door.ended) == 2)


def test_stores_go_on_while_a_report_is_due(tmp_path: Path) -> None:
    """A peer that stores on after it has asked loses nothing, and gets its report."""
    scanner = Scanner()
    with an_open_door(tmp_path) as door, scanner.association(door) as association:
        first = stored(association, a_ct_series(1))
        ask(association, first)
        stored(association, a_ct_series(2))
        event_type, found, _ = scanner.report()
        assert (event_type, found) == (1, {first[0][1]: None})
        assert len(door.kept) == 3


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    """Then it is not offered."""
    entity = AE("SCANNER")
    entity.add_requested_context(StorageCommitmentPushModel)
    entity.add_requested_context(CTImageStorage)
    with an_open_door(tmp_path, storage_commitment=False) as door:
        association = entity.associate("127.0.0.1", door.port, ae_title="LUNG")
        assert [cx.abstract_syntax for cx in association.accepted_contexts] == [CTImageStorage]
        association.release()
        association.join(10)
