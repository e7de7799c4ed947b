"""The commands that look after a running gateway: jobs, series, route, store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_gateway.records import JobState

_PANEL = "Use"
_CONFIG = Path("gateway.yaml")

jobs_app = typer.Typer(
    no_args_is_help=True,
    help="Look at the gateway's jobs: list, show, watch; start one again, or end it.",
)
series_app = typer.Typer(
    no_args_is_help=True,
    help="What was decided about a series and why; declare one complete by hand.",
)
route_app = typer.Typer(
    no_args_is_help=True, help="Which rule of gateway.yaml takes a series, and why."
)
store_app = typer.Typer(
    no_args_is_help=True,
    help="Look after what the gateway keeps: check it, mend its index, remove what is due.",
)

Config = Annotated[
    Path, typer.Option("--config", "-c", help="The gateway's settings.", metavar="FILE")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Its id, or the beginning of it.")]


def register(app: typer.Typer) -> None:
    """Adds the groups to the command."""
    for name, group in (
        ("jobs", jobs_app),
        ("series", series_app),
        ("route", route_app),
        ("store", store_app),
    ):
        app.add_typer(group, name=name, rich_help_panel=_PANEL)
    app.command(rich_help_panel=_PANEL)(deliveries)


@jobs_app.command("list")
def jobs_list(
    config: Config = _CONFIG,
    state: Annotated[
        list[JobState] | None, typer.Option(help="Only jobs in this state; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
) -> None:
    """List jobs, newest first, and the series that made none.

    Example: [cyan]tritome jobs list --state failed[/]
    """
    from clients.commands.jobs import list_jobs  # noqa: PLC0415

    list_jobs(config, state or [], limit)


@jobs_app.command("show")
def jobs_show(job: JobId, config: Config = _CONFIG) -> None:
    """Tell one job's story, with the time of each stage.

    Example: [cyan]tritome jobs show 3fa9[/]
    """
    from clients.commands.jobs import show  # noqa: PLC0415

    show(config, job)


@jobs_app.command("watch")
def jobs_watch(
    config: Config = _CONFIG,
    every_s: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 1.0,
) -> None:
    """Keep showing the list until Ctrl-C.

    Example: [cyan]tritome jobs watch[/]
    """
    from clients.commands.jobs import watch  # noqa: PLC0415

    watch(config, every_s)


@jobs_app.command("retry")
def jobs_retry(job: JobId, config: Config = _CONFIG) -> None:
    """Start a failed or cancelled job again.

    Example: [cyan]tritome jobs retry 3fa9[/]
    """
    from clients.commands.jobs import retry  # noqa: PLC0415

    retry(config, job)


@jobs_app.command("cancel")
def jobs_cancel(job: JobId, config: Config = _CONFIG) -> None:
    """End a job by hand.

    Example: [cyan]tritome jobs cancel 3fa9[/]
    """
    from clients.commands.jobs import cancel  # noqa: PLC0415

    cancel(config, job)


@store_app.command("check")
def store_check(config: Config = _CONFIG) -> None:
    """Compare every kept file with its digest and with the index.

    It only looks, also beside a running gateway. The exit code is 1 when anything
    acknowledged is missing, damaged or unknown to the index.

    Example: [cyan]tritome store check[/]
    """
    from clients.commands.store import run_check  # noqa: PLC0415

    if not run_check(config):
        raise typer.Exit(1)


@store_app.command("rebuild")
def store_rebuild(config: Config = _CONFIG) -> None:
    """Make the index again from the files, after it was lost or damaged.

    What the index knows already stays. The gateway must be stopped.

    Example: [cyan]tritome store rebuild[/]
    """
    from clients.commands.store import run_rebuild  # noqa: PLC0415

    run_rebuild(config)


@store_app.command("conflicts")
def store_conflicts(config: Config = _CONFIG) -> None:
    """List objects that came with other bytes under a known SOP Instance UID.

    Example: [cyan]tritome store conflicts[/]
    """
    from clients.commands.store import run_conflicts  # noqa: PLC0415

    run_conflicts(config)


@store_app.command("purge")
def store_purge(
    config: Config = _CONFIG,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove now what store.retention in gateway.yaml lets go.

    The running gateway does the same by itself, every few minutes.

    Example: [cyan]tritome store purge --dry-run[/]
    """
    from clients.commands.store import run_purge  # noqa: PLC0415

    run_purge(config, dry_run=dry_run)


def deliveries(
    config: Config = _CONFIG,
    limit: Annotated[int, typer.Option(min=1, help="At most so many lines.")] = 50,
) -> None:
    """Say what still waits to be sent, to whom, and why.

    Example: [cyan]tritome deliveries[/]
    """
    from clients.commands.deliveries import run  # noqa: PLC0415

    run(config, limit)


@series_app.command("show")
def series_show(
    uid: Annotated[str, typer.Argument(metavar="UID", help="Series Instance UID.")],
    config: Config = _CONFIG,
) -> None:
    """Tell what was decided about a series, when and why.

    Example: [cyan]tritome series show 1.2.840.113619.2.55.3[/]
    """
    from clients.commands.series import show  # noqa: PLC0415

    show(config, uid)


@series_app.command("complete")
def series_complete(
    uid: Annotated[str, typer.Argument(metavar="UID", help="Of the series, or of a study.")],
    config: Config = _CONFIG,
    called: Annotated[
        str | None, typer.Option(help="Our AE title, where it was sent to several.")
    ] = None,
) -> None:
    """Declare a series that still waits complete as it is, or a whole study.

    Example: [cyan]tritome series complete 1.2.840.113619.2.55.3[/]
    """
    from clients.commands.series import complete  # noqa: PLC0415

    complete(config, uid, called)


@route_app.command("explain")
def route_explain(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER")],
    config: Config = _CONFIG,
    called: Annotated[str | None, typer.Option(help="Which of our AE titles is called.")] = None,
    calling: Annotated[str, typer.Option(help="The sender's AE title.")] = "TRITOME_SEND",
    show_values: Annotated[
        bool, typer.Option("--show-values", help="Also values that say who the patient is.")
    ] = False,
) -> None:
    """Say which rules take the series in a folder, and why the others don't.

    Needs neither a running gateway nor Triton; nothing is sent.

    Example: [cyan]tritome route explain ~/chest_ct --called LUNG[/]
    """
    from clients.commands.route import explain  # noqa: PLC0415

    explain(folder, config, called=called, calling=calling, show_values=show_values)


@route_app.command("schema")
def route_schema() -> None:
    """Print the JSON Schema of gateway.yaml, for editors that check it.

    Example: [cyan]tritome route schema > gateway.schema.json[/]
    """
    from clients.commands.route import print_schema  # noqa: PLC0415

    print_schema()
