"""One file to one peer, and what each answer means."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)
from pynetdicom.association import Association

from dicom_gateway.config_delivery import Destination
from dicom_gateway.deliver import association, cstore
from dicom_gateway.deliver.cstore import CStore
from dicom_gateway.errors import (
    DestinationRefused,
    DestinationUnavailable,
    DestinationUnreachable,
    EncodingFailed,
    NotUnderstood,
    Permanent,
    Retryable,
)
from tests.support.dicom import CANARY, a_ct_series, encoded, write_series
from tests.support.peers import storescp
from tests.support.processes import free_port
from tests.support.scripted_pacs import HANG_UP, a_pacs, delay_negotiation_until_closed
from tests.support.segmentations import a_lung_segmentation

# pynetdicom drops the socket of a connection that failed instead of closing it; CPython
# closes it on the spot, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def send(path: Path, destination: Destination, calling_ae_title: str) -> str:
    """One file over an association of its own."""
    sender = CStore(destination, calling_ae_title)
    try:
        return sender.send(path)
    finally:
        sender.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One DICOM file, standing for a result."""
    (path,) = write_series(tmp_path / "results", a_ct_series(frames=1))
    return path


def _raised_by(action: Callable[[], object]) -> BaseException | None:
    """What an action raises that may never end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - handed to the test
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    return raised[0] if raised else None


def test_the_files_own_syntax_is_proposed_first_and_its_bytes_are_sent(file: Path):
    """Nothing is converted for a peer that takes both."""
    with a_pacs() as pacs:
        assert send(file, pacs.as_destination(), "TRITOME") == "accepted"

    original = dcmread(file)
    assert pacs.proposed == [
        (CTImageStorage, (ExplicitVRLittleEndian,)),
        (CTImageStorage, (ImplicitVRLittleEndian,)),
    ]
    assert pacs.stored == [original.SOPInstanceUID]
    assert pacs.datasets == [encoded(original)]


def test_dcmtk_receives_it(file: Path, tmp_path: Path):
    """A real peer writes the file that we sent."""
    with storescp(tmp_path / "received", "PACS") as peer:
        place = Destination(name="pacs", host_ip="127.0.0.1", port=peer.port, ae_title="PACS")
        send(file, place, "TRITOME")

        (received,) = peer.wait_for(1)

    assert dcmread(received).SOPInstanceUID == dcmread(file).SOPInstanceUID


def test_a_peer_that_knows_only_the_default_transfer_syntax_gets_the_same_elements(
    tmp_path: Path,
):
    """A segmentation, written in implicit VR for dcmtk's storescp +xi: no value differs."""
    study = write_series(tmp_path / "study", a_ct_series(frames=3))
    mask = np.random.default_rng(1).integers(0, 3, (3, 32, 32), dtype=np.uint8)
    path = a_lung_segmentation(tmp_path / "seg.dcm", study, mask)
    with storescp(tmp_path / "received", "PACS", options=["--implicit"]) as peer:
        place = Destination(name="pacs", host_ip="127.0.0.1", port=peer.port, ae_title="PACS")
        assert send(path, place, "TRITOME") == "accepted"

        (received,) = peer.wait_for(1)

    arrived, sent = dcmread(received), dcmread(path)
    assert sent.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert arrived.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert arrived.PixelData == sent.PixelData
    # In implicit VR its bytes go by the name of OW (PS3.5 A.1); everything else is the same.
    del arrived.PixelData, sent.PixelData
    assert arrived.to_json_dict() == sent.to_json_dict()


def test_a_compressed_file_is_offered_as_it_is(tmp_path: Path):
    """It is not unpacked on the way; the refusal names what the peer would have to take."""
    path = tmp_path / "rle.dcm"
    packed = a_ct_series(frames=1)[0]
    packed.compress(RLELossless)
    packed.save_as(path, enforce_file_format=True)
    with a_pacs() as pacs, pytest.raises(DestinationRefused) as refusal:
        send(path, pacs.as_destination(), "TRITOME")

    assert pacs.proposed == [(CTImageStorage, (RLELossless,))]
    assert f"RLE Lossless ({RLELossless})" in str(refusal.value)


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_a_warning_is_an_arrival_and_is_noted(file: Path, status: int):
    """Coercion, discarded elements: the peer has it."""
    with a_pacs([status]) as pacs:
        note = send(file, pacs.as_destination(), "TRITOME")

    assert note.startswith(f"accepted with warning 0x{status:04X}: ")


def test_an_object_that_the_peer_has_already_is_an_arrival(file: Path):
    """After a crash in the middle the same object is sent again."""
    with a_pacs([0x0111]) as pacs:
        assert "had the object already" in send(file, pacs.as_destination(), "TRITOME")


@pytest.mark.parametrize("status", [0xA700, 0xA702, 0xA7FF, 0x0110, 0x0213, HANG_UP])
def test_what_passes_by_itself_is_retryable(file: Path, status: int):
    """Out of resources, busy, hung up."""
    with a_pacs([status]) as pacs, pytest.raises(DestinationUnavailable):
        send(file, pacs.as_destination(), "TRITOME")


@pytest.mark.parametrize("status", [0xA900, 0xA901, 0x0117, 0x0122, 0x0124])
def test_a_refusal_says_status_and_what_to_do(file: Path, status: int):
    """Sending the same again gives the same."""
    with a_pacs([status]) as pacs, pytest.raises(DestinationRefused) as refusal:
        send(file, pacs.as_destination(), "TRITOME")

    assert f"0x{status:04X}" in str(refusal.value)
    assert "tritome jobs retry" in str(refusal.value)
    assert CANARY not in str(refusal.value)


@pytest.mark.parametrize("status", [0xC000, 0xCFFF])
def test_what_it_cannot_understand_may_pass(file: Path, status: int):
    """Some say it when their own database is away; the outbox counts how often."""
    with a_pacs([status]) as pacs, pytest.raises(NotUnderstood, match=f"0x{status:04X}"):
        send(file, pacs.as_destination(), "TRITOME")


def test_many_objects_go_over_one_association(tmp_path: Path):
    """And when the peer has closed it in between, the next object opens another."""
    first, second, third = write_series(tmp_path / "results", a_ct_series(frames=3))
    with a_pacs() as pacs:
        sender = CStore(pacs.as_destination(), "TRITOME")
        sender.send(first)
        sender.send(second)
        assert pacs.associations == 1
        pacs.end_associations()
        sender.send(third)
        sender.close()

    assert len(pacs.stored) == 3
    assert pacs.associations == 2


def test_a_peer_that_does_not_take_the_class_refuses(file: Path):
    """The sentence names the class to enable there."""
    with a_pacs(takes=MRImageStorage) as pacs, pytest.raises(DestinationRefused) as refusal:
        send(file, pacs.as_destination(), "TRITOME")

    assert f"CT Image Storage ({CTImageStorage})" in str(refusal.value)
    assert ExplicitVRLittleEndian in str(refusal.value)
    assert ImplicitVRLittleEndian in str(refusal.value)


def test_a_rejected_association_is_tried_again_and_named(file: Path):
    """Somebody is about to enter our AE title at the PACS."""
    with a_pacs(called_ae_title="ELSE") as pacs, pytest.raises(DestinationUnavailable) as error:
        send(file, pacs.as_destination(), "TRITOME")

    assert "called ae title not recognised" in str(error.value)


def test_a_rejection_that_comes_too_quickly_is_named_all_the_same(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    """A busy machine: connected, rejected and closed before our thread has its turn."""
    delay_negotiation_until_closed(monkeypatch)

    with a_pacs(called_ae_title="ELSE") as pacs, pytest.raises(DestinationUnavailable) as error:
        send(file, pacs.as_destination(), "TRITOME")

    assert "called ae title not recognised" in str(error.value)


def test_nobody_listening_is_retryable(file: Path):
    """The PACS is being restarted."""
    place = Destination(name="pacs", host_ip="127.0.0.1", port=free_port(), ae_title="PACS")

    with pytest.raises(DestinationUnavailable, match="can't be reached"):
        send(file, place, "TRITOME")


def test_a_name_that_nobody_knows_is_retryable(file: Path):
    """A container that is being restarted has none for a while; a misspelt one is said."""
    place = Destination(name="pacs", host_ip="pacs.invalid", port=104, ae_title="PACS")

    with pytest.raises(DestinationUnreachable, match="check host-ip"):
        send(file, place, "TRITOME")


def test_a_peer_that_stops_reading_in_the_middle_is_retryable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It hangs and keeps its connection: the outbox goes on all the same."""
    monkeypatch.setattr(association, "_STALL_TIMEOUT_S", 0.5)
    (large,) = write_series(tmp_path / "results", a_ct_series(frames=1, rows=4096, columns=4096))
    reads_on = threading.Event()
    with a_pacs() as pacs:
        pacs.on_pdu = lambda: pacs.associations == 0 or reads_on.wait(60)
        raised = _raised_by(lambda: send(large, pacs.as_destination(), "TRITOME"))
        reads_on.set()

    assert type(raised) is DestinationUnavailable
    assert not pacs.stored


def test_a_large_object_over_a_slow_line_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The time to send it isn't counted as time that the peer takes for its answer."""
    monkeypatch.setattr(association, "RESPONSE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(cstore, "RESPONSE_TIMEOUT_S", 0.2)
    (large,) = write_series(tmp_path / "results", a_ct_series(frames=1, rows=1024, columns=1024))
    with a_pacs() as pacs:
        pacs.on_pdu = lambda: time.sleep(0.01)

        assert send(large, pacs.as_destination(), "TRITOME") == "accepted"


def test_a_file_that_goes_while_it_is_sent_needs_a_person(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    """Somebody has removed it in between."""
    with a_pacs() as pacs:
        sender = CStore(pacs.as_destination(), "TRITOME")
        opened = sender._caller.open

        def and_remove_it(*asked: Any) -> Association:
            file.unlink()
            return opened(*asked)

        monkeypatch.setattr(sender._caller, "open", and_remove_it)
        with pytest.raises(EncodingFailed) as error:
            sender.send(file)
        sender.close()

    assert error.value.code == "result_missing"


def test_a_lost_file_needs_a_person(tmp_path: Path):
    """No peer can help with it."""
    place = Destination(name="pacs", host_ip="127.0.0.1", port=free_port(), ae_title="PACS")
    (tmp_path / "rubbish.dcm").write_bytes(b"no DICOM at all")

    for name in ("gone.dcm", "rubbish.dcm"):
        with pytest.raises(EncodingFailed) as error:
            send(tmp_path / name, place, "TRITOME")
        assert error.value.code == "result_missing"


def test_every_status_is_an_arrival_or_has_a_place_in_the_tree(file: Path):
    """No status of the 65536 is left without a meaning."""
    from dicom_gateway.deliver.statuses import arrival  # noqa: PLC0415

    place = Destination(name="pacs", host_ip="127.0.0.1", port=104, ae_title="PACS")
    arrived = []
    for status in range(0x10000):
        try:
            arrival(status, place)
        except (Retryable, Permanent):
            continue
        arrived.append(status)

    warnings = [0x0001, 0x0107, 0x0111, 0x0116, *range(0xB000, 0xC000)]
    assert arrived == [0x0000, *warnings]
