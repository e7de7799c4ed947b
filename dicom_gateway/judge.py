"""The judge: received series become jobs, or are ignored with a reason.

In: the series in `receiving`. Out: jobs in the queue and the series marked decided, in one
transaction. Nothing is kept here: after a crash the same series are judged again.

Part of `app.py`, in a file of its own: it asks store, assemble, route, infer and jobs in
turn, and none of them knows the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.assemble.completeness import Evidence, Verdict, gather, judge
from dicom_gateway.assemble.headers import Header
from dicom_gateway.config import GatewaySettings
from dicom_gateway.database import transaction
from dicom_gateway.errors import ContractMismatch, DatabaseUnavailable, TritonUnavailable
from dicom_gateway.infer import TritonClient
from dicom_gateway.jobs import JobQueue
from dicom_gateway.observe import get_logger
from dicom_gateway.records import Contract, Series, SeriesState
from dicom_gateway.route.rules import Route, Routing, route
from dicom_gateway.store import OpenSeries, SeriesIndex

LONGEST_WAIT_S = 1.0
SHORTEST_WAIT_S = 0.05

UNREADABLE = "unreadable"
"""Stands for the version of a pipeline whose contract can't be read."""


class Judge:
    """Decides what becomes of each series; `run` returns when `stop` was called.

    Args:
        settings: The whole of gateway.yaml.
        engine: From `open_database`.
        index: Asked for open series.
        queue: Gets the jobs.
        triton: Asked for contracts, and whether it is back.
        read_header: Cached: the same headers are asked for again and again.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        engine: sa.Engine,
        index: SeriesIndex,
        *,
        queue: JobQueue,
        triton: TritonClient,
        read_header: Callable[[Path], Header],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._index = index
        self._queue = queue
        self._triton = triton
        self._read_header = read_header
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._said: dict[str, str] = {}
        self._triton_was_ready = False
        self._log = get_logger(room="judge")

    def run(self) -> None:
        """Judges until `stop`; never ends because Triton or the database is away."""
        while not self._stopping.is_set():
            self._news.clear()
            wait_s = LONGEST_WAIT_S
            try:
                self._watch_triton()
                for one in self._index.open_series():
                    wait_s = min(wait_s, self._judge(one))
            except DatabaseUnavailable as error:
                self._log.warning("index_away", reason=str(error))
            self._news.wait(max(SHORTEST_WAIT_S, wait_s))

    def notify(self) -> None:
        """Wakes it: an association has ended."""
        self._news.set()

    def stop(self) -> None:
        """Asks it to end after the series in hand."""
        self._stopping.set()
        self._news.set()

    def _watch_triton(self) -> None:
        """Jobs that wait for Triton need not sit out their backoff once it is back."""
        ready = self._triton.is_ready()
        if ready and not self._triton_was_ready:
            self._queue.hurry(TritonUnavailable.code)
        self._triton_was_ready = ready

    def _judge(self, one: OpenSeries) -> float:
        """Looks at one series; returns after how many seconds to look again."""
        limits = self._settings.completeness
        soonest_s = min(limits.after_release_s, limits.quiet_s)
        if one.since_last_arrival_s < soonest_s:
            return soonest_s - one.since_last_arrival_s
        series = self._index.load_series(one.series_instance_uid, one.called_ae_title)
        verdict = judge(
            Evidence(
                positions=gather(series, self._read_header),
                since_last_arrival_s=one.since_last_arrival_s,
                association_open=one.association_open,
                since_association_ended_s=one.since_association_ended_s,
            ),
            limits,
        )
        if series.instances and not verdict.complete:
            return LONGEST_WAIT_S if verdict.recheck_after_s is None else verdict.recheck_after_s
        contracts, broken = self._contracts(one.called_ae_title)
        routing = route(series, self._settings.dicom.scp, contracts)
        waiting = [name for name in routing.unknown_pipelines if name not in broken]
        self._say_what_it_waits_for(one, waiting)
        self._decide(series, one, verdict, routing, broken, final=not waiting)
        return LONGEST_WAIT_S

    def _contracts(self, called_ae_title: str) -> tuple[dict[str, Contract], set[str]]:
        """Contracts by pipeline, and the pipelines that are served but can't be read."""
        contracts: dict[str, Contract] = {}
        broken: set[str] = set()
        for title in self._settings.dicom.scp.ae_titles:
            if title.ae_title != called_ae_title:
                continue
            for name in title.pipelines:
                try:
                    contracts[name] = self._triton.contract(name)
                except TritonUnavailable as error:
                    self._say_once(f"pipeline {name}", str(error))
                except ContractMismatch:
                    broken.add(name)  # its job will fail with the reason, before a person
                else:
                    self._said.pop(f"pipeline {name}", None)
        return contracts, broken

    def _decide(
        self,
        series: Series,
        one: OpenSeries,
        verdict: Verdict,
        routing: Routing,
        broken: set[str],
        *,
        final: bool,
    ) -> None:
        routes = list(routing.routes)
        for title in self._settings.dicom.scp.ae_titles:
            if title.ae_title == series.called_ae_title:
                routes += [
                    Route(name, UNREADABLE, title.priority, title.destinations)
                    for name in routing.unknown_pipelines
                    if name in broken
                ]
        state = SeriesState.DECIDED if routes else SeriesState.IGNORED
        why = "; ".join(verdict.reasons)
        reasons = "; ".join(part for part in (why, routing.reason) if part)
        with transaction(self._engine) as connection:
            if final and not self._index.mark_series(connection, series, state, reasons):
                return  # another instance has come: judged again
            made = [
                job
                for wanted in routes
                if (
                    job := self._queue.enqueue(
                        connection,
                        series,
                        pipeline=wanted.pipeline,
                        pipeline_version=wanted.pipeline_version,
                        priority=wanted.priority,
                        destinations=wanted.destinations,
                        note=why,
                        receiving_s=one.since_first_arrival_s,
                    )
                )
            ]
        log = self._log.bind(series_instance_uid=series.series_instance_uid)
        for job in made:
            log.info("job_enqueued", job_id=job.job_id, pipeline=job.pipeline, reasons=why)
        if made:
            self._queue.notify()
        elif final:
            log.info("series_" + state.value, reasons=reasons)

    def _say_what_it_waits_for(self, one: OpenSeries, waiting: list[str]) -> None:
        key = f"series {one.series_instance_uid} {one.called_ae_title}"
        if not waiting:
            self._said.pop(key, None)
            return
        names = ", ".join(waiting)
        self._say_once(
            key,
            f"series {one.series_instance_uid} is complete and waits for Triton, which has never "
            f"said yet what {names} wants",
        )

    def _say_once(self, key: str, sentence: str) -> None:
        if self._said.get(key) != sentence:
            self._said[key] = sentence
            self._log.warning("waits_for_triton", reason=sentence)
