"""What the judge decides becomes rows: jobs in the queue, series marked, the reasons noted.

In: series with verdict, facts and routing. Out: jobs, in one transaction with the marks and
the lines of the series' stories: after a crash all of it has happened or nothing has, and the
same series are judged again. A series that has changed since it was looked at is left open.

Part of `app.py`, in a file of its own, as `judge.py` is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from dicom_gateway.assemble.completeness import Verdict
from dicom_gateway.database import transaction
from dicom_gateway.errors import UnusableSeries
from dicom_gateway.jobs import JobQueue
from dicom_gateway.jobs.sameness import INCOMPLETE_ROLES
from dicom_gateway.jobs.supersession import withdraw, withdraw_choices
from dicom_gateway.observe import get_logger
from dicom_gateway.records import Job, Ruling, Series, SeriesState
from dicom_gateway.route import Candidate, Chosen, Route, Routing
from dicom_gateway.store import Docket, OpenSeries, SeriesIndex


@dataclass(frozen=True, slots=True)
class Judged:
    """A series that is complete, and where it goes.

    Attributes:
        one: As the index showed it; None for a series of the study that was decided before.
    """

    series: Series
    verdict: Verdict
    routing: Routing
    one: OpenSeries | None


class _Changed(Exception):
    """A series of the study has changed meanwhile: nothing is written."""


class Rulings:
    """Writes decisions.

    Args:
        engine: From `open_database`.
        index: Marks the series.
        docket: Keeps the reasons.
        queue: Gets the jobs.
        ended: Told the state of each series that is decided.
    """

    def __init__(
        self,
        engine: sa.Engine,
        index: SeriesIndex,
        docket: Docket,
        queue: JobQueue,
        ended: Callable[[SeriesState], None] = lambda _state: None,
    ) -> None:
        self._engine = engine
        self._index = index
        self._docket = docket
        self._queue = queue
        self._ended = ended
        self._log = get_logger(room="judge")

    def decide(self, judged: Judged, routes: Sequence[Route], *, final: bool) -> bool:
        """Makes the jobs of one series, each of its routes by itself.

        Args:
            judged: The series.
            routes: A job for each; those that exist already are left as they are.
            final: False where it stays open, because something of it must be asked again.

        Returns:
            False where the series has changed and nothing was written.
        """
        series, why = judged.series, judged.verdict.text
        state = SeriesState.DECIDED if routes else SeriesState.IGNORED
        reasons = _reasons(judged, state)
        with transaction(self._engine) as connection:
            if final:
                if not self._index.mark_series(connection, series, state, reasons):
                    return False  # another instance has come: judged again
                self._note(connection, series, state, reasons)
                self._withdraw(connection, judged)
            made = [
                job
                for route in routes
                if (
                    job := self._queue.enqueue(
                        connection,
                        series,
                        pipeline=route.pipeline,
                        pipeline_version=route.pipeline_version,
                        priority=route.priority,
                        destinations=route.destinations,
                        note=_note_of(why, route),
                        receiving_s=judged.one.since_first_arrival_s if judged.one else None,
                        rule=route.rule,
                    )
                )
            ]
        if final:
            self._ended(state)
        self._tell(made, series, state if final and not routes else None, reasons)
        return True

    def decide_study(
        self,
        candidates: Sequence[tuple[Judged, Candidate]],
        chosen: Sequence[Chosen],
        rules: Sequence[str],
        why: str,
    ) -> bool:
        """Makes the jobs of the rules that choose, and marks the study's series.

        Args:
            candidates: All series of the study that a rule may choose, decided before or not.
            chosen: What the rules take.
            rules: All that choose; an earlier choice of one that takes nothing now ends.
            why: Why the study counts as complete.

        Returns:
            False where one of the series has changed and nothing was written.
        """
        # One order for everybody who locks rows of series: by UID, as associations' ends do.
        candidates = sorted(candidates, key=lambda pair: pair[0].series.series_instance_uid)
        by_uid = {judged.series.series_instance_uid: judged.series for judged, _ in candidates}
        taken = {
            facts.series_instance_uid
            for one in chosen
            for facts in (*one.roles.values(), one.series)
        }
        passed_over: dict[str, list[str]] = {}
        for one in chosen:
            for uid, reason in one.passed_over.items():
                passed_over.setdefault(uid, []).append(f"rule {one.rule}: {reason}")
            if one.missing_roles:
                for facts in one.roles.values():  # its job is made, and has failed
                    reason = f"rule {one.rule} lacks a series for {_all(one.missing_roles)}"
                    passed_over.setdefault(facts.series_instance_uid, []).append(reason)
        received_s = [
            judged.one.since_first_arrival_s for judged, _ in candidates if judged.one is not None
        ]
        try:
            with transaction(self._engine) as connection:
                states = [
                    self._mark(connection, judged, taken, passed_over) for judged, _ in candidates
                ]
                one_of_them = candidates[0][0].series
                for rule in rules:
                    kept = [one.route.pipeline for one in chosen if one.rule == rule]
                    subject = choice_subject(one_of_them.study_instance_uid, rule)
                    withdraw(connection, subject, one_of_them.called_ae_title, kept)
                waited_s = max(received_s, default=None)
                made = [
                    job
                    # Twice: what another rule's job did for a choice, that rule may have
                    # moved on from in the first turn.
                    for one in (*chosen, *chosen)
                    if (
                        job := self._enqueue(
                            connection, one, by_uid, why=why, receiving_s=waited_s, rules=rules
                        )
                    )
                ]
                withdraw_choices(connection, one_of_them, rules)
        except _Changed:
            return False
        for (judged, _), state in zip(candidates, states, strict=True):
            if judged.one is not None:  # not decided before
                self._ended(state)
        for job in made:
            self._tell([job], by_uid[job.series_instance_uid], None, why)
        return True

    def _mark(
        self,
        connection: sa.Connection,
        judged: Judged,
        taken: Collection[str],
        passed_over: dict[str, list[str]],
    ) -> SeriesState:
        uid = judged.series.series_instance_uid
        used = bool(judged.routing.routes) or uid in taken
        state = SeriesState.DECIDED if used else SeriesState.IGNORED
        told = [*passed_over.get(uid, ()), _reasons(judged, state)]
        reasons = "; ".join(part for part in told if part)
        if not self._index.mark_series(connection, judged.series, state, reasons):
            raise _Changed
        self._note(connection, judged.series, state, reasons)
        if judged.one is not None:
            self._withdraw(connection, judged)
        return state

    def _withdraw(self, connection: sa.Connection, judged: Judged) -> None:
        """Jobs of the series by itself that no rule asks for, now that it has changed."""
        series = judged.series
        pipelines = [route.pipeline for route in judged.routing.routes]
        withdraw(connection, series.series_instance_uid, series.called_ae_title, pipelines)

    def _enqueue(
        self,
        connection: sa.Connection,
        one: Chosen,
        by_uid: dict[str, Series],
        *,
        why: str,
        receiving_s: float | None,
        rules: Sequence[str],
    ) -> Job | None:
        failure = None
        if one.missing_roles:
            msg = (
                f"rule {one.rule} needs a series for each of {_all(one.route_roles)}, and the "
                f"study has none for {_all(one.missing_roles)}; send it, then a new job begins, "
                "or correct the rule ('tritome route explain' says why none matches), restart the "
                "gateway and retry this job ('tritome jobs retry'): its study is decided anew"
            )
            failure = UnusableSeries(msg, code=INCOMPLETE_ROLES)
        return self._queue.enqueue(
            connection,
            by_uid[one.series.series_instance_uid],
            pipeline=one.route.pipeline,
            pipeline_version=one.route.pipeline_version,
            priority=one.route.priority,
            destinations=one.route.destinations,
            note=f"{one.why}; {why}",
            receiving_s=receiving_s,
            rule=one.rule,
            subject=choice_subject(one.series.series.study_instance_uid, one.rule),
            roles={role: by_uid[f.series_instance_uid] for role, f in one.roles.items()},
            failure=failure,
            rules=rules,
        )

    def _note(
        self, connection: sa.Connection, series: Series, state: SeriesState, reasons: str
    ) -> None:
        ruling = Ruling.COMPLETE if state is SeriesState.DECIDED else Ruling.IGNORED
        self._docket.decided(
            connection, series.series_instance_uid, series.called_ae_title, ruling, reasons
        )

    def _tell(
        self, made: Sequence[Job], series: Series, state: SeriesState | None, reasons: str
    ) -> None:
        log = self._log.bind(series_instance_uid=series.series_instance_uid)
        for job in made:
            log.info("job_enqueued", job_id=job.job_id, pipeline=job.pipeline, reasons=reasons)
        if made:
            self._queue.notify()
        elif state is not None:
            log.info("series_" + state.value, reasons=reasons)


def choice_subject(study_instance_uid: str, rule: str) -> str:
    """What the jobs of a rule that chooses within a study are about, for one another."""
    return f"{study_instance_uid}/{rule}"


def _reasons(judged: Judged, state: SeriesState) -> str:
    """What matters first: why nobody wants it, or why it counts as complete."""
    parts = [judged.verdict.text, judged.routing.reason]
    if state is SeriesState.IGNORED:
        parts.reverse()
    return "; ".join(part for part in parts if part)


def _note_of(why: str, route: Route) -> str:
    return f"{why}; by rule {route.rule}" if route.rule else why


def _all(names: Sequence[str]) -> str:
    return " and ".join(names)
