"""Keep, the other end: what has had its time leaves, by a policy and in small steps.

In: `store.retention` of gateway.yaml and the index. Out: fewer files and rows. One series,
with those that share its jobs and are due too, is one step and one transaction: its files go
first, then its rows, then the commit. Survives a crash: a step that was cut off is found again
by the next look, since its rows are still there, and is done to its end; nothing is left that
nobody knows of.

What never goes: anything of a study of which a series is still coming, a job has not ended or a
result is still to be sent, and an instance that a job of a series uses which stays. Each called
AE title is looked at by itself: what another one has too only leaves the one that it is due at.

Source of the order: whoever keeps an object looks for its file last of all, in a transaction
that holds the same rows (`instances.py`), so a file can't go under an acknowledgement.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from dicom_gateway.config import RetentionSettings
from dicom_gateway.database import (
    arrivals,
    completed_by_hand,
    instances,
    job_instances,
    jobs,
    metadata,
    now_s,
    open_associations,
    reading,
    results,
    series,
    series_decisions,
    stated_counts,
    transaction,
)
from dicom_gateway.errors import DatabaseUnavailable, OutOfResources
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.store.due import DAY_S, OPEN, Due, find_due, sharing_jobs
from dicom_gateway.store.examine import HELD, RESULTS
from dicom_gateway.store.files import DurableFolder, sync_folder
from dicom_gateway.store.notes import Notes, note_path

T = TypeVar("T")

Gone = Callable[[bool], None]
"""Told once instances have gone: whether nothing of their study is left."""
Going = Callable[[str, Mapping[str, int], Path], Gone]
"""Told before instances of a study go: its UID, how many of which SOP class, and one's file."""

EVERY_S = 600.0
"""Between two looks at what is due."""
BETWEEN_STEPS_S = 0.05
"""Intake and the workers come in between."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What one step has removed."""

    instances: int = 0
    results: int = 0
    size_bytes: int = 0


class Retention:
    """Removes what is due; `run` returns when `stop` was called.

    Args:
        engine: From `open_database`.
        folder: The store's folder.
        settings: `store.retention` of gateway.yaml.
        going: Hears of instances that go, for the audit trail.
    """

    def __init__(
        self,
        engine: sa.Engine,
        folder: Path,
        settings: RetentionSettings,
        going: Going = lambda *_: lambda _: None,
    ) -> None:
        self._engine = engine
        self._going = going
        self._durable = DurableFolder(folder, 0)
        self._folder = self._durable.folder
        self._notes = Notes(self._durable)
        self._settings = settings
        self._stopping = threading.Event()
        self._log = get_logger(room="store")

    def run(self) -> None:
        """Looks until `stop`; never ends because the database or the disk is away."""
        while not self._stopping.is_set():
            try:
                for due in self.due():
                    self.remove(due)
                    if self._stopping.wait(BETWEEN_STEPS_S):
                        return
                self.remove_stray_results()
            except (DatabaseUnavailable, OutOfResources) as error:
                self._log.warning("retention_waits", reason=str(error))
            self._stopping.wait(EVERY_S)

    def stop(self) -> None:
        """Asks it to end after the step in hand."""
        self._stopping.set()

    def due(self) -> list[Due]:
        """What would be removed now, the oldest first.

        Raises:
            DatabaseUnavailable: the index does not answer.
        """
        with reading(self._engine) as connection:
            return find_due(connection, self._settings)

    def remove(self, due: Due) -> Removed:
        """Removes one of them, where it is still due; one transaction.

        The series that it shares jobs with go with it, where they are due.

        Raises:
            DatabaseUnavailable: the index does not answer.
            OutOfResources: the disk doesn't take the change.
        """
        with transaction(self._engine) as connection:
            uids = {due.series_instance_uid}
            if due.instance_id is None:
                uids = sharing_jobs(connection, due)
            # PostgreSQL: an arrival that is under way comes before or after. In the order of
            # everybody who holds several.
            connection.execute(
                sa.select(series.c.state)
                .where(
                    series.c.series_instance_uid.in_(uids),
                    series.c.called_ae_title == due.called_ae_title,
                )
                .order_by(series.c.series_instance_uid)
                .with_for_update()
            )
            again = find_due(connection, self._settings, only=due)
            if due.key not in {one.key for one in again}:
                return Removed()
            gone: list[tuple[str, Gone]] = []
            removed = self._remove(connection, again, gone)
            left = {uid for uid, _ in gone if _has_instances(connection, uid)}
        for uid, tell in gone:
            tell(uid not in left)
        if removed != Removed():
            self._log.info(
                "removed",
                why=due.why,
                series_instance_uid=due.series_instance_uid,
                called_ae_title=due.called_ae_title,
                together_with=[one.series_instance_uid for one in again if one.key != due.key],
                instances=removed.instances,
                results=removed.results,
                size_mib=removed.size_bytes >> 20,
            )
        return removed

    def remove_stray_results(self) -> int:
        """Removes result files that no job ended with, after the days of delivered ones.

        Of a job that failed, was cancelled or superseded while it wrote them. And what was held
        of jobs that the index doesn't know (it was made again), after the days of failed ones.

        Raises:
            DatabaseUnavailable: the index does not answer.
        """
        held = self._remove_stray_held()
        days = self._settings.delivered_after_days
        if days is None:
            return held
        files = {path: path.stat().st_mtime for path in (self._folder / RESULTS).glob("*.dcm")}
        with transaction(self._engine) as connection:
            known = set(connection.execute(sa.select(results.c.path)).scalars())
            oldest_s, now = connection.execute(
                sa.select(sa.func.min(jobs.c.created_at_s), now_s()).where(jobs.c.state.in_(OPEN))
            ).one()
            strays = [
                path.relative_to(self._folder)
                for path, at_s in files.items()
                if path.relative_to(self._folder).as_posix() not in known
                and now - at_s > days * DAY_S
                and (oldest_s is None or at_s < oldest_s)
            ]
            self._unlink(strays)
        return held + len(strays)

    def _remove_stray_held(self) -> int:
        days = self._settings.failed_after_days
        if days is None:
            return 0
        found = {path: path.stat().st_mtime for path in (self._folder / HELD).rglob("*.dcm")}
        with transaction(self._engine) as connection:
            now = connection.execute(sa.select(now_s())).scalar_one()
            old = [path for path, at_s in found.items() if now - at_s > days * DAY_S]
            known: set[str] = set()
            for some in _portions([path.parent.name for path in old]):
                rows = connection.execute(sa.select(jobs.c.job_id).where(jobs.c.job_id.in_(some)))
                known.update(rows.scalars())
            strays = [path for path in old if path.parent.name not in known]
            self._unlink_held(strays)
        return len(strays)

    def _remove(
        self, connection: sa.Connection, together: Sequence[Due], gone: list[tuple[str, Gone]]
    ) -> Removed:
        """Removes what goes in one step; all of it, or nothing. `gone` gets who is to be told."""
        members = [(due, _members(connection, due)) for due in together]
        job_ids = [
            job_id
            for due in together
            if due.instance_id is None
            for job_id in _jobs_of(connection, due)
        ]
        for due, rows in members:
            ids = [row.id for row in rows]
            if _used_by_others(connection, ids, job_ids, due.called_ae_title):
                return Removed()  # just now; nothing has gone yet
        made = self._remove_jobs(connection, job_ids)
        count = 0
        size_bytes = made.size_bytes
        for due, rows in members:
            some = self._remove_instances(connection, due, rows, gone)
            count += some.instances
            size_bytes += some.size_bytes
            if due.instance_id is None:
                _forget_series(connection, due)
        return Removed(count, made.results, size_bytes)

    def _remove_jobs(self, connection: sa.Connection, job_ids: Sequence[str]) -> Removed:
        """Result files and what was held, then every row that hangs on the jobs, then the jobs."""
        found = [
            row
            for some in _portions(job_ids)
            for row in connection.execute(
                sa.select(results.c.path, results.c.size_bytes).where(results.c.job_id.in_(some))
            )
        ]
        self._unlink([Path(row.path) for row in found])
        held = [path for one in job_ids for path in (self._folder / HELD / one).glob("*")]
        size_bytes = sum(row.size_bytes for row in found)
        size_bytes += sum(path.stat().st_size for path in held)
        self._unlink_held(held)
        for table in reversed(metadata.sorted_tables):
            column = table.c.get("job_id")
            if column is not None:
                for some in _portions(job_ids):
                    connection.execute(table.delete().where(column.in_(some)))
        return Removed(0, len(found), size_bytes)

    def _remove_instances(
        self,
        connection: sa.Connection,
        due: Due,
        members: Sequence[sa.Row[Any]],
        told: list[tuple[str, Gone]],
    ) -> Removed:
        """Files, then rows; what another AE title has too only leaves this one."""
        count = size_bytes = 0
        for some in _portions(members):
            ids = [row.id for row in some]
            shared = set(
                connection.execute(
                    sa.select(arrivals.c.instance_id).where(
                        arrivals.c.instance_id.in_(ids),
                        arrivals.c.called_ae_title != due.called_ae_title,
                    )
                ).scalars()
            )
            for row in some:
                if row.id in shared:
                    self._notes.forget(Path(row.path), due.called_ae_title)
            gone = [row for row in some if row.id not in shared]
            paths = [Path(row.path) for row in gone]
            if gone:
                uid = due.study_instance_uid
                classes = Counter(str(row.sop_class_uid) for row in gone)
                told.append((uid, self._going(uid, classes, self._folder / paths[0])))
            self._unlink([*paths, *(note_path(path) for path in paths)])
            connection.execute(
                arrivals.delete().where(
                    arrivals.c.instance_id.in_(ids),
                    arrivals.c.called_ae_title == due.called_ae_title,
                )
            )
            connection.execute(instances.delete().where(instances.c.id.in_([r.id for r in gone])))
            count += len(gone)
            size_bytes += sum(row.size_bytes for row in gone)
        return Removed(count, 0, size_bytes)

    def _unlink(self, relatives: Sequence[Path]) -> None:
        folders = set()
        for relative in relatives:
            with suppress(FileNotFoundError):
                (self._folder / relative).unlink()
                folders.add((self._folder / relative).parent)
        for folder in folders:
            sync_folder(folder)

    def _unlink_held(self, paths: Sequence[Path]) -> None:
        self._unlink([path.relative_to(self._folder) for path in paths])
        for folder in {path.parent for path in paths}:
            if folder != self._folder / HELD:
                with suppress(OSError):  # something new has come into it
                    folder.rmdir()


def _members(connection: sa.Connection, due: Due) -> list[sa.Row[Any]]:
    """The rows of what goes, held: on PostgreSQL nobody can use one of them until we are done."""
    wanted = (
        instances.c.id == due.instance_id
        if due.instance_id is not None
        else instances.c.series_instance_uid == due.series_instance_uid
    )
    return list(
        connection.execute(
            sa.select(
                instances.c.id,
                instances.c.path,
                instances.c.size_bytes,
                instances.c.sop_class_uid,
            )
            .join(arrivals, arrivals.c.instance_id == instances.c.id)
            .where(wanted, arrivals.c.called_ae_title == due.called_ae_title)
            .order_by(instances.c.id)
            .with_for_update()
        )
    )


def _has_instances(connection: sa.Connection, study_instance_uid: str) -> bool:
    some = sa.select(instances.c.id).where(instances.c.study_instance_uid == study_instance_uid)
    return connection.execute(some.limit(1)).first() is not None


def _jobs_of(connection: sa.Connection, due: Due) -> list[str]:
    return list(
        connection.execute(
            sa.select(jobs.c.job_id).where(
                jobs.c.series_instance_uid == due.series_instance_uid,
                jobs.c.called_ae_title == due.called_ae_title,
            )
        ).scalars()
    )


def _used_by_others(
    connection: sa.Connection, ids: Sequence[int], own: Collection[str], title: str
) -> bool:
    """Whether a job that stays needs one of the instances.

    A job of another AE title does not, while that has the instance too: it stays for it.
    """
    its_own_arrival = (
        sa.exists()
        .where(arrivals.c.instance_id == job_instances.c.instance_id)
        .where(arrivals.c.called_ae_title == jobs.c.called_ae_title)
    )
    return any(
        job_id not in own
        for some in _portions(ids)
        for job_id in connection.execute(
            sa.select(job_instances.c.job_id)
            .join(jobs, jobs.c.job_id == job_instances.c.job_id)
            .where(
                job_instances.c.instance_id.in_(some),
                sa.or_(jobs.c.called_ae_title == title, ~its_own_arrival),
            )
            .distinct()
        ).scalars()
    )


def _forget_series(connection: sa.Connection, due: Due) -> None:
    """What the index says of a series beside its instances, and of its study after the last."""
    for table in (open_associations, series_decisions, series):
        connection.execute(
            table.delete().where(
                table.c.series_instance_uid == due.series_instance_uid,
                table.c.called_ae_title == due.called_ae_title,
            )
        )
    left = connection.execute(
        sa.select(series.c.state)
        .where(
            series.c.study_instance_uid == due.study_instance_uid,
            series.c.called_ae_title == due.called_ae_title,
        )
        .limit(1)
    ).first()
    uids = [due.series_instance_uid] + ([due.study_instance_uid] if left is None else [])
    for table in (stated_counts, completed_by_hand):
        connection.execute(
            table.delete().where(
                table.c.uid.in_(uids), table.c.called_ae_title == due.called_ae_title
            )
        )


def _portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """A statement has a limited number of parameters."""
    for first in range(0, len(values), 500):
        yield values[first : first + 500]
