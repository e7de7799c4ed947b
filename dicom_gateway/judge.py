"""The judge: received series become jobs, or are ignored with a reason.

In: the series in `receiving`. Out: jobs in the queue and the series marked decided, in one
transaction (`rulings.py`). Nothing is kept here: after a crash the same series are judged
again. What it goes by is gathered in `assessor.py`.

Each look takes the open series one by one: is it complete, which rules take it. A series that
a rule may choose among others waits for its study; once that is complete by evidence too, the
choice is made among all its series, those that were decided before as well.

A series that can't be judged stops no other one, nor the gateway: it becomes a job as it is,
which ends in front of a person, with a name for what is wrong with it.

Part of `app.py`, in a file of its own: it asks store, assemble, route, infer and jobs in
turn, and none of them knows the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import sqlalchemy as sa

from dicom_gateway.assemble.completeness import Verdict
from dicom_gateway.assemble.headers import Header
from dicom_gateway.assessor import Assessor, Study
from dicom_gateway.config import GatewaySettings
from dicom_gateway.errors import DatabaseUnavailable, TritonUnavailable
from dicom_gateway.infer import TritonClient
from dicom_gateway.jobs import JobQueue
from dicom_gateway.observe import get_logger
from dicom_gateway.records import SeriesState
from dicom_gateway.route import Candidate, Routing, choose
from dicom_gateway.rulings import Judged, Rulings
from dicom_gateway.store import Docket, OpenSeries, SeriesIndex

LONGEST_WAIT_S = 1.0
SHORTEST_WAIT_S = 0.05


class Judge:
    """Decides what becomes of each series; `run` returns when `stop` was called.

    Args:
        settings: The whole of gateway.yaml.
        engine: From `open_database`.
        index: Asked for open series.
        queue: Gets the jobs.
        triton: Asked for contracts, and whether it is back.
        read_header: Cached: the same headers are asked for again and again.
        ended: Told the state of each series that is decided.
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
        ended: Callable[[SeriesState], None] = lambda _state: None,
    ) -> None:
        self._limits = settings.completeness
        self._index = index
        self._docket = Docket(engine)
        self._rulings = Rulings(engine, index, self._docket, queue, ended)
        self._queue = queue
        self._triton = triton
        self._assessor = Assessor(
            settings,
            engine,
            index,
            queue=queue,
            triton=triton,
            read_header=read_header,
            say=self._say_once,
        )
        self._router = self._assessor.router
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._said: dict[str, str] = {}
        self._noted: dict[tuple[str, str], str] = {}
        self._enqueued: dict[tuple[str, str], int] = {}
        self._triton_was_ready = False
        self._log = get_logger(room="judge")

    def run(self) -> None:
        """Judges until `stop`; never ends because Triton or the database is away."""
        while not self._stopping.is_set():
            self._news.clear()
            wait_s = LONGEST_WAIT_S
            try:
                self._watch_triton()
                wait_s = self.look()
            except DatabaseUnavailable as error:
                self._log.warning("index_away", reason=str(error))
            self._news.wait(max(SHORTEST_WAIT_S, wait_s))

    def look(self) -> float:
        """One look at all open series; returns after how many seconds to look again.

        Raises:
            DatabaseUnavailable: the index doesn't answer.
        """
        wait_s = LONGEST_WAIT_S
        by_hand = self._docket.declared_complete()
        self._assessor.begin(by_hand)
        opened = self._index.open_series()
        for_study: dict[Study, list[tuple[Judged, Candidate]]] = {}
        for one in opened:
            wait_s = min(wait_s, self._judge_or_set_aside(one, for_study))
        for study, members in for_study.items():
            wait_s = min(wait_s, self._judge_study_or_set_aside(study, members))
        self._forget(opened, by_hand)
        return wait_s

    def notify(self) -> None:
        """Wakes it: an association has ended."""
        self._news.set()

    @property
    def triton_is_ready(self) -> bool:
        """Whether Triton was ready at the last look, about a second ago."""
        return self._triton_was_ready

    def stop(self) -> None:
        """Asks it to end after the look in hand."""
        self._stopping.set()
        self._news.set()

    def _watch_triton(self) -> None:
        """Jobs that wait for Triton need not sit out their backoff once it is back."""
        ready = self._triton.is_ready()
        if ready and not self._triton_was_ready:
            self._queue.hurry(TritonUnavailable.code)
        self._triton_was_ready = ready

    def _forget(self, opened: Sequence[OpenSeries], by_hand: set[tuple[str, str]]) -> None:
        """What was said of series that are decided, a person's word too, counts no more."""
        still = {(one.series_instance_uid, one.called_ae_title) for one in opened}
        self._noted = {key: said for key, said in self._noted.items() if key in still}
        self._enqueued = {key: said for key, said in self._enqueued.items() if key in still}
        still |= {(one.study_instance_uid, one.called_ae_title) for one in opened}
        for uid, called in by_hand - still:
            self._docket.forget_hand(uid, called)

    # One series -----------------------------------------------------------------------

    def _judge_or_set_aside(
        self, one: OpenSeries, for_study: dict[Study, list[tuple[Judged, Candidate]]]
    ) -> float:
        """`_judge`, and what becomes of a series that it can't live with."""
        key = f"odd series {one.series_instance_uid} {one.called_ae_title}"
        try:
            wait_s = self._judge(one, for_study)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - outermost edge of one series
            kind = type(error).__name__
            if self._said.get(key) != kind:
                self._said[key] = kind
                self._complain("series_not_judged", one)
            # The rest of it may be on its way: as long as for any series that may grow.
            left_s = self._limits.quiet_s - one.since_last_arrival_s
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
            routes = tuple(
                self._router.fallback(one.called_ae_title, pipeline)
                for pipeline in self._router.pipelines_of(one.called_ae_title)
            )
            judged = Judged(series, verdict, Routing(routes, (), ""), one)
            self._rulings.decide(judged, routes, final=True)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - outermost edge of one series
            again = f"{kind}, then {type(error).__name__}"
            if self._said.get(f"{key} again") != again:
                self._said[f"{key} again"] = again
                self._complain("series_not_decided", one)
        else:
            self._said.pop(key, None)
            self._said.pop(f"{key} again", None)
        return LONGEST_WAIT_S

    def _complain(self, event: str, one: OpenSeries) -> None:
        self._log.error(
            event,
            series_instance_uid=one.series_instance_uid,
            called_ae_title=one.called_ae_title,
            exc_info=True,
        )

    def _judge(
        self, one: OpenSeries, for_study: dict[Study, list[tuple[Judged, Candidate]]]
    ) -> float:
        """Looks at one series; returns after how many seconds to look again."""
        assessed = self._assessor.of_series(one)
        if isinstance(assessed, float):
            return assessed
        series, verdict = assessed
        if series.instances and not verdict.complete:
            if not one.association_open:
                self._waits(one, "; ".join(verdict.reasons))
            return LONGEST_WAIT_S if verdict.recheck_after_s is None else verdict.recheck_after_s
        judged, candidate = self._assessor.routed(series, verdict, one)
        routing = judged.routing
        self._say_what_it_waits_for(one, routing.unknown_pipelines)
        for_its_study = bool(routing.for_the_study) or self._assessor.had_a_choice(series)
        if for_its_study:
            study = (series.study_instance_uid, series.called_ae_title)
            for_study.setdefault(study, []).append((judged, candidate))
        if routing.is_final and not for_its_study:
            self._rulings.decide(judged, routing.routes, final=True)
        elif routing.routes:
            # It stays open; what is clear already needn't wait, and is made once.
            key = (one.series_instance_uid, one.called_ae_title)
            what = hash((series, routing.routes))
            if self._enqueued.get(key) != what:
                self._rulings.decide(judged, routing.routes, final=False)
                self._enqueued[key] = what
        return LONGEST_WAIT_S

    # A whole study --------------------------------------------------------------------

    def _judge_study_or_set_aside(
        self, study: Study, members: list[tuple[Judged, Candidate]]
    ) -> float:
        key = f"odd study {' '.join(study)}"
        try:
            wait_s = self._judge_study(study, members)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - outermost edge of one study
            kind = type(error).__name__
            told = self._said.get(key) == kind
            self._said[key] = kind
            for judged, _ in members:
                if judged.one is not None:
                    if not told:
                        self._complain("study_not_judged", judged.one)
                    self._set_aside(judged.one, key, kind)
            return LONGEST_WAIT_S
        self._said.pop(key, None)
        return wait_s

    def _judge_study(self, study: Study, members: list[tuple[Judged, Candidate]]) -> float:
        """Looks at a study of which rules may choose series; returns when to look again."""
        _, called = study
        ready = {judged.series.series_instance_uid for judged, _ in members}
        verdict, others = self._assessor.of_study(study, ready)
        choosing = self._router.choosing_rules(called)
        if not verdict.complete:
            reasons = [
                f"complete, and rule {', '.join(choosing)} chooses once its study is complete",
                *verdict.reasons,
                *(
                    f"rule {one.rule} still lacks a series for {' and '.join(one.missing_roles)}"
                    for one in choose([candidate for _, candidate in members])
                    if one.missing_roles
                ),
            ]
            for judged, _ in members:
                assert judged.one is not None
                self._waits(judged.one, "; ".join(reasons))
            return LONGEST_WAIT_S if verdict.recheck_after_s is None else verdict.recheck_after_s
        everyone = members + self._assessor.decided_before(called, others)
        unknown = {
            name
            for _, candidate in everyone
            for report in candidate.routing.for_the_study
            for name in report.unknown_pipelines
        }
        unknown |= {name for judged, _ in everyone for name in judged.routing.unknown_pipelines}
        for judged, _ in members:
            assert judged.one is not None
            self._say_what_it_waits_for(judged.one, sorted(unknown))
        if not unknown:
            chosen = choose([candidate for _, candidate in everyone])
            self._rulings.decide_study(everyone, chosen, choosing, verdict.text)
        return LONGEST_WAIT_S

    # What is said ---------------------------------------------------------------------

    def _waits(self, one: OpenSeries, reasons: str) -> None:
        """Notes in the series' story what it waits for, when that changes."""
        key = (one.series_instance_uid, one.called_ae_title)
        if self._noted.get(key) != reasons:
            self._docket.waits(one.series_instance_uid, one.called_ae_title, reasons)
            self._noted[key] = reasons

    def _say_what_it_waits_for(self, one: OpenSeries, waiting: Sequence[str]) -> None:
        key = f"series {one.series_instance_uid} {one.called_ae_title}"
        if not waiting:
            self._said.pop(key, None)
            return
        names = ", ".join(waiting)
        self._waits(one, f"complete, and Triton has never said yet what {names} wants")
        self._say_once(
            key,
            f"series {one.series_instance_uid} is complete and waits for Triton, which has never "
            f"said yet what {names} wants",
        )

    def _say_once(self, key: str, sentence: str) -> None:
        if not sentence:
            self._said.pop(key, None)
        elif self._said.get(key) != sentence:
            self._said[key] = sentence
            self._log.warning("waits_for_triton", reason=sentence)
