"""What the index says of how much waits, and for how long: for the metrics.

In: the index. Out: an `IndexState`, or None where it doesn't answer. Nothing is kept but the last
answer, for a few seconds: two who scrape cost as one.

Three queries, each by an index and over rows that have not ended, and the failed ones; what was
delivered, ignored or superseded, a million rows and more, isn't touched:

    series      state = receiving                                   ix_series_state
    jobs        state in waiting, running, delivering, failed       ix_jobs_claim
    deliveries  destination of the settings, state in waiting,      ix_deliveries_due
                sent, failed

They run in a thread of their own that nobody waits for longer than a moment: a database that
neither answers nor refuses doesn't keep a scrape from the rest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from dicom_gateway.database import deliveries, jobs, now_s, reading, series
from dicom_gateway.errors import DatabaseUnavailable
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.records import DeliveryState, JobState, SeriesState

FRESH_S = 5.0
"""How long an answer is good for."""
PATIENCE_S = 3.0
"""How long a scrape waits for one; Prometheus itself gives up after ten seconds."""

JOB_STATES = (JobState.WAITING, JobState.RUNNING, JobState.DELIVERING, JobState.FAILED)
DELIVERY_STATES = (DeliveryState.WAITING, DeliveryState.SENT, DeliveryState.FAILED)
OPEN_SERIES = sa.select(
    sa.func.count().label("many"),
    (now_s() - sa.func.min(series.c.last_arrival_at_s)).label("age_s"),
).where(series.c.state == SeriesState.RECEIVING.value)
UNENDED_JOBS = (
    sa.select(
        jobs.c.state,
        jobs.c.pipeline,
        jobs.c.failure_code,
        sa.func.count().label("many"),
        (now_s() - sa.func.min(jobs.c.created_at_s)).label("age_s"),
    )
    .where(jobs.c.state.in_([state.value for state in JOB_STATES]))
    .group_by(jobs.c.state, jobs.c.pipeline, jobs.c.failure_code)
)


def undelivered(destinations: Sequence[str]) -> sa.Select[tuple[str, str, int, float]]:
    """By destination and state."""
    return (
        sa.select(
            deliveries.c.destination,
            deliveries.c.state,
            sa.func.count().label("many"),
            (now_s() - sa.func.min(deliveries.c.created_at_s)).label("age_s"),
        )
        .where(
            deliveries.c.destination.in_(destinations),
            deliveries.c.state.in_([state.value for state in DELIVERY_STATES]),
        )
        .group_by(deliveries.c.destination, deliveries.c.state)
    )


@dataclass(frozen=True, slots=True)
class Some:
    """How many, and since when the oldest of them is there."""

    count: int = 0
    oldest_age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class IndexState:
    """What has not ended.

    Attributes:
        receiving: Series; their age is since the last arrival.
        jobs: (pipeline, state, failure code or "") -> jobs.
        deliveries: (destination, state) -> deliveries.
    """

    receiving: Some
    jobs: Mapping[tuple[str, JobState, str], Some]
    deliveries: Mapping[tuple[str, DeliveryState], Some]


def read_state(engine: sa.Engine, destinations: Sequence[str]) -> IndexState:
    """Asks the index.

    Args:
        engine: From `open_database`.
        destinations: Names in the settings.

    Raises:
        DatabaseUnavailable: it doesn't answer.
    """
    with reading(engine) as connection:
        opened = connection.execute(OPEN_SERIES).one()
        unended = connection.execute(UNENDED_JOBS).all()
        unsent = connection.execute(undelivered(destinations)).all() if destinations else []
    return IndexState(
        _some(opened.many, opened.age_s),
        {
            (row.pipeline, JobState(row.state), row.failure_code or ""): _some(row.many, row.age_s)
            for row in unended
        },
        {(row.destination, DeliveryState(row.state)): _some(row.many, row.age_s) for row in unsent},
    )


def _some(many: int, age_s: float | None) -> Some:
    return Some(many, max(0.0, age_s or 0.0))  # negative where the clock was set back


class IndexWatch:
    """Asks now and then, one at a time; safe to use from several threads.

    Args:
        engine: From `open_database`.
        destinations: Names in the settings.
        fresh_s: How long an answer is good for.
        patience_s: How long to wait for one.
    """

    def __init__(
        self,
        engine: sa.Engine,
        destinations: Sequence[str],
        *,
        fresh_s: float = FRESH_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._engine = engine
        self._destinations = tuple(destinations)
        self._fresh_s = fresh_s
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._answered = threading.Event()
        self._answered.set()
        self._answered_at_s = float("-inf")
        self._state: IndexState | None = None
        self._log = get_logger(room="observe")

    def state(self) -> IndexState | None:
        """What it says; None where it doesn't answer, or not in time."""
        with self._lock:
            is_old = time.monotonic() - self._answered_at_s >= self._fresh_s
            if is_old and self._answered.is_set():
                self._answered.clear()
                threading.Thread(target=self._ask, name="metrics-index", daemon=True).start()
        return self._state if self._answered.wait(self._patience_s) else None

    def _ask(self) -> None:
        found = None
        try:
            found = read_state(self._engine, self._destinations)
        except DatabaseUnavailable as error:
            self._log.warning("index_away", reason=str(error))
        except Exception:  # noqa: BLE001 - outermost edge of the thread
            self._log.error("index_not_measured", exc_info=True)
        finally:
            self._state = found
            self._answered_at_s = time.monotonic()
            self._answered.set()
