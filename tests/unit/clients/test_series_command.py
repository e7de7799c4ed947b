"""`tritome series`: the story of a series, and a person's word that it is complete."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from clients.commands import jobs, series
from clients.errors import ClientError
from dicom_gateway.config import load_settings
from tests.support.bench import PATIENT, Bench, a_bench
from tests.support.dicom import CANARY, a_ct_series


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Bench]]:
    """A gateway.yaml and a judge on its store."""
    monkeypatch.setattr(jobs.out, "width", 220)
    config = tmp_path / "gateway.yaml"
    document = {
        "dicom": {
            "scp": {
                "ae-titles": [{"ae-title": "AI", "pipelines": ["lung_ct"]}],
                "reject-unknown-sources": False,
            }
        },
        "store": {"folder": "store"},
    }
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    folder = load_settings(config).store.folder
    with a_bench(folder, short_form=["lung_ct"], completeness=PATIENT) as bench:
        yield config, bench


def test_a_series_is_completed_by_hand_and_tells_its_story(
    gateway: tuple[Path, Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    """What it waited for, who ended that, and the job that came of it."""
    config, bench = gateway
    frames = a_ct_series(6, rows=8, columns=8, gap_at=3)
    uid = str(frames[0].SeriesInstanceUID)
    bench.docket.expect(uid, "AI", 6, "C-FIND of pacs")
    bench.receive(frames)
    bench.look()

    series.show(config, uid)
    waiting = capsys.readouterr().out
    assert "Open for AI: 5 instances" in waiting
    assert "C-FIND of pacs states 6 instances" in waiting
    assert "slices missing between" in waiting

    series.complete(config, uid)
    bench.look()
    (job,) = bench.jobs()
    capsys.readouterr()
    series.show(config, uid)
    told = capsys.readouterr().out
    assert "by hand" in told
    assert "a person has declared it complete; 5 of 6 that C-FIND of pacs states" in told
    assert job.job_id[:8] in told
    assert CANARY not in told

    jobs.show(config, job.job_id)
    assert "a person has declared it complete" in capsys.readouterr().out
    with pytest.raises(ClientError, match="it is decided already"):
        series.complete(config, uid)


def test_a_series_for_two_ae_titles_must_be_told_apart(gateway: tuple[Path, Bench]) -> None:
    """A person's word counts for one of them."""
    config, bench = gateway
    frames = a_ct_series(3, rows=8, columns=8)
    uid = str(frames[0].SeriesInstanceUID)
    bench.receive(frames, "a1", ends=None)
    bench.receive(frames, "a2", called="OTHER", ends=None)

    with pytest.raises(ClientError, match="sent to AI and OTHER; say with --called"):
        series.complete(config, uid)
    series.complete(config, uid, "AI")

    assert bench.docket.declared_complete() == {(uid, "AI")}


def test_a_study_is_completed_by_its_own_uid(
    gateway: tuple[Path, Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    """All that waits of it."""
    config, bench = gateway
    frames = a_ct_series(6, rows=8, columns=8, gap_at=3)
    bench.receive(frames)

    series.complete(config, str(frames[0].StudyInstanceUID))
    assert f"Study {frames[0].StudyInstanceUID} is declared complete" in capsys.readouterr().out
    bench.look()

    assert len(bench.jobs()) == 1


@pytest.mark.parametrize("command", [series.show, series.complete])
def test_an_unknown_series_is_told_where_to_look(
    gateway: tuple[Path, Bench], command: object
) -> None:
    """In the list of jobs."""
    config, _ = gateway
    with pytest.raises(ClientError, match="tritome jobs list"):
        command(config, "1.2.3")  # type: ignore[operator]
