"""`tritome jobs`: what became of each study, read from the gateway's own index.

In: gateway.yaml and the index it names. Out: tables for people. `retry` and `cancel` are
the only ones that change something, each in one transaction of the gateway's queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from sqlalchemy.engine import make_url

from clients.console import out, plain_table
from clients.errors import ClientError
from dicom_gateway.config import GatewaySettings, load_settings
from dicom_gateway.database import now_s, open_database, transaction
from dicom_gateway.jobs.desk import JobDesk
from dicom_gateway.jobs.sameness import INCOMPLETE_ROLES
from dicom_gateway.jobs.supersession import WITHDRAWN
from dicom_gateway.records import Decision, Delivery, Job, JobEvent, JobState, Result
from dicom_gateway.store import Docket, SeriesIndex

COLOURS = {
    JobState.WAITING: "yellow",
    JobState.RUNNING: "cyan",
    JobState.DELIVERING: "blue",
    JobState.DELIVERED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "bright_black",
    JobState.SUPERSEDED: "bright_black",
}
_SHORT = 8
_ALL = 1 << 31


def open_index(settings: GatewaySettings) -> sa.Engine:
    """The index of a gateway that has run.

    Raises:
        ClientError: there is none yet.
    """
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        # Opening it would make an empty one, and look as if nothing had ever come.
        msg = f"there is no index yet at {url.database}; has this gateway ever run?"
        raise ClientError(msg)
    return open_database(settings.database_url)


class Index:
    """A gateway's index, opened for a person.

    Attributes:
        desk: Jobs, their stories and results.
        series: Series, with a job or without.
        docket: What was decided about them.
    """

    def __init__(self, config: Path) -> None:
        settings = load_settings(config)
        self._engine = open_index(settings)
        self.desk = JobDesk(self._engine, settings.store.folder)
        self.series = SeriesIndex(self._engine, settings.store.folder)
        self.docket = Docket(self._engine)

    def close(self) -> None:
        """Lets go of the database."""
        self._engine.dispose()

    def now_s(self) -> float:
        """The database's clock."""
        with transaction(self._engine) as connection:
            return float(connection.execute(sa.select(now_s())).scalar_one())

    def find(self, beginning: str) -> Job:
        """The one job whose id begins so.

        Raises:
            ClientError: there is none, or there are several.
        """
        job = self.desk.show(beginning)
        if job is None:
            alike = sum(one.job_id.startswith(beginning) for one in self.desk.list_jobs([], _ALL))
            what = (
                f"{alike} jobs' ids begin with '{beginning}'; write more of the one you mean"
                if alike
                else f"no job's id begins with '{beginning}'"
            )
            msg = f"{what}. 'tritome jobs list' shows them"
            raise ClientError(msg)
        return job


def overview(index: Index, states: Sequence[JobState] = (), limit: int = 50) -> RenderableType:
    """Jobs, and the series without one."""
    now = index.now_s()
    jobs = index.desk.list_jobs(states, limit)
    parts: list[RenderableType] = []
    if jobs:
        table = plain_table("Job", "State", "Pipeline", "To", "Age", "Took", "Tries", "Reason")
        for job in jobs:
            table.add_row(
                job.job_id[:_SHORT],
                Text(job.state.value, COLOURS[job.state]),
                job.pipeline,
                job.called_ae_title,
                span(now - job.created_at_s),
                span(job.finished_at_s - job.created_at_s) if job.finished_at_s else "",
                str(job.attempts),
                _reason(job),
            )
        parts.append(table)
    else:
        parts.append(Text("No jobs." if not states else "No jobs in these states."))
    if not states and (open_series := index.series.open_series()):
        table = plain_table("Series not decided yet", "Instances", "To", "Quiet for")
        for one in open_series[:limit]:
            table.add_row(
                one.series_instance_uid,
                str(one.instances),
                one.called_ae_title,
                span(one.since_last_arrival_s),
            )
        parts.append(table)
    if not states and (ignored := index.series.ignored_series()):
        table = plain_table("Series without a job", "Instances", "Modality", "To", "Age", "Reason")
        for other in ignored[:limit]:
            table.add_row(
                other.series_instance_uid,
                str(other.instances),
                other.modality,
                other.called_ae_title,
                span(now - other.last_arrival_at_s),
                other.reasons,
            )
        parts.append(table)
    return Group(*parts)


def story(
    job: Job,
    events: Sequence[JobEvent],
    results: Sequence[Result],
    deliveries: Sequence[Delivery],
    decisions: Sequence[Decision] = (),
) -> RenderableType:
    """Everything about one job, and what was decided about its series."""
    head = Table.grid(padding=(0, 2))
    facts = [
        ("Job", Text(job.job_id, "bold")),
        ("State", Text(job.state.value, f"bold {COLOURS[job.state]}")),
        ("Pipeline", Text(job.pipeline)),
        ("From, to", Text(f"{job.calling_ae_title} -> {job.called_ae_title}")),
        ("Study", Text(job.study_instance_uid)),
        ("Series", Text(job.series_instance_uid)),
        ("Priority", Text(job.priority.value)),
    ]
    if job.rule:
        facts.append(("Rule", Text(job.rule)))
    facts += [(f"Role {role}", Text(uid)) for role, uid in job.roles.items()]
    if job.superseded_by:
        facts.append(("Superseded by", Text(job.superseded_by)))
    if job.failure_code:
        facts.append(("Reason", Text(_reason(job), "red" if job.state == JobState.FAILED else "")))
    for name, value in facts:
        head.add_row(Text(name, "dim"), value)
    lines = plain_table("At", "After", "Stage", "Took", "What happened")
    for event in events:
        lines.add_row(
            f"{datetime.fromtimestamp(event.at_s):%Y-%m-%d %H:%M:%S}",
            span(event.at_s - job.created_at_s),
            event.stage,
            "" if event.duration_s is None else f"{event.duration_s:.2f} s",
            event.note,
        )
    parts: list[RenderableType] = [head, lines]
    if results:
        made = plain_table("Result", "Output", "Size", "Destination", "State", "Last error")
        for result in results:
            sent = [d for d in deliveries if d.result.sop_instance_uid == result.sop_instance_uid]
            size = f"{result.size_bytes / 1e6:.2f} MB"
            if not sent:
                made.add_row(result.sop_instance_uid, result.output, size, "none", "kept", "")
            for one in sent:
                made.add_row(
                    result.sop_instance_uid,
                    result.output,
                    size,
                    one.destination,
                    one.state.value,
                    one.last_error or "",
                )
        parts.append(made)
    if decisions:
        judged = plain_table("At", "Series", "Decision", "Reasons")
        for decision in decisions:
            judged.add_row(
                f"{datetime.fromtimestamp(decision.at_s):%Y-%m-%d %H:%M:%S}",
                decision.series_instance_uid,
                decision.ruling.value.replace("_", " "),
                decision.reasons,
            )
        parts.append(judged)
    return Group(*parts)


def list_jobs(config: Path, states: Sequence[JobState], limit: int) -> None:
    """Prints the newest jobs and the series without one."""
    with_index(config, lambda index: out.print(overview(index, states, limit)))


def show(config: Path, job_id: str) -> None:
    """Prints one job's story."""

    def print_story(index: Index) -> None:
        job = index.find(job_id)
        desk = index.desk
        out.print(
            story(
                job,
                desk.events(job.job_id),
                desk.results(job.job_id),
                desk.deliveries(job.job_id),
                decisions_of(index, job),
            )
        )

    with_index(config, print_story)


def decisions_of(index: Index, job: Job) -> list[Decision]:
    """What was decided about the series of a job, for its called AE title."""
    uids = dict.fromkeys((job.series_instance_uid, *job.roles.values()))
    return [
        one
        for uid in uids
        for one in index.docket.decisions(uid)
        if one.called_ae_title == job.called_ae_title
    ]


def watch(config: Path, every_s: float) -> None:
    """Shows the list until Ctrl-C."""

    def keep_showing(index: Index) -> None:
        with Live(overview(index), console=out, auto_refresh=False, screen=out.is_terminal) as live:
            while True:
                time.sleep(every_s)
                live.update(overview(index), refresh=True)

    try:
        with_index(config, keep_showing)
    except KeyboardInterrupt:
        return


def retry(config: Path, job_id: str) -> None:
    """Starts a failed or cancelled job again."""

    def start_again(index: Index) -> None:
        job = index.find(job_id)
        if not index.desk.retry(job.job_id):
            msg = (
                f"job {job.job_id[:_SHORT]} is {job.state}; "
                "only a failed or cancelled one starts again"
            )
            if job.superseded_by == WITHDRAWN:
                msg = f"no rule asks for job {job.job_id[:_SHORT]} any more: its series changed"
            elif job.superseded_by:
                msg = (
                    f"job {job.superseded_by[:_SHORT]} has taken the place of job "
                    f"{job.job_id[:_SHORT]}; start that one again, where it needs it"
                )
            raise ClientError(msg)
        if job.failure_code == INCOMPLETE_ROLES:
            out.print(
                f"The study of job {job.job_id[:_SHORT]} is decided anew; where the rules find all "
                "of its series, a new job takes its place."
            )
        else:
            out.print(f"Job {job.job_id[:_SHORT]} is started again.")

    with_index(config, start_again)


def cancel(config: Path, job_id: str) -> None:
    """Ends a job by hand."""

    def end(index: Index) -> None:
        job = index.find(job_id)
        if not index.desk.cancel(job.job_id):
            msg = f"job {job.job_id[:_SHORT]} is {job.state} already, so there is nothing to cancel"
            raise ClientError(msg)
        out.print(f"Job {job.job_id[:_SHORT]} is cancelled.")

    with_index(config, end)


def with_index(config: Path, use: Callable[[Index], None]) -> None:
    """Opens the index that gateway.yaml names, and closes it whatever happens."""
    index = Index(config)
    try:
        use(index)
    finally:
        index.close()


def span(seconds: float) -> str:
    """A duration as a person says it: 3.2 s, 4 min, 2 h, 5 d."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    for unit, size, until in (("min", 60, 3600), ("h", 3600, 86400)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _reason(job: Job) -> str:
    if job.superseded_by == WITHDRAWN:
        return "superseded: no rule asks for it any more"
    if job.superseded_by:
        return f"superseded by job {job.superseded_by[:_SHORT]}"
    if not job.failure_code:
        return ""
    return f"{job.failure_code}: {job.failure_reason or ''}"
