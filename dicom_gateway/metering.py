"""What of the gateway's doings is counted, and what is measured when Prometheus asks.

In: what the rooms tell: instances kept and refused, associations, series decided, stages and ends
of jobs, deliveries. Out: the text of /metrics. Survives a crash: nothing; what is in the index is
read from there.

Part of `app.py`, in a file of its own, as `auditing.py` is: it asks every room how much it has in
hand, and no room knows of it. What can't be measured is left out, and the rest is answered.
"""

from __future__ import annotations

import importlib.metadata
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from dicom_gateway.assemble.arena import Arena
from dicom_gateway.assemble.decoders import DecoderPool
from dicom_gateway.config import GatewaySettings
from dicom_gateway.database import arrivals, job_instances, jobs, now_s, reading
from dicom_gateway.errors import DatabaseUnavailable
from dicom_gateway.infer import TritonClient
from dicom_gateway.jobs import Admission
from dicom_gateway.judge import Judge
from dicom_gateway.observe import metrics as names
from dicom_gateway.observe.index_state import DELIVERY_STATES, JOB_STATES, IndexWatch, Some
from dicom_gateway.observe.logging import get_logger
from dicom_gateway.observe.metrics import Gauge, Measured, Metrics, Transport
from dicom_gateway.receive.scp import Receiver
from dicom_gateway.records import Delivery, DeliveryState, Job, JobState, SeriesState

_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Parts:
    """What is asked how much it has in hand.

    Attributes:
        admissions: Label -> who lets jobs in.
    """

    receiver: Receiver
    arena: Arena
    triton: TritonClient
    decoders: DecoderPool
    judge: Judge
    admissions: dict[str, Admission]


class Meter:
    """Hears what happens, and measures the rest when it is asked.

    Args:
        settings: The whole of gateway.yaml.
        engine: From `open_database`.
    """

    def __init__(self, settings: GatewaySettings, engine: sa.Engine) -> None:
        self._engine = engine
        self._folder = settings.store.folder.resolve()
        self._min_free_bytes = settings.store.min_free_bytes
        scp, scu = settings.dicom.scp, settings.dicom.scu
        asked = [title.pipelines for title in scp.ae_titles]
        asked += [rule.pipelines for rule in settings.routing.rules]
        self._pipelines = sorted({name for some in asked for name in some})
        self._destinations = [one.name for one in scu.destinations]
        self._index = IndexWatch(engine, self._destinations)
        self._metrics = Metrics(
            called_ae_titles=[title.ae_title for title in scp.ae_titles],
            pipelines=self._pipelines,
            destinations=self._destinations,
            measure=self._measured,
        )
        self._lock = threading.Lock()
        self._delivered: OrderedDict[str, None] = OrderedDict()
        self._parts: Parts | None = None
        self._version = _version()
        self._log = get_logger(room="observe")

    # What happens -----------------------------------------------------------------------

    def kept(self, transport: Transport, called_ae_title: str, size_bytes: int) -> None:
        """An instance is durable."""
        self._metrics.kept(transport, called_ae_title, size_bytes)

    def refused(self, transport: Transport, code: str) -> None:
        """An instance was not taken."""
        self._metrics.refused(transport, code)

    def turned_away(self, reason: str) -> None:
        """An association was refused."""
        self._metrics.rejected(reason)

    def association_ended(self, *, in_order: bool) -> None:
        """An association that had been admitted is over."""
        self._metrics.association_ended(in_order=in_order)

    def series_ended(self, state: SeriesState) -> None:
        """The judge has decided a series."""
        self._metrics.series_ended("ignored" if state is SeriesState.IGNORED else "decided")

    def stage(self, pipeline: str, stage: str, duration_s: float) -> None:
        """A stage of a job has succeeded."""
        self._metrics.stage(pipeline, stage, duration_s)

    def sent(self, delivery: Delivery, duration_s: float) -> None:
        """A destination has accepted an object."""
        self._metrics.stage(delivery.pipeline, "sent", duration_s)

    def job_ended(self, job: Job, failure: str | None) -> None:
        """A worker is done with a job."""
        self._metrics.job_ended(job.pipeline, failure)
        if failure is None:
            self._look_whether_delivered(job.job_id)

    def delivery_ended(self, job_id: str, destination: str, failure: str | None) -> None:
        """A result has arrived, or never will."""
        self._metrics.delivery_ended(destination, failure)
        if failure is None:
            self._look_whether_delivered(job_id)

    def _look_whether_delivered(self, job_id: str) -> None:
        """Counts a job whose last result has arrived, once, also where several tell of it."""
        try:
            with reading(self._engine) as connection:
                job = connection.execute(_DELIVERED, {"the_job": job_id}).first()
                if job is None:
                    return
                since_s = connection.execute(_SINCE_LAST_ARRIVAL, {"the_job": job_id}).scalar()
        except DatabaseUnavailable as error:
            self._log.warning("delivered_job_not_counted", job_id=job_id, reason=str(error))
            return
        with self._lock:
            if job_id in self._delivered:
                return
            self._delivered[job_id] = None
            if len(self._delivered) > _REMEMBERED:
                self._delivered.popitem(last=False)
        if since_s is not None:
            self._metrics.delivered(job.pipeline, since_s)

    # What is ----------------------------------------------------------------------------

    def watch(self, parts: Parts) -> None:
        """These are measured from now on."""
        self._parts = parts

    def text(self) -> bytes:
        """All of it, for Prometheus; may wait some seconds for the index."""
        return self._metrics.text()

    def _measured(self) -> Measured:
        found: dict[Gauge, dict[tuple[str, ...], float]] = {names.BUILD: {(self._version,): 1}}
        measures: tuple[Callable[[], Measured], ...] = (self._parts_now, self._disk, self._waiting)
        for measure in measures:
            try:
                found |= {gauge: dict(values) for gauge, values in measure().items()}
            except Exception:  # noqa: BLE001 - outermost edge of one part: the others are answered
                self._log.error("not_measured", part=measure.__name__, exc_info=True)
        return found

    def _parts_now(self) -> Measured:
        parts = self._parts
        if parts is None:
            return {}
        arena, admissions = parts.arena, parts.admissions.items()
        return {
            names.ASSOCIATIONS: {(): parts.receiver.associations},
            names.RECEIVING: {(): len(parts.receiver.process_ids)},
            names.DECODERS: {(): parts.decoders.size},
            names.DECODERS_ALIVE: {(): parts.decoders.alive},
            names.TRITON_UP: {(): parts.judge.triton_is_ready},
            names.ARENA: {(): arena.size_bytes},
            names.ARENA_USED: {(): arena.size_bytes - arena.free_bytes},
            names.ARENA_QUARANTINED: {(): parts.triton.quarantined_bytes(arena)},
            names.ADMISSION_LIMIT: {(name,): one.limit_bytes for name, one in admissions},
            names.ADMISSION_INSIDE: {(name,): one.inside_bytes for name, one in admissions},
            names.ADMISSION_WAITING: {(name,): one.waiting for name, one in admissions},
        }

    def _disk(self) -> Measured:
        disk = os.statvfs(self._folder)
        return {
            names.STORE_BYTES: {(): disk.f_blocks * disk.f_frsize},
            names.STORE_FREE: {(): disk.f_bavail * disk.f_frsize},
            names.STORE_KEPT_BACK: {(): self._min_free_bytes},
        }

    def _waiting(self) -> Measured:
        state = self._index.state()
        if state is None:
            return {names.INDEX_UP: {(): 0}}
        counts: dict[tuple[str, ...], float] = {
            (pipeline, one.value, ""): 0 for pipeline in self._pipelines for one in JOB_STATES
        }
        for (pipeline, job_state, code), some in state.jobs.items():
            known = pipeline if pipeline in self._pipelines else names.OTHER
            key = (known, job_state.value, code)
            counts[key] = counts.get(key, 0) + some.count
        ages: dict[tuple[str, ...], float] = {
            (one.value,): _oldest([some for key, some in state.jobs.items() if key[1] is one])
            for one in JOB_STATES
            if one is not JobState.FAILED
        }
        places = [(to, one) for to in self._destinations for one in DELIVERY_STATES]
        return {
            names.INDEX_UP: {(): 1},
            names.SERIES: {(): state.receiving.count},
            names.SERIES_OLDEST: {(): state.receiving.oldest_age_s},
            names.JOBS: counts,
            names.JOBS_OLDEST: ages,
            names.DELIVERIES: {
                (to, one.value): state.deliveries.get((to, one), Some()).count for to, one in places
            },
            names.DELIVERIES_OLDEST: {
                (to,): _oldest(
                    [
                        some
                        for key, some in state.deliveries.items()
                        if key[0] == to and key[1] is not DeliveryState.FAILED
                    ]
                )
                for to in self._destinations
            },
        }


def _oldest(some: list[Some]) -> float:
    return max((one.oldest_age_s for one in some), default=0.0)


_DELIVERED = sa.select(jobs.c.pipeline).where(
    jobs.c.job_id == sa.bindparam("the_job"), jobs.c.state == JobState.DELIVERED.value
)
_SINCE_LAST_ARRIVAL = (
    # Not the series': more of it may have come for another job.
    sa.select(now_s() - sa.func.max(arrivals.c.received_at_s))
    .join(job_instances, job_instances.c.instance_id == arrivals.c.instance_id)
    .join(jobs, jobs.c.job_id == job_instances.c.job_id)
    .where(
        jobs.c.job_id == sa.bindparam("the_job"),
        arrivals.c.called_ae_title == jobs.c.called_ae_title,
    )
)


def _version() -> str:
    try:
        return importlib.metadata.version("tritome")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
