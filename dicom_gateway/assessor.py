"""What the judge goes by: evidence from the index and the headers, contracts from Triton.

In: an open series or study. Out: its verdict, its facts, its routing. Nothing is written, and
what the headers of a series say is remembered from look to look as long as it doesn't change:
after a crash the same questions are asked again.

Part of `app.py`, in a file of its own, as `judge.py` is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from dicom_gateway.assemble.completeness import Evidence, Verdict, gather, judge
from dicom_gateway.assemble.headers import Header
from dicom_gateway.assemble.study import StudyEvidence, judge_study
from dicom_gateway.config import GatewaySettings
from dicom_gateway.errors import Permanent, Retryable, UnusableSeries
from dicom_gateway.infer import TritonClient
from dicom_gateway.jobs import JobQueue
from dicom_gateway.records import Contract, Series
from dicom_gateway.route import Candidate, Glance, Router, gather_facts
from dicom_gateway.rulings import Judged, choice_subject
from dicom_gateway.store import Docket, OpenSeries, SeriesIndex
from dicom_gateway.store.docket import INSTANCES, SERIES
from dicom_gateway.store.study_index import StudyIndex

T = TypeVar("T")

Study = tuple[str, str]
"""Study Instance UID and called AE title."""


def glance_at(read_header: Callable[[Path], Header], path: Path) -> Glance:
    """What `route` asks of every instance; an empty glance where its header can't be read."""
    try:
        header = read_header(path)
    except UnusableSeries:
        return Glance()  # assembling will say what is wrong with it
    return Glance(header.is_localizer, header.instance_number, header.number_of_frames)


class Assessor:
    """Looks at series and studies for the judge.

    Args:
        settings: The whole of gateway.yaml.
        engine: From `open_database`.
        index: Loads series.
        queue: Asked what rules have chosen before.
        triton: Asked for contracts.
        read_header: Cached: the same headers are asked for again and again.
        say: Tells the log once what waits for Triton; "" when it waits no more.
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
        say: Callable[[str, str], None],
    ) -> None:
        self.router = Router(settings)
        self._limits = settings.completeness
        self._index = index
        self._studies = StudyIndex(engine)
        self._docket = Docket(engine)
        self._queue = queue
        self._triton = triton
        self._read_header = read_header
        self._say = say
        self._by_hand: set[tuple[str, str]] = set()
        self._asked: dict[str, tuple[dict[str, Contract], set[str]]] = {}
        # What, series and called AE title -> the series, and what was found; of the last look
        # and of this one.
        self._last: dict[tuple[str, str, str], tuple[Series, Any]] = {}
        self._found: dict[tuple[str, str, str], tuple[Series, Any]] = {}

    def begin(self, by_hand: set[tuple[str, str]]) -> None:
        """A new look: contracts may have changed, and what a person has declared complete."""
        self._by_hand = by_hand
        self._asked.clear()
        self._last, self._found = self._found, {}

    def of_series(self, one: OpenSeries) -> tuple[Series, Verdict] | float:
        """Whether a series is complete; or, where it is too early to ask, in how many seconds."""
        called = one.called_ae_title
        stated = self._stated(one.series_instance_uid, called)
        by_hand = not self._by_hand.isdisjoint(
            {(one.series_instance_uid, called), (one.study_instance_uid, called)}
        )
        soonest_s = min(self._limits.after_release_s, self._limits.quiet_s)
        counted = any(one.instances == count for count, _ in stated)
        if one.since_last_arrival_s < soonest_s and not counted and not by_hand:
            return soonest_s - one.since_last_arrival_s
        series = self._index.load_series(one.series_instance_uid, called)
        evidence = Evidence(
            positions=self._once("positions", series, lambda: gather(series, self._read_header)),
            since_last_arrival_s=one.since_last_arrival_s,
            association_open=one.association_open,
            since_association_ended_s=one.since_association_ended_s,
            broken_off=one.broken_off,
            stated=stated,
            by_hand=by_hand,
        )
        return series, judge(evidence, self._limits)

    def routed(
        self, series: Series, verdict: Verdict, one: OpenSeries | None
    ) -> tuple[Judged, Candidate]:
        """Where a complete series goes, and what it is to rules that choose."""
        contracts, unreadable = self._contracts(series.called_ae_title)
        glance = partial(glance_at, self._read_header)
        facts = self._once("facts", series, lambda: gather_facts(series, glance))
        routing = self.router.route(facts, contracts, unreadable)
        return Judged(series, verdict, routing, one), Candidate(facts, routing)

    def had_a_choice(self, series: Series) -> bool:
        """Whether rules have chosen within its study before: then they choose again."""
        called = series.called_ae_title
        rules = self.router.choosing_rules(called)
        subjects = [choice_subject(series.study_instance_uid, rule) for rule in rules]
        return bool(subjects) and self._queue.has_subject(subjects, called)

    def of_study(self, study: Study, ready: set[str]) -> tuple[Verdict, set[str]]:
        """Whether a study is complete, and its other series.

        Args:
            study: Which one.
            ready: Its open series that are complete, each by itself.
        """
        uid, called = study
        look = self._studies.look(uid, called)
        evidence = StudyEvidence(
            series=len(look.states),
            incomplete=len(look.open_series - ready),
            instances=look.instances,
            since_last_arrival_s=look.since_last_arrival_s,
            association_open=look.association_open,
            since_association_ended_s=look.since_association_ended_s,
            broken_off=look.broken_off,
            together=look.together,
            stated_series=self._stated(uid, called, SERIES),
            stated_instances=self._stated(uid, called),
            by_hand=study in self._by_hand,
        )
        return judge_study(evidence, self._limits), set(look.states) - ready

    def decided_before(self, called: str, uids: set[str]) -> list[tuple[Judged, Candidate]]:
        """Series of a study that a rule may choose now, in place of its earlier choice too."""
        found = []
        for uid in sorted(uids):
            series = self._index.load_series(uid, called)
            verdict = Verdict(True, ("complete since an earlier decision",))
            judged, candidate = self.routed(series, verdict, None)
            if judged.routing.for_the_study:
                found.append((judged, candidate))
        return found

    def _once(self, what: str, series: Series, find: Callable[[], T]) -> T:
        """What `find` gives; what it gave in the last look where the series is still the same.

        Many series wait at once, and all headers of all of them would be read in each look. Of
        one that waits no more nothing stays: the header of an enhanced object may have megabytes.
        """
        key = (what, series.series_instance_uid, series.called_ae_title)
        known = self._last.get(key)
        if known is None or known[0] != series:
            known = series, find()
        self._found[key] = known
        found: T = known[1]
        return found

    def _contracts(self, called_ae_title: str) -> tuple[dict[str, Contract], set[str]]:
        """Contracts by pipeline, and the pipelines that are served but can't be read.

        Asked of Triton once for each look: a Triton that is stuck must not hold up each series.
        """
        if called_ae_title in self._asked:
            return self._asked[called_ae_title]
        contracts: dict[str, Contract] = {}
        unreadable: set[str] = set()
        for name in self.router.pipelines_of(called_ae_title):
            try:
                contracts[name] = self._triton.contract(name)
            except Retryable as error:
                self._say(f"pipeline {name}", str(error))
            except Permanent:
                unreadable.add(name)  # its job will fail with the reason, before a person
            else:
                self._say(f"pipeline {name}", "")
        self._asked[called_ae_title] = contracts, unreadable
        return contracts, unreadable

    def _stated(self, uid: str, called: str, what: str = INSTANCES) -> tuple[tuple[int, str], ...]:
        said = self._docket.expected(uid, called, what)
        return tuple((one.count, one.source) for one in said)
