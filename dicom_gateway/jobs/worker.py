"""One worker: claims a job, keeps its lease, runs it, and writes how it ended.

In: jobs from the queue, and `process`, which turns a job into results. Out: the job's next
state. A crash at any moment leaves a lease that the next start (or its time) gives back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dicom_gateway.errors import (
    DatabaseUnavailable,
    GatewayError,
    GaveUp,
    LeaseLost,
    Permanent,
    Retryable,
)
from dicom_gateway.jobs.owner import this_process
from dicom_gateway.jobs.queue import JobQueue
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import Job, JobState, ReplacedResult, Result

POLL_S = 1.0
"""How often a worker looks for jobs that another process enqueued, or that became due."""

LOOK_S = 0.5
"""How often it looks whether a person has cancelled the job in hand."""


class InternalError(Permanent):
    """Something that this gateway has no name for; the log has the place."""

    code = "internal_error"


@dataclass
class Stage:
    """One stage of a job under way; its note may be written while it runs."""

    note: str = ""


class JobRun:
    """One attempt at one job, as `process` sees it.

    Attributes:
        job: The job as claimed.
        stop: Set when there is no use in going on: the lease is lost, a person cancelled
            the job, or the gateway stops. Long waits should look at it.
    """

    def __init__(
        self,
        job: Job,
        queue: JobQueue,
        measured: Callable[[str, str, float], None] = lambda *_stage: None,
    ) -> None:
        self.job = job
        self.stop = threading.Event()
        self._queue = queue
        self._measured = measured

    def replaced_results(self) -> list[ReplacedResult]:
        """What the results of this job take the place of; usually nothing."""
        return self._queue.replaced_results(self.job)

    def is_announced(self, sop_instance_uid: str) -> bool:
        """Whether this job has finished with this result before: a peer may have it."""
        made = self._queue.results(self.job.job_id)
        return any(one.sop_instance_uid == sop_instance_uid for one in made)

    def tell(self, stage: str, note: str) -> None:
        """Adds a line to the job's story."""
        self._queue.add_event(self.job.job_id, stage, note)

    @contextmanager
    def stage(self, name: str, note: str = "") -> Iterator[Stage]:
        """Measures a stage and writes it into the job's story when it succeeds."""
        stage = Stage(note)
        started = time.monotonic()
        yield stage
        duration_s = time.monotonic() - started
        self._queue.add_event(self.job.job_id, name, stage.note, duration_s)
        self._measured(self.job.pipeline, name, duration_s)


Process = Callable[[JobRun], Sequence[Result]]


class Worker:
    """The loop of one worker; `run` returns when `stop` was called.

    Args:
        queue: Where jobs come from.
        process: Makes the results; raises an error of `errors.py` where it can't.
        name: Tells the workers of one process apart in the log.
        finished: Called after a job's results are committed (wakes the outboxes).
        ended: Called with the job when it has made its results (None), or failed (the code of
            why).
        measured: Told pipeline, name and seconds of each stage that succeeded.
        only_immediate: An express worker: it leaves all other jobs to the others, so that an
            immediate one never waits for a worker.
    """

    def __init__(
        self,
        queue: JobQueue,
        process: Process,
        name: str = "worker-1",
        finished: Callable[[], None] = lambda: None,
        ended: Callable[[Job, str | None], None] = lambda _job, _failure: None,
        *,
        measured: Callable[[str, str, float], None] = lambda *_stage: None,
        only_immediate: bool = False,
    ) -> None:
        self._queue = queue
        self._process = process
        self._owner = this_process()
        self._finished = finished
        self._only_immediate = only_immediate
        self._ended = ended
        self._measured = measured
        self._stopping = threading.Event()
        self._run: JobRun | None = None
        self._log = get_logger(worker=name)

    def run(self) -> None:
        """Works until `stop`; never ends by an error of a job or of the database."""
        seen = 0
        while not self._stopping.is_set():
            # Before the look: news that come during it aren't slept over.
            seen = self._queue.wait_for_news(0.0, seen)
            try:
                job = self._queue.claim(self._owner, only_immediate=self._only_immediate)
                if job is not None:
                    self._work(job)
            except DatabaseUnavailable as error:
                # A claimed job keeps its lease until that runs out, then is claimed again.
                self._log.warning("index_away", reason=str(error))
                job = None
                self._stopping.wait(POLL_S)
            if job is None:
                self._queue.wait_for_news(POLL_S, seen)

    def stop(self) -> None:
        """Asks the worker to end; a job in hand is given back to the queue."""
        self._stopping.set()
        running = self._run
        if running is not None:
            running.stop.set()
        self._queue.notify()

    def _work(self, job: Job) -> None:
        run = self._run = JobRun(job, self._queue, self._measured)
        if self._stopping.is_set():
            run.stop.set()
        log = self._log.bind(job_id=job.job_id, pipeline=job.pipeline, attempt=job.attempts)
        log.info("job_started")
        done = threading.Event()
        renewal = threading.Thread(
            target=self._keep_lease, args=(run, done), name=f"lease-{job.job_id[:8]}", daemon=True
        )
        renewal.start()
        try:
            made = self._made(run)
            state = self._queue.finish(job, made)
            log.info("job_processed", state=state.value, results=len(made))
            self._finished()
            self._ended(job, None)
        except LeaseLost as error:
            log.warning("lease_lost", reason=str(error))
        except Retryable as error:
            self._try_again(run, error)
        except GatewayError as error:
            self._fail(run, error)
        finally:
            self._run = None
            done.set()
            renewal.join()

    def _made(self, run: JobRun) -> Sequence[Result]:
        try:
            return self._process(run)
        except GatewayError:
            raise
        except Exception as error:
            if self._stopping.is_set():
                # What the job stood on is being closed below it: no fault of the job.
                msg = "the gateway was stopped"
                raise Retryable(msg) from error
            # The outermost edge of a job. The message may quote a data set: frames only.
            self._log.error("job_crashed", job_id=run.job.job_id, exc_info=True)
            msg = (
                f"an unexpected {type(error).__name__} in the gateway itself; its log has the "
                f"place under job {run.job.job_id}. Please report it, then retry the job"
            )
            raise InternalError(msg) from error

    def _try_again(self, run: JobRun, error: Retryable) -> None:
        try:
            if self._stopping.is_set():
                self._queue.give_back(run.job)
                return
            delay_s = self._queue.retry_later(run.job, error)
        except LeaseLost as lost:
            self._log.warning("lease_lost", job_id=run.job.job_id, reason=str(lost))
            return
        if delay_s is None:
            self._log.error(
                "job_failed",
                job_id=run.job.job_id,
                state=JobState.FAILED.value,
                code=GaveUp.code,
                reason=str(error),
            )
            self._ended(run.job, GaveUp.code)
            return
        self._log.warning(
            "job_waits",
            job_id=run.job.job_id,
            code=error.code,
            reason=str(error),
            retry_in_s=round(delay_s, 1),
        )

    def _fail(self, run: JobRun, error: GatewayError) -> None:
        try:
            self._queue.fail(run.job, error)
        except LeaseLost as lost:
            self._log.warning("lease_lost", job_id=run.job.job_id, reason=str(lost))
            return
        self._log.error(
            "job_failed",
            job_id=run.job.job_id,
            state=JobState.FAILED.value,
            code=error.code,
            reason=str(error),
        )
        self._ended(run.job, error.code)

    def _keep_lease(self, run: JobRun, done: threading.Event) -> None:
        # Its own thread: a decode or an inference that takes minutes doesn't cost the job.
        every_s = self._queue.lease_s / 3
        renewed_s = time.monotonic()
        while not done.wait(min(LOOK_S, every_s)):
            try:
                if time.monotonic() - renewed_s >= every_s:
                    held = self._queue.renew(run.job)
                    renewed_s = time.monotonic()
                else:
                    held = self._queue.holds(run.job)
            except DatabaseUnavailable as error:
                self._log.warning("lease_not_renewed", job_id=run.job.job_id, reason=str(error))
                done.wait(LOOK_S)
                continue
            if not held:
                run.stop.set()
                return
