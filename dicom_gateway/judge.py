"""The judge: received series become jobs, or are ignored with a reason.

In: the series in `receiving`. Out: jobs in the queue and the series marked decided, in one
transaction. Nothing is kept here: after a crash the same series are judged again.

A series that can't be judged stops no other one, nor the gateway: it becomes a job as it is,
which ends in front of a person, with a name for what is wrong with it.

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
from dicom_gateway.errors import (
    DatabaseUnavailable,
    Permanent,
    Retryable,
    TritonUnavailable,
    UnusableSeries,
)
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
                    wait_s = min(wait_s, self._judge_or_set_aside(one))
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

    def _judge_or_set_aside(self, one: OpenSeries) -> float:
        """`_judge`, and what becomes of a series that it can't live with."""
        key = f"odd series {one.series_instance_uid} {one.called_ae_title}"
        try:
            wait_s = self._judge(one)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - outermost edge of one series
            kind = type(error).__name__
            if self._said.get(key) != kind:
                self._said[key] = kind
                self._log.error(
                    "series_not_judged",
                    series_instance_uid=one.series_instance_uid,
                    called_ae_title=one.called_ae_title,
                    exc_info=True,
                )
            # The rest of it may be on its way: as long as for any series that may grow.
            left_s = self._settings.completeness.quiet_s - one.since_last_arrival_s
            return left_s if left_s > 0 else self._set_aside(one, key, kind)
        self._said.pop(key, None)
        return wait_s

    def _set_aside(self, one: OpenSeries, key: str, kind: str) -> float:
        """Decides a series that can't be judged: a job for each pipeline of its AE title.

        The worker meets what the judge has met, and its job fails by that name. Where that
        can't be done either, the series stays open and is tried again.
        """
        verdict = Verdict(True, (f"it could not be judged ({kind}) and is taken as it is",))
        try:
            series = self._index.load_series(one.series_instance_uid, one.called_ae_title)
            names = {
                name
                for title in self._settings.dicom.scp.ae_titles
                if title.ae_title == one.called_ae_title
                for name in title.pipelines
            }
            self._decide(series, one, verdict, Routing((), tuple(names), ""), names, final=True)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - outermost edge of one series
            again = f"{kind}, then {type(error).__name__}"
            if self._said.get(f"{key} again") != again:
                self._said[f"{key} again"] = again
                self._log.error(
                    "series_not_decided",
                    series_instance_uid=one.series_instance_uid,
                    called_ae_title=one.called_ae_title,
                    exc_info=True,
                )
        else:
            self._said.pop(key, None)
            self._said.pop(f"{key} again", None)
        return LONGEST_WAIT_S

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
                broken_off=one.broken_off,
            ),
            limits,
        )
        if series.instances and not verdict.complete:
            return LONGEST_WAIT_S if verdict.recheck_after_s is None else verdict.recheck_after_s
        contracts, broken = self._contracts(one.called_ae_title)
        routing = route(series, self._settings.dicom.scp, contracts, self._is_localizer)
        waiting = [name for name in routing.unknown_pipelines if name not in broken]
        self._say_what_it_waits_for(one, waiting)
        self._decide(series, one, verdict, routing, broken, final=not waiting)
        return LONGEST_WAIT_S

    def _is_localizer(self, path: Path) -> bool:
        try:
            return self._read_header(path).is_localizer
        except UnusableSeries:
            return False  # assembling will say what is wrong with it

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
                except Retryable as error:
                    self._say_once(f"pipeline {name}", str(error))
                except Permanent:
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
