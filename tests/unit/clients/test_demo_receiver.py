"""The demo's small PACS."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread

from clients.receiver import Receiver
from tests.support.dicom import a_ct_series, write_series
from tests.support.peers import echoscu, storescu


def test_it_answers_echo_and_keeps_what_is_stored(tmp_path: Path) -> None:
    """Dcmtk can verify and store; every object is one whole file."""
    files = write_series(tmp_path / "study", a_ct_series(frames=3, rows=16, columns=16))
    with Receiver(tmp_path / "pacs", ae_title="DEMO_PACS") as pacs:
        assert echoscu("127.0.0.1", pacs.port, called="DEMO_PACS").exit_code == 0
        assert storescu(files, "127.0.0.1", pacs.port, called="DEMO_PACS").exit_code == 0
        kept = pacs.received
    assert [dcmread(path).SOPInstanceUID for path in kept] == [
        dcmread(path).SOPInstanceUID for path in files
    ]
    assert sorted(path.name for path in (tmp_path / "pacs").iterdir()) == sorted(
        path.name for path in kept
    )


def test_the_same_object_twice_is_one_file(tmp_path: Path) -> None:
    """A repeated delivery replaces the file, as in a PACS."""
    files = write_series(tmp_path / "study", a_ct_series(frames=2, rows=16, columns=16))
    with Receiver(tmp_path / "pacs") as pacs:
        for _ in range(2):
            assert storescu(files, "127.0.0.1", pacs.port).exit_code == 0
        assert len(pacs.received) == 2
