"""The queue with full tables, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf import queue


def test_full_tables_stand_beside_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row for starting, and one for claiming from each table; the first round isn't counted."""
    monkeypatch.setattr(queue, "CLAIMS", 2)
    monkeypatch.setattr(queue, "STARTS", 1)
    found = queue.measure(tmp_path / "queue", (), 7, 2, lambda _: None)
    assert [(one.name, one.repetitions) for one in found.measurements] == [
        ("queue, sqlite: enqueue to start when idle", 2),
        ("queue, sqlite: claim, empty table", 4),
        ("queue, sqlite: claim, 7 rows waiting", 4),
        ("queue, sqlite: claim, 7 rows finished", 4),
        ("queue, sqlite: claim, 7 rows waiting for their next try", 4),
    ]
