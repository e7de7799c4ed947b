"""The gateway's metrics: their names, what each means, and the text that Prometheus reads.

In: what has happened, as plain values; and at each scrape, what just is. Out: text. Survives a
crash: nothing; counters begin at 0 after a start, as Prometheus expects.

Labels are few, and a peer decides none of them: they come from the settings, or from words of our
own. What is neither counts as `other`. No patient, no UID, no address, no AE title of a stranger.

Source: Prometheus, exposition formats (text, version 0.0.4) and "Metric and label naming".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Transport = Literal["cstore", "stow", "wado"]
"""How an instance came; `wado` is what `tritome fetch` gets over DICOMweb."""

OTHER = "other"
"""A label's value for all that has no place of its own."""
STAGES = ("assembled", "inferred", "encoded", "sent")
_CODES_LIMIT = 64
"""So many refusals or failures are told apart; there are about forty."""
_STAGE_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_WHOLE_BUCKETS_S = (1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400)


@dataclass(frozen=True, slots=True)
class Gauge:
    """Something that is measured when somebody asks.

    Attributes:
        meaning: Its HELP line.
        labels: Names of its labels.
    """

    name: str
    meaning: str
    labels: tuple[str, ...] = ()


Measured = Mapping[Gauge, Mapping[tuple[str, ...], float]]
"""Gauge -> values of its labels, in their order -> how much. What can't be measured is left out."""

BUILD = Gauge("tritome_build_info", "Always 1; the version is a label.", ("version",))
ASSOCIATIONS = Gauge("tritome_associations_open", "Associations that are open just now.")
RECEIVING = Gauge(
    "tritome_receiving_processes_alive",
    "Receiving processes that serve; 0 where the gateway receives itself.",
)
DECODERS = Gauge("tritome_decoders", "Decoder processes that there should be.")
DECODERS_ALIVE = Gauge(
    "tritome_decoders_alive", "Those that live; a dead one is replaced when it is needed next."
)
TRITON_UP = Gauge(
    "tritome_triton_up", "1 where Triton was ready when it was last asked, about each second."
)
ARENA = Gauge("tritome_arena_bytes", "Shared memory for volumes and outputs, in all.")
ARENA_USED = Gauge("tritome_arena_used_bytes", "Of it in use, what is quarantined too.")
ARENA_QUARANTINED = Gauge(
    "tritome_arena_quarantined_bytes",
    "Of it kept back, because Triton may still touch it after a request that was cut off.",
)
ADMISSION_LIMIT = Gauge(
    "tritome_admission_limit_bytes",
    "What all jobs together may need, of the machine's memory and of the arena.",
    ("resource",),
)
ADMISSION_INSIDE = Gauge(
    "tritome_admission_predicted_bytes",
    "What the jobs inside were predicted to need.",
    ("resource",),
)
ADMISSION_WAITING = Gauge(
    "tritome_admission_jobs_waiting",
    "Jobs that a worker has in hand and that wait until others give room.",
    ("resource",),
)
STORE_BYTES = Gauge("tritome_store_bytes", "Size of the store's file system.")
STORE_FREE = Gauge("tritome_store_free_bytes", "What of it is free for the gateway.")
STORE_KEPT_BACK = Gauge(
    "tritome_store_min_free_bytes", "store.min-free-bytes: with less, no instance is taken."
)
INDEX_UP = Gauge(
    "tritome_index_up",
    "1 where the index answered; otherwise what is read from it is missing below.",
)
SERIES = Gauge("tritome_series_receiving", "Series that are not decided: more may come.")
SERIES_OLDEST = Gauge(
    "tritome_series_receiving_oldest_age_seconds",
    "Since the last arrival of the undecided series that has been quiet for longest.",
)
JOBS = Gauge(
    "tritome_jobs",
    "Jobs that have not ended, and those in the failed list; the code says why they are there.",
    ("pipeline", "state", "code"),
)
JOBS_OLDEST = Gauge(
    "tritome_jobs_oldest_age_seconds", "Since the oldest job in this state was made.", ("state",)
)
DELIVERIES = Gauge(
    "tritome_deliveries",
    "Deliveries that have not arrived: waiting, sent but not proven, failed.",
    ("destination", "state"),
)
DELIVERIES_OLDEST = Gauge(
    "tritome_deliveries_oldest_age_seconds",
    "Since the oldest delivery that waits, or waits for its proof, was due for the first time.",
    ("destination",),
)


class Metrics:
    """Counts, and says what was counted; safe to use from several threads.

    Args:
        called_ae_titles: Of the settings, as all names here.
        pipelines: Of AE titles and rules.
        destinations: Names of theirs.
        measure: Asked at each scrape.
    """

    def __init__(
        self,
        *,
        called_ae_titles: Collection[str],
        pipelines: Collection[str],
        destinations: Collection[str],
        measure: Callable[[], Measured],
    ) -> None:
        registry = self._registry = CollectorRegistry()
        self._title = _Few(called_ae_titles)
        self._pipeline = _Few(pipelines)
        self._destination = _Few(destinations)
        self._stage = _Few(STAGES)
        self._refusal = _Few(limit=_CODES_LIMIT)
        self._rejection = _Few(limit=_CODES_LIMIT)
        self._failure = _Few(limit=_CODES_LIMIT)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(name, meaning, labels, registry=registry)

        self._kept = counter(
            "tritome_instances_acknowledged_total",
            "Instances that were kept and answered with success, repeated ones too.",
            *("called_ae_title", "transport"),
        )
        self._kept_bytes = counter(
            "tritome_instances_acknowledged_bytes_total",
            "Their size as files.",
            *("called_ae_title", "transport"),
        )
        self._refused = counter(
            "tritome_instances_refused_total",
            "Instances that were not taken, by why.",
            *("transport", "code"),
        )
        self._rejected = counter(
            "tritome_associations_rejected_total", "Associations that were turned away.", "reason"
        )
        self._associations = counter(
            "tritome_associations_ended_total",
            "Associations that had been admitted and ended: released, or aborted or lost.",
            "how",
        )
        self._series = counter(
            "tritome_series_ended_total",
            "Series that were decided: they have jobs, or are ignored.",
            "state",
        )
        self._processed = counter(
            "tritome_jobs_processed_total", "Jobs that have made their results.", "pipeline"
        )
        self._failed = counter(
            "tritome_jobs_failed_total",
            "Jobs that a worker has put into the failed list.",
            *("pipeline", "code"),
        )
        self._delivered = counter(
            "tritome_deliveries_delivered_total",
            "Results that a destination has, proven where that is asked for.",
            "destination",
        )
        self._undelivered = counter(
            "tritome_deliveries_failed_total",
            "Results that a destination didn't get, and that are tried no more.",
            *("destination", "code"),
        )
        self._stages = Histogram(
            "tritome_stage_seconds",
            "Each stage of a job: assembled, inferred, encoded, and sent, one object each time.",
            ("pipeline", "stage"),
            buckets=_STAGE_BUCKETS_S,
            registry=registry,
        )
        self._whole = Histogram(
            "tritome_arrival_to_delivered_seconds",
            "From the last arrival of a job's instances until every destination had its results.",
            ("pipeline",),
            buckets=_WHOLE_BUCKETS_S,
            registry=registry,
        )
        self._begin(called_ae_titles, pipelines, destinations)
        registry.register(_Measuring(measure))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

    def _begin(
        self,
        called_ae_titles: Collection[str],
        pipelines: Collection[str],
        destinations: Collection[str],
    ) -> None:
        """Zeros, so that the first of each kind is seen as an increase."""
        for title in called_ae_titles:
            self._kept.labels(title, "cstore")
            self._kept_bytes.labels(title, "cstore")
        for how in ("released", "lost"):
            self._associations.labels(how)
        for state in ("decided", "ignored"):
            self._series.labels(state)
        for pipeline in pipelines:
            self._processed.labels(pipeline)
            self._whole.labels(pipeline)
            for stage in STAGES:
                self._stages.labels(pipeline, stage)
        for destination in destinations:
            self._delivered.labels(destination)

    def kept(self, transport: Transport, called_ae_title: str, size_bytes: int) -> None:
        """An instance is durable; it is about to be acknowledged."""
        labels = self._title(called_ae_title), transport
        self._kept.labels(*labels).inc()
        self._kept_bytes.labels(*labels).inc(size_bytes)

    def refused(self, transport: Transport, code: str) -> None:
        """An instance was not taken."""
        self._refused.labels(transport, self._refusal(code)).inc()

    def rejected(self, reason: str) -> None:
        """An association was turned away; `reason` in words of our own."""
        self._rejected.labels(self._rejection(reason.replace(" ", "_"))).inc()

    def association_ended(self, *, in_order: bool) -> None:
        """One that had been admitted is over."""
        self._associations.labels("released" if in_order else "lost").inc()

    def series_ended(self, state: Literal["decided", "ignored"]) -> None:
        """A series was decided."""
        self._series.labels(state).inc()

    def job_ended(self, pipeline: str, failure: str | None) -> None:
        """A worker is done with a job; `failure` is the code where it failed."""
        pipeline = self._pipeline(pipeline)
        if failure is None:
            self._processed.labels(pipeline).inc()
        else:
            self._failed.labels(pipeline, self._failure(failure)).inc()

    def stage(self, pipeline: str, stage: str, duration_s: float) -> None:
        """A stage of a job has succeeded."""
        self._stages.labels(self._pipeline(pipeline), self._stage(stage)).observe(duration_s)

    def delivery_ended(self, destination: str, failure: str | None) -> None:
        """A result has arrived, or never will."""
        destination = self._destination(destination)
        if failure is None:
            self._delivered.labels(destination).inc()
        else:
            self._undelivered.labels(destination, self._failure(failure)).inc()

    def delivered(self, pipeline: str, since_last_arrival_s: float) -> None:
        """Every destination has the results of a job."""
        self._whole.labels(self._pipeline(pipeline)).observe(max(0.0, since_last_arrival_s))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format 0.0.4."""
        return generate_latest(_WithoutTimes(self._registry))


class _Few:
    """The values that a label may have: those that are known, and some more as they come.

    Args:
        known: Of the settings.
        limit: How many others have a place of their own.
    """

    def __init__(self, known: Collection[str] = (), *, limit: int = 0) -> None:
        self._values = set(known)
        self._limit = len(self._values) + limit
        self._lock = threading.Lock()

    def __call__(self, value: str) -> str:
        with self._lock:
            if value not in self._values and len(self._values) >= self._limit:
                return OTHER
            self._values.add(value)
            return value


class _Measuring(Collector):
    """Gauges that have no value between two scrapes."""

    def __init__(self, measure: Callable[[], Measured]) -> None:
        self._measure = measure

    def describe(self) -> list[Metric]:
        """Nothing: otherwise registering it would measure."""
        return []

    def collect(self) -> Iterator[Metric]:
        for gauge, values in self._measure().items():
            family = GaugeMetricFamily(gauge.name, gauge.meaning, labels=gauge.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


class _WithoutTimes(Collector):
    """What a registry has, without when each counter began: that would be half of the text."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [one for one in metric.samples if not one.name.endswith("_created")]
            yield metric
