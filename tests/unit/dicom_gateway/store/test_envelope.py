"""What a kept file says of its own arrival, and how it is read again."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pydicom
import pytest

from dicom_gateway.store.envelope import (
    IMPLEMENTATION_CLASS_UID,
    Clock,
    Note,
    NotOurs,
    read_head,
    write_head,
)
from dicom_gateway.store.identity import identify
from tests.support.dicom import a_ct_series, an_arrival, as_file_bytes, encoded
from tests.support.gateway import a_store


def test_any_dicom_program_reads_who_sent_it_to_whom(tmp_path: Path) -> None:
    """Sending and Receiving AE Title of the file meta information (PS3.10 7.1)."""
    ds = a_ct_series(1)[0]
    with a_store(tmp_path) as keeping:
        path = keeping.store.keep(
            an_arrival(ds, called_ae_title="LUNG", calling_ae_title="CT_ROOM_1")
        ).path

    meta = pydicom.dcmread(path).file_meta
    assert (meta.SendingApplicationEntityTitle, meta.ReceivingApplicationEntityTitle) == (
        "CT_ROOM_1",
        "LUNG",
    )
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID
    assert str(meta.PrivateInformationCreatorUID).startswith(IMPLEMENTATION_CLASS_UID)
    assert meta.FileMetaInformationGroupLength > 0


@pytest.mark.parametrize("title", ["LUNG", "A", "SIXTEEN_LETTERS_", "WITH SPACE", 'a"\\b', "é"])
def test_what_was_written_is_read_again_exactly(title: str) -> None:
    """Also titles that are none by the standard: a peer may call itself anything."""
    arrival = an_arrival(a_ct_series(1)[0], called_ae_title=title, calling_ae_title=title)
    note = Note(title, title, 1763676000.123457)
    head = write_head(identify(arrival), arrival, note)
    file = io.BytesIO(head + arrival.encoded_dataset)

    envelope = read_head(file)

    assert envelope.note == note
    assert envelope.sop_instance_uid == arrival.sop_instance_uid
    assert envelope.transfer_syntax_uid == arrival.transfer_syntax_uid
    assert (envelope.begins_at, file.read()) == (len(head), arrival.encoded_dataset)


def test_a_file_of_somebody_else_is_not_taken_for_ours() -> None:
    """A true DICOM file, one cut short, one with nonsense in it, and none at all."""
    whole = as_file_bytes(a_ct_series(1)[0])
    arrival = an_arrival(a_ct_series(1)[0])
    ours = write_head(identify(arrival), arrival, Note("LUNG", "CT", 1.0))
    broken = ours.replace(b'"received_at_s"', b'"recEived_at_s"')
    for content in (whole, ours[:200], ours[:100], broken, b"", encoded(a_ct_series(1)[0])):
        with pytest.raises(NotOurs):
            read_head(io.BytesIO(content))


def test_no_two_arrivals_have_the_same_time() -> None:
    """Eight threads: the order of arrival can always be read from it."""
    clock = Clock()
    seen: list[float] = []

    def look() -> None:
        seen.extend([clock.now_s() for _ in range(500)])

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(seen)) == 8 * 500
