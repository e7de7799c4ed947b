"""`tritome store`: do the kept files and the index agree, and what is there that shouldn't be?

In: gateway.yaml, the folder and the index that it names. Out: tables for people. `check` and
`conflicts` only look; `rebuild` mends the index, with no gateway running; `purge` removes
what the retention policy lets go, as the gateway does by itself.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy.engine import make_url

from clients.commands.jobs import span
from clients.console import out, plain_table, warn
from clients.errors import ClientError
from dicom_gateway.auditing import Audit
from dicom_gateway.config import GatewaySettings, load_settings
from dicom_gateway.database import open_database
from dicom_gateway.store.check import Checked, check
from dicom_gateway.store.conflicts import find_conflicts
from dicom_gateway.store.examine import Examined, instance_files
from dicom_gateway.store.lock import alone_on
from dicom_gateway.store.rebuild import rebuild
from dicom_gateway.store.retention import Retention

_SHOWN = 20


def run_check(config: Path) -> bool:
    """Compares files and index; True where they agree."""
    settings = load_settings(config)
    folder = _folder(settings)
    with _index(settings) as engine, _reading(folder) as on_file:
        found = check(engine, folder, on_file)
    out.print(
        f"{found.files} files ({_size(found.size_bytes)}), {found.rows} instances in the index."
    )
    _say_what_is_wrong(found)
    if found.agrees:
        out.print("[green]They agree.[/]")
    return found.agrees


def run_rebuild(config: Path) -> None:
    """Makes the index again from the files."""
    settings = load_settings(config)
    folder = _folder(settings)
    with alone_on(folder):
        _set_damaged_index_aside(settings)
        engine = open_database(settings.database_url)
        try:
            with _reading(folder) as on_file:
                done = rebuild(engine, folder, on_file)
        finally:
            engine.dispose()
    out.print(
        f"The index knows {done.files} files now; {done.added} were new to it. "
        f"{done.receiving} series will be judged when the gateway starts."
    )
    if done.decided:
        out.print(
            f"{done.decided} series have results already and are not computed again; whether the "
            f"results were delivered isn't known. Send them again with: "
            f"tritome send {folder / 'results'} --to HOST:PORT --called TITLE"
        )
    if done.forgotten:
        warn(f"{done.forgotten} instances had no file any more and are forgotten")
    if done.still_missing:
        warn(
            f"{done.still_missing} instances have no file any more, and jobs were made with them; "
            "'tritome store check' names them. Send their series again"
        )
    if done.damaged:
        _list(
            "Set apart under damaged/; send these again",
            [f"{path}: {why}" for path, why in done.damaged],
        )


def run_conflicts(config: Path) -> None:
    """Lists what was set apart."""
    settings = load_settings(config)
    folder = _folder(settings)
    with _index(settings) as engine:
        found = find_conflicts(engine, folder)
    if not found:
        out.print("No two objects came under one SOP Instance UID.")
        return
    for one in found:
        at = f"{datetime.fromtimestamp(one.set_apart_at_s):%Y-%m-%d %H:%M:%S}"
        used = "nothing: it has gone"
        if one.in_use is not None:
            used = f"{one.in_use}, from {one.in_use_calling_ae_title}"
            used += "" if one.same_series else ", of another series"
        sender = f"{one.set_apart_calling_ae_title} -> {one.called_ae_title}"
        out.print(f"[bold]{one.sop_instance_uid}[/] of series {one.series_instance_uid}")
        for line in (f"set apart  {one.set_apart}, {sender}, {at}", f"in use     {used}"):
            out.print(f"  {line}", soft_wrap=True, markup=False)
    out.print(
        "The first that came stays in use. Where it is the wrong one: end the series' job, or "
        "let it fail, and send the right one again; it then takes the place."
    )


def run_purge(config: Path, *, dry_run: bool) -> None:
    """Removes what is due now, or says what that would be."""
    settings = load_settings(config)
    folder = _folder(settings)
    policy = settings.store.retention
    if policy.is_off:
        msg = (
            f"{config} has no retention policy, so everything is kept. Set store.retention, "
            "for example 'delivered-after-days: 90'"
        )
        raise ClientError(msg)
    with _index(settings) as engine:
        retention = Retention(engine, folder, policy, Audit(settings, engine).going)
        due = retention.due()
        if not due:
            out.print("Nothing is due.")
            return
        table = plain_table("Why", "Series", "To", "Instances", "Size", "Quiet for")
        for one in due:
            table.add_row(
                one.why,
                one.series_instance_uid,
                one.called_ae_title,
                str(one.instances),
                _size(one.size_bytes),
                span(one.age_s),
            )
        out.print(table)
        if dry_run:
            total = _size(sum(one.size_bytes for one in due))
            out.print(f"Nothing was removed; {total} would be.")
            return
        removed = [retention.remove(one) for one in due]
        strays = retention.remove_stray_results()
    out.print(
        f"Removed {sum(one.instances for one in removed)} instances and "
        f"{sum(one.results for one in removed) + strays} results, "
        f"{_size(sum(one.size_bytes for one in removed))}."
    )


def _folder(settings: GatewaySettings) -> Path:
    folder = settings.store.folder.resolve()
    if not folder.is_dir():
        msg = f"there is no store yet at {folder}; has this gateway ever run?"
        raise ClientError(msg)
    return folder


@contextmanager
def _index(settings: GatewaySettings) -> Iterator[sa.Engine]:
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        msg = (
            f"there is no index at {url.database}. Where it was lost, 'tritome store rebuild' "
            "makes it again from the files"
        )
        raise ClientError(msg)
    engine = open_database(settings.database_url)
    try:
        yield engine
    finally:
        engine.dispose()


def _set_damaged_index_aside(settings: GatewaySettings) -> None:
    """SQLite only: a PostgreSQL that is damaged is for its own tools."""
    url = make_url(settings.database_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    path = Path(url.database)
    if not path.exists() or _is_sound(path):
        return
    name = f"damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    for ending in ("", "-wal", "-shm"):
        part = path.with_name(path.name + ending)
        if part.exists():
            part.rename(path.with_name(f"{path.name}.{name}{ending}"))
    warn(f"the index is damaged; it is kept as {path.name}.{name}, and a new one is made")


def _is_sound(path: Path) -> bool:
    try:
        connection = sqlite3.connect(path)
        try:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
        finally:
            connection.close()
    except sqlite3.DatabaseError:
        return False


@contextmanager
def _reading(folder: Path) -> Iterator[Callable[[Examined], None]]:
    """A progress bar over the bytes of all kept files."""
    total = 0
    for relative in instance_files(folder):
        try:
            total += (folder / relative).stat().st_size
        except FileNotFoundError:
            continue  # retention was quicker
    columns = (TextColumn("Reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda one: progress.advance(task, one.size_bytes)


def _say_what_is_wrong(found: Checked) -> None:
    _list(
        "Damaged files; 'tritome store rebuild' sets them apart, then send them again",
        [f"{path}: {why}" for path, why in found.damaged],
    )
    _list(
        "Files that the index doesn't know; 'tritome store rebuild' adds them",
        [str(path) for path in found.without_row],
    )
    _list(
        "Files that came to an AE title the index doesn't know of; 'tritome store rebuild' adds it",
        [str(path) for path in found.untold],
    )
    _list(
        "Instances whose file is gone; send their series again",
        [f"series {series_uid}, instance {uid}" for _, uid, series_uid in found.without_file],
    )
    _list(
        "Results whose file is gone; 'tritome jobs retry' makes them again",
        [f"{uid} ({path})" for path, uid in found.results_without_file],
    )
    harmless = len(found.half_written) + len(found.stray_notes) + len(found.results_without_row)
    if harmless:
        out.print(
            f"Harmless: {len(found.half_written)} half-written files (the next start removes "
            f"them), {len(found.stray_notes)} notes without a file, "
            f"{len(found.results_without_row)} results of jobs that did not end with them."
        )


def _list(title: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    out.print(f"[bold red]{len(lines)}[/] {title}:", soft_wrap=True)
    for line in lines[:_SHOWN]:
        out.print(f"  {line}", soft_wrap=True, markup=False)
    if len(lines) > _SHOWN:
        out.print(f"  and {len(lines) - _SHOWN} more")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
