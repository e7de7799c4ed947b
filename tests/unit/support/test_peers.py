"""The tests' own peers do what the other tests count on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.support.orthanc import orthanc
from tests.support.peers import dciodvfy, echoscu, free_port, storescp, storescu
from tests.support.processes import MissingPeer, PeerFailed, needs, running
from tests.support.shared_memory import DEV_SHM, dev_shm_as_before


def _a_ct_instance(path: Path) -> Path:
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    dataset.PatientID = "PHANTOM"
    dataset.PatientName = "Phantom"
    dataset.Modality = "CT"
    dataset.Rows = dataset.Columns = 4
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = np.arange(16, dtype=np.int16).tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_storescp_keeps_each_reception_of_what_storescu_sends(tmp_path: Path) -> None:
    """The same instance sent twice is received twice, so that a double delivery shows."""
    instance = _a_ct_instance(tmp_path / "one.dcm")
    with storescp(tmp_path / "received", "PACS") as pacs:
        for _ in range(2):
            sent = storescu([instance], pacs.host, pacs.port, "MODALITY", "PACS")
            assert sent.exit_code == 0, sent.output
        received = pacs.wait_for(2)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in received]
    assert uids == [pydicom.dcmread(instance).SOPInstanceUID] * 2


def test_storescu_says_that_nobody_listens(tmp_path: Path) -> None:
    """Sending to a closed port is no success."""
    sent = storescu([_a_ct_instance(tmp_path / "one.dcm")], "127.0.0.1", free_port())
    assert sent.exit_code != 0


def test_storescp_shows_what_it_said_when_nothing_comes(tmp_path: Path) -> None:
    """A test that waits in vain reads the peer's own words."""
    with (
        storescp(tmp_path / "received") as pacs,
        pytest.raises(PeerFailed, match="had received 1 instances"),
    ):
        pacs.wait_for(1, timeout_s=0.1)


def test_echoscu_reaches_storescp(tmp_path: Path) -> None:
    """A C-ECHO is answered with success."""
    with storescp(tmp_path / "received", "PACS") as pacs:
        assert echoscu(pacs.host, pacs.port, called="PACS").exit_code == 0


def test_orthanc_takes_an_instance_and_sends_it_on(tmp_path: Path) -> None:
    """Orthanc receives by C-STORE, lists what it has, and is a sender too."""
    instance = _a_ct_instance(tmp_path / "one.dcm")
    with (
        orthanc(tmp_path / "orthanc", "ORTHANC", known={"us": ("MODALITY", "", 104)}) as peer,
        storescp(tmp_path / "received", "PACS") as pacs,
    ):
        sent = storescu([instance], peer.host, peer.dicom_port, "MODALITY", "ORTHANC")
        assert sent.exit_code == 0, sent.output
        peer.wait_for(1)
        assert peer.sop_instance_uids() == [pydicom.dcmread(instance).SOPInstanceUID]
        assert peer.file(peer.instances()[0])[128:132] == b"DICM"

        peer.send(peer.instances(), ae_title="PACS", host=peer.our_host, port=pacs.port)
        pacs.wait_for(1)


def test_dciodvfy_names_what_is_missing(tmp_path: Path) -> None:
    """An image without its required attributes is no valid CT image."""
    errors = dciodvfy(_a_ct_instance(tmp_path / "one.dcm"))
    assert any("ImagePositionPatient" in error for error in errors), errors


def test_a_missing_peer_is_a_failure_that_names_the_package() -> None:
    """Nobody has to guess what to install."""
    with pytest.raises(MissingPeer, match="apt-get install no-such-package"):
        needs("no-such-program", package="no-such-package")


def test_a_program_that_ends_early_is_shown_with_its_words(tmp_path: Path) -> None:
    """Waiting for a dead program stops at once."""
    with (
        running(["sh", "-c", "echo out of paper; exit 3"], log=tmp_path / "log") as printer,
        pytest.raises(PeerFailed, match=r"ended with 3 before it printed:\nout of paper"),
    ):
        printer.wait_until(lambda: False, that="it printed")


def test_a_leftover_in_shared_memory_is_named() -> None:
    """What stays behind in /dev/shm fails the test that left it."""
    leftover = DEV_SHM / f"tritome-test-{free_port()}"
    try:
        with (
            pytest.raises(AssertionError, match=leftover.name),
            dev_shm_as_before(prefixes=("tritome-test-",), settle_s=0),
        ):
            leftover.touch()
    finally:
        leftover.unlink()


def test_shared_memory_that_is_cleaned_up_passes() -> None:
    """Coming and going is no leftover."""
    passing = DEV_SHM / f"tritome-test-{free_port()}"
    with dev_shm_as_before(prefixes=("tritome-test-",), settle_s=0) as before:
        passing.touch()
        passing.unlink()
    assert passing.name not in before
