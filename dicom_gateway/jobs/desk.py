"""What a person does with jobs: look at them, read their story, retry, cancel.

In: a job's id or its unique beginning. Out: records. Each change is one transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.database import (
    deliveries,
    instances,
    job_events,
    job_instances,
    jobs,
    now_s,
    reading,
    results,
    series,
    transaction,
)
from dicom_gateway.jobs.news import tell_other_processes
from dicom_gateway.jobs.rows import (
    JOB_COLUMNS,
    as_event,
    as_job,
    as_result,
    revive_deliveries,
    write_event,
)
from dicom_gateway.jobs.sameness import INCOMPLETE_ROLES
from dicom_gateway.jobs.supersession import replaced_results
from dicom_gateway.records import (
    Delivery,
    DeliveryState,
    Job,
    JobEvent,
    JobState,
    ReplacedResult,
    Result,
    SeriesState,
)

_OPEN = (JobState.WAITING, JobState.RUNNING, JobState.DELIVERING)


class JobDesk:
    """Looks into the jobs of a gateway and steers them by hand.

    Args:
        engine: From `open_database`.
        folder: The store's folder; result paths are kept relative to it.
    """

    def __init__(self, engine: sa.Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder.resolve()

    def list_jobs(self, states: Sequence[JobState] = (), limit: int = 100) -> list[Job]:
        """The newest jobs first; only those in `states` where given."""
        query = sa.select(*JOB_COLUMNS).order_by(jobs.c.created_at_s.desc()).limit(limit)
        if states:
            query = query.where(jobs.c.state.in_([state.value for state in states]))
        with reading(self._engine) as connection:
            return [as_job(row) for row in connection.execute(query)]

    def show(self, job_id: str) -> Job | None:
        """One job by its id or a beginning of it that no other job shares."""
        query = sa.select(*JOB_COLUMNS).where(jobs.c.job_id.startswith(job_id, autoescape=True))
        with reading(self._engine) as connection:
            rows = connection.execute(query.limit(2)).all()
        return as_job(rows[0]) if len(rows) == 1 else None

    def events(self, job_id: str) -> list[JobEvent]:
        """A job's story, oldest line first."""
        query = sa.select(job_events).where(job_events.c.job_id == job_id)
        with reading(self._engine) as connection:
            return [as_event(row) for row in connection.execute(query.order_by(job_events.c.id))]

    def results(self, job_id: str) -> list[Result]:
        """The DICOM objects that a job made."""
        query = sa.select(results).where(results.c.job_id == job_id)
        with reading(self._engine) as connection:
            return [as_result(row, self._folder) for row in connection.execute(query)]

    def deliveries(self, job_id: str) -> list[Delivery]:
        """Where each result of a job stands with each destination."""
        query = sa.select(deliveries).where(deliveries.c.job_id == job_id)
        made = {result.sop_instance_uid: result for result in self.results(job_id)}
        with reading(self._engine) as connection:
            return [
                Delivery(
                    delivery_id=row.id,
                    job_id=row.job_id,
                    result=made[row.sop_instance_uid],
                    destination=row.destination,
                    state=DeliveryState(row.state),
                    attempts=row.attempts,
                    not_before_s=row.not_before_s,
                    last_error=row.last_error,
                )
                for row in connection.execute(query.order_by(deliveries.c.id))
            ]

    def replaced_results(self, job: Job) -> list[ReplacedResult]:
        """What the results of a job replace: those of the jobs whose place it has taken."""
        with reading(self._engine) as connection:
            return replaced_results(connection, job.job_id)

    def jobs_of_series(self, series_instance_uid: str) -> list[Job]:
        """The jobs that use a series, alone or in a role, oldest first."""
        uses = sa.select(job_instances.c.job_id).join(
            instances, instances.c.id == job_instances.c.instance_id
        )
        uses = uses.where(instances.c.series_instance_uid == series_instance_uid)
        query = sa.select(*JOB_COLUMNS).where(
            (jobs.c.series_instance_uid == series_instance_uid) | jobs.c.job_id.in_(uses)
        )
        with reading(self._engine) as connection:
            return [as_job(row) for row in connection.execute(query.order_by(jobs.c.created_at_s))]

    def has_subject(self, subjects: Collection[str], called_ae_title: str) -> bool:
        """Whether a job of one of these subjects stands, ended or not."""
        query = sa.select(jobs.c.job_id).where(
            jobs.c.subject.in_(list(subjects)),
            jobs.c.called_ae_title == called_ae_title,
            jobs.c.superseded_by.is_(None),
        )
        with reading(self._engine) as connection:
            return connection.execute(query.limit(1)).first() is not None

    def add_event(
        self, job_id: str, stage: str, note: str, duration_s: float | None = None
    ) -> None:
        """Adds one line to a job's story: stage, what happened, how long it took."""
        with transaction(self._engine) as connection:
            write_event(connection, job_id, stage, note, duration_s)

    def retry(self, job_id: str) -> bool:
        """Starts a failed or cancelled job again.

        Where its results exist, only what was not delivered is sent again; nothing is
        computed twice. Where a result's file is gone, the job makes it again.

        One that lacks a series for one of its roles stays as it is, and its study is decided
        anew, by the rules as they are now: a new job takes its place where they find the series.

        Returns:
            False when there is no such job, it is neither failed nor cancelled, or another job
            has taken its place.
        """
        with transaction(self._engine) as connection:
            query = sa.select(*JOB_COLUMNS).where(
                jobs.c.job_id == job_id, jobs.c.superseded_by.is_(None)
            )
            # Not locked yet: who decides a study locks its series first, then jobs.
            row = connection.execute(query).first()
            if row is not None and row.failure_code == INCOMPLETE_ROLES:
                return _decide_anew(connection, as_job(row))
            row = connection.execute(query.with_for_update()).first()
            if row is None or row.state not in {JobState.FAILED.value, JobState.CANCELLED.value}:
                return False
            paths = connection.execute(
                sa.select(results.c.path).where(results.c.job_id == job_id)
            ).scalars()
            there = all((self._folder / path).is_file() for path in paths)
            resent = revive_deliveries(connection, job_id) if there else 0
            connection.execute(
                jobs.update()
                .where(jobs.c.job_id == job_id)
                .values(
                    state=(JobState.DELIVERING if resent else JobState.WAITING).value,
                    not_before_s=now_s(),
                    strikes=0,
                    finished_at_s=None,
                    failure_code=None,
                    failure_reason=None,
                )
            )
            note = "its results are sent again" if resent else "started again"
            write_event(connection, job_id, "retried", f"by a person: {note}")
            tell_other_processes(connection)
        return True

    def cancel(self, job_id: str) -> bool:
        """Ends a job by hand; a worker that runs it notices and drops what it made.

        Returns:
            False when there is no such job, or it has ended already.
        """
        with transaction(self._engine) as connection:
            changed = connection.execute(
                jobs.update()
                .where(
                    jobs.c.job_id == job_id,
                    jobs.c.state.in_([state.value for state in _OPEN]),
                )
                .values(
                    state=JobState.CANCELLED.value,
                    finished_at_s=now_s(),
                    lease_owner=None,
                    lease_until_s=None,
                )
            ).rowcount
            if not changed:
                return False
            connection.execute(
                deliveries.update()
                .where(
                    deliveries.c.job_id == job_id,
                    deliveries.c.state.in_([DeliveryState.WAITING.value, DeliveryState.SENT.value]),
                )
                .values(state=DeliveryState.FAILED.value, last_error="cancelled by a person")
            )
            write_event(connection, job_id, "cancelled", "by a person")
        return True


def _decide_anew(connection: sa.Connection, job: Job) -> bool:
    """Opens a series of the job's study again; False where the store has it no more."""
    reopened = connection.execute(
        series.update()
        .where(
            series.c.series_instance_uid == job.series_instance_uid,
            series.c.called_ae_title == job.called_ae_title,
        )
        .values(state=SeriesState.RECEIVING.value)
    ).rowcount
    if reopened:
        write_event(connection, job.job_id, "retried", "by a person: its study is decided anew")
    return bool(reopened)
