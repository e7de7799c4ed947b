"""Intake as a part of a bench; the receivers themselves are in the system tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perf import intake
from perf.intake import ORTHANC, STORESCP, as_found, least_gain, ours

DURATIONS_S = {
    ours(1): {1: [2.0, 4.0], 4: [2.0, 4.0]},
    ours(2): {1: [2.0, 4.0], 4: [1.0, 2.5]},
    ORTHANC: {1: [3.0, 6.0], 4: [3.0, 6.0]},
    STORESCP: {1: [0.4, 0.8], 4: [0.2, 0.4]},
}


def test_our_rate_is_held_against_both_peers_in_the_same_round() -> None:
    """Orthanc's rate and a quarter of storescp's with one association, more with four."""
    over_orthanc, over_storescp, gained = as_found(DURATIONS_S, 100, 2).shown
    assert (over_orthanc.found, over_orthanc.wanted, over_orthanc.holds) == (1.5, 1.0, True)
    assert (over_storescp.found, over_storescp.wanted, over_storescp.holds) == (0.2, 0.25, False)
    assert (gained.found, gained.wanted, gained.n) == (pytest.approx(1.8), 1.0, 2)
    assert "(33 against 22 instances/s)" in over_orthanc.what


def test_each_receiver_has_a_row_for_one_and_for_four_associations() -> None:
    """Rows of as many associations stand in one picture."""
    rows = [one.name for one in as_found(DURATIONS_S, 100, 2).measurements]
    assert rows[0] == "intake, 100 instances of 512 x 512, 1 association: tritome"
    assert rows[-1] == f"intake, 100 instances of 512 x 512, 4 associations: {STORESCP}"
    assert len(set(rows)) == 8


@pytest.mark.parametrize(("processes", "gain"), [(1, 1.0), (2, 1.0), (4, 2.0), (16, 2.0)])
def test_four_associations_need_only_our_half_of_the_cores(processes: int, gain: float) -> None:
    """The sender is on the same machine; four associations never use more than four cores."""
    assert least_gain(processes) == gain


def test_a_machine_without_namespaces_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orthanc isn't started where others could reach it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="unshare is missing"):
        intake.measure(tmp_path / "intake", 1, 1, lambda _: None)


def test_the_last_words_from_inside_the_namespace_are_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report says what is missing, not only that something is."""
    unshare = tmp_path / "unshare"
    unshare.write_text("#!/bin/sh\necho 'RuntimeError: Orthanc is missing' >&2\nexit 1\n")
    unshare.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match="Orthanc is missing"):
        intake.measure(tmp_path / "intake", 1, 1, lambda _: None)


def test_a_series_is_written_under_uids_of_its_own(tmp_path: Path) -> None:
    """What is sent again is new to every receiver."""
    first = intake.write_series(tmp_path / "a", 2, 0)
    again = intake.write_series(tmp_path / "b", 2, 0)
    assert len({path.read_bytes() for path in [*first, *again]}) == 4


def test_programs_of_the_venv_are_no_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A storescu of pynetdicom isn't dcmtk's, and a missing one names its package."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "pyvenv.cfg").touch()
    mine = tmp_path / "bin" / "nosuchprogram"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(RuntimeError, match="install Debian's package dcmtk"):
        intake.program("nosuchprogram", "dcmtk")
