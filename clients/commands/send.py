"""`tritome send`: finds, sends, counts, says what was not taken and why; or watches folders."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from clients.console import out, plain_table, warn
from clients.errors import ClientError, NotAccepted
from clients.found import Found
from clients.send import Outcome, Peer, Report, Search, find_instances, send
from clients.watch import MEMORY_NAME, Memory, Watch, is_final


def run(paths: Sequence[Path], peer: Peer, *, timeout_s: float) -> None:
    """Sends everything under `paths`.

    Raises:
        ClientError: nothing to send.
        NotAccepted: the peer is away, rejects us, or didn't take every object.
    """
    search = find_instances(paths)
    if not search.instances:
        number = len(search.skipped)
        what = f"{number} file(s) of another kind" if number else "nothing"
        msg = f"no DICOM files under {', '.join(map(str, paths))}: there is {what}"
        raise ClientError(msg)
    report = send_showing(search, peer, timeout_s=timeout_s)
    skipped = f", {len(search.skipped)} other file(s) skipped" if search.skipped else ""
    out.print(
        f"{report.accepted} of {len(report.outcomes)} instances accepted by "
        f"{peer.called_ae_title} at {peer.host}:{peer.port}{skipped}.",
        markup=False,
    )
    if report.troubles():
        table = plain_table("Instances", "What the peer said")
        for reason, count in report.troubles():
            table.add_row(str(count), reason)
        out.print(table)
    if not report.complete:
        missing = len(report.outcomes) - report.accepted
        msg = f"{missing} instance(s) were not accepted; the table above says why."
        raise NotAccepted(msg)


def watch(
    folders: Sequence[Path],
    peer: Peer,
    *,
    timeout_s: float,
    memory: Path | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Sends what appears in the folders until Ctrl-C, or until `stop` is set.

    Args:
        folders: Searched to the bottom.
        peer: Whom to send to.
        timeout_s: Patience with each answer.
        memory: Where it is noted what was sent; in the first folder where not given.
        stop: For a caller that has something else to do.

    Raises:
        ClientError: a path is no folder, or the memory can't be read or written.
    """
    name = f"{peer.called_ae_title}@{peer.host}:{peer.port}"
    remembered = Memory(memory or folders[0] / MEMORY_NAME, name)

    def send_some(search: Search) -> list[Found]:
        report = send_showing(search, peer, timeout_s=timeout_s)
        out.print(
            f"{report.accepted} of {len(report.outcomes)} instances accepted by {name}.",
            markup=False,
        )
        for reason, count in report.troubles():
            out.print(f"  {count}: {reason}", markup=False)
        return [one.found for one in report.outcomes if is_final(one.status)]

    told: list[str] = []

    def tell(trouble: NotAccepted) -> None:
        if told[-1:] != [str(trouble)]:  # once for as long as it lasts
            told.append(str(trouble))
            warn(f"{trouble} It will be tried again.")

    looked = Watch(folders, remembered, send_some)
    out.print(f"Watching {', '.join(map(str, folders))} for {name}. Ctrl-C ends it.", markup=False)
    looked.run(stop or threading.Event(), on_trouble=tell)


def send_showing(search: Search, peer: Peer, *, timeout_s: float = 60.0) -> Report:
    """Sends with a progress bar."""
    columns = (TextColumn("Sending"), BarColumn(), MofNCompleteColumn(), TextColumn("instances"))
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("", total=len(search.instances))

        def advance(_: Outcome) -> None:
            progress.advance(task)

        return send(search.instances, peer, on_outcome=advance, timeout_s=timeout_s)
