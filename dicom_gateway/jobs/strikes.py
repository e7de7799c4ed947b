"""How often a job may break what it runs on before it is given up.

In: what an attempt ended with. Out: strikes for the job's row, and the sentence when it has
had enough of them. The strikes are in the index: they outlive the gateway that the job
killed.

Waiting for the world costs nothing: a Triton that is away, an arena that is full, an index
that is locked never use a job up. What counts is an attempt that took something down with
it. A request that Triton had and never answered is strong evidence and weighs three; the
death of the gateway has many other causes and weighs one, so that ten restarts at bad
moments cost no job. So has a GPU without room for the volume: its neighbours may need it.
"""

from __future__ import annotations

import sqlalchemy as sa

from dicom_gateway.database import jobs, now_s
from dicom_gateway.errors import GatewayError, GaveUp, RequestLost, TooLittleMemory
from dicom_gateway.jobs.rows import write_event
from dicom_gateway.records import JobState

LOST_REQUEST = 3
"""Weight of a request that Triton had and didn't answer."""

DEATH = 1
"""Weight of a gateway that died with the job in hand."""

SHORTAGE = 1
"""Weight of too little memory where Triton computes."""

ENOUGH = 15
"""Five lost requests, or fifteen of the others: the job goes to the failed list."""

SUSPECT = 3
"""From here on a job runs beside no other suspect: whichever of them it is that breaks things, it
does so alone, and who only stood by isn't given up with it."""

PATIENT_DEATHS = 3
"""Up to here a job taken from a dead gateway is due at once; later it waits more and more,
so that a job that kills its gateway leaves the others time to get through."""


def of_error(error: GatewayError) -> int:
    """What a retryable error weighs."""
    if isinstance(error, RequestLost):
        return LOST_REQUEST
    return SHORTAGE if isinstance(error, TooLittleMemory) else 0


def add(connection: sa.Connection, job_id: str, strikes: int) -> int:
    """Writes strikes into the job's row, in the caller's transaction; returns the sum."""
    change = jobs.update().where(jobs.c.job_id == job_id)
    change = change.values(strikes=jobs.c.strikes + strikes)
    return int(connection.execute(change.returning(jobs.c.strikes)).scalar_one())


def give_up(connection: sa.Connection, job_id: str, attempts: int, last_reason: str) -> None:
    """Puts a waiting job that has had enough into the failed list, with the last reason."""
    msg = (
        f"given up after {attempts} attempts, because the job seems to break what it runs on; "
        f"the last one ended so: {last_reason}. Look whether the study is too large for this "
        "machine's memory, then start it again with 'tritome jobs retry'"
    )
    error = GaveUp(msg)
    connection.execute(
        jobs.update()
        .where(jobs.c.job_id == job_id)
        .values(
            state=JobState.FAILED.value,
            finished_at_s=now_s(),
            failure_code=error.code,
            failure_reason=str(error),
        )
    )
    write_event(connection, job_id, "failed", f"{error.code}: {error}")
