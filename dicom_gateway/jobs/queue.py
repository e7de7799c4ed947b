"""The queue: a decided series goes in as a job, a worker takes it out under a lease.

In: series and pipeline (`enqueue`), results (`finish`), errors (`fail`, `retry_later`).
Out: `Job`, one at a time, each to one worker. Every change is one transaction: after a
crash a job is waiting, or running under a lease that runs out, or further on.

A claim raises the job's fence; whoever writes under an older fence gets `LeaseLost`, so a
worker that was thought dead can't overwrite its successor. Waiting for the world never
uses a job up: it waits as long as it must, and its story says what for. Only attempts that
broke what they ran on are counted (`strikes.py`).
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dicom_gateway.database import (
    instances,
    job_instances,
    jobs,
    now_s,
    reading,
    transaction,
)
from dicom_gateway.errors import ArenaFull, GatewayError, LeaseLost, Retryable
from dicom_gateway.jobs import strikes
from dicom_gateway.jobs.desk import JobDesk
from dicom_gateway.jobs.lookups import AHEAD, HELD, LATE, OLDEST_DUE, is_held
from dicom_gateway.jobs.news import Listener, News, tell_other_processes
from dicom_gateway.jobs.owner import is_certainly_dead
from dicom_gateway.jobs.rows import (
    JOB_COLUMNS,
    as_job,
    insert_or_skip,
    revive_deliveries,
    tell_conflicts,
    write_event,
    write_results,
)
from dicom_gateway.jobs.sameness import Wanted, content_of, find_same
from dicom_gateway.jobs.shares import WEIGHTS, hold_turns, take_turn
from dicom_gateway.jobs.supersession import supersede_older
from dicom_gateway.records import (
    OBJECT_KIND_OF_SOP_CLASS,
    Job,
    JobState,
    ObjectKind,
    Priority,
    Result,
    Series,
)

Addressee = Callable[[str, ObjectKind | None, Sequence[str]], Sequence[str]]


class JobQueue(JobDesk):
    """Durable jobs on the tables of `database.py`; what a person does is in `JobDesk`.

    Args:
        engine: From `open_database`.
        folder: The store's folder; result paths are kept relative to it.
        lease_s: How long a claim holds without being renewed.
        retry_first_s: Wait after the first retryable error; doubles with each attempt.
        retry_max_s: Longest wait between two attempts.
        addressee: Pipeline, kind of object and the job's destinations -> where a result of
            that kind goes; to all of them where not given.
    """

    def __init__(
        self,
        engine: sa.Engine,
        folder: Path,
        *,
        lease_s: float = 30.0,
        retry_first_s: float = 1.0,
        retry_max_s: float = 60.0,
        addressee: Addressee = lambda _pipeline, _kind, asked: tuple(asked),
    ) -> None:
        super().__init__(engine, folder)
        self.lease_s = lease_s
        self._retry_first_s = retry_first_s
        self._retry_max_s = retry_max_s
        self._addressee = addressee
        self._news = News()

    # In -----------------------------------------------------------------------------

    def enqueue(
        self,
        connection: sa.Connection,
        series: Series,
        *,
        pipeline: str,
        pipeline_version: str,
        priority: Priority = Priority.NORMAL,
        destinations: Sequence[str] = (),
        note: str = "",
        receiving_s: float | None = None,
        rule: str = "",
        subject: str = "",
        roles: Mapping[str, Series] | None = None,
        failure: GatewayError | None = None,
        rules: Collection[str] = (),
    ) -> Job | None:
        """Makes the job for one series and pipeline, in the caller's transaction.

        Call `notify` once the transaction is committed. The same instances for the same
        called AE title, pipeline and version make no second job (but see `sameness.py`); one
        instance more does, and that job takes the place of the earlier one (`supersession.py`).

        Args:
            connection: Inside `transaction(engine)`.
            series: Its instances are the ones the job will use; with roles, the first of them.
            pipeline: Name of the ensemble.
            pipeline_version: From the contract; a new version makes a new job.
            priority: Its class in the queue.
            destinations: Names from `scu.destinations`.
            note: Why the series counts as complete, for the job's story.
            receiving_s: First to last instance, for the job's story.
            rule: Which rule of gateway.yaml asked for it.
            subject: What a later job of the same pipeline takes over; the series where not
                given, else a rule's choice within a study.
            roles: The series of each input, where the pipeline has several.
            failure: It can't be run; it goes into the failed list at once, with this.
            rules: Those that choose now, where this is a choice.

        Returns:
            The new job, or None where it exists already.
        """
        job_id = uuid.uuid4().hex
        wanted = Wanted(
            series=series,
            content=content_of(series, pipeline, pipeline_version, roles or {}),
            pipeline=pipeline,
            subject=subject or series.series_instance_uid,
            rule=rule,
            destinations=destinations,
            priority=priority,
            can_run=failure is None,
            rules=rules,
        )
        same, beside = find_same(connection, wanted)
        if same is not None:
            supersede_older(connection, wanted, same)
            return None
        members = list(roles.values()) if roles else [series]
        inserted = connection.execute(
            insert_or_skip(connection, jobs)
            .values(
                job_id=job_id,
                unique_key=wanted.key,
                pipeline=pipeline,
                called_ae_title=series.called_ae_title,
                calling_ae_title=series.calling_ae_title,
                study_instance_uid=series.study_instance_uid,
                series_instance_uid=series.series_instance_uid,
                destinations=list(destinations),
                priority=priority.value,
                state=(JobState.FAILED if failure else JobState.WAITING).value,
                attempts=0,
                strikes=0,
                fence=0,
                created_at_s=now_s(),
                not_before_s=now_s(),
                finished_at_s=now_s() if failure else None,
                failure_code=failure.code if failure else None,
                failure_reason=str(failure) if failure else None,
                subject=wanted.subject,
                rule=rule,
                roles={role: one.series_instance_uid for role, one in (roles or {}).items()},
            )
            .returning(*JOB_COLUMNS)
        ).first()
        if inserted is None:
            return None
        used = {(one.sop_instance_uid, one.sha256) for part in members for one in part.instances}
        kept = connection.execute(
            sa.select(instances.c.id, instances.c.sop_instance_uid, instances.c.sha256).where(
                instances.c.series_instance_uid.in_([part.series_instance_uid for part in members])
            )
        )
        links = [{"job_id": job_id, "instance_id": i} for i, sop, sha in kept if (sop, sha) in used]
        if links:
            connection.execute(job_instances.insert(), links)
        write_event(connection, job_id, "received", note or "series complete", receiving_s)
        tell_conflicts(connection, job_id, members)
        if beside:
            note = f"job {' and '.join(beside)} computes the same; a choice is sent by itself"
            write_event(connection, job_id, "beside", note)
        supersede_older(connection, wanted, job_id)
        tell_other_processes(connection)
        if failure:
            write_event(connection, job_id, "failed", f"{failure.code}: {failure}")
        return as_job(inserted)

    def notify(self) -> None:
        """Wakes the workers of this process: a job may be due."""
        self._news.notify()

    def listener(self) -> Listener | None:
        """Hears what other processes enqueue, where the database can tell: PostgreSQL."""
        if self._engine.dialect.name != "postgresql":
            return None
        return Listener(self._engine, self.notify)

    def wait_for_news(self, timeout_s: float, seen: int) -> int:
        """Sleeps until `notify` was called after news `seen`; returns the newest's number."""
        return self._news.wait(timeout_s, seen)

    # Out ----------------------------------------------------------------------------

    def claim(self, owner: str, *, only_immediate: bool = False) -> Job | None:
        """Takes the next due job under a lease, or None where nothing is due.

        Immediate jobs go first; high, normal and low share 6:3:1 among all that claim from
        this index, in each the one first that fell due first.

        Args:
            owner: From `this_process`.
            only_immediate: Leaves the others where they are.
        """
        with transaction(self._engine) as connection:
            self._take_back_late(connection, owner)
            ahead = connection.execute(AHEAD, {"longest_s": self._retry_max_s}).scalars().all()
            if ahead:
                back = jobs.update().where(jobs.c.job_id.in_(ahead))
                connection.execute(back.values(not_before_s=now_s()))
            job_id = self._oldest_due(connection, Priority.IMMEDIATE)
            if job_id is None and not only_immediate:
                hold_turns(connection)
                found = {one: self._oldest_due(connection, one) for one in WEIGHTS}
                due = {one: job_id for one, job_id in found.items() if job_id is not None}
                job_id = due[take_turn(connection, due)] if due else None
            if job_id is None:
                return None
            row = connection.execute(
                jobs.update()
                .where(jobs.c.job_id == job_id)
                .values(
                    state=JobState.RUNNING.value,
                    attempts=jobs.c.attempts + 1,
                    fence=jobs.c.fence + 1,
                    lease_owner=owner,
                    lease_until_s=now_s() + self.lease_s,
                    started_at_s=sa.func.coalesce(jobs.c.started_at_s, now_s()),
                    failure_code=None,
                    failure_reason=None,
                )
                .returning(*JOB_COLUMNS)
            ).one()
            job = as_job(row)
            waited_s = sa.select(now_s() - job.not_before_s).scalar_subquery()
            write_event(connection, job.job_id, "started", f"attempt {job.attempts}", waited_s)
            return job

    @staticmethod
    def _oldest_due(connection: sa.Connection, priority: Priority) -> str | None:
        return connection.execute(OLDEST_DUE, {"of_priority": priority.value}).scalar()

    def _take_back_late(self, connection: sa.Connection, owner: str) -> None:
        """Jobs whose lease ran out may be claimed again."""
        late = connection.execute(LATE).all()
        # Our own leases run out where the index was away: no fault of the job.
        ours = [row.job_id for row in late if row.lease_owner == owner]
        others = [row.job_id for row in late if row.lease_owner != owner]
        if ours:
            self._take_back(connection, jobs.c.job_id.in_(ours), "its lease ran out")
        if others:
            gone = "whoever worked on it is gone, its lease ran out"
            self._take_back(connection, jobs.c.job_id.in_(others), gone, strikes.DEATH)

    def holds(self, job: Job) -> bool:
        """Whether a claimed job is still ours: not taken over, not cancelled by a person."""
        with reading(self._engine) as connection:
            found = connection.execute(HELD, {"held_id": job.job_id, "held_fence": job.fence})
            return found.first() is not None

    def renew(self, job: Job) -> bool:
        """Holds the lease for another `lease_s`; False when the job is no longer ours."""
        with transaction(self._engine) as connection:
            changed = connection.execute(
                jobs.update().where(is_held(job)).values(lease_until_s=now_s() + self.lease_s)
            )
            return changed.rowcount == 1

    # Ends ---------------------------------------------------------------------------

    def finish(self, job: Job, made: Sequence[Result]) -> JobState:
        """Writes results, one delivery per result and destination, and the new state.

        One transaction, guarded by the fence. A job without destinations is delivered.

        Raises:
            LeaseLost: another worker holds the job, or a person cancelled it.
        """
        to = {
            result.sop_instance_uid: self._addressee(
                job.pipeline,
                OBJECT_KIND_OF_SOP_CLASS.get(result.sop_class_uid),
                job.destinations,
            )
            for result in made
        }
        waits = any(to.values())
        state = JobState.DELIVERING if waits else JobState.DELIVERED
        with transaction(self._engine) as connection:
            self._leave_running(
                connection,
                job,
                state=state.value,
                finished_at_s=None if waits else now_s(),
            )
            write_results(connection, job.job_id, made, to, self._folder)
            # Those of an earlier attempt, where a retried job had to make its results again.
            revive_deliveries(connection, job.job_id)
            if not waits:
                nowhere = (
                    "no destination takes its results" if made else "it has no results to send"
                )
                write_event(
                    connection,
                    job.job_id,
                    "delivered",
                    nowhere if job.destinations else "no destination is configured",
                )
        return state

    def fail(self, job: Job, error: GatewayError) -> None:
        """Puts the job into the list that a person sees, with code and reason.

        Raises:
            LeaseLost: another worker holds the job, or a person cancelled it.
        """
        with transaction(self._engine) as connection:
            self._leave_running(
                connection,
                job,
                state=JobState.FAILED.value,
                finished_at_s=now_s(),
                failure_code=error.code,
                failure_reason=str(error),
            )
            write_event(connection, job.job_id, "failed", f"{error.code}: {error}")

    def retry_later(self, job: Job, error: Retryable) -> float | None:
        """Lets the job wait for the world to get better; without a limit, but for strikes.

        Returns:
            Seconds until the next attempt: doubling from `retry_first_s` to
            `retry_max_s`, each shortened by up to half so that jobs don't march in step.
            None where the job was given up, because it lost too many requests. An immediate
            job that found the arena full is tried again after `retry_first_s` each time.

        Raises:
            LeaseLost: another worker holds the job, or a person cancelled it.
        """
        weight = strikes.of_error(error)
        # A strike has broken something that must be mended first: wait four times as long.
        delay_s = self._delay_s(job.attempts - 1 + (2 if weight else 0))
        if job.priority is Priority.IMMEDIATE and isinstance(error, ArenaFull):
            delay_s = self._delay_s(0)
        with transaction(self._engine) as connection:
            self._leave_running(
                connection,
                job,
                state=JobState.WAITING.value,
                not_before_s=now_s() + delay_s,
                failure_code=error.code,
                failure_reason=str(error),
            )
            if weight and strikes.add(connection, job.job_id, weight) >= strikes.ENOUGH:
                strikes.give_up(connection, job.job_id, job.attempts, str(error))
                return None
            write_event(
                connection,
                job.job_id,
                "waiting",
                f"{error.code}: {error}; tried again in {delay_s:.1f} s",
            )
        return delay_s

    def give_back(self, job: Job) -> None:
        """Lets another worker take the job at once: this one is being stopped."""
        with transaction(self._engine) as connection:
            self._take_back(connection, is_held(job), "the gateway was stopped")

    # Recovery -----------------------------------------------------------------------

    def release_own(self) -> int:
        """Takes back at once what dead processes of this host held.

        Safe beside living processes and against reused process ids (see `owner.py`);
        leases of other hosts are left to run out.

        Returns:
            How many jobs may be claimed again.
        """
        with transaction(self._engine) as connection:
            owners = connection.execute(
                sa.select(jobs.c.lease_owner)
                .where(jobs.c.state == JobState.RUNNING.value, jobs.c.lease_owner.is_not(None))
                .distinct()
            ).scalars()
            dead = [owner for owner in owners if is_certainly_dead(owner)]
            released = self._take_back(
                connection,
                jobs.c.lease_owner.in_(dead),
                "the process that worked on it died",
                strikes.DEATH,
            )
        if released:
            self.notify()
        return released

    def hurry(self, code: str) -> int:
        """Makes jobs due now that wait because of `code`: what they waited for is back.

        They go in the order in which they came.
        """
        with transaction(self._engine) as connection:
            changed = connection.execute(
                jobs.update()
                .where(
                    jobs.c.state == JobState.WAITING.value,
                    jobs.c.failure_code == code,
                    jobs.c.not_before_s > now_s(),
                )
                .values(not_before_s=jobs.c.created_at_s)
            ).rowcount
        if changed:
            self.notify()
        return changed

    def _take_back(
        self,
        connection: sa.Connection,
        which: sa.ColumnElement[bool],
        why: str,
        weight: int = 0,
    ) -> int:
        taken = connection.execute(
            jobs.update()
            .where(jobs.c.state == JobState.RUNNING.value, which)
            .values(
                # Still due since when it was, so that it is the next of its priority.
                state=JobState.WAITING.value,
                strikes=jobs.c.strikes + weight,
                lease_owner=None,
                lease_until_s=None,
            )
            .returning(jobs.c.job_id, jobs.c.strikes, jobs.c.attempts)
        ).all()
        for row in taken:
            write_event(connection, row.job_id, "taken_back", why)
            if weight and row.strikes >= strikes.ENOUGH:
                strikes.give_up(connection, row.job_id, row.attempts, why)
            elif weight and row.strikes > strikes.PATIENT_DEATHS:
                delay_s = self._delay_s(row.strikes - strikes.PATIENT_DEATHS)
                connection.execute(
                    jobs.update()
                    .where(jobs.c.job_id == row.job_id)
                    .values(not_before_s=now_s() + delay_s)
                )
        return len(taken)

    def _delay_s(self, doublings: int) -> float:
        # 2**30 times the first wait is enough; a larger power would only overflow.
        full_s = min(self._retry_max_s, self._retry_first_s * 2.0 ** min(doublings, 30))
        return full_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret

    def _leave_running(self, connection: sa.Connection, job: Job, **values: Any) -> None:
        changed = connection.execute(
            jobs.update().where(is_held(job)).values(lease_owner=None, lease_until_s=None, **values)
        )
        if changed.rowcount != 1:
            msg = (
                f"job {job.job_id} was taken over or cancelled while this worker held fence "
                f"{job.fence}; what it made is dropped"
            )
            raise LeaseLost(msg)
