"""Keep, the audit: do the files and the index say the same?

In: the store's folder and the index. Out: what the one has and the other has not, and what
has changed on the disk. Nothing is changed here; it may run beside a gateway, since what
came only just now is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.database import arrivals, instances, reading, results
from dicom_gateway.errors import ConfigurationError
from dicom_gateway.store.examine import INSTANCES, RESULTS, Examined, examine_all, instance_files
from dicom_gateway.store.files import unfinished

JUST_NOW_S = 120.0
"""Younger files may be on their way: their row is written after them."""


def require_its_folder(engine: sa.Engine, folder: Path) -> None:
    """Looks whether the index is this folder's: where it knows instances, they have their place.

    A disk that isn't mounted looks like a new folder, and a second gateway on the same database
    would work on what it doesn't have.

    Raises:
        ConfigurationError: the folder never had any.
        DatabaseUnavailable: the index does not answer.
    """
    place = folder / INSTANCES
    if place.is_dir():
        return
    with reading(engine) as connection:
        if connection.execute(sa.select(instances.c.id).limit(1)).first():
            msg = (
                f"the index knows instances, and there is no {place}: is the disk of store.folder "
                "mounted, and is store.database-url this gateway's? Where they are lost for good, "
                "make that folder, and their jobs will say so"
            )
            raise ConfigurationError(msg)


@dataclass
class Checked:
    """What an audit has found.

    Attributes:
        files: How many kept files there are.
        size_bytes: Of them together.
        rows: How many instances the index has.
        without_row: Files of which the index says nothing.
        without_file: Rows without a file: (path, SOP Instance UID, Series Instance UID).
        damaged: Files that are not what they were: (path, what is wrong).
        untold: Files that came to an AE title of which the index says nothing.
        stray_notes: Notes without the file that they are about.
        half_written: What a killed process left.
        results_without_row: Result files of which the index says nothing.
        results_without_file: Rows of results without a file: (path, SOP Instance UID).
    """

    files: int = 0
    size_bytes: int = 0
    rows: int = 0
    without_row: list[Path] = field(default_factory=list)
    without_file: list[tuple[Path, str, str]] = field(default_factory=list)
    damaged: list[tuple[Path, str]] = field(default_factory=list)
    untold: list[Path] = field(default_factory=list)
    stray_notes: list[Path] = field(default_factory=list)
    half_written: list[Path] = field(default_factory=list)
    results_without_row: list[Path] = field(default_factory=list)
    results_without_file: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """True where nothing acknowledged is missing, damaged or unknown to the index."""
        return not (
            self.without_row
            or self.without_file
            or self.damaged
            or self.untold
            or self.results_without_file
        )


def check(
    engine: sa.Engine,
    folder: Path,
    on_file: Callable[[Examined], None] = lambda _one: None,
) -> Checked:
    """Compares every file with its name and with the index.

    Args:
        engine: From `open_database`.
        folder: The store's.
        on_file: Called after each, for a progress bar.

    Raises:
        DatabaseUnavailable: the index does not answer.
    """
    folder = folder.resolve()
    found = Checked()
    relatives = instance_files(folder)
    started_at_s = time.time()
    rows, told = _index(engine)  # after the files: a row is never younger than its file
    found.rows = len(rows)
    for one in examine_all(folder, relatives, on_file):
        if one.trouble == "it has gone":
            continue  # retention was quicker
        found.files += 1
        found.size_bytes += one.size_bytes
        row = rows.get(one.relative.as_posix())
        if one.trouble:
            found.damaged.append((one.relative, one.trouble))
        elif _is_new(folder / one.relative, started_at_s):
            continue
        elif row is None:
            found.without_row.append(one.relative)
        elif not {note.called_ae_title for note in one.notes} <= told[row[0]]:
            found.untold.append(one.relative)
    there = {relative.as_posix() for relative in relatives}
    found.without_file = [
        (Path(path), uid, series_uid)
        for path, (_, uid, series_uid) in rows.items()
        if path not in there and not (folder / path).exists()
    ]
    found.stray_notes = [
        path.relative_to(folder)
        for path in (folder / "instances").rglob("*.json")
        if not path.with_suffix(".dcm").exists()
    ]
    found.half_written = [
        path.relative_to(folder) for path in unfinished(folder) if not _is_new(path, started_at_s)
    ]
    _check_results(engine, folder, found, started_at_s)
    return found


def _index(engine: sa.Engine) -> tuple[dict[str, tuple[int, str, str]], dict[int, set[str]]]:
    """Path -> (id, SOP Instance UID, Series Instance UID), and id -> called AE titles."""
    with reading(engine) as connection:
        rows = {
            path: (row_id, uid, series_uid)
            for path, row_id, uid, series_uid in connection.execute(
                sa.select(
                    instances.c.path,
                    instances.c.id,
                    instances.c.sop_instance_uid,
                    instances.c.series_instance_uid,
                )
            )
        }
        told: dict[int, set[str]] = {row_id: set() for row_id, _, _ in rows.values()}
        for row_id, title in connection.execute(
            sa.select(arrivals.c.instance_id, arrivals.c.called_ae_title)
        ):
            told[row_id].add(title)
    return rows, told


def _check_results(engine: sa.Engine, folder: Path, found: Checked, started_at_s: float) -> None:
    with reading(engine) as connection:
        rows = {
            row.path: row.sop_instance_uid
            for row in connection.execute(sa.select(results.c.path, results.c.sop_instance_uid))
        }
    there = {path.relative_to(folder).as_posix() for path in (folder / RESULTS).glob("*.dcm")}
    found.results_without_row = [
        Path(path)
        for path in sorted(there - rows.keys())
        if not _is_new(folder / path, started_at_s)
    ]
    found.results_without_file = [
        (Path(path), uid)
        for path, uid in rows.items()
        if path not in there and not (folder / path).exists()
    ]


def _is_new(path: Path, now_s: float) -> bool:
    try:
        return now_s - path.stat().st_mtime < JUST_NOW_S
    except FileNotFoundError:
        return True
