"""`tritome series`: what was decided about a series and why; declare one complete by hand.

In: gateway.yaml and the index it names. Out: tables for people. `complete` is the only one
that changes something, in one transaction; the gateway acts on it within a second.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from clients.commands.jobs import COLOURS, Index, span, with_index
from clients.console import out, plain_table
from clients.errors import ClientError
from dicom_gateway.records import Ruling
from dicom_gateway.store import OpenSeries

_COLOURS = {
    Ruling.WAITS: "yellow",
    Ruling.COMPLETE: "green",
    Ruling.IGNORED: "bright_black",
    Ruling.BY_HAND: "cyan",
}


def show(config: Path, uid: str) -> None:
    """Prints the story of a series: each decision, what was expected, its jobs.

    Raises:
        ClientError: nothing is known of it.
    """
    with_index(config, lambda index: out.print(story(index, uid)))


def complete(config: Path, uid: str, called: str | None = None) -> None:
    """Declares an open series, or all of a study, complete.

    Raises:
        ClientError: it isn't open, or was sent to several AE titles and none is named.
    """

    def declare(index: Index) -> None:
        opened = [
            one
            for one in index.series.open_series()
            if uid in (one.series_instance_uid, one.study_instance_uid)
        ]
        titles = sorted({one.called_ae_title for one in opened})
        if called is not None:
            titles = [title for title in titles if title == called]
        if not titles:
            raise ClientError(_why_not(index, uid, called))
        if len(titles) > 1:
            msg = f"it was sent to {' and '.join(titles)}; say with --called which one is meant"
            raise ClientError(msg)
        index.docket.complete_by_hand(uid, titles[0])
        what = "Series" if any(one.series_instance_uid == uid for one in opened) else "Study"
        out.print(
            f"{what} {uid} is declared complete; a running gateway judges it within a second. "
            f"'tritome series show' tells what came of it.",
            soft_wrap=True,
        )
        _hint_at_the_study(index, uid, opened)

    with_index(config, declare)


def story(index: Index, uid: str) -> RenderableType:
    """All that is known of a series."""
    decisions = index.docket.decisions(uid)
    opened = [one for one in index.series.open_series() if one.series_instance_uid == uid]
    jobs = index.desk.jobs_of_series(uid)
    if not (decisions or opened or jobs):
        msg = (
            f"nothing is known of series {uid}; 'tritome jobs list' shows series that are open "
            "or have no job, and 'tritome jobs show' the series of a job"
        )
        raise ClientError(msg)
    parts: list[RenderableType] = [Text(f"Series {uid}", "bold")]
    for one in opened:
        parts.append(
            Text(
                f"Open for {one.called_ae_title}: {one.instances} instances, the last came "
                f"{span(one.since_last_arrival_s)} ago, {_association(one)}",
                "yellow",
            )
        )
        parts += [
            Text(f"{said.source} states {said.count} instances")
            for said in index.docket.expected(uid, one.called_ae_title)
        ]
    if decisions:
        table = plain_table("At", "To", "Decision", "Reasons")
        for decision in decisions:
            table.add_row(
                f"{datetime.fromtimestamp(decision.at_s):%Y-%m-%d %H:%M:%S}",
                decision.called_ae_title,
                Text(decision.ruling.value.replace("_", " "), _COLOURS[decision.ruling]),
                decision.reasons,
            )
        parts.append(table)
    if jobs:
        table = plain_table("Job", "State", "Pipeline", "Rule", "Role", "Superseded by")
        for job in jobs:
            roles = [role for role, used in job.roles.items() if used == uid]
            table.add_row(
                job.job_id[:8],
                Text(job.state.value, COLOURS[job.state]),
                job.pipeline,
                job.rule,
                ", ".join(roles),
                (job.superseded_by or "")[:8],
            )
        parts.append(table)
    return Group(*parts)


def _association(one: OpenSeries) -> str:
    if one.association_open:
        return "the association is still open"
    return "an association was aborted or lost" if one.broken_off else "the association has ended"


def _why_not(index: Index, uid: str, called: str | None) -> str:
    to = f" for {called}" if called else ""
    if index.docket.decisions(uid) or index.desk.jobs_of_series(uid):
        return f"{uid} is not open{to}: it is decided already; 'tritome series show {uid}' says how"
    return f"no series or study {uid} is open{to}; 'tritome jobs list' shows those that are"


def _hint_at_the_study(index: Index, uid: str, opened: list[OpenSeries]) -> None:
    waits = [one for one in index.docket.decisions(uid) if one.ruling is Ruling.WAITS]
    if waits and "its study" in waits[-1].reasons:
        study = opened[0].study_instance_uid
        out.print(
            f"A rule chooses within its study; to end that wait too: "
            f"tritome series complete {study}",
            soft_wrap=True,
        )
