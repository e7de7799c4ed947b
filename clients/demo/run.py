"""`tritome demo`, step by step: prepare, start, send, wait, read back, check, show.

In: a real study's folder, or nothing. Out: demo_output/ with the SEG as the PACS got it,
overlay.png, report.json and log.txt; a table of times, one of segments, one of checks.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clients.commands.send import send_showing
from clients.console import err, out
from clients.demo.overlay import draw_overlay
from clients.demo.phantom_study import write_phantom_study
from clients.demo.reading import (
    ReceivedSegmentation,
    SourceVolume,
    read_segmentation,
    read_source,
    source_series_uid,
)
from clients.demo.verdict import Check, judge, write_report
from clients.demo.world import PIPELINE, Patience, World, a_world
from clients.errors import ClientError
from clients.send import Search, find_instances
from clients.supervise import ending_on_signals
from dicom_gateway.records import Job, JobEvent, JobState

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
_OURS = ("overlay*.png", "report*.json", "log.txt", "*.dcm", "*.part", "study/ct-*.dcm")
"""What an earlier demo left in the output folder; nothing else there is touched."""
_ENDED = (JobState.DELIVERED, JobState.FAILED, JobState.CANCELLED, JobState.SUPERSEDED)
_TOTAL = "all together"
_STAGES = {
    "assembled": "  assemble the volume",
    "inferred": "  infer in Triton",
    "encoded": "  encode the SEG",
    "sent": "  send it to the PACS",
}
"""Stages of a job's story, in the demo's words."""


def run(study: Path | None, output: Path, model_repository: Path, timeout_s: float) -> None:
    """Runs the whole demo.

    Raises:
        ClientError: something failed; the last lines of server and gateway are printed.
    """
    with ending_on_signals() as ended:
        patience = _Interruptible(timeout_s, ended.is_set)
        try:
            _demo(study, output, model_repository, patience)
        except _Interrupted as error:
            raise KeyboardInterrupt from error


def _demo(study: Path | None, output: Path, model_repository: Path, patience: Patience) -> None:
    started = time.monotonic()
    stages: dict[str, float] = {}
    _prepare(output)
    search, truth = _study(study, output, stages)
    models = _models(model_repository, output, stages)
    with a_world(models, output, output / "log.txt", patience) as world:
        try:
            _wait_for_servers(world, stages)
            jobs = _send_and_wait(world, search, stages)
        except ClientError:
            err.print(Text(world.last_words()), soft_wrap=True)
            raise
        files = _segmentations(world.pacs.received)
        stages.update(_stages_of(jobs))
    if not files:
        msg = f"the PACS received no SEG; {output / 'log.txt'} holds what the gateway said"
        raise ClientError(msg)
    all_checks: list[Check] = []
    stages[_TOTAL] = time.monotonic() - started
    for number, file in enumerate(files):
        suffix = "" if number == 0 else f"_{number + 1}"
        source = read_source((f.path for f in search.instances), source_series_uid(file))
        received = read_segmentation(file, source)
        checks = judge(received, source, truth)
        _draw(output / f"overlay{suffix}.png", source, received, is_phantom=truth is not None)
        write_report(
            output / f"report{suffix}.json",
            stages=stages,
            received=received,
            source=source,
            checks=checks,
            truth=truth,
            instances=len(search.instances),
        )
        _print(stages, received, source, checks)
        all_checks += checks
    failed = [check.what for check in all_checks if not check.passed]
    if failed:
        msg = f"the result came back, but a check failed: {'; '.join(failed)}"
        raise ClientError(msg)
    out.print(f"\nLook at [bold]{output / 'overlay.png'}[/]; all files are in {output}.")


class _Interrupted(ClientError):
    """Ctrl-C or SIGTERM: everything is ended in order, then the command."""


class _Interruptible(Patience):
    """Patience that also ends when a person says so."""

    def __init__(self, timeout_s: float, ended: Callable[[], bool]) -> None:
        super().__init__(timeout_s)
        self._ended = ended

    def check(self, waiting_for: str) -> None:
        """Raises `TooLate` or `_Interrupted`; see `Patience.check`."""
        if self._ended():
            raise _Interrupted("interrupted")
        super().check(waiting_for)


def _prepare(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        for pattern in _OURS:
            for path in output.glob(pattern):
                path.unlink()
        shutil.rmtree(output / "model_repository", ignore_errors=True)
    except OSError as error:
        msg = f"{output} can't be written ({error.strerror}); name another with --output"
        raise ClientError(msg) from error


def _study(
    study: Path | None, output: Path, stages: dict[str, float]
) -> tuple[Search, NDArray[np.uint8] | None]:
    """The files to send, and the phantom's truth where there is one."""
    started = time.monotonic()
    if study is None:
        with out.status("Generating a phantom chest CT ..."):
            phantom = write_phantom_study(output / "study")
        stages["generate the phantom"] = time.monotonic() - started
        out.print(f"A phantom chest CT of {len(phantom.files)} slices is in {phantom.folder}.")
        return find_instances([phantom.folder]), phantom.labels
    search = find_instances([study])
    if not search.instances:
        msg = f"no DICOM files under {study}"
        raise ClientError(msg)
    out.print(f"{len(search.instances)} instances found under {study}.")
    return search, None


def _models(model_repository: Path, output: Path, stages: dict[str, float]) -> Path:
    folder = output / "model_repository"
    if (model_repository / PIPELINE / "config.pbtxt").is_file():
        return _without_others(model_repository, folder)
    from ensemble_builder.build import build  # noqa: PLC0415 - imports torch and MONAI

    started = time.monotonic()
    with out.status(f"No {PIPELINE} in {model_repository}; building it ..."):
        list(build(PIPELINE, folder))
    stages["build the models"] = time.monotonic() - started
    return folder


def _without_others(model_repository: Path, folder: Path) -> Path:
    """The pipeline's own models: nobody needs to wait until all others are loaded."""
    names = {PIPELINE}
    try:
        for steps in (model_repository / PIPELINE).glob("*/steps.json"):
            names |= json.loads(steps.read_text(encoding="utf-8")).keys()
        for name in sorted(names):
            shutil.copytree(model_repository / name, folder / name)
    except (OSError, ValueError):
        return model_repository  # Triton says what is wrong with it
    return folder


def _wait_for_servers(world: World, stages: dict[str, float]) -> None:
    with out.status("Starting the gateway and a Triton server (its models import torch) ..."):
        gateway_s = world.wait_until("the gateway", world.gateway_listens)
        triton_s = world.wait_until("Triton to load its models", world.triton_ready)
    stages["start the servers"] = gateway_s + triton_s
    out.print(f"Triton and the gateway are up after {gateway_s + triton_s:.1f} s.")


def _send_and_wait(
    world: World, search: Search, stages: dict[str, float]
) -> list[tuple[Job, list[JobEvent]]]:
    started = time.monotonic()
    report = send_showing(search, world.peer)
    stages["send by C-STORE"] = time.monotonic() - started
    out.print(
        f"{report.accepted} of {len(report.outcomes)} instances accepted "
        f"in {stages['send by C-STORE']:.1f} s."
    )
    if not report.accepted:
        msg = f"the gateway took nothing: {report.troubles()[0][0]}"
        raise ClientError(msg)
    sent_at_s = time.time()
    shown = 0
    waiting = Text("Waiting for the series to be complete ...")
    with Live(waiting, console=out, transient=True) as live:

        def all_ended() -> bool:
            nonlocal shown
            jobs = world.jobs()
            if jobs and out.is_terminal:
                live.update(_progress(jobs))
            elif jobs:
                lines = [event for _, events in jobs for event in events]
                for event in lines[shown:]:
                    out.print(Text(f"  {event.stage}: {event.note}"), soft_wrap=True)
                shown = len(lines)
            return bool(jobs) and all(job.state in _ENDED for job, _ in jobs) and _all_judged(world)

        world.wait_until("the job to end", all_ended)
    stages["from the last instance to the SEG"] = (
        time.monotonic() - started - stages["send by C-STORE"]
    )
    jobs = world.jobs()
    stages["  see that the series is complete"] = max(
        0.0, min(job.created_at_s for job, _ in jobs) - sent_at_s
    )
    for job, _ in jobs:
        if job.state is not JobState.DELIVERED:
            msg = f"the job ended {job.state}: {job.failure_reason or 'no reason given'}"
            raise ClientError(msg)
    return jobs


def _all_judged(world: World) -> bool:
    """No series is still being received, and those that were ignored made nobody wait."""
    with world.index() as index:
        return not index.series.open_series()


def _progress(jobs: Sequence[tuple[Job, list[JobEvent]]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for job, events in jobs:
        table.add_row(Text(f"Job {job.job_id[:8]}", "bold"), Text(job.state.value, "cyan"))
        for event in events:
            took = "" if event.duration_s is None else f"{event.duration_s:.1f} s"
            table.add_row(Text(f"  {event.stage}", "dim"), Text(f"{took}  {event.note}", "dim"))
    return table


def _stages_of(jobs: Sequence[tuple[Job, list[JobEvent]]]) -> dict[str, float]:
    """Seconds of each stage that the jobs' stories time, added up over the jobs."""
    stages: dict[str, float] = {}
    for _, events in jobs:
        for event in events:
            if event.duration_s is not None and event.stage in _STAGES:
                name = _STAGES[event.stage]
                stages[name] = stages.get(name, 0.0) + event.duration_s
    return stages


def _segmentations(files: Sequence[Path]) -> list[Path]:
    return [
        f.path for f in find_instances(files).instances if f.sop_class_uid == SEGMENTATION_STORAGE
    ]


def _draw(
    path: Path, source: SourceVolume, received: ReceivedSegmentation, *, is_phantom: bool
) -> None:
    subject = "phantom chest CT" if is_phantom else "chest CT"
    with out.status("Drawing the SEG on its CT ..."):
        draw_overlay(path, source, received.segments, title=f"tritome · {PIPELINE} · {subject}")


def _print(
    stages: dict[str, float],
    received: ReceivedSegmentation,
    source: SourceVolume,
    checks: Sequence[Check],
) -> None:
    times = _table("Stage", "Seconds")
    for name, seconds in stages.items():
        times.add_row(Text(name, "bold" if name == _TOTAL else ""), f"{seconds:.2f}")
    segments = _table("Segment", "ml")
    for segment in received.segments:
        segments.add_row(
            Text(f"■ {segment.name}", f"rgb({','.join(map(str, segment.colour_rgb))})"),
            f"{segment.mask.sum() * source.voxel_ml:,.0f}",
        )
    verdicts = _table("Check", "Detail", "")
    verdicts.columns[1].justify = "left"
    for check in checks:
        verdict = Text("passed", "green") if check.passed else Text("FAILED", "bold red")
        verdicts.add_row(check.what, check.detail, verdict)
    out.print()
    for table in (times, segments, verdicts):
        out.print(table)
        out.print()
    out.print(f"[dim]{len(os.sched_getaffinity(0))} CPU cores; not a medical device.[/]")


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number == 1 else "left")
    return table
